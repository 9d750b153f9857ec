# SPDX-License-Identifier: Apache-2.0
"""AMD SEV-SNP ATTESTATION_REPORT: its 1184 bytes taken apart, strictly. Nothing about who signed it is decided here.

AMD 56860, SEV Secure Nested Paging Firmware ABI, table 22 (ATTESTATION_REPORT), table 10 (guest policy), chapter 2
(TCB_VERSION). All integers are little-endian. The checks:

    (1) exactly 1184 bytes, VERSION 2 to 5, SIGNATURE_ALGO 1 (ECDSA P-384 with SHA-384)
    (2) KEY_INFO names a key that signs (VCEK or VLEK), MASK_CHIP_KEY is clear, reserved bits are zero
    (3) POLICY has bit 17 set and bits 63:26 clear
    (4) what this version reserves is zero, also behind the signature, where the signature does not reach
    (5) R and S are in [1, n-1]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from keys.errors import VerificationError

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0  # from the start
REPORT_DATA = slice(0x50, 0x90)
CHIP_ID_BYTES = 64
VERSIONS = range(2, 6)
ECDSA_P384_SHA384 = 1
P384_ORDER = int("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16)

# Bits of POLICY (table 10); the first 16 are the minimum ABI version.
POLICY_BITS: Mapping[str, int] = {
    "smt_allowed": 16,
    "migrate_ma": 18,
    "debug_allowed": 19,
    "single_socket": 20,
    "cxl_allowed": 21,
    "mem_aes_256_xts": 22,
    "rapl_dis": 23,
    "ciphertext_hiding_dram": 24,
    "page_swap_disable": 25,
}
# Bits of PLATFORM_INFO (table 23). Bit 6 is reserved and set on real Turin machines: unknown bits mean nothing here.
PLATFORM_BITS: Mapping[str, int] = {
    "smt_enabled": 0,
    "tsme_enabled": 1,
    "ecc_enabled": 2,
    "rapl_disabled": 3,
    "ciphertext_hiding_enabled": 4,
    "alias_check_complete": 5,
    "tio_enabled": 7,
}

_POLICY_RESERVED_ONE = 1 << 17
_POLICY_KNOWN = (1 << 26) - 1
_RESERVED = {  # (first byte, end) that must be zero, by VERSION
    2: ((0x4C, 0x50), (0x188, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x1F8, 0x2A0)),
    3: ((0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x1F8, 0x2A0)),
    4: ((0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x1F8, 0x2A0)),
    5: ((0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, 0x2A0)),
}
_SIGNATURE_PADDING = ((0x2D0, 0x2E8), (0x318, 0x330), (0x330, 0x4A0))


class Line(StrEnum):
    """A product line, named as AMD's key distribution service (KDS) names it: what one ARK vouches for."""

    MILAN = "Milan"
    GENOA = "Genoa"  # also Bergamo and Siena
    TURIN = "Turin"


class SigningKey(StrEnum):
    """What kind of key signed: the chip's own, or one that a cloud provider loaded."""

    VCEK = "vcek"
    VLEK = "vlek"


_SIGNING_KEYS = {0: SigningKey.VCEK, 1: SigningKey.VLEK}
_MODELS = (  # CPUID family, models, line
    (0x19, range(0x10), Line.MILAN),
    (0x19, range(0x10, 0x20), Line.GENOA),
    (0x19, range(0xA0, 0xB0), Line.GENOA),
    (0x1A, range(0x12), Line.TURIN),
)
TCB_LAYOUT: Mapping[Line, Mapping[str, int]] = {  # byte of each component, in the order in which people read them
    Line.MILAN: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    Line.GENOA: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    Line.TURIN: {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
}


class Version(NamedTuple):
    """A firmware's version. Compares as versions do."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True)
class Report:
    """An ATTESTATION_REPORT under AMD's field names, as it stands: `*_tcb` are 8 bytes whose layout `tcb` knows,
    digests and ids are bytes. `cpuid` is (family, model, stepping), None in version 2; the mitigation vectors are None
    before version 5. `raw` is all of it, `signed` what the signature covers.
    """

    raw: bytes
    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform_info: int
    author_key_en: bool
    signing_key: SigningKey
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    current_version: Version
    committed_version: Version
    launch_tcb: bytes
    launch_mit_vector: int | None
    current_mit_vector: int | None
    r: int
    s: int

    @property
    def signed(self) -> bytes:
        return self.raw[:SIGNED_BYTES]


def parse_report(raw: bytes) -> Report:
    """The report in `raw`, checks (1) to (5). Raises VerificationError."""
    # (1) first, so that no field is read beyond the end
    if len(raw) != REPORT_BYTES:
        raise VerificationError("the report has another length", expected=f"{REPORT_BYTES} bytes", found=str(len(raw)))
    version, algorithm, key_info = _u32(raw, 0x00), _u32(raw, 0x34), _u32(raw, 0x48)
    if version not in VERSIONS:
        raise VerificationError("the report has an unknown version", expected="2 to 5", found=str(version))
    if algorithm != ECDSA_P384_SHA384:
        raise VerificationError("the report's SIGNATURE_ALGO is unknown", expected="1", found=str(algorithm))
    # (2) 7 means unsigned, the others are reserved; with MASK_CHIP_KEY the firmware writes zeros for a signature
    if key_info >> 5:
        raise VerificationError("the report's KEY_INFO has reserved bits set", found=f"{key_info:#x}")
    signing_key = _SIGNING_KEYS.get(key_info >> 2 & 0b111)
    if signing_key is None or key_info & 0b10:
        raise VerificationError("the report is not signed by a VCEK or VLEK", found=f"KEY_INFO {key_info:#x}")
    # (3) bit 17 is reserved and one
    policy = _u64(raw, 0x08)
    if not policy & _POLICY_RESERVED_ONE or policy & ~_POLICY_KNOWN:
        raise VerificationError("the report's POLICY has reserved bits wrong", found=f"{policy:#x}")
    # (4) the tail is outside the signature: only this keeps a report from carrying anything else
    for first, end in (*_RESERVED[version], *_SIGNATURE_PADDING):
        if any(raw[first:end]):
            raise VerificationError("a reserved part of the report is not zero", found=f"bytes {first:#x} to {end:#x}")
    # (5) and so the 24 bytes above each are padding
    r, s = (int.from_bytes(raw[at : at + 48], "little") for at in (0x2A0, 0x2E8))
    if not (0 < r < P384_ORDER and 0 < s < P384_ORDER):
        raise VerificationError("the report's signature is out of range", expected="r and s in 1 to n-1")
    return Report(
        raw=raw,
        version=version,
        guest_svn=_u32(raw, 0x04),
        policy=policy,
        family_id=raw[0x10:0x20],
        image_id=raw[0x20:0x30],
        vmpl=_u32(raw, 0x30),
        current_tcb=raw[0x38:0x40],
        platform_info=_u64(raw, 0x40),
        author_key_en=bool(key_info & 1),
        signing_key=signing_key,
        report_data=raw[REPORT_DATA],
        measurement=raw[0x90:0xC0],
        host_data=raw[0xC0:0xE0],
        id_key_digest=raw[0xE0:0x110],
        author_key_digest=raw[0x110:0x140],
        report_id=raw[0x140:0x160],
        report_id_ma=raw[0x160:0x180],
        reported_tcb=raw[0x180:0x188],
        cpuid=None if version == 2 else (raw[0x188], raw[0x189], raw[0x18A]),
        chip_id=raw[0x1A0:0x1E0],
        committed_tcb=raw[0x1E0:0x1E8],
        current_version=Version(raw[0x1EA], raw[0x1E9], raw[0x1E8]),
        committed_version=Version(raw[0x1EE], raw[0x1ED], raw[0x1EC]),
        launch_tcb=raw[0x1F0:0x1F8],
        launch_mit_vector=_u64(raw, 0x1F8) if version >= 5 else None,
        current_mit_vector=_u64(raw, 0x200) if version >= 5 else None,
        r=r,
        s=s,
    )


def line_of(cpuid: tuple[int, int, int]) -> Line:
    """The product line of a processor. Raises VerificationError for one that is not known."""
    family, model, _ = cpuid
    for known, models, line in _MODELS:
        if family == known and model in models:
            return line
    raise VerificationError("the report is from an unknown processor", found=f"family {family:#x}, model {model:#x}")


def tcb(raw: bytes, line: Line) -> dict[str, int]:
    """The components of a TCB_VERSION, whose places depend on the line and not on the report's version."""
    return {name: raw[place] for name, place in TCB_LAYOUT[line].items()}


def tcb_reserved_is_zero(raw: bytes, line: Line) -> bool:
    """Whether the bytes of a TCB_VERSION that have no meaning on this line are zero."""
    return not any(byte for place, byte in enumerate(raw) if place not in TCB_LAYOUT[line].values())


def _u32(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 4], "little")


def _u64(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 8], "little")
