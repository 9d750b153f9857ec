# SPDX-License-Identifier: Apache-2.0
"""The Authenticode digest of a PE file: what UEFI firmware measures of an application before it starts it.

Source: Microsoft, Windows Authenticode Portable Executable Signature Format (2008), "Calculating the PE Image Hash".
The checksum, the directory entry of the certificate table and that table itself are left out: signing changes nothing.
"""

from __future__ import annotations

import hashlib

from keys.errors import ConfigError

MAX_SECTIONS = 96  # Microsoft, PE Format: COFF File Header

_CERTIFICATES = {0x10B: 128, 0x20B: 144}  # magic of the optional header -> where it has that table's entry


def authenticode(data: bytes, bank: str) -> bytes:
    """The digest by the algorithm `bank` of the PE file `data`. Raises ConfigError."""
    pe = _uint(data, 0x3C, 4)
    if data[:2] != b"MZ" or data[pe : pe + 4] != b"PE\0\0":
        raise _unusable("no PE file")
    sections, optional_bytes, optional = _uint(data, pe + 6, 2), _uint(data, pe + 20, 2), pe + 24
    entry = _CERTIFICATES.get(_uint(data, optional, 2))
    if entry is None or optional_bytes < entry + 8 or sections > MAX_SECTIONS:
        raise _unusable("a PE header of another kind")
    entry += optional
    headers, checksum = _uint(data, optional + 60, 4), optional + 64
    table = optional + optional_bytes
    if not table + 40 * sections <= headers <= len(data):
        raise _unusable("the headers do not end where they say")
    at, size = _uint(data, entry, 4), _uint(data, entry + 4, 4)
    if size and at + size != len(data):
        raise _unusable("the certificate table is not at the end")
    end = len(data) - size
    digest = hashlib.new(bank, data[:checksum] + data[checksum + 4 : entry] + data[entry + 8 : headers])
    done = headers
    for start, length in sorted(
        (_uint(data, table + 40 * index + 20, 4), _uint(data, table + 40 * index + 16, 4)) for index in range(sections)
    ):
        if not length:
            continue
        if start < done or start + length > end:  # firmware would count the same bytes twice, or leave some out
            raise _unusable("sections that overlap, or reach over the end")
        digest.update(data[start : start + length])
        done += length
    digest.update(data[done:end])
    return digest.digest()


def sections(data: bytes) -> dict[str, bytes]:
    """Name -> content of each section, as it is in memory. Raises ConfigError; also where two have one name."""
    authenticode(data, "sha256")  # every number that is read here has been checked there
    pe = _uint(data, 0x3C, 4)
    table = pe + 24 + _uint(data, pe + 20, 2)
    found: dict[str, bytes] = {}
    for at in range(table, table + 40 * _uint(data, pe + 6, 2), 40):
        name = data[at : at + 8].rstrip(b"\0").decode("ascii", "replace")
        used, stored, start = (_uint(data, at + offset, 4) for offset in (8, 16, 20))
        if name in found:
            raise _unusable(f"two sections named {name}")
        found[name] = data[start : start + min(used, stored)]
    return found


def certificate_table(data: bytes) -> bytes:
    """The table of signatures at the end of the file, empty where it is not signed. Raises ConfigError."""
    authenticode(data, "sha256")
    optional = _uint(data, 0x3C, 4) + 24
    entry = optional + _CERTIFICATES[_uint(data, optional, 2)]
    at, size = _uint(data, entry, 4), _uint(data, entry + 4, 4)
    return data[at : at + size]


def _uint(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise _unusable("it ends too early")
    return int.from_bytes(data[at : at + size], "little")


def _unusable(why: str) -> ConfigError:
    return ConfigError("this is nothing that UEFI firmware starts", found=why, mend="name a kernel with EFI stub")
