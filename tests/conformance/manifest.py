# SPDX-License-Identifier: Apache-2.0
"""One folder of recorded evidence: its manifest, its files, and the mutations that derive bad evidence from good."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Content = bytes | list[bytes] | dict[str, bytes]


class BadEntryError(Exception):
    """The entry itself makes no sense: an unknown operation, a missing file, an offset outside a file."""


@dataclass(frozen=True)
class Case:
    """One entry, ready to be judged. `files` are contents after the mutations."""

    name: str
    kind: str
    files: Mapping[str, Content]
    claims: Mapping[str, Any]
    entry: Mapping[str, Any]

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


class Folder:
    """A folder with a manifest.json, whatever its layout: a list of entries, or an object that holds such lists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        manifest = json.loads((path / "manifest.json").read_text("utf-8"))
        lists = [manifest] if isinstance(manifest, list) else [v for v in manifest.values() if isinstance(v, list)]
        self.entries = [entry for entries in lists for entry in entries if isinstance(entry, dict)]
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
        for step in steps:
            operations = step.get("mutation", [])
            for operation in operations if isinstance(operations, list) else [operations]:
                self._apply(operation, files, claims)
        return Case(str(entry.get("name")), str(origin.get("kind")), files, claims, entry)

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
