# SPDX-License-Identifier: Apache-2.0
"""SEV-SNP reports and certificate tables as bytes, without keys: for tests of readers.

The offsets are written down here once more, from AMD 56860, table 22, so that a reader's mistake is not shared.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any
from uuid import UUID

REPORT_BYTES = 1184
CPUIDS = {"Milan": (0x19, 0x01, 0x01), "Genoa": (0x19, 0x11, 0x01), "Turin": (0x1A, 0x02, 0x01)}
TCB_PLACES = {
    "Milan": {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    "Genoa": {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    "Turin": {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
}
GUIDS = {
    "vcek": UUID("63da758d-e664-4564-adc5-f4b93be8accd"),
    "vlek": UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"),
    "ask": UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"),
    "ark": UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"),
    "crl": UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea"),
}


def changed(report: bytes, at: int, value: bytes) -> bytes:
    """`report` with `value` from byte `at` on."""
    return report[:at] + value + report[at + len(value) :]


def flipped(report: bytes, at: int, mask: int = 1) -> bytes:
    """`report` with bits of one byte flipped."""
    return changed(report, at, bytes((report[at] ^ mask,)))


def blank_report(version: int = 3, line: str = "Genoa") -> bytes:
    """A report in which every field can be told from every other; its signature is well-formed and nobody's.

    Version 2 knows no Turin.
    """
    report = bytearray(REPORT_BYTES)

    def put(at: int, size: int, start: int) -> None:
        report[at : at + size] = bytes((start + i) & 0xFF for i in range(size))

    struct.pack_into("<IIQ", report, 0x00, version, 0x01020304, 0x3001F)
    put(0x10, 16, 1)
    put(0x20, 16, 40)
    struct.pack_into("<III", report, 0x30, 2, 1, 0)
    struct.pack_into("<I", report, 0x34, 1)
    struct.pack_into("<QI", report, 0x40, 0x27, 1)
    put(0x50, 64, 2)
    put(0x90, 48, 3)
    put(0xC0, 32, 4)
    put(0xE0, 48, 5)
    put(0x110, 48, 6)
    put(0x140, 32, 7)
    put(0x160, 32, 8)
    for number, at in enumerate((0x38, 0x180, 0x1E0, 0x1F0)):
        for place, byte in enumerate(TCB_PLACES[line].values()):
            report[at + byte] = 10 * number + place + 1
    if version >= 3:
        report[0x188:0x18B] = bytes(CPUIDS[line])
    put(0x1A0, 8 if line == "Turin" else 64, 9)
    report[0x1E8:0x1EB] = bytes((40, 55, 1))
    report[0x1EC:0x1EF] = bytes((39, 54, 2))
    if version >= 5:
        struct.pack_into("<QQ", report, 0x1F8, 0xB, 0x3F)
    put(0x2A0, 48, 100)
    put(0x2E8, 48, 200)
    report[0x2A0 + 47] = report[0x2E8 + 47] = 0x7F  # below the curve's order
    return bytes(report)


def kbs_json(report: bytes, chain: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """`report` as the sev crate and so a stock KBS guest writes it; `chain` is `cert_chain`."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(report[at : at + size], "little")

    def octets(at: int, size: int) -> list[int]:
        return list(report[at : at + size])

    version = number(0x00, 4)
    turin = version >= 3 and report[0x188] == 0x1A
    places = TCB_PLACES["Turin" if turin else "Milan"]

    def tcb(at: int) -> dict[str, int | None]:
        return {"fmc": None, **{name: report[at + place] for name, place in places.items()}}

    def firmware(at: int) -> dict[str, int]:
        return {"major": report[at + 2], "minor": report[at + 1], "build": report[at]}

    return {
        "attestation_report": {
            "version": version,
            "guest_svn": number(0x04, 4),
            "policy": number(0x08, 8),
            "family_id": octets(0x10, 16),
            "image_id": octets(0x20, 16),
            "vmpl": number(0x30, 4),
            "sig_algo": number(0x34, 4),
            "current_tcb": tcb(0x38),
            "plat_info": number(0x40, 8),
            "key_info": number(0x48, 4),
            "report_data": octets(0x50, 64),
            "measurement": octets(0x90, 48),
            "host_data": octets(0xC0, 32),
            "id_key_digest": octets(0xE0, 48),
            "author_key_digest": octets(0x110, 48),
            "report_id": octets(0x140, 32),
            "report_id_ma": octets(0x160, 32),
            "reported_tcb": tcb(0x180),
            "cpuid_fam_id": report[0x188] if version >= 3 else None,
            "cpuid_mod_id": report[0x189] if version >= 3 else None,
            "cpuid_step": report[0x18A] if version >= 3 else None,
            "chip_id": octets(0x1A0, 64),
            "committed_tcb": tcb(0x1E0),
            "current": firmware(0x1E8),
            "committed": firmware(0x1EC),
            "launch_tcb": tcb(0x1F0),
            "launch_mit_vector": number(0x1F8, 8) if version >= 5 else None,
            "current_mit_vector": number(0x200, 8) if version >= 5 else None,
            "signature": {"r": octets(0x2A0, 72), "s": octets(0x2E8, 72)},
        },
        "cert_chain": chain,
    }


def chain_entry(kind: str, data: bytes) -> dict[str, Any]:
    return {"cert_type": kind.upper(), "data": list(data)}


def cert_table(contents: Iterable[tuple[UUID, bytes]], *, padding: int = 0) -> bytes:
    """The GUID table with `contents` behind its header, one behind the other, and `padding` zero bytes."""
    contents = list(contents)
    header, data = b"", b""
    behind = 24 * (len(contents) + 1)
    for guid, content in contents:
        header += guid.bytes + struct.pack("<II", behind + len(data), len(content))
        data += content
    return header + bytes(24) + data + bytes(padding)
