# SPDX-License-Identifier: Apache-2.0
"""Endorsements on their way to a broker without a network: one JSON file.

    {"roomkey-endorsements": 1, "endorsements": [{"name": "amd/vcek/v1/...", "data": b64 DER}, ...]}

A bundle vouches for nothing: whoever imports it verifies every entry.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.store.protocols import StoredEndorsement
from keys import b64, strictjson
from keys.errors import ProtocolError

VERSION = 1
MAX_BUNDLE_BYTES = 32 * 1024 * 1024
MAX_ENTRIES = 8192
MAX_NAME_CHARS = 512
MAX_DATA_BYTES = 64 * 1024  # of one entry

_FORMAT = "roomkey-endorsements"
_MEMBERS = frozenset((_FORMAT, "endorsements"))
_ENTRY = frozenset(("name", "data"))


def is_bundle(data: bytes) -> bool:
    """Whether `data` can only be meant as a bundle: no DER and no PEM begins like JSON."""
    return data.lstrip()[:1] == b"{"


def write_bundle(endorsements: Iterable[StoredEndorsement]) -> bytes:
    entries = [{"name": one.name, "data": b64.std(one.data)} for one in endorsements]
    return strictjson.compact({_FORMAT: VERSION, "endorsements": entries}) + b"\n"


def read_bundle(data: bytes) -> list[tuple[str, bytes]]:
    """Names and bytes, in order, trusted for nothing. Raises ProtocolError."""
    value = strictjson.loads(data, name="the bundle", max_bytes=MAX_BUNDLE_BYTES)
    bundle = strictjson.members(value, name="the bundle", required=_MEMBERS)
    if bundle[_FORMAT] != VERSION or isinstance(bundle[_FORMAT], bool):
        raise ProtocolError("the bundle has another version", expected=str(VERSION), found=str(bundle[_FORMAT])[:64])
    entries = bundle["endorsements"]
    if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
        raise ProtocolError("the bundle's endorsements must be a list", expected=f"at most {MAX_ENTRIES} entries")
    return [_entry(entry) for entry in entries]


def _entry(value: object) -> tuple[str, bytes]:
    entry = strictjson.members(value, name="an entry of the bundle", required=_ENTRY)
    name = strictjson.string(entry["name"], name="an entry's name", max_chars=MAX_NAME_CHARS)
    return name, b64.from_std(entry["data"], name="an entry's data", max_bytes=MAX_DATA_BYTES)
