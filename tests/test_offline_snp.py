# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.offline for SEV-SNP and Azure: AMD's roots are there, the rest is in the file or handed in."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.trace import Verdict
from broker.verifiers.offline import Judgement, judge
from broker.verifiers.snp_floors import NOTHING, Floors
from broker.verifiers.snp_report import Line
from keys import b64
from keys.errors import ConfigError
from tests.fakes.amd import AT, MEASUREMENT, Chip, FakeAmd, kbs_json, raw_evidence, tsm_evidence
from tests.fakes.az_guest import ID_KEY_DIGEST, AzGuest
from tests.vectors import VECTORS, needs_vectors

DATA = bytes(range(48))
AMD = FakeAmd()
CHIP = Chip(AMD)
REPORT = CHIP.report(DATA)
VLEK = Chip(AMD, csp_id="CN=cloud.test")
AZURE = AzGuest(CHIP)


def evidence_file(evidence: dict[str, Any], tee: str = "snp") -> dict[str, Any]:
    return {"tee": tee, "evidence": evidence, "report_data": b64.std(DATA)}


FILE = evidence_file(tsm_evidence(REPORT, CHIP.certificates))
BARE = evidence_file(tsm_evidence(REPORT))


def run(
    file: object = FILE,
    expect: dict[str, str] | None = None,
    *,
    endorsements: list[bytes] | None = None,
    floors: Floors | None = None,
    tee: str = "snp",
    at: datetime = AT,
    amd: FakeAmd = AMD,
) -> Judgement:
    data = file if isinstance(file, bytes) else json.dumps(file).encode()
    return judge(tee, data, endorsements or [], [], at, expect or {}, floors=floors, trusted=amd.trusted())


def failed(judgement: Judgement) -> str:
    """The name of the first check that failed."""
    assert judgement.verdict is Verdict.FAILED
    return judgement.trace.failed[0].name


def pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("form", [tsm_evidence, raw_evidence, kbs_json])
def test_a_file_with_its_certificate_is_judged_alone(form: Any) -> None:
    """Whatever form the guest sent, nothing else is needed, and every floor left its line."""
    claims, trace, verdict = run(evidence_file(form(REPORT, CHIP.certificates)))
    assert verdict is Verdict.PASSED
    assert claims is not None
    assert (claims.trust, claims.measurements["measurement"]) == ("vcek", MEASUREMENT.hex())
    assert "debugging is off" in [check.name for check in trace.checks]
    assert not trace.failed


@pytest.mark.parametrize("chip", [CHIP, VLEK], ids=["vcek", "vlek"])
@pytest.mark.parametrize("encoded", [bytes, pem], ids=["DER", "PEM"])
def test_a_certificate_that_the_host_did_not_send_is_handed_in(chip: Chip, encoded: Any) -> None:
    """A VCEK or VLEK of the caller's completes the evidence."""
    file = evidence_file(tsm_evidence(chip.report(DATA)))
    assert run(file, endorsements=[encoded(chip.vek)]).verdict is Verdict.PASSED


def test_without_the_chips_certificate_nothing_can_be_judged() -> None:
    """It is said where AMD hands out the certificate of this very chip and TCB."""
    with pytest.raises(ConfigError, match="lacks the certificate") as caught:
        run(BARE)
    assert f"https://kdsintf.amd.com/vcek/v1/Genoa/{CHIP.hw_id.hex()}?blSPL=10" in str(caught.value.mend)


def test_the_callers_certificate_goes_before_the_files() -> None:
    """A file with another chip's certificate is refused, and genuine with the right one beside it."""
    other = Chip(AMD, bytes(range(64)))
    file = evidence_file(tsm_evidence(REPORT, other.certificates))
    assert failed(run(file)) == "certificate is for CHIP_ID"
    assert run(file, endorsements=[CHIP.vcek]).verdict is Verdict.PASSED
    assert failed(run(endorsements=[other.vcek])) == "certificate is for CHIP_ID"


def test_a_missing_vlek_is_a_refusal() -> None:
    """A VLEK is nowhere else than with the guest: a report without it is refused."""
    assert failed(run(evidence_file(tsm_evidence(VLEK.report(DATA))))).startswith("there is no VLEK")


def test_certificates_of_the_chain_are_candidates_and_roots_are_not() -> None:
    """A chain that the built-in candidates lack can be handed in as AMD publishes it; a root of another is no root."""
    bundle = b"".join(one.public_bytes(Encoding.PEM) for one in (AMD.ask, AMD.ark))
    bare = replace(AMD.trusted(), certificates=())
    data = json.dumps(FILE).encode()
    assert judge("snp", data, [], [], AT, {}, trusted=bare).verdict is Verdict.FAILED
    assert judge("snp", data, [bundle], [], AT, {}, trusted=bare).verdict is Verdict.PASSED
    assert judge("snp", data, [bundle], [], AT, {}).verdict is Verdict.FAILED  # with AMD's own roots


def test_a_revocation_list_counts() -> None:
    """A list of the caller's is looked at: one that names the intermediate refuses, another satisfies the floor."""
    required = Floors(require_crl=True)
    assert failed(run(floors=required)) == "a current revocation list is at hand"
    assert run(floors=required, endorsements=[AMD.crl()]).verdict is Verdict.PASSED
    revoking = AMD.crl([AMD.ask.serial_number])
    assert failed(run(endorsements=[revoking])) == "intermediate is not revoked"


def test_no_revocation_list_is_passed_over() -> None:
    """A list that another would hide, or that stands among certificates, is never left out without a word."""
    revoking, none = AMD.crl([AMD.ask.serial_number]), AMD.crl()
    for lists in ([revoking, none], [none, revoking]):
        with pytest.raises(ConfigError, match="two revocation lists"):
            run(endorsements=lists)
    bundle = pem(CHIP.vcek) + x509.load_der_x509_crl(revoking).public_bytes(Encoding.PEM)
    with pytest.raises(ConfigError, match="among certificates"):
        run(endorsements=[bundle])


def test_the_strict_floors_hold_unless_others_are_given() -> None:
    """A guest that its host may debug is refused, and shown with floors that ask for nothing."""
    debug = evidence_file(tsm_evidence(CHIP.report(DATA, policy=1 << 17 | 1 << 19), CHIP.certificates))
    assert failed(run(debug)) == "debugging is off"
    assert run(debug, floors=NOTHING).verdict is Verdict.PASSED
    assert failed(run(floors=Floors(min_guest_svn=7))) == "GUEST_SVN is new enough"


def test_machines_that_count_by_name_only_are_genuine_and_said_to() -> None:
    """Milan's trust says so; the caller may expect it."""
    milan = FakeAmd(Line.MILAN)
    chip = Chip(milan)
    file = evidence_file(tsm_evidence(chip.report(DATA), chip.certificates))
    assert run(file, {"trust": "vcek-named"}, amd=milan).verdict is Verdict.PASSED


def test_a_bare_report_is_judged_too() -> None:
    """1184 bytes and the report data; without that there is no challenge to compare with."""
    expect = {"report_data": DATA.hex()}
    assert run(REPORT, expect, endorsements=[CHIP.vcek]).verdict is Verdict.PASSED
    assert failed(run(REPORT, {"report_data": DATA[::-1].hex()}, endorsements=[CHIP.vcek])).startswith("REPORT_DATA is")
    with pytest.raises(ConfigError, match="which challenge"):
        run(REPORT, endorsements=[CHIP.vcek])
    with pytest.raises(ConfigError, match="lacks the certificate"):
        run(REPORT, expect)
    with pytest.raises(ConfigError, match="whose attestation key"):
        run(REPORT, expect, tee="tpm")
    assert failed(run(REPORT[:-1], expect)).startswith("evidence file")
    assert failed(run(REPORT, expect, tee="az-snp-vtpm")).startswith("evidence file")


def test_a_file_of_1184_bytes_of_json_is_a_file() -> None:
    """What begins like JSON is read as such, whatever its length."""
    short = json.dumps(evidence_file({"report": ""})).encode()
    assert failed(run(short.ljust(1184))) != failed(run(REPORT[:-1], {"report_data": DATA.hex()}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endorsements": [b"something"]}, "neither a certificate nor a revocation list"),
        ({"endorsements": [b"\x30\x00"]}, "neither a certificate nor a revocation list"),
        ({"endorsements": [FakeAmd(copy=1).crl()]}, "neither a certificate nor a revocation list"),
        ({"endorsements": [CHIP.vcek, pem(CHIP.vcek)]}, "two certificates of a VCEK"),
        ({"file": {**FILE, "report_data": b64.std(DATA)}, "expect": {"report_data": "xyz"}}, "not hex"),
        ({"file": {"tee": "snp", "evidence": FILE["evidence"]}}, "which challenge"),
    ],
)
def test_what_cannot_be_judged(options: dict[str, Any], message: str) -> None:
    """An endorsement that nobody can use, or no challenge: no verdict."""
    with pytest.raises(ConfigError, match=message):
        run(**options)


def test_roots_and_floors_are_not_for_every_platform() -> None:
    """Nobody replaces AMD's roots, and a TPM has no floors of SEV-SNP."""
    data = json.dumps(FILE).encode()
    with pytest.raises(ConfigError, match="built in"):
        judge("snp", data, [], [AMD.ark.public_bytes(Encoding.PEM)], AT, {})
    with pytest.raises(ConfigError, match="no floors"):
        judge("tpm", data, [], [], AT, {"ak_name": "00"}, floors=NOTHING)


def test_a_file_of_another_platform_is_refused() -> None:
    """What the file says must be what the caller says."""
    assert failed(run({**FILE, "tee": "tpm"})) == "file is of this platform"
    assert failed(run(evidence_file(AZURE.evidence(DATA), "az-snp-vtpm"))).startswith("SNP evidence")


def test_a_nameless_certificate_is_a_candidate_like_any_other() -> None:
    """A certificate whose subject has no common name is handed on, and leads nowhere."""
    nameless = AMD.certificate(x509.Name([]), "ARK-Genoa", AMD.ask.public_key(), serial=1, signer=AMD.key("ARK-Genoa"))
    assert run(endorsements=[nameless]).verdict is Verdict.PASSED


# --- Azure ---


def test_azures_evidence_is_judged_alone_or_with_the_chips_certificate() -> None:
    """The VCEK may stand in the file or come from the caller; without either it is said where it is."""
    file = evidence_file(AZURE.evidence(DATA), "az-snp-vtpm")
    judgement = run(file, {"sha256:4": AZURE.pcrs[4].hex()}, tee="az-snp-vtpm")
    assert judgement.verdict is Verdict.PASSED
    assert judgement.claims is not None
    assert judgement.claims.instance_ids[0] == AZURE.ak_id
    del file["evidence"]["vcek"]
    with pytest.raises(ConfigError, match="lacks the certificate"):
        run(file, tee="az-snp-vtpm")
    assert run(file, tee="az-snp-vtpm", endorsements=[CHIP.vcek]).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("expect", "floors", "judged"),
    [
        ({}, None, False),
        ({"sha256:4": AZURE.pcrs[4].hex()}, Floors(), False),
        ({"measurement": MEASUREMENT.hex()}, None, True),
        ({"id_key_digest": ID_KEY_DIGEST.hex()}, None, True),
        ({}, Floors(id_key_digests=(ID_KEY_DIGEST.hex(),)), True),
    ],
)
def test_a_paravisor_that_nobody_named_is_said_not_to_be_judged(
    expect: dict[str, str], floors: Floors | None, judged: bool
) -> None:
    """Anybody's code at VMPL 0 can sign quotes in software: without its digest the trace leaves no doubt of that."""
    judgement = run(evidence_file(AZURE.evidence(DATA), "az-snp-vtpm"), expect, floors=floors, tee="az-snp-vtpm")
    assert judgement.verdict is Verdict.PASSED
    lines = [check for check in judgement.trace.checks if check.verdict is Verdict.NOT_JUDGED]
    assert [check.name.startswith("paravisor is Microsoft's") for check in lines] == ([] if judged else [True])


def test_azures_quote_must_answer_the_challenge() -> None:
    """Another challenge than the file's is refused."""
    file = evidence_file(AZURE.evidence(DATA), "az-snp-vtpm")
    assert run(file, {"report_data": DATA[::-1].hex()}, tee="az-snp-vtpm").verdict is Verdict.FAILED


# --- any bytes ---


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_changed_files_raise_only_our_error(data: st.DataObject) -> None:
    """A file or report with changed bytes is judged, refused, or cannot be judged; nothing else happens."""
    raw = bytearray(data.draw(st.sampled_from((json.dumps(FILE).encode(), json.dumps(BARE).encode()))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(ConfigError):
        run(bytes(raw))


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_endorsement_raises_anything_else(data: bytes, armoured: bool) -> None:
    """Any bytes as an endorsement are refused as one, or used as a candidate."""
    with suppress(ConfigError):
        run(endorsements=[b"-----BEGIN CERTIFICATE-----\n" + data if armoured else data])


# --- recorded ---


@needs_vectors
@pytest.mark.parametrize(
    ("name", "vek", "verdict"),
    [
        ("genoa-v5-oak", "genoa-v5-oak.vcek.der", Verdict.PASSED),
        ("turin-v5-azure", "turin-v5-azure.vcek.der", Verdict.PASSED),
        ("vlek-milan-v3-aws", "vlek-milan-v3-aws.vlek.der", Verdict.PASSED),
        ("milan-v2-wrong-chip", "milan-v2-wrong-chip.vcek.der", Verdict.FAILED),
        ("vlek-milan-v2-aws", "vlek-milan-v2-aws.vlek.der", Verdict.FAILED),
    ],
)
def test_genuine_reports_lead_to_amds_own_roots(name: str, vek: str, verdict: Verdict) -> None:
    """Reports of real machines, with the roots that the product has, and no floors."""
    report = (VECTORS / "snp" / "reports" / f"{name}.bin").read_bytes()
    certificate = (VECTORS / "snp" / "veks" / vek).read_bytes()
    expect = {"report_data": report[0x50:0x90].hex(), "measurement": report[0x90:0xC0].hex()}
    at = x509.load_der_x509_certificate(certificate).not_valid_before_utc.astimezone(UTC) + timedelta(days=30)
    assert judge("snp", report, [certificate], [], at, expect, floors=NOTHING).verdict is verdict
