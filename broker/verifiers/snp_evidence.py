# SPDX-License-Identifier: Apache-2.0
"""SEV-SNP evidence as JSON, in the three forms that guests send. Shapes only; nothing is judged here.

    {"attestation_report": {...}, "cert_chain"?: null or [{"cert_type", "data"}]}   stock KBS guests: the report's
                                      fields as the sev crate (virtee/sev) writes them, bytes as lists of numbers
    {"report", "cert_table"?}         /dev/sev-guest: the report and the host's certificate table
    {"outblob", "auxblob"?, "provider"?, "manifestblob"?}                           configfs-tsm: the same two

Bytes of the second and third form are standard base64, padded; an optional member may be null or "". Of the first form
the report's 1184 bytes are built again: what AMD reserves is not carried, and is zero. Where the bytes of a TCB_VERSION
lie depends on the processor, so a report of an unknown one cannot be built.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from broker.verifiers.snp_cert_table import (
    MAX_CERTIFICATE_BYTES,
    MAX_ENTRIES,
    MAX_TABLE_BYTES,
    CertificateKind,
    checked,
    parse_cert_table,
)
from broker.verifiers.snp_report import REPORT_BYTES, TCB_LAYOUT, VERSIONS, Line, line_of
from keys import b64, strictjson
from keys.errors import ProtocolError, VerificationError

__all__ = ("CertificateKind", "SnpEvidence", "decode_evidence")

PROVIDER = "sev_guest"  # configfs-tsm's name for SEV-SNP

_KBS = frozenset(("attestation_report",))
_RAW = frozenset(("report",))
_TSM = frozenset(("outblob",))
_TSM_OPTIONAL = frozenset(("auxblob", "provider", "manifestblob"))

# Members of the sev crate's AttestationReport: (offset, bytes), integers little-endian.
_NUMBERS = {
    "version": (0x000, 4),
    "guest_svn": (0x004, 4),
    "policy": (0x008, 8),
    "vmpl": (0x030, 4),
    "sig_algo": (0x034, 4),
    "plat_info": (0x040, 8),
    "key_info": (0x048, 4),
}
_BYTES = {
    "family_id": (0x010, 16),
    "image_id": (0x020, 16),
    "report_data": (0x050, 64),
    "measurement": (0x090, 48),
    "host_data": (0x0C0, 32),
    "id_key_digest": (0x0E0, 48),
    "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32),
    "chip_id": (0x1A0, 64),
}
_TCBS = {"current_tcb": 0x038, "reported_tcb": 0x180, "committed_tcb": 0x1E0, "launch_tcb": 0x1F0}
_FIRMWARE = {"current": 0x1E8, "committed": 0x1EC}
_FIRMWARE_PARTS = ("build", "minor", "major")  # in the report's order, a byte each
_SIGNATURE = {"r": (0x2A0, 72), "s": (0x2E8, 72)}
# null, or missing, where the report's version has no such field
_CPUID: Mapping[str, tuple[int, int]] = {
    "cpuid_fam_id": (0x188, 1),
    "cpuid_mod_id": (0x189, 1),
    "cpuid_step": (0x18A, 1),
}
_MITIGATIONS: Mapping[str, tuple[int, int]] = {"launch_mit_vector": (0x1F8, 8), "current_mit_vector": (0x200, 8)}

_REPORT = frozenset((*_NUMBERS, *_BYTES, *_TCBS, *_FIRMWARE, "signature"))
_REPORT_OPTIONAL = frozenset((*_CPUID, *_MITIGATIONS))
_TCB = frozenset(TCB_LAYOUT[Line.MILAN])
_FMC = frozenset(TCB_LAYOUT[Line.TURIN]) - _TCB
_CHAIN_ENTRY = frozenset(("cert_type", "data"))
_EMPTY = "Empty"
_OTHER = frozenset(("OTHER",))


@dataclass(frozen=True, slots=True)
class SnpEvidence:
    """`report`: 1184 bytes, not yet parsed. `certificates`: what came with it, DER or PEM, trusted for nothing."""

    report: bytes
    certificates: Mapping[CertificateKind, bytes]


def decode_evidence(value: object) -> SnpEvidence:
    """`value`, a parsed JSON object in one of the three forms. Raises ProtocolError that names the wrong member."""
    if isinstance(value, dict) and "attestation_report" in value:
        members = strictjson.members(value, name="SNP evidence", required=_KBS, optional=frozenset(("cert_chain",)))
        return SnpEvidence(_report(members["attestation_report"]), _chain(members.get("cert_chain")))
    if isinstance(value, dict) and "outblob" in value:
        return _tsm(strictjson.members(value, name="SNP evidence", required=_TSM, optional=_TSM_OPTIONAL))
    members = strictjson.members(value, name="SNP evidence", required=_RAW, optional=frozenset(("cert_table",)))
    return SnpEvidence(_raw_report(members, "report"), _table(members, "cert_table"))


def _tsm(members: Mapping[str, Any]) -> SnpEvidence:
    provider = members.get("provider")
    if provider is not None and provider not in (PROVIDER, PROVIDER + "\n"):  # the file ends with a newline
        raise ProtocolError("provider is another platform's", expected=PROVIDER)
    # An SVSM's report is bound to its manifest, which changes what the report data means.
    if members.get("manifestblob") not in (None, ""):
        raise ProtocolError("manifestblob must be empty", mend="ask configfs-tsm for a report without service_provider")
    return SnpEvidence(_raw_report(members, "outblob"), _table(members, "auxblob"))


def _raw_report(members: Mapping[str, Any], name: str) -> bytes:
    report = b64.from_std(members[name], name=name, max_bytes=REPORT_BYTES)
    if len(report) != REPORT_BYTES:
        raise ProtocolError(f"{name} has a wrong length", expected=f"{REPORT_BYTES} bytes", found=str(len(report)))
    return report


def _table(members: Mapping[str, Any], name: str) -> Mapping[CertificateKind, bytes]:
    text = members.get(name)
    return {} if text is None else parse_cert_table(b64.from_std(text, name=name, max_bytes=MAX_TABLE_BYTES))


def _chain(value: object) -> Mapping[CertificateKind, bytes]:
    if value is None:
        return {}
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise ProtocolError("cert_chain must be null or a list", expected=f"at most {MAX_ENTRIES} certificates")
    certificates: dict[CertificateKind, bytes] = {}
    for number, item in enumerate(value):
        name = f"cert_chain.{number}"
        entry = strictjson.members(item, name=name, required=_CHAIN_ENTRY)
        kind = _kind(entry["cert_type"], f"{name}.cert_type")
        data = _octets(entry["data"], f"{name}.data", range(MAX_CERTIFICATE_BYTES + 1))
        if kind is None:
            continue
        if kind in certificates:
            raise ProtocolError(f"cert_chain has two {kind.name}")
        certificates[kind] = checked(kind, data)
    return certificates


def _kind(value: object, name: str) -> CertificateKind | None:
    """None for what the sev crate has no name for."""
    if isinstance(value, dict):
        text = strictjson.members(value, name=name, required=_OTHER)["OTHER"]
        guid = strictjson.string(text, name=f"{name}.OTHER", max_chars=36)
        try:
            UUID(guid)
        except ValueError:
            raise ProtocolError(f"{name}.OTHER is no GUID") from None
        return None
    word = strictjson.string(value, name=name, max_chars=8)
    if word == _EMPTY:
        return None
    if word not in CertificateKind.__members__:
        raise ProtocolError(f"{name} is unknown", expected=" ".join((*CertificateKind.__members__, _EMPTY, "OTHER")))
    return CertificateKind[word]


def _report(value: object) -> bytes:
    """The 1184 bytes of an ATTESTATION_REPORT from its fields."""
    members = strictjson.members(value, name="attestation_report", required=_REPORT, optional=_REPORT_OPTIONAL)
    version = members["version"]
    if version not in VERSIONS:
        raise ProtocolError("version is unknown", expected=f"{VERSIONS[0]} to {VERSIONS[-1]}")
    report = bytearray(REPORT_BYTES)
    for name, (at, size) in _NUMBERS.items():
        report[at : at + size] = _number(members[name], name, size)
    for name, (at, size) in _BYTES.items():
        report[at : at + size] = _octets(members[name], name, range(size, size + 1))
    for name, at in _FIRMWARE.items():
        parts = strictjson.members(members[name], name=name, required=frozenset(_FIRMWARE_PARTS))
        for offset, part in enumerate(_FIRMWARE_PARTS, start=at):
            report[offset : offset + 1] = _number(parts[part], f"{name}.{part}", 1)
    signature = strictjson.members(members["signature"], name="signature", required=frozenset(_SIGNATURE))
    for name, (at, size) in _SIGNATURE.items():
        report[at : at + size] = _octets(signature[name], f"signature.{name}", range(size, size + 1))
    _fill_versioned(report, members, version)
    # Version 2 does not name the processor: it gets the layout of Milan and Genoa, which is one.
    _fill_tcbs(report, members, TCB_LAYOUT[Line.MILAN if version == 2 else _line(members)])
    return bytes(report)


def _fill_versioned(report: bytearray, members: Mapping[str, Any], version: int) -> None:
    for since, fields in ((3, _CPUID), (5, _MITIGATIONS)):
        for name, (at, size) in fields.items():
            if version >= since:
                report[at : at + size] = _number(members.get(name), name, size)
            else:
                _absent(members.get(name), name)


def _fill_tcbs(report: bytearray, members: Mapping[str, Any], layout: Mapping[str, int]) -> None:
    for name, at in _TCBS.items():
        components = strictjson.members(members[name], name=name, required=_TCB, optional=_FMC)
        for component in _FMC.difference(layout):
            _absent(components.get(component), f"{name}.{component}")
        for component, place in layout.items():
            byte = at + place
            report[byte : byte + 1] = _number(components.get(component), f"{name}.{component}", 1)


def _line(members: Mapping[str, Any]) -> Line:
    try:
        return line_of((members["cpuid_fam_id"], members["cpuid_mod_id"], members["cpuid_step"]))
    except VerificationError as error:
        raise ProtocolError(error.message, found=error.found) from None


def _absent(value: object, name: str) -> None:
    if value is not None:
        raise ProtocolError(f"{name} must be null in this report")


def _number(value: object, name: str, size: int) -> bytes:
    """An unsigned integer as `size` bytes, little-endian; true and false are none."""
    if type(value) is not int or not 0 <= value < 1 << 8 * size:
        raise ProtocolError(f"{name} must be a number", expected=f"0 to {(1 << 8 * size) - 1}")
    return value.to_bytes(size, "little")


def _octets(value: object, name: str, sizes: range) -> bytes:
    """A list of numbers 0 to 255 as bytes. `sizes`: how many there may be."""
    if not isinstance(value, list) or len(value) not in sizes:
        raise ProtocolError(f"{name} must be a list of bytes", expected=f"{sizes[0]} to {sizes[-1]} numbers")
    if set(map(type, value)) <= {int}:  # true and false are no numbers here
        with suppress(ValueError):
            return bytes(value)
    raise ProtocolError(f"{name} must hold bytes", expected="numbers 0 to 255")
