# SPDX-License-Identifier: Apache-2.0
"""How recorded evidence of Azure's confidential VMs is judged: HCL reports, and quotes of their vTPMs.

An HCL report is judged with what stands beside it: a VCEK (under the entry's own chain or AMD's), a TPM quote, a TD
quote. Of a TD quote only that it is bound to the same runtime data; its own signature is the business of `tdx`.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from broker.claims import Endorsements, Trusted
from broker.trace import Trace
from broker.verifiers.az_vtpm_evidence import decode_quote
from broker.verifiers.az_vtpm_quote import verify_az_quote
from broker.verifiers.hcl import Hardware, HclReport, RuntimeData, check_binding, parse_hcl, read_runtime_data
from broker.verifiers.snp import verify_report
from broker.verifiers.snp_evidence import CertificateKind, SnpEvidence
from broker.verifiers.snp_floors import NOTHING
from broker.verifiers.snp_report import parse_report
from broker.verifiers.snp_roots import built_in, check_ark
from broker.verifiers.tpm_quote import PublicKey
from broker.verifiers.tpm_structures import parse_signature
from broker.verifiers.x509 import load_certificate
from keys.errors import VerificationError
from keys.tee import Tee
from tests.conformance import kinds
from tests.conformance.kinds import Kind, compare
from tests.conformance.manifest import Case

TEES = frozenset((Tee.AZ_SNP_VTPM, Tee.AZ_TDX_VTPM, Tee.SNP, Tee.TDX))  # named by the VM, or by its hardware
TD_REPORT_DATA = slice(568, 632)  # REPORTDATA in a TD quote of version 4: 520 bytes into the body behind the header


def judge_hcl(case: Case) -> None:
    raw = case.bytes("hcl_report")
    report = parse_hcl(raw)
    runtime = read_runtime_data(report.runtime_data)
    check_binding(report)
    compare(case, _hcl_claims(case, raw, report, runtime))
    if report.hardware is Hardware.SNP:
        _judge_snp(case, report)
    if "td_quote" in case.files and case.bytes("td_quote")[TD_REPORT_DATA] != report.report_data:
        raise VerificationError("the TD quote is not bound to the runtime data")
    if "tpm_quote" in case.files:
        _judge_quote(case, runtime.ak)


def judge_quote(case: Case) -> None:
    _judge_quote(case, kinds._pem_key(case))


def _judge_snp(case: Case, report: HclReport) -> None:
    parsed = parse_report(report.report)
    names = (
        "measurement", "id_key_digest", "author_key_digest", "family_id", "image_id", "report_data", "host_data",
        "reported_tcb", "chip_id",
    )  # fmt: skip
    found: dict[str, Any] = {name: getattr(parsed, name).hex() for name in names}
    found |= {"version": parsed.version, "policy": f"{parsed.policy:x}", "vmpl": parsed.vmpl}
    recorded = case.claims.get("snp", {})
    compare(case, {"snp": recorded | {name: value for name, value in found.items() if name in recorded}})
    if "vcek" not in case.files:
        return
    trusted = built_in()
    if "ark" in case.files:
        ark, ask = (load_certificate(case.bytes(key)) for key in ("ark", "ask"))
        check_ark(ark)
        trusted = Trusted(roots=(ark,), certificates=(ask,))
    evidence = SnpEvidence(report.report, {CertificateKind.VCEK: case.bytes("vcek")})
    endorsements = Endorsements(trusted=Trusted(trusted.roots, trusted.certificates, NOTHING))
    # Where no time is recorded: the certificate's first second, at which the whole chain is valid.
    first = load_certificate(case.bytes("vcek")).not_valid_before_utc
    at = first if case.verify_at is None else case.at
    verify_report(evidence, endorsements, report.expected_report_data, at, Trace())


def _judge_quote(case: Case, key: PublicKey) -> None:
    quote = decode_quote(case.json("tpm_quote"), name="tpm_quote")
    nonce = kinds._unhex(case.claims.get("nonce"), "claims.nonce")
    attest = verify_az_quote(quote, key, nonce, Trace())
    marshalled = b"\x00\x14\x00\x0b" + len(quote.signature).to_bytes(2, "big") + quote.signature
    compare(case, kinds._quote_claims(attest, parse_signature(marshalled)))
    compare(case, {"pcrs": {bank: {str(i): v.hex() for i, v in values.items()} for bank, values in quote.pcrs.items()}})


def _hcl_claims(case: Case, raw: bytes, report: HclReport, runtime: RuntimeData) -> dict[str, Any]:
    """Sizes and types that the parser only compares are read from the bytes, at the places that the format names."""
    claims: dict[str, Any] = {
        "tee": report.hardware.name.lower(),
        "hcl_version": report.version,
        "report_size": int.from_bytes(raw[8:12], "little"),
        "request_type": int.from_bytes(raw[12:16], "little"),
        "hw_report_type": int(report.hardware),
        "hash_type": report.hash_type,
        "runtime_data_size": len(report.runtime_data),
        "runtime_data_sha256": sha256(report.runtime_data).hexdigest(),
        "keys": list(runtime.keys),
        "vm_configuration": dict(runtime.configuration),
        "ak_modulus": f"{runtime.ak.public_numbers().n:x}",
    }
    recorded = case.claims.get("user_data")
    same = recorded is not None and str(recorded).lower() == (runtime.user_data or b"").hex()  # either case of hex
    claims["user_data"] = recorded if same else runtime.user_data and runtime.user_data.hex()
    return claims


KINDS: Mapping[str, Kind] = {
    "hcl": Kind(frozenset(("hcl_report",)), judge_hcl, TEES),
    "az-tpm-quote": Kind(frozenset(("tpm_quote",)), judge_quote, TEES),
}
