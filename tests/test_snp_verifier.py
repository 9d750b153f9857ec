# SPDX-License-Identifier: Apache-2.0
"""The verifier of SEV-SNP evidence, on a fake AMD's reports and on real ones."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from broker.claims import Binding, Claims, EndorsementRequest, Endorsements, Trusted
from broker.trace import Trace, Verdict
from broker.verifiers.snp import SnpVerifier
from broker.verifiers.snp_endorsements import crl_name, vcek_name
from broker.verifiers.snp_evidence import CertificateKind, SnpEvidence
from broker.verifiers.snp_floors import NOTHING, Floors
from broker.verifiers.snp_report import P384_ORDER, Line
from broker.verifiers.snp_roots import built_in
from keys.errors import EndorsementError, VerificationError
from keys.tee import Tee
from tests.fakes.amd import AT, CPUIDS, CSP_ID, END, MEASUREMENT, TCBS, Chip, FakeAmd, kbs_json, raw_evidence
from tests.vectors import VECTORS, needs_vectors

VERIFIER = SnpVerifier()
DIGEST = bytes(range(1, 49))
AMD = FakeAmd()


@cache
def chip(line: Line = Line.GENOA, csp_id: str | None = None) -> Chip:
    return Chip(FakeAmd(line), csp_id=csp_id)


def evidence(report: bytes | None = None, of: Chip | None = None, **certificates: bytes) -> SnpEvidence:
    of = of or chip()
    sent = of.certificates | certificates
    kinds = {CertificateKind(kind): data for kind, data in sent.items() if data}
    return SnpEvidence(of.report(DIGEST) if report is None else report, kinds)


def endorsed(of: Chip | None = None, floors: Floors | None = None, **found: bytes) -> Endorsements:
    return Endorsements(trusted=(of or chip()).amd.trusted(floors), found=found)


def verify(
    given: SnpEvidence,
    endorsements: Endorsements | None = None,
    *,
    bound_to: Binding | None = None,
    at: datetime = AT,
    trace: Trace | None = None,
) -> Claims:
    return VERIFIER.verify(
        given, endorsements or endorsed(), bound_to or Binding(DIGEST), at, Trace() if trace is None else trace
    )


def refused(given: SnpEvidence, message: str, *args: Any, error: type = VerificationError, **options: Any) -> Trace:
    """The trace of a refusal, whose last line is the one that failed."""
    trace = Trace()
    with pytest.raises(error, match=message):
        verify(given, *args, trace=trace, **options)
    assert trace.failed
    return trace


def said(trace: Trace, name: str) -> Verdict:
    return next(check.verdict for check in trace.checks if check.name == name)


# --- what a good guest gets ---


@pytest.mark.parametrize("line", Line)
@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_genuine_report_becomes_claims(line: Line, version: int) -> None:
    """A good report of each line and each version gives its measurement, its chip and its TCB as claims."""
    of = chip(line)
    claims = verify(evidence(of.report(DIGEST, version=version), of), endorsed(of))
    assert claims.tee is Tee.SNP
    assert claims.instance_ids == (f"snp-chip:{of.hw_id.hex()}",)
    assert claims.measurements["measurement"] == MEASUREMENT.hex()
    assert claims.facts["product"] == line
    assert claims.facts["report_version"] == version
    reported = {name: value for name, value in claims.facts.items() if name.startswith("reported_tcb_")}
    assert reported == {f"reported_tcb_{part}": value for part, value in TCBS[line].items()}
    assert claims.facts["chip_id"] == of.hw_id.hex()
    assert claims.facts["cpuid"] == "/".join(f"{part:#x}" for part in CPUIDS[line])
    assert (claims.facts["launch_mit_vector"] is None) is (version < 5)
    assert Claims.from_json(json.loads(json.dumps(claims.to_json()))) == claims


def test_milan_counts_by_name_only_unless_the_operator_says_otherwise() -> None:
    """What signs a Milan report can be a seed that was read out; its trust says so, whichever key signed."""
    for of, word in ((chip(Line.MILAN), "vcek"), (chip(Line.MILAN, CSP_ID), "vlek")):
        given = evidence(of=of)
        assert verify(given, endorsed(of)).trust == f"{word}-named"
        assert verify(given, endorsed(of, Floors(named_only=()))).trust == word
    assert verify(evidence()).trust == "vcek"


def test_a_vlek_names_its_provider_and_no_chip() -> None:
    """A report under a VLEK is known by its cspID; its certificate cannot stand for a chip."""
    of = chip(csp_id=CSP_ID)
    trace = Trace()
    claims = verify(evidence(of=of), endorsed(of), trace=trace)
    assert claims.instance_ids == (f"snp-csp:{CSP_ID}",)
    assert (claims.facts["csp_id"], claims.facts["chip_id"], claims.trust) == (CSP_ID, None, "vlek")
    assert said(trace, "certificate is for CHIP_ID") is Verdict.NOT_REQUIRED


def test_all_forms_of_evidence_come_to_the_same() -> None:
    """What a stock guest sends as JSON and what our agent sends as bytes is judged alike."""
    report = chip().report(DIGEST)
    forms = [form(report, chip().certificates) for form in (kbs_json, raw_evidence)]
    assert verify(VERIFIER.decode(forms[0])) == verify(VERIFIER.decode(forms[1]))


def test_a_malleated_signature_is_the_same_evidence() -> None:
    """(r, n-s) verifies as well, and gives the same claims: nothing is named by a signature."""
    report = chip().report(DIGEST)
    s = P384_ORDER - int.from_bytes(report[0x2E8:0x330], "little")
    other = report[:0x2E8] + s.to_bytes(72, "little") + report[0x330:]
    assert verify(evidence(other)) == verify(evidence(report))


# --- (1) form, (2) certificate, (3) chain ---


def test_a_report_that_cannot_be_read_is_refused_with_a_trace() -> None:
    """A parser's refusal is a line of the trace."""
    refused(evidence(chip().report(DIGEST, version=6)), "unknown version")


def test_without_a_certificate_nothing_is_verified() -> None:
    """A report whose certificate nobody has is refused, with what would mend it for its kind of key."""
    trace = refused(evidence(vcek=b""), "no VCEK certificate", error=EndorsementError)
    assert "endorsements import" in trace.failed[0].mend
    of = chip(csp_id=CSP_ID)
    trace = refused(evidence(of=of, vlek=b""), "no VLEK certificate", endorsed(of), error=EndorsementError)
    assert "certificate table" in trace.failed[0].mend


def test_a_certificate_of_the_other_kind_is_no_certificate() -> None:
    """A VLEK in the VCEK's place vouches for nothing, though the same provider's key could sign."""
    of = chip(csp_id=CSP_ID)
    refused(evidence(vcek=of.vek), "another kind of key", error=EndorsementError)


def test_a_found_certificate_stands_in_for_one_that_is_missing_or_does_not_fit() -> None:
    """Where the host sends none, or one of an older TCB, the vendor's endorsement is used."""
    of = chip()
    name = vcek_name(of.line, of.hw_id, of.tcb)
    _, older = of.amd.vcek(of.hw_id, of.tcb | {"snp": 24})
    for sent in (b"", older, b"garbage"):
        given = evidence(vcek=sent)
        assert VERIFIER.needs(given).required == (name,)
        assert verify(given, endorsed(**{name: of.vek})).instance_ids
    refused(evidence(vcek=older), "certificate is for REPORTED_TCB")


def test_a_root_in_the_evidence_is_no_root() -> None:
    """A whole chain of another maker, sent with the evidence, is refused: roots come from the operator alone."""
    other = FakeAmd(copy=1)
    of = Chip(other)
    given = evidence(of=of, ask=other.ca_certificate("SEV-Genoa"), ark=other.ca_certificate("ARK-Genoa"))
    refused(given, "signature is wrong", endorsed(), error=EndorsementError)
    refused(given, "no Genoa root", Endorsements(trusted=Trusted()), error=EndorsementError)


def test_an_intermediate_may_come_with_the_evidence() -> None:
    """An ASK that the product does not know yet counts if it leads to the root; an unreadable one is left out."""
    ask = AMD.ask.public_bytes(Encoding.DER)
    bare = Endorsements(trusted=Trusted(roots=(AMD.ark,)))
    assert verify(evidence(ask=ask), bare)
    refused(evidence(ask=b"garbage"), "no Genoa root", bare, error=EndorsementError)


@pytest.mark.parametrize("at", [datetime(2024, 1, 1, tzinfo=UTC), END + timedelta(days=1)])
def test_certificates_are_valid_at_the_given_time(at: datetime) -> None:
    """Before and after its certificates' time a report is refused, also when it was verified just now."""
    assert verify(evidence())
    refused(evidence(), "not valid at this time", at=at, error=EndorsementError)


# --- (4) revocation ---


def test_a_revoked_intermediate_ends_the_chain() -> None:
    """A list that names the intermediate is honoured wherever it comes from, current or stale."""
    serial = AMD.ask.serial_number
    for crl in (AMD.crl([serial]), AMD.crl([serial], end=AT - timedelta(days=1))):
        for endorsements, given in (
            (endorsed(**{crl_name(Line.GENOA): crl}), evidence()),
            (endorsed(), evidence(crl=crl)),
            (endorsed(**{crl_name(Line.GENOA): AMD.crl()}), evidence(crl=crl)),
        ):
            refused(given, "intermediate is not revoked", endorsements, error=EndorsementError)
    assert verify(evidence(), endorsed(**{crl_name(Line.GENOA): AMD.crl([serial + 1])}))


def test_what_amd_has_revoked_is_refused_without_a_list() -> None:
    """The ASK that AMD's lists have named for years ends the chain where no list is at hand, or an emptier one is."""
    old = AMD.ca_certificate("SEV-Genoa", serial=0x20001)
    roots_only = replace(endorsed(), trusted=replace(AMD.trusted(), certificates=()))
    for certificates in ({"ask": old}, {"ask": old, "crl": AMD.crl()}):
        refused(evidence(**certificates), "AMD revoked before this release", roots_only, error=EndorsementError)
    assert verify(evidence(ask=old))  # the product's own candidate goes first
    milan = chip(Line.MILAN)
    other = milan.amd.ca_certificate("SEV-Milan", serial=0x20001)
    roots_only = replace(roots_only, trusted=replace(milan.amd.trusted(), certificates=()))
    assert verify(evidence(of=milan, ask=other), roots_only)  # a number of another line's is none of this one's


def test_a_list_that_is_not_the_roots_is_refused() -> None:
    """A revocation list that another key signed is no list, and nothing is released beside it."""
    forged = FakeAmd(copy=1).crl()
    refused(evidence(crl=forged), "signature is wrong", error=EndorsementError)


def test_a_current_list_is_required_where_the_floor_says_so() -> None:
    """With require_crl neither no list nor a stale one is enough; without it the trace says what there was."""
    stale, current = AMD.crl(end=AT), AMD.crl()
    strict = Floors(require_crl=True)
    name = crl_name(Line.GENOA)
    for found in ({}, {name: stale}):
        refused(evidence(), "current revocation list", endorsed(floors=strict, **found), error=EndorsementError)
    assert verify(evidence(), endorsed(floors=strict, **{name: current})).facts["crl"] == "current"
    assert verify(evidence(crl=stale), endorsed(floors=strict, **{name: current})).facts["crl"] == "current"
    assert verify(evidence(crl=current), endorsed(floors=strict, **{name: stale})).facts["crl"] == "current"
    trace = Trace()
    assert verify(evidence(), endorsed(**{name: stale}), trace=trace).facts["crl"] == "stale"
    assert said(trace, "a current revocation list") is Verdict.NOT_REQUIRED
    assert verify(evidence()).facts["crl"] == "none"


# --- (5) to (8) ---


def test_the_processor_is_of_the_lines_root() -> None:
    """A report that names another line's processor than its certificate is refused, though the signature is right."""
    milan = chip(Line.MILAN)
    report = milan.report(DIGEST, cpuid=bytes(CPUIDS[Line.GENOA]))
    refused(evidence(report, milan), "chain's product line", endorsed(milan))
    report = milan.report(DIGEST, cpuid=b"\x20\0\0")
    refused(evidence(report, milan), "unknown processor", endorsed(milan))


def test_an_unknown_processor_is_refused_with_its_certificate() -> None:
    """A processor that nobody knows is named in the trace, and asks for no endorsement."""
    report = chip().report(DIGEST, cpuid=b"\x1a\x90\0")
    assert VERIFIER.needs(evidence(report)) == EndorsementRequest()
    refused(evidence(report), "unknown processor")


def test_version_2_has_its_line_from_the_chain() -> None:
    """Version 2 names no processor: its line is the root's; the floors let it in only where the operator says so."""
    report = chip().report(DIGEST, version=2)
    refused(evidence(report), "version is new enough")
    trace = Trace()
    floors = Floors(min_report_version=2, platform_required=())
    claims = verify(evidence(report), endorsed(floors=floors), trace=trace)
    assert (claims.facts["product"], claims.facts["cpuid"]) == (Line.GENOA, None)
    assert said(trace, "processor is of the chain's product line") is Verdict.NOT_REQUIRED
    ids = (f"snp-chip:{chip().hw_id.hex()}",)
    assert VERIFIER.needs(evidence(report)) == EndorsementRequest(ids, helpful=(crl_name(Line.GENOA),))
    assert VERIFIER.needs(evidence(report, vcek=b"")) == EndorsementRequest()


@pytest.mark.parametrize("component", ["bootloader", "tee", "snp", "microcode"])
def test_the_certificate_is_for_the_reported_tcb(component: str) -> None:
    """One component more or less than in the certificate, and the key was not derived for this TCB."""
    of = chip()
    for other in (of.tcb[component] + 1, of.tcb[component] - 1):
        if other >= 0:
            report = of.report(DIGEST, reported_tcb=of.tcb | {component: other}, current_tcb=b"\xff" * 8)
            refused(evidence(report), "certificate is for REPORTED_TCB")


def test_reserved_parts_of_the_reported_tcb_are_zero() -> None:
    """A REPORTED_TCB with a byte that the line does not know is no TCB of this certificate."""
    raw = bytearray(chip().report(DIGEST)[0x180:0x188])
    raw[3] = 1
    refused(evidence(chip().report(DIGEST, reported_tcb=bytes(raw))), "certificate is for REPORTED_TCB")


def test_turins_fmc_is_part_of_the_tcb() -> None:
    """On Turin the first byte is the FMC's, and must be the certificate's too."""
    of = chip(Line.TURIN)
    report = of.report(DIGEST, reported_tcb=of.tcb | {"fmc": 0})
    refused(evidence(report, of), "certificate is for REPORTED_TCB", endorsed(of))


@pytest.mark.parametrize("line", Line)
def test_the_certificate_is_for_the_chip(line: Line) -> None:
    """Another chip's id in the report is refused; on Turin also one behind the eight bytes that count."""
    of = chip(line)
    other = bytes([of.hw_id[0] ^ 1]) + of.hw_id[1:]
    behind = of.hw_id[:63].ljust(63, b"\0") + bytes([(of.hw_id + bytes(64))[63] ^ 1])
    for chip_id in (other.ljust(64, b"\0"), behind):
        refused(evidence(of.report(DIGEST, chip_id=chip_id), of), "certificate is for CHIP_ID", endorsed(of))


def test_a_masked_chip_id_counts_only_where_the_operator_allows_it() -> None:
    """A host that hides the chip is refused; allowed, the chip is still the certificate's."""
    report = chip().report(DIGEST, chip_id=bytes(64))
    trace = refused(evidence(report), "certificate is for CHIP_ID")
    assert trace.failed[0].found == "masked by the host"
    claims = verify(evidence(report), endorsed(floors=Floors(masked_chip_id=True)))
    assert claims.instance_ids == (f"snp-chip:{chip().hw_id.hex()}",)
    assert claims.facts["chip_id"] is None
    # no name to look a certificate up by
    assert VERIFIER.needs(evidence(report, vcek=b"")) == EndorsementRequest(helpful=(crl_name(Line.GENOA),))


def test_the_signature_is_the_certified_keys() -> None:
    """A report signed by another key with the same chip and TCB is refused."""
    other = Chip(AMD)
    trace = refused(evidence(other.report(DIGEST)), "signature is right")
    assert trace.failed[0].name == "report's signature is right"


def test_a_vlek_does_not_sign_for_a_chip() -> None:
    """KEY_INFO is signed: a VLEK's report that claims to be a VCEK's finds no certificate that fits."""
    of = chip(csp_id=CSP_ID)
    report = of.sign(of.report(DIGEST)[:0x48] + bytes(4) + of.report(DIGEST)[0x4C:])
    refused(evidence(report, of), "no VCEK certificate", endorsed(of), error=EndorsementError)


# --- (9) to (12) ---


def test_evidence_of_another_challenge_is_refused() -> None:
    """REPORT_DATA is the digest and zeros, all 64 bytes of it."""
    refused(evidence(), "REPORT_DATA", bound_to=Binding(DIGEST[::-1]))
    refused(evidence(chip().report(DIGEST + b"\1")), "REPORT_DATA")
    assert verify(evidence(), bound_to=Binding(DIGEST.ljust(64, b"\0")))


@pytest.mark.parametrize("length", [0, 32, 47, 49, 63, 65])
def test_a_challenge_of_another_length_binds_nothing(length: int) -> None:
    """Only a digest of full length, or all of REPORT_DATA, is compared."""
    refused(evidence(chip().report(bytes(64))), "full length", bound_to=Binding(bytes(length)))


@pytest.mark.parametrize("size", [20, 32, 48, 64])
def test_init_data_is_what_host_data_holds(size: int) -> None:
    """A posted digest is compared with HOST_DATA, cut or filled with zeros; any other is refused."""
    digest = bytes(range(100, 100 + size))
    report = chip().report(DIGEST, host_data=digest[:32].ljust(32, b"\0"))
    assert verify(evidence(report), bound_to=Binding(DIGEST, digest)).init_data == digest.hex()
    refused(evidence(report), "HOST_DATA", bound_to=Binding(DIGEST, digest[::-1]))
    assert verify(evidence(report)).init_data is None


@pytest.mark.parametrize("field", ["reported_tcb", "committed_tcb"])
def test_no_tcb_is_ahead_of_the_running_one(field: str) -> None:
    """Firmware that runs older than what it reports or has committed to is no firmware of AMD's."""
    of = chip()
    report = of.report(DIGEST, current_tcb=of.tcb | {"microcode": 1}, **{"committed_tcb": bytes(8), field: of.tcb})
    refused(evidence(report), f"{field.upper()} is not ahead" if field == "reported_tcb" else "is not ahead")
    behind = of.report(DIGEST, committed_tcb=of.tcb | {"microcode": of.tcb["microcode"] + 1})
    refused(evidence(behind), "COMMITTED_TCB is not ahead")


def test_the_strict_default_holds_where_no_floors_are_given() -> None:
    """Without any floors of an operator's, a debug guest is refused; with the switch it is let in."""
    debug = chip().report(DIGEST, policy=0x30000 | 1 << 19)
    trace = refused(evidence(debug), "genuine, but below this broker's floors: debugging is off")
    assert len(trace.failed) == 1
    assert verify(evidence(debug), endorsed(floors=NOTHING))


def test_all_floors_that_fail_are_shown() -> None:
    """One refusal names everything that is below a floor, so that nobody mends one thing after the other."""
    report = chip().report(DIGEST, policy=0x30000 | 1 << 18, vmpl=1, platform_info=0)
    assert len(refused(evidence(report), "floors").failed) == 3


def test_floors_are_judged_after_the_signature() -> None:
    """What a report says is not looked at before it is known who says it."""
    debug = bytearray(chip().report(DIGEST, policy=0x30000 | 1 << 19))
    debug[0x2A0] ^= 1
    trace = refused(evidence(bytes(debug)), "signature is right")
    assert not [check for check in trace.checks if check.name == "debugging is off"]


# --- what is asked for ---


@pytest.mark.parametrize("line", Line)
def test_what_the_verifier_asks_for(line: Line) -> None:
    """A certificate only where the evidence brings none that fits; the revocation list always; never a VLEK."""
    of = chip(line)
    crl = (crl_name(line),)
    ids = (f"snp-chip:{of.hw_id.hex()}",)
    assert VERIFIER.needs(evidence(of=of)) == EndorsementRequest(ids, helpful=crl)
    missing = EndorsementRequest(ids, required=(vcek_name(line, of.hw_id, of.tcb),), helpful=crl)
    assert VERIFIER.needs(evidence(of=of, vcek=b"")) == missing
    assert VERIFIER.needs(evidence(of=of, vcek=Chip(FakeAmd(line), of.hw_id[::-1]).vek)) == missing
    vlek = chip(line, CSP_ID)
    assert VERIFIER.needs(evidence(of=vlek, vlek=b"")) == EndorsementRequest(helpful=crl)
    assert VERIFIER.needs(evidence(of=of, vcek=vlek.vek)) == missing
    assert VERIFIER.needs(SnpEvidence(b"", {})) == EndorsementRequest()


# --- real machines ---


@needs_vectors
@pytest.mark.parametrize("name", ["genoa-v5-oak", "turin-v5-azure", "milan-v5-gcp", "vlek-milan-v3-aws"])
def test_real_reports_meet_the_strict_default(name: str) -> None:
    """Machines that are up to date pass the floors as they ship, under AMD's own roots."""
    folder = VECTORS / "snp"
    kind = "vlek" if name.startswith("vlek") else "vcek"
    report = (folder / "reports" / f"{name}.bin").read_bytes()
    given = SnpEvidence(report, {CertificateKind(kind): (folder / "veks" / f"{name}.{kind}.der").read_bytes()})
    at = datetime(2025, 6, 1, tzinfo=UTC) if kind == "vlek" else datetime(2026, 3, 1, tzinfo=UTC)
    claims = verify(given, Endorsements(trusted=built_in()), bound_to=Binding(report[0x50:0x90]), at=at)
    assert claims.measurements["measurement"] == report[0x90:0xC0].hex()
    with pytest.raises(EndorsementError):
        verify(given, replace(endorsed(chip(Line.MILAN))), bound_to=Binding(report[0x50:0x90]), at=at)
