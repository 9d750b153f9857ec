# SPDX-License-Identifier: Apache-2.0
"""PE files as small as can be, and a Linux kernel that is one: headers right, contents of no use."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

PE = 0x40
OPTIONAL = PE + 24
OPTIONAL_BYTES = 0xA0
TABLE = OPTIONAL + OPTIONAL_BYTES
HEADERS = 0x400  # bytes of all headers
CHECKSUM = OPTIONAL + 64
CERTIFICATES = OPTIONAL + 144  # its directory entry, in PE32+


def pe(
    sections: Sequence[tuple[int, int]] = ((0x400, 0x200), (0x600, 0x100)),
    *,
    size: int = 0x800,
    magic: int = 0x20B,
    optional_bytes: int = OPTIONAL_BYTES,
    headers: int = HEADERS,
    signature: bytes = b"",
    named: Sequence[str] = (),
) -> bytes:
    """A PE file. `sections`: (where in the file, bytes). `signature`: a certificate table, at the end. `named`: what
    the first sections are called.
    """
    data = bytearray(at * 7 % 251 for at in range(size))
    data[: TABLE + 40 * len(sections)] = bytes(TABLE + 40 * len(sections))
    data[:2] = b"MZ"
    data[0x3C:0x40] = PE.to_bytes(4, "little")
    data[PE:OPTIONAL] = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, len(sections), 0, 0, 0, optional_bytes, 0)
    data[OPTIONAL : OPTIONAL + 2] = magic.to_bytes(2, "little")
    data[OPTIONAL + 60 : OPTIONAL + 64] = headers.to_bytes(4, "little")
    for index, (start, length) in enumerate(sections):
        at = TABLE + 40 * index
        name = named[index] if index < len(named) else f".s{index}"
        data[at : at + 8] = name.encode().ljust(8, b"\0")
        data[at + 8 : at + 24] = struct.pack("<IIII", length, 0, length, start)
    if signature:
        data[CERTIFICATES : CERTIFICATES + 8] = struct.pack("<II", len(data), len(signature))
    return bytes(data) + signature


def kernel(*, protocol: int = 0x20F, flags: int = 0x3F, limit: int = 0x7FFFFFFF) -> bytes:
    """A PE file with a Linux setup header between its headers and its first section."""
    data = bytearray(pe())
    data[0x202:0x208] = b"HdrS" + protocol.to_bytes(2, "little")
    data[0x210:0x22C] = bytes(0x1C)
    data[0x22C:0x230] = limit.to_bytes(4, "little")
    data[0x236:0x238] = flags.to_bytes(2, "little")
    return bytes(data)


def uki(contents: Mapping[str, bytes]) -> bytes:
    """A unified kernel image with these sections, each padded in the file and not in memory."""
    places, at = [], HEADERS
    for data in contents.values():
        places.append((at, (len(data) + 0x1FF) // 0x200 * 0x200))
        at += places[-1][1]
    image = bytearray(pe(places, size=at, named=tuple(contents)))
    for index, ((start, stored), data) in enumerate(zip(places, contents.values(), strict=True)):
        image[start : start + stored] = data.ljust(stored, b"\0")
        image[TABLE + 40 * index + 8 : TABLE + 40 * index + 12] = len(data).to_bytes(4, "little")
    return bytes(image)
