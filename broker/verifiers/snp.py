# SPDX-License-Identifier: Apache-2.0
"""The verifier of AMD SEV-SNP evidence: an attestation report, and the certificates up to AMD's root.

     (1) the report's form: `snp_report` (1) to (5)
     (2) there is a certificate of the kind of key that the report names: VCEK or VLEK. The one that came with the
         evidence, or where that is missing or made for another TCB or chip, the one from the vendor's endorsements
     (3) it leads to the ARK of its product line, one of the operator's roots: `snp_certificates`
     (4) the ARK's revocation lists, those at hand, do not name the intermediate, nor did one that was there before
         this release; where the floors require one, one of them is current
     (5) the processor that the report names (version 3 and later) is of the line whose ARK closes the chain. Version 2
         names none: there the line is the chain's, and never guessed from the report
     (6) the certificate's TCB is REPORTED_TCB, in every component under the line's layout
     (7) a VCEK's hardware id is CHIP_ID; a CHIP_ID that the host masked only where the floors allow it
     (8) the signature, ECDSA P-384 with SHA-384, over the signed bytes
     (9) REPORT_DATA is exactly the expected one
    (10) posted init-data is what HOST_DATA holds
    (11) CURRENT_TCB is not behind REPORTED_TCB and COMMITTED_TCB
    (12) the floors: `snp_floors`. Nothing that the report says is judged before it is known to be genuine

The certificates that a host puts beside the evidence are candidates and trusted for nothing; an ARK among them is not
looked at. ECDSA signatures are malleable: nothing here takes a signature, or the whole report, for a name.

AMD 56860 (SNP firmware ABI), 7.3; AMD 57230 (VCEK certificates).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from broker.claims import BelowFloors, Binding, Claims, EndorsementRequest, Endorsements, Fact
from broker.trace import Check, Stage, Trace
from broker.verifiers.snp_certificates import Chain, Vek, read_vek, verify_chain
from broker.verifiers.snp_crl import KNOWN_REVOKED, check_current, read_crl
from broker.verifiers.snp_endorsements import crl_name, vcek_name
from broker.verifiers.snp_evidence import CertificateKind, SnpEvidence, decode_evidence
from broker.verifiers.snp_floors import Floors, check_floors
from broker.verifiers.snp_report import (
    CHIP_ID_BYTES,
    PLATFORM_BITS,
    POLICY_BITS,
    Line,
    Report,
    SigningKey,
    line_of,
    parse_report,
    tcb,
    tcb_reserved_is_zero,
)
from broker.verifiers.steps import Next, Step, in_steps
from broker.verifiers.x509 import load_certificate
from keys.errors import EndorsementError, VerificationError
from keys.tee import Tee

REPORT_DATA_BYTES = 64
DIGEST_BYTES = 48  # of the runtime data; zeros follow it in REPORT_DATA
HOST_DATA_BYTES = 32
NAMED = "-named"  # of `trust`: genuine, but only a rule that names the instance lets it in

_SHA384 = ec.ECDSA(hashes.SHA384())
_KIND = {SigningKey.VCEK: CertificateKind.VCEK, SigningKey.VLEK: CertificateKind.VLEK}
_MASKED = bytes(CHIP_ID_BYTES)


@dataclass(frozen=True, slots=True)
class VerifiedReport:
    """A genuine report that meets the floors: what it says, as claims. `trust` is the word of `Claims.trust`."""

    report: Report
    line: Line
    vek: Vek
    measurements: dict[str, str]
    facts: dict[str, Fact]
    instance_ids: tuple[str, ...]
    trust: str


STEPS: tuple[Step, ...] = (
    (Stage.ROOT_OF_TRUST, "report has the form of one"),
    (Stage.ENDORSEMENT, "a certificate of the report's kind of key leads to a root of this broker"),
    (Stage.ENDORSEMENT, "intermediate is not revoked"),
    (Stage.ENDORSEMENT, "processor is of the chain's product line"),
    (Stage.ENDORSEMENT, "certificate is for REPORTED_TCB"),
    (Stage.ENDORSEMENT, "certificate is for CHIP_ID"),
    (Stage.ROOT_OF_TRUST, "report's signature is right"),
    (Stage.ROOT_OF_TRUST, "REPORT_DATA is exactly what the evidence must be bound to"),
    (Stage.MEASUREMENT, "init-data is what HOST_DATA holds"),
    (Stage.ROOT_OF_TRUST, "REPORTED_TCB and COMMITTED_TCB are not ahead of CURRENT_TCB"),
    (Stage.TRUST, "report meets this broker's floors"),
)


class ReportBelowFloors(VerificationError):  # noqa: N818
    """A genuine report that does not meet the floors, of which `worst` is the first. `verified` is what it says all the
    same, and nothing that may be used.
    """

    def __init__(self, worst: Check, verified: VerifiedReport) -> None:
        super().__init__(
            f"genuine, but below this broker's floors: {worst.name}",
            expected=worst.expected or None,
            found=worst.found or None,
            mend=worst.mend or None,
        )
        self.verified = verified


class SnpVerifier:
    """`broker.claims.Verifier` for `snp`."""

    tee: ClassVar[Tee] = Tee.SNP

    def decode(self, evidence: object) -> SnpEvidence:
        """Raises ProtocolError."""
        return decode_evidence(evidence)

    def needs(self, evidence: SnpEvidence) -> EndorsementRequest:
        return needed(evidence)

    def verify(
        self, evidence: SnpEvidence, endorsements: Endorsements, bound_to: Binding, at: datetime, trace: Trace
    ) -> Claims:
        """The claims of genuine evidence, checks (1) to (12). Raises VerificationError, with every check in `trace`."""
        expected = bound_to.report_data
        trace.require(
            Stage.TRUST,
            "challenge has its full length",
            len(expected) in {DIGEST_BYTES, REPORT_DATA_BYTES},
            expected=f"{DIGEST_BYTES} bytes",
            found=len(expected),
        )
        padded = expected.ljust(REPORT_DATA_BYTES, b"\0")
        try:
            verified = verify_report(evidence, endorsements, padded, at, trace, init_data=bound_to.init_data)
        except ReportBelowFloors as error:
            claims = self._claims(error.verified, bound_to)
            raise BelowFloors(
                error.message, claims, expected=error.expected, found=error.found, mend=error.mend
            ) from None
        return self._claims(verified, bound_to)

    def _claims(self, verified: VerifiedReport, bound_to: Binding) -> Claims:
        return Claims(
            tee=self.tee,
            instance_ids=verified.instance_ids,
            trust=verified.trust,
            measurements=verified.measurements,
            facts=verified.facts,
            init_data=None if bound_to.init_data is None else bound_to.init_data.hex(),
        )


def needed(evidence: SnpEvidence) -> EndorsementRequest:
    """The VCEK where the evidence brings none that fits its report, the line's revocation list, and under which id an
    owner may have enrolled the chip that the report names, so that a refusal is known to him.

    A VLEK only ever comes with the evidence. Version 2 names no processor, so its VCEK cannot be asked for either.
    """
    try:
        report = parse_report(evidence.report)
        line = None if report.cpuid is None else line_of(report.cpuid)
    except VerificationError:  # `verify` will say so, with a trace
        return EndorsementRequest()
    sent = _sent(report, evidence)
    if sent is not None and _fits(report, sent):
        return EndorsementRequest(_claimed(report, sent.line), helpful=(crl_name(sent.line),))
    if line is None:
        return EndorsementRequest()
    name = _vcek_name(report, line)
    return EndorsementRequest(
        _claimed(report, line), required=() if name is None else (name,), helpful=(crl_name(line),)
    )


def verify_report(
    evidence: SnpEvidence,
    endorsements: Endorsements,
    report_data: bytes,
    at: datetime,
    trace: Trace,
    *,
    init_data: bytes | None = None,
) -> VerifiedReport:
    """What a genuine report says, checks (1) to (12). `report_data`: all 64 bytes. Raises VerificationError."""
    with in_steps(trace, STEPS) as next_step:
        return _verify(evidence, endorsements, report_data, at, trace, init_data, next_step)


def _verify(
    evidence: SnpEvidence,
    endorsements: Endorsements,
    report_data: bytes,
    at: datetime,
    trace: Trace,
    init_data: bytes | None,
    next_step: Next,
) -> VerifiedReport:
    floors = Floors() if endorsements.trusted.floors is None else endorsements.trusted.floors
    next_step()
    with trace.recording(Stage.ROOT_OF_TRUST):
        report = parse_report(evidence.report)  # (1)
    next_step()
    with trace.recording(Stage.ENDORSEMENT):
        vek = _certificate(report, evidence, endorsements.found)  # (2)
        chain = verify_chain(vek, _intermediates(evidence, endorsements), endorsements.trusted.roots, at)  # (3)
    trace.check(Stage.ENDORSEMENT, f"{vek.kind.upper()} leads to ARK-{chain.line}, a root of this broker", True,
                found=f"valid until {vek.certificate.not_valid_after_utc:%Y-%m-%d}")  # fmt: skip
    next_step()
    crl = _check_revocation(chain, evidence, endorsements.found, at, floors, trace)  # (4)
    next_step()
    _check_product(report, chain.line, trace)  # (5)
    next_step()
    _check_tcb(report, vek, trace)  # (6)
    next_step()
    _check_chip(report, vek, floors, trace)  # (7)
    next_step()
    _check_signature(report, vek, trace)  # (8)
    next_step()
    trace.require(
        Stage.ROOT_OF_TRUST,
        "REPORT_DATA is exactly what the evidence must be bound to",
        hmac.compare_digest(report.report_data, report_data),
        expected=report_data,
        found=report.report_data,
        mend="recorded evidence, or evidence made for another key or challenge",
    )  # (9)
    next_step()
    if init_data is not None:
        _check_init_data(report, init_data, trace)  # (10)
    next_step()
    _check_order(report, chain.line, trace)  # (11)
    measurements, facts = _measurements(report), _facts(report, chain, crl)
    named = NAMED if chain.line in floors.named_only else ""
    verified = VerifiedReport(
        report=report,
        line=chain.line,
        vek=vek,
        measurements=measurements,
        facts=facts,
        instance_ids=(f"snp-csp:{vek.csp_id}" if vek.hw_id is None else f"snp-chip:{vek.hw_id.hex()}",),
        trust=f"{vek.kind}{named}",
    )
    next_step()
    if not check_floors(facts, measurements, floors, trace):  # (12)
        raise ReportBelowFloors(trace.failed[0], verified)
    return verified


def _certificate(report: Report, evidence: SnpEvidence, found: Mapping[str, bytes]) -> Vek:
    """Check (2). Raises EndorsementError."""
    kind = report.signing_key
    data = None
    if report.cpuid is not None:
        name = _vcek_name(report, line_of(report.cpuid))
        data = None if name is None else found.get(name)
    if data is None:
        data = evidence.certificates.get(_KIND[kind])
    if data is None:
        raise EndorsementError(
            f"there is no {kind.upper()} certificate for this report",
            expected="one beside the evidence" + (", from AMD's KDS, or imported" if kind is SigningKey.VCEK else ""),
            mend="let the host install its certificates (snphost import), or roomkey endorsements import FILE"
            if kind is SigningKey.VCEK
            else "let the guest send the certificate table: a VLEK is nowhere else",
        )
    vek = read_vek(data)
    if vek.kind is not kind:
        raise EndorsementError("the certificate is of another kind of key", expected=kind, found=vek.kind)
    return vek


def _sent(report: Report, evidence: SnpEvidence) -> Vek | None:
    """The certificate that came with the evidence, if it can be read and is of the report's kind."""
    data = evidence.certificates.get(_KIND[report.signing_key])
    try:
        vek = None if data is None else read_vek(data)
    except EndorsementError:
        return None
    return vek if vek is not None and vek.kind is report.signing_key else None


def _fits(report: Report, vek: Vek) -> bool:
    """Whether the certificate is for the TCB and chip of the report."""
    return tcb(report.reported_tcb, vek.line) == vek.tcb and (
        vek.hw_id is None or report.chip_id == _MASKED or report.chip_id == vek.hw_id.ljust(CHIP_ID_BYTES, b"\0")
    )


def _names_chip(report: Report) -> bool:
    return report.signing_key is SigningKey.VCEK and report.chip_id != _MASKED


def _claimed(report: Report, line: Line) -> tuple[str, ...]:
    """The instance id that the report claims; nothing is verified yet."""
    return (f"snp-chip:{_chip(report, line)}",) if _names_chip(report) else ()


def _vcek_name(report: Report, line: Line) -> str | None:
    """Under what name a VCEK for this report would be found; None where there can be none."""
    if not _names_chip(report):
        return None
    return vcek_name(line, bytes.fromhex(_chip(report, line)), tcb(report.reported_tcb, line))


def _intermediates(evidence: SnpEvidence, endorsements: Endorsements) -> tuple[x509.Certificate, ...]:
    """The operator's and the product's candidates, and the one that came with the evidence, if it can be read."""
    sent = evidence.certificates.get(CertificateKind.ASK)
    try:
        extra = () if sent is None else (load_certificate(sent),)
    except EndorsementError:  # it counts for nothing anyway; another candidate may do
        extra = ()
    return (*endorsements.trusted.certificates, *extra)


def _check_revocation(
    chain: Chain, evidence: SnpEvidence, found: Mapping[str, bytes], at: datetime, floors: Floors, trace: Trace
) -> str:
    """Check (4): "current", "stale" or "none". A stale list still revokes what it names."""
    state, told, serial = "none", "", chain.intermediate.serial_number
    trace.require(Stage.ENDORSEMENT, "intermediate is not one that AMD revoked before this release",
                  serial not in KNOWN_REVOKED.get(chain.line, ()), found=f"serial {serial:#x}",
                  mend="get new certificates for this chip", error=EndorsementError)  # fmt: skip
    for data in (found.get(crl_name(chain.line)), evidence.certificates.get(CertificateKind.CRL)):
        if data is None:
            continue
        with trace.recording(Stage.ENDORSEMENT):
            crl = read_crl(data, chain.ark)
        trace.require(Stage.ENDORSEMENT, "intermediate is not revoked", serial not in crl.revoked,
                      expected=f"serial {serial:#x} not in revocation list {crl.number}", found="revoked",
                      mend="the chain is no good any more: get new certificates for this chip",
                      error=EndorsementError)  # fmt: skip
        try:
            check_current(crl, at)
            state = "current"
        except EndorsementError as error:
            state = "stale" if state == "none" else state
            told = f": list {crl.number} was good {error.expected}"
    if floors.require_crl:
        trace.require(Stage.ENDORSEMENT, "a current revocation list is at hand", state == "current",
                      expected="current", found=state + told if state == "stale" else state,
                      mend="let the broker reach AMD's KDS (snp.kds_url); or import a new list: "
                      "roomkey endorsements import FILE",
                      error=EndorsementError)  # fmt: skip
    else:
        trace.not_required(Stage.ENDORSEMENT, "a current revocation list", found=state)
    return state


def _check_product(report: Report, line: Line, trace: Trace) -> None:
    """Check (5)."""
    if report.cpuid is None:
        trace.not_required(Stage.ENDORSEMENT, "processor is of the chain's product line", found="version 2 names none")
        return
    with trace.recording(Stage.ROOT_OF_TRUST):
        found = line_of(report.cpuid)
    trace.require(Stage.ENDORSEMENT, "processor is of the chain's product line", found is line,
                  expected=line, found=found)  # fmt: skip


def _check_tcb(report: Report, vek: Vek, trace: Trace) -> None:
    """Check (6): the signing key was derived for exactly this TCB, so REPORTED_TCB is more than the firmware's word."""
    reported = tcb(report.reported_tcb, vek.line)
    trace.require(
        Stage.ENDORSEMENT,
        "certificate is for REPORTED_TCB",
        reported == vek.tcb and tcb_reserved_is_zero(report.reported_tcb, vek.line),
        expected=_words(vek.tcb),
        found=f"{_words(reported)} ({report.reported_tcb.hex()})",
        mend="the host's certificate is older than its firmware: let it fetch a new one, or send none",
    )


def _check_chip(report: Report, vek: Vek, floors: Floors, trace: Trace) -> None:
    """Check (7)."""
    name = "certificate is for CHIP_ID"
    if vek.hw_id is None:
        trace.not_required(Stage.ENDORSEMENT, name, found=f"a VLEK names no chip, but {vek.csp_id}")
    elif report.chip_id == _MASKED and floors.masked_chip_id:
        trace.not_required(Stage.ENDORSEMENT, name, found="masked by the host")
    else:
        trace.require(
            Stage.ENDORSEMENT,
            name,
            hmac.compare_digest(report.chip_id, vek.hw_id.ljust(CHIP_ID_BYTES, b"\0")),
            expected=vek.hw_id,
            found=report.chip_id if report.chip_id != _MASKED else "masked by the host",
        )


def _check_signature(report: Report, vek: Vek, trace: Trace) -> None:
    """Check (8)."""
    try:
        vek.key.verify(encode_dss_signature(report.r, report.s), report.signed, _SHA384)
    except InvalidSignature:
        trace.require(Stage.ROOT_OF_TRUST, "report's signature is right", False, expected=f"made by this {vek.kind}")
    trace.check(Stage.ROOT_OF_TRUST, "report's signature is right", True, found=f"{vek.kind.upper()}, {vek.line}")


def _check_init_data(report: Report, digest: bytes, trace: Trace) -> None:
    """Check (10): a longer digest is cut, a shorter one filled with zeros, as the protocol says."""
    expected = digest[:HOST_DATA_BYTES].ljust(HOST_DATA_BYTES, b"\0")
    trace.require(
        Stage.MEASUREMENT,
        "init-data is what HOST_DATA holds",
        hmac.compare_digest(report.host_data, expected),
        expected=expected,
        found=report.host_data,
        mend="post the init-data whose digest the host gave when it launched the guest",
    )


def _check_order(report: Report, line: Line, trace: Trace) -> None:
    """Check (11)."""
    current = tcb(report.current_tcb, line)
    for name, raw in (("REPORTED_TCB", report.reported_tcb), ("COMMITTED_TCB", report.committed_tcb)):
        trace.require(
            Stage.ROOT_OF_TRUST,
            f"{name} is not ahead of CURRENT_TCB",
            all(value <= current[part] for part, value in tcb(raw, line).items()),
            expected=f"at most {_words(current)}",
            found=_words(tcb(raw, line)),
        )


def _words(components: Mapping[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in components.items())


def _measurements(report: Report) -> dict[str, str]:
    return {
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
    }


def _facts(report: Report, chain: Chain, crl: str) -> dict[str, Fact]:
    facts: dict[str, Fact] = {
        "product": str(chain.line),
        "report_version": report.version,
        "cpuid": None if report.cpuid is None else "/".join(f"{part:#x}" for part in report.cpuid),
        "signing_key": str(report.signing_key),
        "chip_id": None if report.chip_id == _MASKED else _chip(report, chain.line),
        "csp_id": chain.vek.csp_id,
        "vmpl": report.vmpl,
        "guest_svn": report.guest_svn,
        "author_key_en": report.author_key_en,
        "policy": f"{report.policy:#x}",
        "policy_abi_major": report.policy >> 8 & 0xFF,
        "policy_abi_minor": report.policy & 0xFF,
        "platform_info": f"{report.platform_info:#x}",
        "current_version": str(report.current_version),
        "committed_version": str(report.committed_version),
        "launch_mit_vector": None if report.launch_mit_vector is None else f"{report.launch_mit_vector:#x}",
        "current_mit_vector": None if report.current_mit_vector is None else f"{report.current_mit_vector:#x}",
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "crl": crl,
    }
    facts |= {f"policy_{name}": bool(report.policy >> bit & 1) for name, bit in POLICY_BITS.items()}
    facts |= {f"platform_{name}": bool(report.platform_info >> bit & 1) for name, bit in PLATFORM_BITS.items()}
    for which, raw in (
        ("reported", report.reported_tcb),
        ("current", report.current_tcb),
        ("committed", report.committed_tcb),
        ("launch", report.launch_tcb),
    ):
        facts |= {f"{which}_tcb_{part}": value for part, value in tcb(raw, chain.line).items()}
    return facts


def _chip(report: Report, line: Line) -> str:
    return (report.chip_id[:8] if line is Line.TURIN else report.chip_id).hex()
