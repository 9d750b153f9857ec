# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.az_snp_vtpm: evidence of Azure's confidential VMs, its JSON forms, and every check on it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256, sha384
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.appraisal.images import parse_image
from broker.appraisal.judge import judge
from broker.claims import BelowFloors, Binding, Claims, EndorsementRequest, Endorsements
from broker.trace import Stage, Trace, Verdict
from broker.verifiers.az_snp_vtpm import AzSnpVtpmVerifier
from broker.verifiers.az_vtpm_evidence import AzQuote, AzSnpEvidence, decode_evidence
from broker.verifiers.az_vtpm_quote import verify_az_quote
from broker.verifiers.registry import verifier_for
from broker.verifiers.snp_endorsements import crl_name, vcek_name
from broker.verifiers.snp_floors import NOTHING, Floors
from broker.verifiers.snp_report import Line
from broker.verifiers.snp_roots import built_in
from keys.errors import EndorsementError, ProtocolError, RoomkeyError, VerificationError
from keys.tee import Tee
from tests.fakes import tpm_forge as forge
from tests.fakes.amd import AT, CSP_ID, HW_ID, MEASUREMENT, TCBS, Chip, FakeAmd
from tests.fakes.az_guest import ID_KEY_DIGEST, AzGuest, hcl_report, jwk, runtime_data, sign
from tests.fakes.cases import case_of
from tests.vectors import VECTORS, needs_vectors

DATA = sha384(b"a challenge and a guest's key").digest()
VERIFIER = AzSnpVtpmVerifier()
CHIP_NAME = f"snp-chip:{HW_ID.hex()}"
VCEK_NAME = vcek_name(Line.GENOA, HW_ID, TCBS[Line.GENOA])


@cache
def amd() -> FakeAmd:
    return FakeAmd(Line.GENOA)


@cache
def chip() -> Chip:
    return Chip(amd())


@cache
def vm() -> AzGuest:
    """A VM that no test changes."""
    return AzGuest(chip())


def trusting(floors: Floors | None = None, found: Mapping[str, bytes] | None = None) -> Endorsements:
    return Endorsements(trusted=amd().trusted(floors), found=found or {})


def verify(
    evidence: Mapping[str, Any] | AzSnpEvidence,
    endorsements: Endorsements | None = None,
    bound_to: Binding | None = None,
    trace: Trace | None = None,
) -> Claims:
    decoded = evidence if isinstance(evidence, AzSnpEvidence) else VERIFIER.decode(evidence)
    trace = Trace() if trace is None else trace
    return VERIFIER.verify(decoded, endorsements or trusting(), bound_to or Binding(DATA), AT, trace)


def refused(
    evidence: Mapping[str, Any] | AzSnpEvidence,
    message: str,
    endorsements: Endorsements | None = None,
    bound_to: Binding | None = None,
    error: type[VerificationError] = VerificationError,
) -> Trace:
    """The trace of a refusal; one line failed, and behind it nothing was judged."""
    trace = Trace()
    with pytest.raises(error, match=message):
        verify(evidence, endorsements, bound_to, trace)
    assert [check.verdict for check in trace.checks].count(Verdict.FAILED) == 1
    verdicts = [check.verdict for check in trace.checks]
    assert set(verdicts[verdicts.index(Verdict.FAILED) + 1 :]) <= {Verdict.NOT_JUDGED}
    return trace


def with_quote(quote: forge.Quote) -> AzSnpEvidence:
    """The VM's evidence with another quote, which its AK signs."""
    attest = quote.attest()
    evidence = decode_evidence(vm().evidence(DATA))
    return replace(evidence, quote=replace(evidence.quote, attest=attest, signature=sign(vm().ak, attest)))


def with_hcl(hcl: bytes, version: int = 1) -> AzSnpEvidence:
    return replace(decode_evidence(vm().evidence(DATA)), hcl_report=hcl, version=version)


def test_registry() -> None:
    """The table of platforms leads to this verifier."""
    assert isinstance(verifier_for(Tee.AZ_SNP_VTPM), AzSnpVtpmVerifier)


# --- whole evidence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, 2])
def test_claims(version: int) -> None:
    """Genuine evidence of every version gives SNP's claims, the PCRs, the vTPM's counters and the paravisor's words."""
    trace = Trace()
    claims = verify(vm().evidence(DATA, version), trace=trace)
    assert not trace.failed
    assert (claims.tee, claims.trust, claims.init_data) == (Tee.AZ_SNP_VTPM, "vcek", None)
    assert claims.instance_ids == (vm().ak_id, CHIP_NAME)
    pcrs = {f"sha256:{index}": value.hex() for index, value in enumerate(vm().pcrs)}
    assert pcrs.items() <= claims.measurements.items()
    assert claims.measurements["measurement"] == MEASUREMENT.hex()
    assert claims.measurements["id_key_digest"] == ID_KEY_DIGEST.hex()
    assert len(claims.measurements) == 24 + 6
    expected = {
        "product": "Genoa",
        "vmpl": 0,
        "guest_svn": 0x10009,
        "policy_debug_allowed": False,
        "clock": 1234,
        "reset_count": 5,
        "restart_count": 6,
        "safe": True,
        "firmware_version": "0102030405060708",
        "azure_secure_boot": True,
        "azure_vm_unique_id": "3B09DD36-2237-4532-A5A6-C4624BE05DD6",
        "evidence_version": version,
        "hardware_report_fresh": version == 2,
    }
    assert expected.items() <= claims.facts.items()
    assert Claims.from_json(json.loads(json.dumps(claims.to_json()))) == claims


def test_challenge_has_its_full_length() -> None:
    """A digest that is cut or padded is no challenge of this platform."""
    for data in (DATA[:32], DATA.ljust(64, b"\0")):
        refused(vm().evidence(data), "challenge has its full length", bound_to=Binding(data))


def test_machines_that_count_by_name_only() -> None:
    """On a line of which the operator says so, the trust is one that "any" does not take; the AK still comes first."""
    claims = verify(vm().evidence(DATA), trusting(Floors(named_only=("Genoa",))))
    assert (claims.trust, claims.instance_ids[0]) == ("vcek-named", vm().ak_id)


def test_two_vms_of_one_chip() -> None:
    """Two VMs have two names, whatever chip they run on."""
    other = AzGuest(chip(), ak=forge.rsa_key(3072))
    claims = verify(other.evidence(DATA))
    assert claims.instance_ids == (other.ak_id, CHIP_NAME)
    assert other.ak_id != vm().ak_id


IMAGE = """
platform = "az-snp-vtpm"
[snp]
{pin}
[tpm]
bank = "sha256"
[tpm.pcrs]
4 = "{pcr4}"
"""


def allowed(claims: Claims, *instances: str, enrolled: AzGuest) -> bool:
    """Whether a rule with these instances ("web-1" is the enrolled VM) and a pinned paravisor lets the guest in."""
    image = parse_image(IMAGE.format(pin=f'id_key_digest = "{ID_KEY_DIGEST.hex()}"', pcr4=vm().pcrs[4].hex()))
    rule = {"images": ["web@1"], "platforms": ["az-snp-vtpm"], "instances": list(instances)}
    known = {"web-1": (enrolled.ak_id,)}
    return judge(case_of(claims, images={"web@1": image}, enrolled=known, rule=rule), Trace()).allowed


def test_a_paravisor_of_ones_own_shows_in_the_measurement_alone() -> None:
    """Code of an attacker at VMPL 0 passes with any PCRs and configuration: only a pinned paravisor tells it apart."""
    rogue = AzGuest(chip(), ak=forge.rsa_key(3072), measurement=b"\x66" * 48, id_key_digest=bytes(48))
    rogue.pcrs = vm().pcrs
    claims, genuine = verify(rogue.evidence(DATA)), verify(vm().evidence(DATA))
    differs = {name for name, value in claims.measurements.items() if value != genuine.measurements[name]}
    assert differs == {"measurement", "id_key_digest"}
    assert allowed(genuine, "any", enrolled=vm())
    assert not allowed(claims, "any", enrolled=vm())
    assert not allowed(claims, "web-1", enrolled=rogue)
    with pytest.raises(ProtocolError, match="does not say what boots"):
        parse_image(IMAGE.format(pin="", pcr4=vm().pcrs[4].hex()))


def test_leaked_seeds() -> None:
    """Where reports can be forged, a made-up AK is no name that a rule knows, and an enrolled AK cannot sign for it."""
    named = trusting(Floors(named_only=("Genoa",)))
    assert allowed(verify(vm().evidence(DATA), named), "web-1", enrolled=vm())
    assert not allowed(verify(vm().evidence(DATA), named), "any", enrolled=vm())
    forger = AzGuest(chip(), ak=forge.rsa_key(3072))  # with the seed it says what it likes: here, all that is pinned
    assert not allowed(verify(forger.evidence(DATA), named), "web-1", "any-other", enrolled=vm())
    attest = forger.quote(DATA).attest()
    stolen = replace(with_hcl(vm().hcl(vm().runtime())), quote=AzQuote(attest, sign(forger.ak, attest), {}))
    refused(stolen, "quote is signed by the attestation key", named)


# --- endorsements ---------------------------------------------------------------------------------------------------


def test_needs() -> None:
    """With a fitting VCEK the evidence needs nothing, otherwise the one that the report names."""
    helpful = (crl_name(Line.GENOA),)
    ids = (vm().ak_id, f"snp-chip:{chip().hw_id.hex()}")
    for version in (0, 1, 2):
        complete = decode_evidence(vm().evidence(DATA, version))
        assert VERIFIER.needs(complete) == EndorsementRequest(ids, helpful=helpful)
    missing = EndorsementRequest(ids, required=(VCEK_NAME,), helpful=helpful)
    assert VERIFIER.needs(replace(complete, vcek=None)) == missing
    assert VERIFIER.needs(replace(complete, vcek=b"garbage")) == missing
    _, older = amd().vcek(tcb=TCBS[Line.GENOA] | {"snp": 24})
    assert VERIFIER.needs(replace(complete, vcek=older)) == missing


def test_needs_of_what_cannot_be_judged() -> None:
    """For what is no HCL report of SEV-SNP nothing is looked up."""
    tdx = hcl_report(bytes(1024), b"{}", hardware=4)
    for hcl in (b"", b"HCLA", tdx, hcl_report(bytes(1184), b"{}")):
        assert VERIFIER.needs(with_hcl(hcl)) == EndorsementRequest()


def test_vcek_from_elsewhere() -> None:
    """Evidence without a VCEK is verified with the one that was looked up, and refused without any."""
    evidence = without_none(vm().evidence(DATA) | {"vcek": None})
    assert verify(evidence, trusting(found={VCEK_NAME: chip().vek})).trust == "vcek"
    refused(evidence, "no VCEK certificate", error=EndorsementError)


# --- HCL report -----------------------------------------------------------------------------------------------------


def test_hcl_report_is_parsed() -> None:
    """What the parser of HCL reports or of runtime data refuses is a failed check."""
    refused(with_hcl(b"HCLB" + vm().hcl(vm().runtime())[4:]), "signature is not allowed")
    refused(with_hcl(vm().hcl(runtime_data([]))), "must have one HCLAkPub")


def test_report_of_another_platform() -> None:
    """The HCL report of a VM on TDX is refused, though it be bound to its runtime data."""
    runtime = vm().runtime()
    report = bytes(128) + sha256(runtime).digest().ljust(1024 - 128, b"\0")
    trace = refused(with_hcl(hcl_report(report, runtime, hardware=4)), "another platform's report")
    assert "az-tdx-vtpm" in trace.failed[0].mend


def test_runtime_data_are_bound() -> None:
    """Runtime data with another key than the hardware report vouches for are refused."""
    other = runtime_data([jwk("HCLAkPub", forge.rsa_key(3072))])
    genuine = chip().report(sha256(vm().runtime()).digest(), **vm().fields)
    refused(with_hcl(hcl_report(genuine, other)), "not the hash of the runtime data")


# --- hardware report ------------------------------------------------------------------------------------------------


def test_hardware_report_is_genuine() -> None:
    """A report changed after it was signed, one of another AMD, and one signed with a VLEK are refused."""
    hcl = bytearray(vm().hcl(vm().runtime()))
    hcl[32 + 0x90] ^= 1  # MEASUREMENT
    refused(with_hcl(bytes(hcl)), "report's signature is right")
    refused(
        AzGuest(Chip(FakeAmd(Line.GENOA, copy=1))).evidence(DATA),
        "certificate.s signature is wrong",
        error=EndorsementError,
    )
    provider = AzGuest(Chip(amd(), csp_id=CSP_ID))
    refused(provider.evidence(DATA), "no VLEK certificate", error=EndorsementError)


def test_floors() -> None:
    """The operator's floors hold for the hardware report, the strict ones by default."""
    debug = AzGuest(chip(), policy=0xB001F)
    with pytest.raises(VerificationError, match="below this broker's floors"):
        verify(debug.evidence(DATA))
    assert verify(debug.evidence(DATA), trusting(NOTHING)).facts["policy_debug_allowed"] is True


def test_below_the_floors_all_is_told_once_all_is_proved() -> None:
    """Genuine evidence of a machine below the floors comes with its claims; where anything else is wrong, with none."""
    debug = AzGuest(chip(), policy=0xB001F)
    trace = Trace()
    with pytest.raises(BelowFloors) as caught:
        verify(debug.evidence(DATA), trace=trace)
    assert caught.value.claims == verify(debug.evidence(DATA), trusting(NOTHING))
    assert [check.name for check in trace.failed] == ["debugging is off"]
    assert Verdict.NOT_JUDGED not in {check.verdict for check in trace.checks if check.stage is not Stage.IDENTITY}
    other = sha384(b"another challenge").digest()
    for evidence, bound_to in (
        (debug.evidence(other), Binding(DATA)),
        (debug.evidence(DATA), Binding(DATA, bytes(32))),
        (AzGuest(chip(), policy=0xB001F, vmpl=1).evidence(DATA), Binding(DATA)),
    ):
        with pytest.raises(VerificationError) as other_error:
            verify(evidence, bound_to=bound_to)
        assert not isinstance(other_error.value, BelowFloors)


@pytest.mark.parametrize("vmpl", [1, 3])
def test_vmpl(vmpl: int) -> None:
    """Only VMPL 0 is the paravisor's, whatever the floors let in."""
    guest = AzGuest(chip(), vmpl=vmpl)
    refused(guest.evidence(DATA), "asked for by the paravisor", trusting(NOTHING))


# --- quote ----------------------------------------------------------------------------------------------------------


def test_quote_of_another_key() -> None:
    """A quote that the AK of the runtime data did not sign is refused, and so is one signed in another way."""
    evidence = decode_evidence(vm().evidence(DATA))
    attest = evidence.quote.attest
    for signature in (
        sign(forge.rsa_key(3072), attest),
        vm().ak.sign(attest, padding.PKCS1v15(), SHA384()),
        evidence.quote.signature[:-1],
        b"",
    ):
        forged = replace(evidence, quote=replace(evidence.quote, signature=signature))
        refused(forged, "quote is signed by the attestation key")


@pytest.mark.parametrize(
    "data",
    [DATA[:32], DATA.ljust(64, b"\0"), DATA[:-1] + bytes([DATA[-1] ^ 1]), b""],
    ids=["cut", "padded", "changed", "empty"],
)
def test_quote_for_another_challenge(data: bytes) -> None:
    """extraData is the whole digest and nothing more."""
    refused(with_quote(vm().quote(data)), "quote answers this challenge")


@pytest.mark.parametrize(
    "banks",
    [
        (("sha256", range(23)),),
        (("sha384", range(24)),),
        (("sha256", range(24)), ("sha1", ())),
        (("sha1", ()), ("sha256", range(24))),
        (("sha256", range(24)), ("sha256", range(24))),
        (("sha256", range(12)), ("sha256", range(12, 24))),
        (),
    ],
    ids=range(7),
)
def test_selection(banks: Any) -> None:
    """Exactly PCR 0 to 23 of the SHA-256 bank are quoted; the 24 values get no names from any other selection."""
    values = dict(enumerate(vm().pcrs))
    pcrs = {"sha256": values, "sha384": values, "sha1": {}}
    quote = forge.Quote(vm().ak, extra_data=DATA, banks=[(bank, tuple(indices)) for bank, indices in banks], pcrs=pcrs)
    refused(with_quote(quote), "signed selection is PCR 0 to 23")


def test_pcr_values() -> None:
    """A value other than the quoted one is refused."""
    evidence = vm().evidence(DATA)
    evidence["tpm_quote"]["pcrs"][4] = "00" * 32
    refused(evidence, "PCR values are what the TPM quoted")


def test_relabelled_pcrs() -> None:
    """Quoted values in another order than the PCRs' are refused."""
    evidence = vm().evidence(DATA)
    pcrs = evidence["tpm_quote"]["pcrs"]
    pcrs[4], pcrs[5] = pcrs[5], pcrs[4]
    refused(evidence, "PCR values are what the TPM quoted")


# --- freshness of the hardware report -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "user_data",
    [None, b"", DATA[:47], DATA[:-1] + bytes([DATA[-1] ^ 1]), b"\0" + DATA],
    ids=["none", "zeros", "short", "changed", "shifted"],
)
def test_user_data(user_data: bytes | None) -> None:
    """In version 2 the runtime data repeat the digest; in version 1 the trace says that the report may be older."""
    keys = [jwk("HCLAkPub", vm().ak)]
    if user_data is None:
        runtime = json.dumps({"keys": keys, "vm-configuration": {}}).encode()
    else:
        runtime = runtime_data(keys, user_data=user_data)
    hcl = vm().hcl(runtime)
    refused(with_hcl(hcl, version=2), "hardware report answers this challenge too")
    trace = Trace()
    assert verify(with_hcl(hcl, version=1), trace=trace).facts["hardware_report_fresh"] is False
    line = next(check for check in trace.checks if check.name.startswith("hardware report answers"))
    assert line.verdict is Verdict.NOT_REQUIRED
    assert "may be older" in line.found


def test_user_data_in_version_1() -> None:
    """Where an older form happens to have a fresh hardware report, that is a fact, in either case of hex."""
    for runtime in (vm().runtime(DATA), vm().runtime(DATA).replace(DATA.hex().upper().encode(), DATA.hex().encode())):
        trace = Trace()
        claims = verify(with_hcl(vm().hcl(runtime), version=1), trace=trace)
        assert claims.facts["hardware_report_fresh"] is True
        assert any(check.found.endswith("it does") for check in trace.checks)


# --- init-data ------------------------------------------------------------------------------------------------------


def test_init_data() -> None:
    """Posted init-data is what PCR 8 holds, and then it is a claim."""
    digest = sha256(b"init-data").digest()
    guest = AzGuest(chip())
    guest.pcrs[8] = sha256(bytes(32) + digest).digest()
    assert verify(guest.evidence(DATA), bound_to=Binding(DATA, digest)).init_data == digest.hex()
    refused(vm().evidence(DATA), "init-data is what PCR 8 holds", bound_to=Binding(DATA, digest))
    refused(guest.evidence(DATA), "a digest that a TPM can hold", bound_to=Binding(DATA, DATA))


# --- JSON forms -----------------------------------------------------------------------------------------------------


def test_forms_say_the_same() -> None:
    """The forms differ in nothing but the version, the certificate's form and what the paravisor repeats."""
    old, new = (decode_evidence(vm().evidence(DATA, version)) for version in (0, 1))
    assert (old.version, new.version) == (0, 1)
    assert new.vcek == chip().vek
    assert old.vcek is not None
    assert old.vcek.startswith(b"-----BEGIN CERTIFICATE-----")
    assert (old.quote.attest, old.quote.pcrs) == (new.quote.attest, new.quote.pcrs)
    assert decode_evidence(without_none(vm().evidence(DATA, 0) | {"vcek": None})).vcek is None


def without_none(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"version": 0}, "version is unknown"),
        ({"version": 3}, "version is unknown"),
        ({"version": True}, "version is unknown"),
        ({"version": "2"}, "version is unknown"),
        ({"more": 1}, "unknown member"),
        ({"tpm_quote": None}, "lacks a member"),
        ({"hcl_report": None}, "lacks a member"),
        ({"tpm_quote": []}, "tpm_quote must be"),
        ({"tpm_quote": {"signature": "", "message": ""}}, "lacks a member"),
        ({"hcl_report": 1}, "hcl_report must be a string"),
        ({"hcl_report": "AA"}, "hcl_report must be padded"),
        ({"hcl_report": "AAA=="}, "hcl_report must be padded"),
        ({"hcl_report": "AAAA="}, "hcl_report must be padded"),
        ({"hcl_report": "AB=="}, "hcl_report is not the canonical"),
        ({"hcl_report": "A=AA"}, "hcl_report is not"),
        ({"hcl_report": "+/AA"}, "hcl_report is not"),
        ({"hcl_report": b64url(bytes(16 * 1024 + 1))}, "hcl_report is too long"),
        ({"hcl_report": b64url(bytes(16 * 1024 + 3))}, "hcl_report is too long"),
        ({"vcek": 1}, "vcek must be a string"),
        ({"vcek": b64url(bytes(8 * 1024 + 3))}, "vcek is too long"),
    ],
    ids=range(20),
)
def test_members(members: dict[str, Any], message: str) -> None:
    """A member of the wrong type, size or spelling is refused by its name."""
    with pytest.raises(ProtocolError, match=message):
        decode_evidence(without_none(vm().evidence(DATA, 2) | members))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"signature": "AB"}, "tpm_quote.signature must be lower-case hex"),
        ({"signature": "abc"}, "tpm_quote.signature must be lower-case hex"),
        ({"signature": "00" * 513}, "tpm_quote.signature is too long"),
        ({"message": 1}, "tpm_quote.message must be a string"),
        ({"message": "00" * 1025}, "tpm_quote.message is too long"),
        ({"pcrs": {}}, "24 values"),
        ({"pcrs": ["00" * 32] * 23}, "24 values"),
        ({"pcrs": ["00" * 32] * 25}, "24 values"),
        ({"pcrs": ["00" * 32] * 23 + ["00" * 33]}, "tpm_quote.pcrs.23 is too long"),
        ({"pcrs": [[0] * 32] * 24}, "tpm_quote.pcrs.0 must be a string"),
        ({"more": ""}, "unknown member"),
    ],
    ids=range(11),
)
def test_members_of_the_quote(members: dict[str, Any], message: str) -> None:
    """The quote's members are read as strictly."""
    evidence = vm().evidence(DATA, 2)
    with pytest.raises(ProtocolError, match=message):
        decode_evidence(evidence | {"tpm_quote": evidence["tpm_quote"] | members})


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"quote": None}, "lacks a member"),
        ({"report": None}, "lacks a member"),
        ({"report": "AAAA"}, "report must be a list of bytes"),
        ({"report": [0] * (16 * 1024 + 1)}, "report must be a list of bytes"),
        ({"report": [256]}, "report must hold bytes"),
        ({"report": [-1]}, "report must hold bytes"),
        ({"report": [True]}, "report must hold bytes"),
        ({"vcek": [1]}, "vcek must be a string"),
        ({"vcek": "A" * (8 * 1024 + 1)}, "vcek is too long"),
        ({"vcek": "-----BEGIN CERTIFICATE-----\n\u00e9"}, "vcek must be PEM"),
        ({"hcl_report": "AAAA"}, "unknown member"),
    ],
    ids=range(11),
)
def test_members_of_version_0(members: dict[str, Any], message: str) -> None:
    """The oldest form is read as strictly as the others."""
    with pytest.raises(ProtocolError, match=message):
        decode_evidence(without_none(vm().evidence(DATA, 0) | members))


def test_short_values_are_no_pcrs() -> None:
    """A PCR value of another length than SHA-256's is refused before anything is hashed."""
    evidence = vm().evidence(DATA)
    evidence["tpm_quote"]["pcrs"][0] = ""
    refused(evidence, "PCR values have their bank's length")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["version", "tpm_quote", "quote", "signature", "message", "pcrs"]), inner)
    ),
    max_leaves=8,
)


@given(value=JSON, name=st.sampled_from(["version", "tpm_quote", "hcl_report", "vcek", "quote", "report"]))
@settings(max_examples=150, deadline=None)
def test_any_json_raises_only_our_error(value: Any, name: str) -> None:
    """Whatever JSON value stands anywhere, the form is read or refused as a fault of the message."""
    for form in (value, {**vm().evidence(DATA, 2), name: value}, {**vm().evidence(DATA, 0), name: value}):
        with suppress(ProtocolError):
            decode_evidence(form)


@given(part=st.sampled_from(["attest", "signature"]), place=st.integers(0, 10_000), mask=st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_of_the_quote(part: str, place: int, mask: int) -> None:
    """No changed byte of attestation or signature passes."""
    evidence = decode_evidence(vm().evidence(DATA))
    raw = bytearray(getattr(evidence.quote, part))
    raw[place % len(raw)] ^= mask
    quote = (
        replace(evidence.quote, attest=bytes(raw))
        if part == "attest"
        else replace(evidence.quote, signature=bytes(raw))
    )
    with pytest.raises(VerificationError):
        verify(replace(evidence, quote=quote))


@given(place=st.integers(0, 2599), mask=st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_of_the_hcl_report(place: int, mask: int) -> None:
    """No changed byte of the HCL report but in its version changes what comes out, and only our errors do."""
    raw = bytearray(vm().hcl(vm().runtime(DATA)))
    raw[place] ^= mask
    changed = with_hcl(bytes(raw), version=2)
    with suppress(RoomkeyError):
        VERIFIER.needs(changed)
        assert verify(changed) == verify(vm().evidence(DATA))
        assert 4 <= place < 8


# --- real evidence --------------------------------------------------------------------------------------------------


@needs_vectors
def test_real_quote() -> None:
    """A real Azure vTPM's quote is genuine by itself."""
    recorded = json.loads((VECTORS / "azure" / "quote.json").read_text())
    key = (VECTORS / "azure" / "akpub.pem").read_bytes()
    public = load_pem_public_key(key)
    assert isinstance(public, rsa.RSAPublicKey)
    pcrs = {"sha256": {index: bytes.fromhex(text) for index, text in enumerate(recorded["pcrs"])}}
    quote = AzQuote(bytes.fromhex(recorded["message"]), bytes.fromhex(recorded["signature"]), pcrs)
    assert verify_az_quote(quote, public, b"challenge", Trace()).reset_count == 3


@needs_vectors
def test_real_hardware_report() -> None:
    """A real HCL report passes every check up to the quote, for which nobody has its AK."""
    evidence = replace(
        decode_evidence(vm().evidence(DATA, 1)),
        hcl_report=(VECTORS / "snp" / "evidence" / "genoa-v3-azure-hcl.bin").read_bytes(),
        vcek=(VECTORS / "snp" / "veks" / "genoa-v3-azure-hcl.vcek.der").read_bytes(),
    )
    trace, at = Trace(), datetime(2026, 3, 1, tzinfo=UTC)
    with pytest.raises(VerificationError, match="quote is signed by the attestation key"):
        VERIFIER.verify(evidence, Endorsements(trusted=built_in()), Binding(DATA), at, trace)
    assert len(trace.failed) == 1
    needed = VERIFIER.needs(evidence)
    assert (needed.required, needed.helpful) == ((), (crl_name(Line.GENOA),))
    assert [name.partition(":")[0] for name in needed.instance_ids] == ["az-ak", "snp-chip"]
