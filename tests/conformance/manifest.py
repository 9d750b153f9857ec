# SPDX-License-Identifier: Apache-2.0
"""One folder of recorded evidence: its manifest, its files, and the mutations that derive bad evidence from good."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Content = bytes | list[bytes] | dict[str, bytes]
Section = Callable[[Any], list[dict[str, Any]]]  # the entries in one member of a manifest that is an object
DEFAULT_TARGET = "report"  # of a mutation that names no file (vectors/snp, "semantics")
EITHER = frozenset(("vcek", "vlek"))  # a report has one signer: to bring the one is to leave out the other


class BadEntryError(Exception):
    """The entry itself makes no sense: an unknown operation, a missing file, an offset outside a file."""


@dataclass(frozen=True)
class Case:
    """One entry, ready to be judged. `files` are contents after the mutations, `origin` is the entry that it is derived
    from in the end (itself, if it is not), `verify_at` the time of the judgement where one is recorded.
    """

    name: str
    kind: str
    files: Mapping[str, Content]
    claims: Mapping[str, Any]
    entry: Mapping[str, Any]
    origin: Mapping[str, Any]
    verify_at: str | None

    @property
    def at(self) -> datetime:
        return instant(self.verify_at)

    def bytes(self, key: str) -> bytes:
        content = self.files.get(key)
        if not isinstance(content, bytes):
            raise BadEntryError(f"no single file {key!r}")
        return content

    def json(self, key: str) -> Any:
        try:
            return json.loads(self.bytes(key))
        except ValueError as error:
            raise BadEntryError(f"file {key!r} is not JSON") from error


def instant(text: object) -> datetime:
    """A recorded time, like 2025-06-01T00:00:00Z. Raises BadEntryError."""
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError as error:
        raise BadEntryError(f"{text!r} is no time") from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)


class Folder:
    """A folder with a manifest.json, whatever its layout: a list of entries, or an object that holds such lists.

    `sections` make entries of the members of such an object that are something else.
    """

    def __init__(self, path: Path, sections: Mapping[str, Section] | None = None) -> None:
        self.path = path
        manifest = json.loads((path / "manifest.json").read_text("utf-8"))
        members = {"": manifest} if isinstance(manifest, list) else manifest
        lists = [sections[name](value) if sections and name in sections else value for name, value in members.items()]
        self.entries = [
            entry for entries in lists if isinstance(entries, list) for entry in entries if isinstance(entry, dict)
        ]
        self._by_name = {str(entry.get("name")): entry for entry in self.entries}

    def origin(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """The entry that `entry` is derived from in the end; itself if it is not derived. Raises BadEntryError."""
        return self._ancestors(entry)[-1]

    def case(self, entry: Mapping[str, Any]) -> Case:
        """The entry with its files and mutations. Raises BadEntryError."""
        steps = self._ancestors(entry)[::-1]
        origin = steps[0]
        files = {key: self._read(value) for key, value in origin.get("files", {}).items()}
        claims = copy.deepcopy(origin.get("claims") or {})
        verify_at = origin.get("verify_at")
        for step in steps:
            operations = step.get("mutation", [])
            for operation in operations if isinstance(operations, list) else [operations]:
                if isinstance(operation, dict) and "op" not in operation:
                    self._change(operation, files, str(step.get("target", DEFAULT_TARGET)))
                    verify_at = operation.get("verify_at", verify_at)
                else:
                    self._apply(operation, files, claims)
        kind = str(entry.get("kind", origin.get("kind")))
        return Case(str(entry.get("name")), kind, files, claims, entry, origin, verify_at)

    def _ancestors(self, entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The entry, its base, its base's base, ..."""
        chain = [entry]
        while "base" in chain[-1]:
            base = self._by_name.get(str(chain[-1]["base"]))
            if base is None or base in chain:
                raise BadEntryError(f"no base {chain[-1]['base']!r}")
            chain.append(base)
        return chain

    def _read(self, value: object) -> Content:
        if isinstance(value, list):
            return [self._file(item) for item in value]
        if isinstance(value, dict):
            return {key: self._file(item) for key, item in value.items()}
        return self._file(value)

    def _file(self, name: object) -> bytes:
        path = self.path / str(name)
        if not path.resolve().is_relative_to(self.path.resolve()) or not path.is_file():
            raise BadEntryError(f"no file {name!r}")
        return path.read_bytes()

    def _apply(self, operation: Any, files: dict[str, Content], claims: dict[str, Any]) -> None:
        try:
            if operation["op"] == "claim":
                claims[operation["key"]] = operation["value"]
                return
            key = operation["file"]
            holder: Any = next(
                (held for held in (files, *files.values()) if isinstance(held, dict) and key in held), None
            )
            if holder is None:
                raise BadEntryError(f"mutation of a file that the base has not: {key!r}")
            if operation["op"] == "swap_file":
                holder[key] = self._read(operation["with"])
                return
            if not isinstance(holder[key], bytes):
                raise BadEntryError(f"mutation of {key!r}, which is not a single file")
            holder[key] = _mutate(operation, holder[key])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadEntryError(f"mutation makes no sense: {operation!r:.120} ({error!r:.80})") from error

    def _change(self, operation: Mapping[str, Any], files: dict[str, Content], target: str) -> None:
        """The shorter form: {replace}, or of one file {offset, xor}, {truncate}, {append}; also several together."""
        try:
            if not operation or operation.keys() - _SHORT:
                raise BadEntryError(f"mutation makes no sense: {operation!r:.120}")
            for key, path in operation.get("replace", {}).items():
                for other in EITHER - {key} if key in EITHER else ():
                    files.pop(other, None)
                files[key] = self._read(path)
            key = operation.get("target", target)
            if operation.keys() - {"target", "replace", "verify_at"}:
                content = files.get(key)
                if not isinstance(content, bytes):
                    raise BadEntryError(f"mutation of {key!r}, which is not a single file of the base")
                files[key] = _shorten(operation, content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadEntryError(f"mutation makes no sense: {operation!r:.120} ({error!r:.80})") from error


_SHORT = frozenset(("target", "offset", "xor", "truncate", "append", "replace", "verify_at"))


def _shorten(operation: Mapping[str, Any], content: bytes) -> bytes:
    if "xor" in operation or "offset" in operation:
        content = _mutate({"op": "xor", "offset": operation["offset"], "mask": operation["xor"]}, content)
    if "truncate" in operation:  # here it says how many bytes stay
        content = _mutate({"op": "truncate", "bytes": len(content) - operation["truncate"]}, content)
    if "append" in operation:
        content = _mutate({"op": "append", "hex": operation["append"]}, content)
    return content


def _mutate(operation: Mapping[str, Any], content: bytes) -> bytes:
    name = operation["op"]
    if name in {"xor", "set"}:
        change = bytes.fromhex(operation["mask" if name == "xor" else "hex"])
        start = operation["offset"] + (len(content) if operation["offset"] < 0 else 0)
        end = start + len(change)
        if not 0 <= start <= end <= len(content) or not change:
            raise BadEntryError(f"mutation outside the file: offset {operation['offset']} of {len(content)} bytes")
        if name == "xor":
            change = bytes(a ^ b for a, b in zip(content[start:end], change, strict=True))
        return content[:start] + change + content[end:]
    if name == "truncate":
        if not 0 <= operation["bytes"] <= len(content):
            raise BadEntryError(f"mutation drops {operation['bytes']} of {len(content)} bytes")
        return content[: len(content) - operation["bytes"]]
    if name == "append":
        return content + bytes.fromhex(operation["hex"])
    if name in {"json_set", "json_del"}:
        value = json.loads(content)
        *way, last = operation["path"]
        holder = value
        for step in way:
            holder = holder[step]
        if name == "json_set":
            holder[last] = operation["value"]
        else:
            del holder[last]
        return json.dumps(value).encode()
    raise BadEntryError(f"unknown mutation {name!r}")
