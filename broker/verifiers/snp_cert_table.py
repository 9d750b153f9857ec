# SPDX-License-Identifier: Apache-2.0
"""The certificate table that comes with an extended SEV-SNP report: what the host has installed for its guests.

Entries of 24 bytes (GUID in the order of its printed form, RFC 4122; offset and length, u32 little-endian), ended by 24
zero bytes; then the contents, DER or PEM, at offsets that count from the start. AMD 56421 (GHCB), MSG_REPORT_REQ;
configfs-tsm's auxblob. An empty table, or none, means: no certificates. The checks:

    (1) at most 64 KiB and 16 entries; whole entries up to the end mark, which only an empty blob may lack
    (2) the nil GUID only in the end mark, any other GUID once
    (3) contents behind the header and inside the blob
    (4) contents of a kind that is known are not empty and at most 8 KiB long; other GUIDs are ignored

The host may write what it likes here. Nothing is trusted for standing in the table, so that neither entries that share
bytes nor bytes that no entry names can do harm.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import StrEnum
from uuid import UUID

from keys.errors import ProtocolError

MAX_TABLE_BYTES = 64 * 1024
MAX_ENTRIES = 16
MAX_CERTIFICATE_BYTES = 8 * 1024  # of one certificate or list, DER or PEM

_ENTRY = struct.Struct("<16sII")  # GUID, offset, length
_NIL = UUID(int=0)


class CertificateKind(StrEnum):
    """What a certificate claims to be by where it stands. `ASK` stands for ASVK too, as in AMD's table."""

    VCEK = "vcek"
    VLEK = "vlek"
    ASK = "ask"
    ARK = "ark"
    CRL = "crl"


GUIDS: Mapping[UUID, CertificateKind] = {
    UUID("63da758d-e664-4564-adc5-f4b93be8accd"): CertificateKind.VCEK,
    UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): CertificateKind.VLEK,
    UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"): CertificateKind.ASK,
    UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"): CertificateKind.ARK,
    UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea"): CertificateKind.CRL,
}


def parse_cert_table(blob: bytes) -> dict[CertificateKind, bytes]:
    """The contents of known kinds, checks (1) to (4). Raises ProtocolError."""
    return {GUIDS[guid]: checked(GUIDS[guid], data) for guid, data in entries(blob) if guid in GUIDS}


def entries(blob: bytes) -> list[tuple[UUID, bytes]]:
    """All entries in their order, also of unknown GUIDs, checks (1) to (3). Raises ProtocolError."""
    if len(blob) > MAX_TABLE_BYTES:
        raise _error("is too long", expected=f"at most {MAX_TABLE_BYTES} bytes", found=str(len(blob)))
    if not blob:
        return []
    places = _header(blob)
    behind = (len(places) + 1) * _ENTRY.size
    for guid, offset, length in places:  # Python's integers: offset + length cannot wrap around
        if offset < behind or offset + length > len(blob):
            raise _error(
                "has an entry whose contents are elsewhere",
                expected=f"bytes {behind} to {len(blob)}",
                found=f"{guid}: {offset} to {offset + length}",
            )
    return [(guid, blob[offset : offset + length]) for guid, offset, length in places]


def checked(kind: CertificateKind, data: bytes) -> bytes:
    """`data` if its length is one that a certificate can have, check (4). Raises ProtocolError."""
    if not 0 < len(data) <= MAX_CERTIFICATE_BYTES:
        raise ProtocolError(
            f"the {kind.name} has a wrong length", expected=f"1 to {MAX_CERTIFICATE_BYTES} bytes", found=str(len(data))
        )
    return data


def _header(blob: bytes) -> list[tuple[UUID, int, int]]:
    places: dict[UUID, tuple[int, int]] = {}
    for at in range(0, (MAX_ENTRIES + 1) * _ENTRY.size, _ENTRY.size):
        if at + _ENTRY.size > len(blob):
            raise _error("has no end mark", expected=f"{_ENTRY.size} zero bytes behind the last entry")
        raw, offset, length = _ENTRY.unpack_from(blob, at)
        guid = UUID(bytes=raw)
        if guid == _NIL:
            if offset or length:  # one reader would stop here, another one go on
                raise _error("has an entry without a GUID", found=f"entry {len(places)}")
            return [(guid, *place) for guid, place in places.items()]
        if guid in places:
            raise _error("has two entries of one GUID", found=str(guid))
        places[guid] = (offset, length)
    raise _error("has too many entries", expected=f"at most {MAX_ENTRIES}")


def _error(what: str, *, expected: str | None = None, found: str | None = None) -> ProtocolError:
    return ProtocolError(f"the certificate table {what}", expected=expected, found=found)
