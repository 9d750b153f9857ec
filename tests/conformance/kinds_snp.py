# SPDX-License-Identifier: Apache-2.0
"""How recorded SEV-SNP evidence is judged: reports with their certificates, tables, revocation lists, launch digests.

An entry's `ask` and `ark` are all the CA certificates that count, and the ARK's key must be the pinned one. A claim
that the product reads otherwise than recorded is a failure whatever verdict is expected.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from agent import sev_guest
from broker.claims import Endorsements, Fact, Trusted
from broker.cli.image_measure import Launch, Mode, Vmm, launch_digest
from broker.trace import Trace
from broker.verifiers import hcl
from broker.verifiers.snp import VerifiedReport, verify_report
from broker.verifiers.snp_cert_table import GUIDS, entries, parse_cert_table
from broker.verifiers.snp_certificates import Vek, read_vek, verify_chain, verify_intermediate
from broker.verifiers.snp_crl import check_current, read_crl
from broker.verifiers.snp_evidence import CertificateKind, SnpEvidence, decode_evidence
from broker.verifiers.snp_floors import NAMES, NOTHING, Floors, parse_floors
from broker.verifiers.snp_id_key import key_digest, read_key, structure
from broker.verifiers.snp_report import (
    ECDSA_P384_SHA384,
    PLATFORM_BITS,
    POLICY_BITS,
    Line,
    Report,
    SigningKey,
    line_of,
    parse_report,
    tcb,
)
from broker.verifiers.snp_roots import built_in, check_ark
from broker.verifiers.x509 import load_certificate
from keys.errors import EndorsementError, RoomkeyError
from keys.tee import Tee
from tests.conformance.kinds import DisagreementError, Kind
from tests.conformance.manifest import BadEntryError, Case, Section, instant

TEES = frozenset((Tee.SNP, Tee.AZ_SNP_VTPM))
MODES = {"snp": Mode.SNP, "seves": Mode.SEV_ES, "sev": Mode.SEV}
# How the recorded claims name the bits that the product names otherwise.
POLICY_NAMES = {"migrate_ma": "migrate_ma_allowed"}
PLATFORM_NAMES = {
    "smt_enabled": "smt_en", "tsme_enabled": "tsme_en", "ecc_enabled": "ecc_en", "rapl_disabled": "rapl_dis",
    "ciphertext_hiding_enabled": "ciphertext_hiding_dram_en", "tio_enabled": "tio_en",
}  # fmt: skip
TCBS = ("current", "reported", "committed", "launch")
# What a report's policy case demands, by its name there; other names are those of `Floors`.
POLICIES: Mapping[str, Callable[[Any, Floors], Floors]] = {
    "allow_debug": lambda value, floors: replace(floors, unsafe_debug=value),
    "allow_migrate_ma": lambda value, floors: _forbid("migrate_ma", value, floors),
    "allow_smt": lambda value, floors: _forbid("smt_allowed", value, floors),
    "vmpl": lambda value, floors: replace(floors, max_vmpl=value),
}


def _forbid(bit: str, allowed: object, floors: Floors) -> Floors:
    return floors if allowed else replace(floors, policy_forbidden=(*floors.policy_forbidden, bit))


def agree(what: str, recorded: object, found: object) -> None:
    if recorded != found:
        raise DisagreementError(f"{what}: recorded {recorded!r:.200}, found {found!r:.200}")


def agree_all(recorded: Mapping[str, Any], found: Mapping[str, Any], what: str = "claim") -> None:
    """Every member that both have is equal, also inside of objects; the entry's other members are remarks."""
    for key, value in found.items():
        if isinstance(value, dict) and isinstance(recorded.get(key), dict):
            agree_all(recorded[key], value, f"{what} {key}")
        elif key in recorded:
            agree(f"{what} {key}", recorded[key], value)


# --- reports --------------------------------------------------------------------------------------------------------


def judge_report(case: Case) -> None:
    genuine = case.entry is case.origin  # a changed report may say anything, until it is refused
    sent = {kind: case.bytes(kind) for kind in (CertificateKind.VCEK, CertificateKind.VLEK) if kind in case.files}
    if genuine:
        _agree_report(case, case.bytes("report"))
        if "ark" in case.files:
            agree_all(case.origin, {"product": str(check_ark(load_certificate(case.bytes("ark"))))}, "entry")
        for data in sent.values():
            _agree_vek(case, read_vek(data))
    _agree_verified(case, _verify(case, SnpEvidence(case.bytes("report"), sent), NOTHING))
    if "cert_table" in case.files:
        judge_cert_table(case)
        _verify(case, _tsm(case), NOTHING)
    if "hcl_report" in case.files:
        _judge_hcl(case)


def judge_policy(policy: Any, case: Case) -> None:
    floors = NOTHING
    for name, value in policy.items():
        if name in POLICIES:
            floors = POLICIES[name](value, floors)
        elif name in NAMES:
            floors = parse_floors({name: value}, floors)
        else:
            raise BadEntryError(f"unknown policy {name!r}")
    sent = {kind: case.bytes(kind) for kind in (CertificateKind.VCEK, CertificateKind.VLEK) if kind in case.files}
    _verify(case, SnpEvidence(case.bytes("report"), sent), floors)


def _verify(case: Case, evidence: SnpEvidence, floors: Floors) -> VerifiedReport:
    """The product's verdict under the entry's own chain, for the report data that is recorded."""
    ours = built_in()  # where an entry brings no chain of its own
    roots = (load_certificate(case.bytes("ark")),) if "ark" in case.files else ours.roots
    certificates = (load_certificate(case.bytes("ask")),) if "ask" in case.files else ours.certificates
    for ark in roots:
        check_ark(ark)
    trusted = Trusted(roots=roots, certificates=certificates, floors=floors)
    recorded = case.claims.get("report_data")
    report_data = evidence.report[0x50:0x90] if recorded is None else bytes.fromhex(recorded)
    return verify_report(evidence, Endorsements(trusted=trusted), report_data, case.at, Trace())


def _agree_report(case: Case, raw: bytes) -> None:
    """What the report says, genuine or not, is what is recorded; likewise what it was cut out of."""
    try:
        report = parse_report(raw)
    except RoomkeyError as error:
        if case.entry.get("parse_only"):
            raise DisagreementError(f"the report cannot be read: {error}") from error
        raise
    agree_all(case.claims, _report_claims(report, _line(case)))
    if report.cpuid is not None and "product" in case.origin:
        agree("product", case.origin["product"], str(line_of(report.cpuid)))
    if "ioctl_response" in case.files:
        agree("report in the ioctl's response", raw.hex(), sev_guest._read(case.bytes("ioctl_response")).hex())


def _agree_verified(case: Case, verified: VerifiedReport) -> None:
    """What the verifier hands on is what is recorded: about the report, the certificate, and the two together."""
    agree_all(case.origin, {"product": str(verified.line)}, "entry")
    agree_all(case.claims, _report_claims(verified.report, verified.line))
    agree_all(case.claims, _fact_claims(verified.facts))
    agree_all(case.claims, verified.measurements)
    _agree_vek(case, verified.vek)
    recorded = case.origin.get("vek") or {}
    who = f"snp-chip:{recorded['hwid']}" if "hwid" in recorded else f"snp-csp:{recorded.get('csp_id')}"
    if recorded:
        agree("instance", (who,), verified.instance_ids)


def _line(case: Case) -> Line | None:
    name = case.origin.get("product")
    return Line(name) if name in set(Line) else None


def _report_claims(report: Report, line: Line | None) -> dict[str, Any]:
    claims: dict[str, Any] = {
        "version": report.version,
        "guest_svn": report.guest_svn,
        "policy": f"{report.policy:#x}",
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "vmpl": report.vmpl,
        "signature_algo": ECDSA_P384_SHA384,  # of every report that can be read
        "platform_info": f"{report.platform_info:#x}",
        "key_info": report.author_key_en | list(SigningKey).index(report.signing_key) << 2,
        "author_key_en": report.author_key_en,
        "mask_chip_key": False,  # likewise
        "signing_key": str(report.signing_key),
        "report_data": report.report_data.hex(),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "chip_id": report.chip_id.hex(),
        "current_version": str(report.current_version),
        "committed_version": str(report.committed_version),
        "policy_bits": {
            "abi_minor": report.policy & 0xFF,
            "abi_major": report.policy >> 8 & 0xFF,
            **{POLICY_NAMES.get(name, name): bool(report.policy >> bit & 1) for name, bit in POLICY_BITS.items()},
        },
        "platform_bits": {
            "bit6_reserved": bool(report.platform_info >> 6 & 1),
            **{
                PLATFORM_NAMES.get(name, name): bool(report.platform_info >> bit & 1)
                for name, bit in PLATFORM_BITS.items()
            },
        },
    }
    for which in TCBS:
        raw: bytes = getattr(report, f"{which}_tcb")
        claims[f"{which}_tcb"] = {"raw": raw.hex(), **({} if line is None else tcb(raw, line))}
    if report.cpuid is not None:
        claims |= dict(zip(("cpuid_fam_id", "cpuid_mod_id", "cpuid_step"), report.cpuid, strict=True))
    for name in ("launch_mit_vector", "current_mit_vector"):
        vector: int | None = getattr(report, name)
        claims |= {} if vector is None else {name: f"{vector:#x}"}
    return claims


def _fact_claims(facts: Mapping[str, Fact]) -> dict[str, Any]:
    """The facts that owners' images and tokens see, under the recorded names."""
    claims: dict[str, Any] = {
        "version" if name == "report_version" else name: value
        for name, value in facts.items()
        if value is not None and name not in {"cpuid", "chip_id"}
    }
    claims["policy_bits"] = {
        POLICY_NAMES.get(name, name): facts[f"policy_{name}"] for name in ("abi_major", "abi_minor", *POLICY_BITS)
    }
    claims["platform_bits"] = {
        PLATFORM_NAMES.get(name, name): facts[f"platform_{name}"] for name in PLATFORM_BITS
    }  # fmt: skip
    for which in TCBS:
        start = f"{which}_tcb_"
        claims[f"{which}_tcb"] = {name.removeprefix(start): v for name, v in facts.items() if name.startswith(start)}
    if isinstance(chip := facts["chip_id"], str):
        claims["chip_id"] = chip.ljust(128, "0")
    return claims


def _agree_vek(case: Case, vek: Vek) -> None:
    certificate = vek.certificate
    claims: dict[str, Any] = {
        "subject_cn": _common_name(certificate.subject),
        "issuer_cn": _common_name(certificate.issuer),
        "serial": certificate.serial_number,
        "not_before": f"{certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}",
        "not_after": f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        "struct_version": int(vek.line is Line.TURIN),  # others are refused
        "spl": dict(vek.tcb),
    }
    claims |= {} if vek.hw_id is None else {"hwid": vek.hw_id.hex()}
    claims |= {} if vek.csp_id is None else {"csp_id": vek.csp_id}
    recorded = case.origin.get("vek") or {}
    agree_all(recorded, claims, "vek")
    if "product_name" in recorded:
        agree("vek product", recorded["product_name"].partition("-")[0], str(vek.line))


def _common_name(name: x509.Name) -> str:
    return str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _judge_hcl(case: Case) -> None:
    raw, recorded = case.bytes("hcl_report"), case.origin.get("hcl", {})
    report = hcl.parse_hcl(raw)
    hcl.check_binding(report)
    agree("report in the HCL report", case.bytes("report").hex(), report.report.hex())
    keys = hcl.read_runtime_data(report.runtime_data).keys
    claims = {
        "variable_data_offset": raw.find(report.runtime_data),
        "variable_data_size": len(report.runtime_data),
        "variable_data_sha256": report.report_data[:32].hex(),
    }
    agree_all(recorded, claims, "hcl")
    if "ak_kid" in recorded:
        agree("hcl ak_kid", True, recorded["ak_kid"] in keys)


# --- certificates, tables, revocation lists -------------------------------------------------------------------------


def _tsm(case: Case) -> SnpEvidence:
    """The report and its table as configfs-tsm hands them out."""
    form = {
        "outblob": base64.b64encode(case.bytes("report")).decode(),
        "auxblob": base64.b64encode(case.bytes("cert_table")).decode(),
        **(case.origin.get("tsm") or {}),
    }
    return decode_evidence(form)


def judge_cert_table(case: Case) -> None:
    blob = case.bytes("cert_table")
    found, known = entries(blob), parse_cert_table(blob)
    guids = [guid.hex for guid, _ in found]
    agree("known certificates", {GUIDS[guid]: data for guid, data in found if guid in GUIDS}, known)
    if "expected_guids" in case.entry:
        agree("expected_guids", case.entry["expected_guids"], guids)
    recorded = case.entry.get("cert_table")
    if isinstance(recorded, dict):
        claims = {"size": len(blob), "terminator_offset": 24 * len(found)}
        agree_all(recorded, claims, "cert_table")
        places = [
            {"guid_hex": guid.hex, "length": len(data), "encoding": "PEM" if data.startswith(b"-----BEGIN") else "DER"}
            for guid, data in found
        ]
        for entry, place, (_, data) in zip(recorded["entries"], places, found, strict=True):
            agree_all(entry, place, "cert_table entry")
            agree("cert_table contents", blob[entry["offset"] : entry["offset"] + entry["length"]], data)


def judge_chain(case: Case) -> None:
    ark, intermediate = (load_certificate(case.bytes(key)) for key in ("ark", "ask"))
    line = check_ark(ark)
    found = verify_intermediate(intermediate, ark, case.at)
    for kind in (CertificateKind.VCEK, CertificateKind.VLEK):
        if kind in case.files:
            vek = read_vek(case.bytes(kind))
            verify_chain(vek, (intermediate,), (ark,), case.at)
            agree("kind of certificate", (line, SigningKey(kind)), (vek.line, vek.kind))
            agree("kind that the intermediate issues", found, (vek.line, vek.kind))
            _agree_vek(case, vek)
    agree_all(case.origin, {"product": str(line), "ask_cn": _common_name(intermediate.subject)}, "entry")


def judge_crl(case: Case) -> None:
    data, ark = case.bytes("crl"), load_certificate(case.bytes("ark"))
    line = check_ark(ark)
    crl = read_crl(data, ark)
    check_current(crl, case.at)
    claims = {
        "product": str(line),
        "this_update": f"{crl.this_update:%Y-%m-%dT%H:%M:%SZ}",
        "next_update": f"{crl.next_update:%Y-%m-%dT%H:%M:%SZ}",
        "crl_number": crl.number,
        "revoked_serials": sorted(f"{serial:#x}" for serial in crl.revoked),
        "size": len(data),
    }
    agree_all(case.origin, claims, "entry")
    if "current_ask_serial" in case.origin:
        serial = int(case.origin["current_ask_serial"], 16)
        ours = {one.serial_number for one in built_in().certificates if one.issuer == ark.subject}
        agree("current ASK is the built-in one", True, serial in ours)
        agree("current_ask_revoked", case.origin.get("current_ask_revoked"), serial in crl.revoked)
    if "stale_at" in case.origin:
        try:
            check_current(crl, instant(case.origin["stale_at"]))
        except EndorsementError:
            return
        raise DisagreementError(f"the list is still current at {case.origin['stale_at']}")


# --- launch digests and key digests ---------------------------------------------------------------------------------


def judge_launch(case: Case) -> None:
    """Through the code of `roomkey image measure`, by the CPU's type and by its signature."""
    wanted = case.claims
    with tempfile.TemporaryDirectory() as folder:
        paths: dict[str, Path | None] = {"firmware": Path(folder, "firmware")}
        Path(folder, "firmware").write_bytes(case.bytes("ovmf"))
        for name in ("kernel", "initrd"):
            content = wanted.get(f"{name}_hex")
            paths[name] = None if content is None else Path(folder, name)
            if content is not None:
                Path(folder, name).write_bytes(bytes.fromhex(content))
        try:
            launch = Launch(
                mode=MODES[wanted["mode"]],
                **paths,  # type: ignore[arg-type]
                append=wanted.get("cmdline"),
                vcpus=wanted["vcpus"],
                vcpu_type=wanted.get("vcpu_type"),
                guest_features=int(wanted.get("guest_features") or "0x1", 16),
                vmm=Vmm(wanted.get("vmm") or "QEMU"),
            )
            signature = None if wanted.get("vcpu_sig") is None else int(wanted["vcpu_sig"], 16)
        except (KeyError, ValueError) as error:
            raise BadEntryError(f"no launch: {error!r}") from error
        ways = [launch] if launch.vcpu_type is not None or signature is None else []
        ways += [] if signature is None else [replace(launch, vcpu_type=None, vcpu_sig=signature)]
        for way in ways:
            agree("launch digest", wanted["digest"], launch_digest(way).hex())


def judge_launch_pages(case: Case) -> None:
    context: Any = import_module("sevsnpmeasure.gctx").GCTX()
    for step in case.claims["steps"]:
        context._update(step["page_type"], int(step["gpa"], 16), bytes.fromhex(step["contents"]))
        agree(f"digest after the {step['step']}", step["digest_after"], context.hex_ld())


def judge_key_digest(case: Case) -> None:
    key = read_key(bytes.fromhex(case.claims["spki_der_hex"]))
    agree_all(
        case.claims, {"amd_public_key_length": len(structure(key)), "digest_sha384": key_digest(key).hex()}, "digest"
    )


def _tables(value: Any) -> list[dict[str, Any]]:
    return [{"kind": "snp-cert-table", **entry} for entry in value]


def _launches(value: Any) -> list[dict[str, Any]]:
    made = [
        {"kind": "snp-launch-digest", "name": f"launch_digest/{number}", "files": {"ovmf": one.get("ovmf")},
         "claims": one, "expect": one.get("expect", "valid")}
        for number, one in enumerate(value.get("cases", []))
    ]  # fmt: skip
    if "gctx_steps" in value:
        claims = {"steps": value["gctx_steps"]}
        made.append({"kind": "snp-launch-pages", "name": "launch_digest/pages", "claims": claims, "expect": "valid"})
    return made


def _key_digests(value: Any) -> list[dict[str, Any]]:
    return [
        {"kind": "amd-key-digest", "name": f"id_key_digests/{number}", "claims": one, "expect": "valid"}
        for number, one in enumerate(value)
    ]


KINDS: Mapping[str, Kind] = {
    "snp-report": Kind(frozenset(("report",)), judge_report, TEES, policy=judge_policy),
    "snp-cert-table": Kind(frozenset(("cert_table",)), judge_cert_table, TEES),
    "chain-only": Kind(frozenset(("ask",)), judge_chain, TEES),
    "crl": Kind(frozenset(("crl",)), judge_crl, TEES),
    "snp-launch-digest": Kind(frozenset(("ovmf",)), judge_launch, TEES),
    "snp-launch-pages": Kind(frozenset(), judge_launch_pages, TEES),
    "amd-key-digest": Kind(frozenset(), judge_key_digest, TEES),
}
SECTIONS: Mapping[str, Section] = {
    "derived_cert_table": _tables,
    "launch_digest": _launches,
    "id_key_digests": _key_digests,
}
UNNAMED: Mapping[frozenset[str], str] = {frozenset(("report",)): "snp-report"}
