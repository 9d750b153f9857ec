# SPDX-License-Identifier: Apache-2.0
"""Event logs out of any records, the impossible ones too. `tests.fakes.boot` writes what firmware writes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

BANKS = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
NO_ACTION, SEPARATOR, ACTION, TAG, IPL = 3, 4, 5, 6, 13
DRIVER_CONFIG, BOOT_VARIABLE, APPLICATION, EFI_ACTION = 0x80000001, 0x80000002, 0x80000003, 0x80000007
AUTHORITY = 0x800000E0
GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
EXIT, EXITED = b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success"


@dataclass(frozen=True)
class Record:
    """One event. The digest is of `data`, or of `measured` where that is given."""

    pcr: int
    type: int
    data: bytes = b""
    measured: bytes | None = None

    def digest(self, bank: str) -> bytes:
        return hashlib.new(bank, self.data if self.measured is None else self.measured).digest()


def spec_id(banks: Sequence[str], *, major: int = 2, vendor: bytes = b"", sizes: bytes | None = None) -> bytes:
    """The record that lists the banks."""
    listed = b"".join(struct.pack("<HH", BANKS[bank], hashlib.new(bank).digest_size) for bank in banks)
    data = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, major, 0, 2) + struct.pack("<I", len(banks))
    return sha1_record(
        0, NO_ACTION, data + (listed if sizes is None else sizes) + bytes((len(vendor),)) + vendor, bytes(20)
    )


def sha1_record(pcr: int, kind: int, data: bytes, digest: bytes | None = None) -> bytes:
    measured = hashlib.new("sha1", data, usedforsecurity=False).digest() if digest is None else digest
    return struct.pack("<II", pcr, kind) + measured + struct.pack("<I", len(data)) + data


def agile_record(record: Record, banks: Sequence[str]) -> bytes:
    digests = b"".join(struct.pack("<H", BANKS[bank]) + record.digest(bank) for bank in banks)
    head = struct.pack("<III", record.pcr, record.type, len(banks))
    return head + digests + struct.pack("<I", len(record.data)) + record.data


def agile_log(records: Sequence[Record], banks: Sequence[str] = ("sha256",)) -> bytes:
    return spec_id(banks) + b"".join(agile_record(record, banks) for record in records)


def variable(name: str, value: bytes, *, vendor: UUID = GLOBAL) -> bytes:
    """UEFI_VARIABLE_DATA."""
    return vendor.bytes_le + struct.pack("<QQ", len(name), len(value)) + name.encode("utf-16-le") + value


def firmware(secure_boot: bytes = b"\1", *, applications: Sequence[bytes] = (b"loader",)) -> list[Record]:
    """What any UEFI firmware measures, as short as it gets: Secure Boot, separators, applications, ExitBootServices."""
    return [
        Record(0, 8, b"firmware 1.0"),
        Record(7, DRIVER_CONFIG, variable("SecureBoot", secure_boot)),
        Record(7, DRIVER_CONFIG, variable("PK", b"platform key")),
        *(Record(pcr, SEPARATOR, bytes(4)) for pcr in range(8)),
        Record(4, EFI_ACTION, b"Calling EFI Application from Boot Option"),
        *(Record(4, APPLICATION, bytes(32), measured=image) for image in applications),
        Record(5, EFI_ACTION, EXIT),
        Record(5, EFI_ACTION, EXITED),
    ]
