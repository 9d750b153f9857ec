# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.tpm and tpm_trust: whole evidence, whose key it is, floors, init-data, event log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.claims import Binding, Claims, EndorsementRequest, Endorsements, Trusted
from broker.trace import Stage, Trace, Verdict
from broker.verifiers.registry import verifier_for
from broker.verifiers.tpm import TpmVerifier
from broker.verifiers.tpm_evidence import TpmEvidence, decode_evidence
from broker.verifiers.tpm_structures import parse_public
from keys import b64
from keys.binding import activation_proof, activation_proof_key
from keys.errors import EndorsementError, ProtocolError, RoomkeyError, VerificationError
from keys.tee import Tee
from tests.fakes import tpm_forge as forge
from tests.fakes.boot import Boot, event_log
from tests.fakes.ek_ca import EkCa
from tests.fakes.tcg_log import EFI_ACTION, IPL, NO_ACTION, Record, agile_log, firmware
from tests.fakes.tpm_guest import FakeTpm

AT = datetime.now(UTC)
DATA = bytes(range(48))
SECRET = bytes(range(100, 132))
PROOF_KEY = activation_proof_key(SECRET)
CA = EkCa()
VERIFIER = TpmVerifier()


def booted(boot: Boot | None = None, **options: Any) -> FakeTpm:
    tpm = FakeTpm(**options)
    tpm.boot(boot or Boot())
    return tpm


def enrolled(tpm: FakeTpm) -> Endorsements:
    return Endorsements(enrolled={f"tpm-ak:{tpm.ak_name.hex()}": tpm.ak_public})


def declared(tpm: FakeTpm, **changes: Any) -> Endorsements:
    """What the broker knows of a session that declared this TPM."""
    session = {**tpm.declaration._asdict(), **changes}
    return Endorsements(trusted=Trusted(roots=(CA.root,)), activation=PROOF_KEY, session=session)


def verify(
    evidence: Mapping[str, Any] | TpmEvidence,
    endorsements: Endorsements,
    bound_to: Binding | None = None,
    trace: Trace | None = None,
) -> Claims:
    decoded = evidence if isinstance(evidence, TpmEvidence) else decode_evidence(evidence)
    return VERIFIER.verify(
        decoded, endorsements, bound_to or Binding(DATA), AT, trace if trace is not None else Trace()
    )


def refused(
    evidence: Mapping[str, Any] | TpmEvidence,
    endorsements: Endorsements,
    message: str,
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


def quoted(quote: forge.Quote, **members: Any) -> tuple[TpmEvidence, Endorsements]:
    """Forged evidence in decoded form, and an owner who enrolled its key."""
    evidence = TpmEvidence(
        ak_public=quote.public,
        ak_spki=b"",
        attest=quote.attest(),
        signature=quote.signature(),
        pcrs=quote.values,
        **members,
    )
    return evidence, Endorsements(enrolled={f"tpm-ak:{forge.name(quote.public).hex()}": quote.public})


def test_registry() -> None:
    """The table of platforms leads to this verifier, and to none for others."""
    assert isinstance(verifier_for(Tee.TPM), TpmVerifier)
    with pytest.raises(ProtocolError, match="no verifier for this platform"):
        verifier_for(Tee.SEV)


# --- whole evidence -------------------------------------------------------------------------------------------------


def test_claims_of_an_enrolled_guest() -> None:
    """Genuine evidence of an enrolled key gives its values, facts and events, and they survive the store's JSON."""
    tpm, trace = booted(), Trace()
    claims = verify(tpm.evidence(DATA), enrolled(tpm), trace=trace)
    assert not trace.failed
    assert (claims.tee, claims.trust, claims.instance_ids) == (Tee.TPM, "enrolled", (f"tpm-ak:{tpm.ak_name.hex()}",))
    assert claims.measurements == {f"sha256:{index}": value.hex() for index, value in enumerate(tpm.pcrs)}
    assert claims.facts["ak_name"] == tpm.ak_name.hex()
    assert claims.facts["ak_attributes"] == "00050072"
    assert claims.facts["ak_hierarchy"] == "primary"
    assert (claims.facts["signature_scheme"], claims.facts["signature_hash"]) == ("ecdsa", "sha256")
    assert (claims.facts["clock"], claims.facts["reset_count"], claims.facts["restart_count"]) == (1010, 3, 0)
    assert (claims.facts["safe"], claims.facts["firmware_version"]) == (True, "2026010100000001")
    assert claims.facts["secure_boot"] is True
    assert claims.facts["efi_applications"] == hashlib.sha256(Boot().kernel).hexdigest()
    assert "ek_subject" not in claims.facts
    kernel = [event for event in claims.events if event.register == "sha256:4"][-1]
    assert (kernel.type, kernel.what) == ("EV_EFI_BOOT_SERVICES_APPLICATION", "\\EFI\\debian\\vmlinuz.efi")
    assert kernel.digest == hashlib.sha256(Boot().kernel).hexdigest()
    assert Claims.from_json(json.loads(json.dumps(claims.to_json()))) == claims


@pytest.mark.parametrize("rsa_ek", [False, True], ids=["ecc", "rsa"])
def test_claims_of_a_certified_guest(rsa_ek: bool) -> None:
    """A TPM whose EK its maker certified, and that opened the credential, is named by its EK."""
    tpm = booted(ca=CA, rsa_ek=rsa_ek)
    claims = verify(tpm.evidence(DATA, SECRET), declared(tpm))
    assert claims.trust == "ek-certificate"
    assert claims.instance_ids == (
        f"tpm-ek:{hashlib.sha256(tpm.ek_spki).hexdigest()}",
        f"tpm-ak:{tpm.ak_name.hex()}",
    )
    assert (claims.facts["ek_manufacturer"], claims.facts["ek_model"]) == ("ROOM", "Roomkey software TPM")
    assert (claims.facts["ek_version"], claims.facts["ek_subject"]) == ("id:00000001", "")
    assert claims.facts["ek_root"] == "CN=Roomkey test TPM maker root"
    assert claims.facts["ek_issuer"] == "CN=Roomkey test TPM maker CA"
    assert claims.facts["ek_serial"]


def test_claims_of_a_stock_guest() -> None:
    """A stock guest's key gets its attributes from its enrolment."""
    tpm = booted()
    identity = f"tpm-spki:{hashlib.sha256(tpm.ak_spki).hexdigest()}"
    claims = verify(tpm.stock_evidence(DATA), Endorsements(enrolled={identity: tpm.ak_public}))
    assert claims.instance_ids == (f"tpm-ak:{tpm.ak_name.hex()}",)
    assert claims.measurements["sha256:4"] == tpm.pcrs[4].hex()
    assert claims.events == ()


def test_what_the_verifier_needs() -> None:
    """The owner's enrolment is looked up by the key's Name, for stock guests by the key; for no key, nothing is."""
    tpm = FakeTpm()
    decoded = VERIFIER.decode(tpm.evidence(DATA))
    assert VERIFIER.needs(decoded).instance_ids == (f"tpm-ak:{tpm.ak_name.hex()}",)
    stock = VERIFIER.needs(VERIFIER.decode(tpm.stock_evidence(DATA)))
    assert stock.instance_ids == (f"tpm-spki:{hashlib.sha256(tpm.ak_spki).hexdigest()}",)
    assert VERIFIER.needs(replace(decoded, ak_public=b"\0\1")) == EndorsementRequest()


def test_malformed_key() -> None:
    """A public area that does not parse is a failed check of the trace."""
    tpm = booted()
    evidence = replace(decode_evidence(tpm.evidence(DATA)), ak_public=tpm.ak_public + b"\0")
    refused(evidence, enrolled(tpm), "TPMT_PUBLIC has trailing")


def test_quote_for_another_challenge() -> None:
    """Recorded evidence answers the challenge that it was made for, and no other."""
    tpm = booted()
    refused(tpm.evidence(DATA), enrolled(tpm), "answers this challenge", Binding(DATA[::-1]))


# --- whose key ------------------------------------------------------------------------------------------------------


def test_software_key() -> None:
    """A key that nobody vouches for is refused, however well it signs, and the refusal names it for enrolment."""
    tpm = booted()
    trace = refused(tpm.evidence(DATA), Endorsements(trusted=Trusted(roots=(CA.root,))), "attestation key is trusted")
    assert trace.failed[-1].found == f"tpm-ak:{tpm.ak_name.hex()}"


def test_key_enrolled_under_anothers_name() -> None:
    """An enrolment vouches for exactly the public area that was enrolled."""
    tpm, other = booted(), FakeTpm()
    endorsements = Endorsements(enrolled={f"tpm-ak:{tpm.ak_name.hex()}": other.ak_public})
    refused(tpm.evidence(DATA), endorsements, "enrolled public area")


def test_enrolment_that_is_no_key() -> None:
    """An enrolment that does not parse vouches for nothing."""
    tpm = booted()
    for stored in (b"", tpm.ak_public[:-1], tpm.ak_public + b"\0"):
        refused(tpm.evidence(DATA), Endorsements(enrolled={f"tpm-ak:{tpm.ak_name.hex()}": stored}), "TPMT_PUBLIC")


def test_stock_guest_that_is_not_enrolled() -> None:
    """A key without attributes is refused unless an owner enrolled its public area."""
    tpm = booted()
    refused(tpm.stock_evidence(DATA), Endorsements(), "not enrolled, and its attributes are not known")
    identity = f"tpm-spki:{hashlib.sha256(tpm.ak_spki).hexdigest()}"
    other = Endorsements(enrolled={identity: FakeTpm().ak_public})
    refused(tpm.stock_evidence(DATA), other, "enrolled attestation key is another key")


def test_stock_values_get_their_names_from_the_signed_selection() -> None:
    """Values without names are refused where the quote is not of PCR 0 to 23 of the SHA-256 bank."""
    for banks in ((("sha256", range(23)),), (("sha1", range(24)),), (("sha384", range(24)),)):
        quote = forge.Quote(forge.ec_key(), banks=banks, extra_data=DATA[:32])
        evidence, _ = quoted(quote)
        spki = parse_public(quote.public).spki
        values = {"sha256": {index: bytes(32) for index in range(24)}}
        stock = replace(evidence, ak_public=b"", ak_spki=spki, pcrs=values)
        endorsements = Endorsements(enrolled={f"tpm-spki:{hashlib.sha256(spki).hexdigest()}": quote.public})
        refused(stock, endorsements, "those of the signed selection")


def test_session_of_another_key() -> None:
    """The key that quotes is the one that the session declared, for which the credential was made."""
    tpm, other = booted(ca=CA), FakeTpm()
    refused(tpm.evidence(DATA, SECRET), declared(tpm, ak_public=other.ak_public), "the one that the session declared")


@pytest.mark.parametrize("secret", [None, bytes(32)], ids=["none", "wrong"])
def test_credential_that_was_not_opened(secret: bytes | None) -> None:
    """Somebody else's EK certificate proves nothing without its TPM: the credential's secret must be known."""
    tpm = booted(ca=CA)
    refused(tpm.evidence(DATA, secret), declared(tpm), "opened this session's credential")


def test_proof_for_another_quote() -> None:
    """A recorded activation proof is good for the quote that it was made for only."""
    tpm = booted(ca=CA)
    evidence = {**tpm.evidence(DATA), "activation": b64.std(activation_proof(PROOF_KEY, DATA[1:33]))}
    refused(evidence, declared(tpm), "opened this session's credential")


def test_enrolment_does_not_replace_activation() -> None:
    """A session that declared a TPM must prove it, also where the key is enrolled."""
    tpm = booted(ca=CA)
    both = replace(declared(tpm), enrolled=enrolled(tpm).enrolled)
    refused(tpm.evidence(DATA), both, "opened this session's credential")


def test_activation_without_a_declared_tpm() -> None:
    """A proof in a session that declared nothing has nothing to prove."""
    tpm = booted()
    refused(tpm.evidence(DATA, SECRET), enrolled(tpm), "no activation proof without")


def test_session_without_a_secret() -> None:
    """A declared TPM without the session's secret is a fault of our own code."""
    tpm = booted(ca=CA)
    with pytest.raises(RuntimeError):
        verify(tpm.evidence(DATA, SECRET), replace(declared(tpm), activation=None))


def test_declared_key_that_is_no_endorsement_key() -> None:
    """A key that a credential does not protect is no endorsement key, certified or not."""
    tpm = booted(ca=CA)
    signing = forge.storage_area(tpm._ek, attributes=forge.EK | 1 << 18)
    refused(tpm.evidence(DATA, SECRET), declared(tpm, ek_public=signing), "endorsement key has the wrong attributes")


OTHER_CA = EkCa("Another maker")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ek_certificates": ()}, "declared no EK certificate"),
        ({"ek_certificates": (b"\x30\x00",)}, "cannot be read"),
        ({"ek_certificates": booted(ca=CA).certificates}, "another key's"),
    ],
    ids=["none", "malformed", "another key's"],
)
def test_certificate_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    """The declared certificate is the declared EK's."""
    tpm = booted(ca=CA)
    refused(tpm.evidence(DATA, SECRET), declared(tpm, **changes), message, error=EndorsementError)


def test_certificate_of_a_maker_that_is_not_trusted() -> None:
    """Only the operator's roots vouch for an EK; a root among the guest's certificates does not."""
    tpm = booted(ca=OTHER_CA)
    root = OTHER_CA.root.public_bytes(Encoding.DER)
    endorsements = declared(tpm, ek_certificates=(*tpm.certificates, root))
    refused(tpm.evidence(DATA, SECRET), endorsements, "no configured root", error=EndorsementError)
    refused(
        tpm.evidence(DATA, SECRET),
        replace(endorsements, trusted=Trusted()),
        "no configured root",
        error=EndorsementError,
    )


def test_intermediate_from_the_configuration() -> None:
    """A TPM that has only its leaf certificate is helped out by the operator's intermediates."""
    tpm = booted(ca=CA)
    leaf_only = declared(tpm, ek_certificates=tpm.certificates[:1])
    refused(tpm.evidence(DATA, SECRET), leaf_only, "no configured root", error=EndorsementError)
    assert verify(tpm.evidence(DATA, SECRET), replace(leaf_only, trusted=Trusted((CA.root,), (CA.intermediate,))))


def test_enrolled_key_whose_certificate_leads_nowhere() -> None:
    """An enrolled key is trusted by its owner alone where its maker is not, and the trace says what was left out."""
    tpm, trace = booted(ca=OTHER_CA), Trace()
    both = replace(declared(tpm), enrolled=enrolled(tpm).enrolled)
    claims = verify(tpm.evidence(DATA, SECRET), both, trace=trace)
    assert (claims.trust, claims.instance_ids) == ("enrolled", (f"tpm-ak:{tpm.ak_name.hex()}",))
    (skipped,) = [check for check in trace.checks if check.stage is Stage.ENDORSEMENT]
    assert (skipped.verdict, skipped.name) == (Verdict.NOT_REQUIRED, "EK certificate leads to a configured root")
    assert "no configured root" in skipped.found


# --- floors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 16, 31])
def test_short_challenge(size: int) -> None:
    """A challenge shorter than 32 bytes is refused although the quote answers it."""
    evidence, endorsements = quoted(forge.Quote(forge.ec_key(), extra_data=DATA[:size]))
    refused(evidence, endorsements, "challenge has its full length", Binding(DATA[:size]))


def test_name_made_with_sha1() -> None:
    """A key whose Name is a SHA-1 digest has no identity that counts."""
    public = forge.public_area(forge.ec_key(), name_hash=forge.HASHES["sha1"])
    evidence, endorsements = quoted(forge.Quote(forge.ec_key(), public))
    refused(evidence, endorsements, "Name has a strong hash")


@pytest.mark.parametrize("banks", [(), (("sha512", ()),), (("sha1", (0, 4, 7)),)], ids=["empty", "unallocated", "sha1"])
def test_quote_without_a_strong_bank(banks: Any) -> None:
    """A quote over no PCR, or over SHA-1 values only, says nothing that counts."""
    evidence, endorsements = quoted(forge.Quote(forge.ec_key(), banks=banks))
    refused(evidence, endorsements, "covers PCRs of a strong bank")


def test_sha1_values_are_no_claims() -> None:
    """Beside a strong bank a SHA-1 bank may be quoted, but its values and events are not handed on."""
    events = Boot().events()
    log = event_log(events, ("sha1", "sha256"))
    pcrs = {bank: {4: value} for bank, value in ((bank, boot_pcr(bank)) for bank in ("sha1", "sha256"))}
    quote = forge.Quote(forge.ec_key(), banks=(("sha1", (4,)), ("sha256", (4,))), pcrs=pcrs)
    evidence, endorsements = quoted(quote, eventlog=log)
    claims = verify(evidence, endorsements)
    assert set(claims.measurements) == {"sha256:4"}
    assert {event.register for event in claims.events} == {"sha256:4"}


def boot_pcr(bank: str, pcr: int = 4) -> bytes:
    value = bytes(hashlib.new(bank).digest_size)
    for event in Boot().events():
        if event.pcr == pcr:
            value = hashlib.new(bank, value + event.digest(bank)).digest()
    return value


PUBLIC = forge.public_area(forge.ec_key())
PARENT = forge.storage_area(forge.ec_key(which=3))


@pytest.mark.parametrize(
    ("signer", "found"),
    [
        (forge.signer(PUBLIC, forge.OWNER), "owner hierarchy"),
        (forge.signer(PUBLIC, 0x40000007), "null hierarchy"),
        (forge.signer(PUBLIC, 0x4000000C), "platform hierarchy"),
        (forge.signer(PUBLIC, forge.signer(PARENT)), "a child of another key"),
        (b"", "a child of another key"),
    ],
)
def test_key_outside_the_endorsement_hierarchy(signer: bytes, found: str) -> None:
    """A key of another hierarchy, or below an unknown key, is refused, and the refusal says where it lives."""
    evidence, endorsements = quoted(forge.Quote(forge.ec_key(), qualified_signer=signer))
    assert refused(evidence, endorsements, "endorsement hierarchy").failed[-1].found == found


def test_key_below_an_enrolled_parent() -> None:
    """A key below the EK counts where its owner enrolled both, and only below that very EK."""
    quote = forge.Quote(forge.ec_key(), qualified_signer=forge.signer(PUBLIC, forge.signer(PARENT)))
    evidence, _ = quoted(quote)
    identity = f"tpm-ak:{forge.name(PUBLIC).hex()}"
    claims = verify(evidence, Endorsements(enrolled={identity: PUBLIC + PARENT}))
    assert (claims.facts["ak_hierarchy"], claims.instance_ids) == ("child of the EK", (identity,))
    other = forge.storage_area(forge.ec_key(which=4))
    refused(evidence, Endorsements(enrolled={identity: PUBLIC + other}), "endorsement hierarchy")


def test_key_below_the_declared_parent() -> None:
    """A key below the session's EK counts, whether its maker or its owner vouches for it."""
    tpm = booted(ca=CA)
    signer = forge.signer(PUBLIC, forge.signer(tpm.ek_public))
    quote = forge.Quote(forge.ec_key(), qualified_signer=signer)
    evidence, owner = quoted(quote, activation=activation_proof(PROOF_KEY, bytes(range(32))))
    for endorsements in (
        declared(tpm, ak_public=PUBLIC),
        replace(declared(tpm, ak_public=PUBLIC), trusted=Trusted(), enrolled=owner.enrolled),
    ):
        assert verify(evidence, endorsements).facts["ak_hierarchy"] == "child of the EK"


# --- init-data ------------------------------------------------------------------------------------------------------


def init_quote(value: bytes, *, bank: str = "sha256", pcr: int = 8) -> tuple[TpmEvidence, Endorsements]:
    return quoted(forge.Quote(forge.ec_key(), banks=((bank, (pcr,)),), pcrs={bank: {pcr: value}}))


DIGEST = hashlib.sha256(b"init-data").digest()
MEASURED = hashlib.sha256(bytes(32) + DIGEST).digest()


def test_init_data() -> None:
    """Posted init-data is a claim where PCR 8 was extended with its digest, once."""
    claims = verify(*init_quote(MEASURED), Binding(DATA, DIGEST))
    assert claims.init_data == DIGEST.hex()
    assert verify(*init_quote(MEASURED)).init_data is None


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (DIGEST, {}),
        (bytes(32), {}),
        (hashlib.sha256(MEASURED + DIGEST).digest(), {}),
        (MEASURED, {"pcr": 9}),
        (hashlib.sha384(bytes(48) + DIGEST).digest(), {"bank": "sha384"}),
    ],
    ids=["itself", "nothing", "twice", "another PCR", "another bank"],
)
def test_init_data_that_was_not_measured(value: bytes, options: dict[str, Any]) -> None:
    """Init-data that PCR 8 of the SHA-256 bank does not hold is refused."""
    evidence, endorsements = init_quote(value, **options)
    refused(evidence, endorsements, "init-data is what PCR 8 holds", Binding(DATA, DIGEST))


@pytest.mark.parametrize("size", [0, 31, 48])
def test_init_data_digest_of_another_size(size: int) -> None:
    """A digest that PCR 8 cannot have been extended with is refused for its size."""
    digest = bytes(size)
    evidence, endorsements = init_quote(hashlib.sha256(bytes(32) + digest).digest())
    trace = refused(evidence, endorsements, "digest that a TPM can hold", Binding(DATA, digest))
    assert "sha256" in trace.failed[-1].mend


# --- event log ------------------------------------------------------------------------------------------------------


def logged(log: bytes | None, pcrs: Mapping[str, Mapping[int, bytes]]) -> tuple[Claims, Trace]:
    banks = [(bank, tuple(values)) for bank, values in pcrs.items()]
    evidence, endorsements = quoted(forge.Quote(forge.ec_key(), banks=banks, pcrs=pcrs), eventlog=log)
    trace = Trace()
    return verify(evidence, endorsements, trace=trace), trace


def replayed(records: list[Record], pcrs: tuple[int, ...], bank: str = "sha256") -> dict[int, bytes]:
    values = {pcr: bytes(hashlib.new(bank).digest_size) for pcr in pcrs}
    for record in records:
        if record.pcr in values and record.type != NO_ACTION:
            values[record.pcr] = hashlib.new(bank, values[record.pcr] + record.digest(bank)).digest()
    return values


def line(trace: Trace, name: str) -> tuple[Verdict, str]:
    (check,) = [check for check in trace.checks if check.name == name]
    return check.verdict, check.found


UNEXPLAINED = "PCRs that the event log does not explain"
EXPLAINED = "event log is well-formed and replays to quoted values"
SECURE_BOOT = "state of Secure Boot"


def test_no_event_log() -> None:
    """Without a log the values stand for themselves, and the trace says that nothing explains them."""
    claims, trace = logged(None, {"sha256": {4: bytes(32)}})
    assert (claims.events, "secure_boot" in claims.facts) == ((), False)
    assert line(trace, "event log") == (Verdict.NOT_REQUIRED, "none")


def test_log_that_explains_some_registers() -> None:
    """A PCR that the log does not replay to keeps its value and has no events, and the trace names it."""
    records = firmware()
    values = replayed(records, (0, 4, 5, 7, 9, 17))
    values[5] = hashlib.sha256(values[5]).digest()  # something was extended that is not in the log
    values[17] = b"\xff" * 32  # as after a reset
    claims, trace = logged(agile_log(records), {"sha256": values})
    assert claims.measurements["sha256:5"] == values[5].hex()
    assert {event.register for event in claims.events} == {"sha256:0", "sha256:4", "sha256:7"}
    assert line(trace, EXPLAINED) == (Verdict.PASSED, "sha256: 0 4 7 9 17")
    assert line(trace, UNEXPLAINED) == (Verdict.NOT_REQUIRED, "sha256: 5")


def test_log_that_explains_all_registers() -> None:
    """Where the log explains everything, nothing is said to be missing; records that extend nothing are no events."""
    records = [Record(0, NO_ACTION, b"StartupLocality\0\0"), *firmware()]
    claims, trace = logged(agile_log(records), {"sha256": replayed(records, tuple(range(8)))})
    assert not [check for check in trace.checks if check.name == UNEXPLAINED]
    assert len(claims.events) == len(records) - 1
    assert claims.facts["startup_locality"] == 0


def test_log_of_other_banks() -> None:
    """A log without the quoted bank explains nothing."""
    claims, trace = logged(agile_log(firmware(), ("sha1", "sha384")), {"sha256": {4: bytes(32)}})
    assert claims.events == ()
    assert line(trace, EXPLAINED) == (Verdict.PASSED, "no bank of it is quoted")
    assert line(trace, UNEXPLAINED) == (Verdict.NOT_REQUIRED, "sha256: 4")
    assert {"secure_boot", "startup_locality", "efi_applications"}.isdisjoint(claims.facts)


def test_events_of_each_bank() -> None:
    """Where two banks are quoted, each explains its own registers."""
    records, banks = firmware(), ("sha256", "sha384")
    pcrs = {"sha256": replayed(records, (4,)), "sha384": replayed(records, (7,), "sha384")}
    claims, _ = logged(agile_log(records, banks), pcrs)
    assert {event.register for event in claims.events} == {"sha256:4", "sha384:7"}
    assert claims.facts["secure_boot"] is True


def test_statements_need_the_quoted_register() -> None:
    """Secure Boot, applications and locality are facts only where the PCR that proves them was quoted and replays."""
    records = firmware(b"\0")
    claims, trace = logged(agile_log(records), {"sha256": replayed(records, (0, 4))})
    assert "secure_boot" not in claims.facts
    assert line(trace, SECURE_BOOT) == (Verdict.NOT_REQUIRED, "PCR 7 is not proven by the log")
    claims, _ = logged(agile_log(records), {"sha256": replayed(records, (7,))})
    assert claims.facts["secure_boot"] is False
    assert "efi_applications" not in claims.facts


def test_statement_that_the_log_does_not_make() -> None:
    """Where PCR 7 holds more than variables, the trace says why nothing is stated about Secure Boot."""
    records = firmware()
    records.insert(1, Record(7, EFI_ACTION, b"DMA Protection Disabled"))
    claims, trace = logged(agile_log(records), {"sha256": replayed(records, (7,))})
    assert "secure_boot" not in claims.facts
    assert "type 80000007" in line(trace, SECURE_BOOT)[1]


def test_applications_that_the_log_does_not_list() -> None:
    """Where PCR 4 holds more than applications, no list of them is a fact."""
    records = firmware()
    records.insert(-2, Record(4, IPL, b"boot sector"))
    claims, _ = logged(agile_log(records), {"sha256": replayed(records, (4,))})
    assert "efi_applications" not in claims.facts
    assert claims.events


def test_locality_needs_its_register() -> None:
    """A locality that PCR 0 does not prove is not stated."""
    records = [Record(0, NO_ACTION, b"StartupLocality\0\3"), *firmware()]
    claims, _ = logged(agile_log(records), {"sha256": replayed(records, (0,))})
    assert "startup_locality" not in claims.facts


def test_dishonest_log() -> None:
    """A log that is malformed, or that no firmware writes, is refused although the values are quoted."""
    for log, message in (
        (agile_log(firmware())[:-1], "cut short"),
        (agile_log([*firmware(), Record(4, IPL, b"x")]), "after ExitBootServices"),
    ):
        quote = forge.Quote(forge.ec_key())
        evidence, endorsements = quoted(quote, eventlog=log)
        refused(evidence, endorsements, message)


# --- nothing but our errors -----------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_changed_evidence_raises_only_our_error(data: st.DataObject) -> None:
    """Evidence with changed bytes anywhere is refused with our error, or gives the same values as before."""
    tpm = GUEST
    good = decode_evidence(EVIDENCE)
    member = data.draw(st.sampled_from(["ak_public", "attest", "signature", "eventlog", "activation"]))
    raw = bytearray(getattr(good, member))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(0, 255))
    evidence = replace(good, **{member: bytes(raw)})
    trace = Trace()
    with suppress(RoomkeyError):
        VERIFIER.needs(evidence)
        claims = verify(evidence, declared(tpm), trace=trace)
        assert claims.measurements == {f"sha256:{index}": value.hex() for index, value in enumerate(tpm.pcrs)}
        return
    assert trace.failed


GUEST = booted(ca=CA)
EVIDENCE = GUEST.evidence(DATA, SECRET)
