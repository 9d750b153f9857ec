# SPDX-License-Identifier: Apache-2.0
"""A file of OVMF's variables, and lists of signatures: written from the specifications, not from their reader."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from uuid import UUID

GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
SECURITY = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
ENABLE = UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
NVRAM = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
AUTHENTICATED = UUID("aaf32c78-947b-439a-a180-2e144ec37792")
X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
OWNER = UUID("a0baa8a3-041d-48a8-bc87-c36d121b5e3d")
HEADER = 72  # bytes before the store


def variable(guid: UUID, name: str, data: bytes, *, state: int = 0x3F, start: int = 0x55AA) -> bytes:
    """One AUTHENTICATED_VARIABLE with its name and data, up to where the next one begins."""
    text = (name + "\0").encode("utf-16-le")
    head = struct.pack("<HBBIQ16sIII16s", start, state, 0, 0x27, 0, bytes(16), 0, len(text), len(data), guid.bytes_le)
    whole = head + text + data
    return whole.ljust((len(whole) + 3) // 4 * 4, b"\xff")


def store(variables: Sequence[bytes], *, size: int = 0x8000, volume: UUID = NVRAM, kind: UUID = AUTHENTICATED,
          format_: int = 0x5A, state: int = 0xFE, store_size: int | None = None) -> bytes:  # fmt: skip
    """A firmware volume of `size` bytes with these variables in it."""
    head = (
        bytes(16) + volume.bytes_le + struct.pack("<Q4sIHHHBB", size, b"_FVH", 0x4FEFF, HEADER, 0, 0, 0, 2) + bytes(16)
    )
    inner = struct.pack("<16sIBBHI", kind.bytes_le, store_size or size - HEADER, format_, state, 0, 0)
    return (head + inner + b"".join(variables)).ljust(size, b"\xff")


def enrolled(db: bytes, *, pk: bytes = b"p", enable: bytes = b"\1") -> list[bytes]:
    """The variables of a firmware that has keys."""
    return [
        variable(SECURITY, "db", db),
        variable(SECURITY, "dbx", b"x"),
        variable(GLOBAL, "KEK", b"k"),
        variable(GLOBAL, "PK", pk),
        variable(ENABLE, "SecureBootEnable", enable),
    ]


def signature_list(entries: Sequence[bytes], *, kind: UUID = X509, header: bytes = b"") -> bytes:
    """An EFI_SIGNATURE_LIST with entries of one length."""
    each = 16 + len(entries[0])
    body = header + b"".join(OWNER.bytes_le + entry for entry in entries)
    return kind.bytes_le + struct.pack("<III", 28 + len(body), len(header), each) + body


def certificate_table(signatures: Sequence[bytes], *, kind: int = 2) -> bytes:
    """WIN_CERTIFICATEs, each at a multiple of eight."""
    table = b""
    for signature in signatures:
        entry = struct.pack("<IHH", 8 + len(signature), 0x200, kind) + signature
        table += entry.ljust((len(entry) + 7) // 8 * 8, b"\0")
    return table
