# SPDX-License-Identifier: Apache-2.0
"""Attesting: one use of one challenge, whatever happens, and a line in the ledger about it."""

import hashlib
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from broker import attestation, session
from broker.store.protocols import LedgerEntry, RecordKind
from broker.verifiers.tpm import TpmVerifier
from keys import b64, strictjson
from keys.errors import FreshnessError, ProtocolError, RoomkeyError, Unavailable, VerificationError
from keys.messages import Attestation, Challenge, InitData
from tests.fakes.boot import EV_IPL, Boot, Event
from tests.fakes.house import House
from tests.fakes.tpm_guest import FakeTpm, Guest

INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = "x"\n'


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path) as house:
        house.owner("acme")
        yield house


@pytest.fixture
def tpm(house: House) -> FakeTpm:
    tpm = FakeTpm(house.ca)
    tpm.boot(Boot())
    return tpm


def post(house: House, session_id: str | None, message: Attestation) -> str:
    return attestation.attest(session_id, message, house.services, now=house.now)


def refused(house: House, session_id: str | None, message: Attestation, error: type[RoomkeyError]) -> LedgerEntry:
    """The line about an attempt that must be refused with `error`, found by the id that the error carries."""
    with pytest.raises(error) as caught:
        post(house, session_id, message)
    assert caught.value.decision is not None
    [line] = [
        line for owner in ("", "acme", "other") for line in house.lines(owner) if line.id == caught.value.decision
    ]
    assert (line.kind, line.verdict) == ("attest", "refused")
    assert any(check["verdict"] == "failed" for check in line.body["trace"])
    assert line.body["claims"] is None
    return line


def failures(line: LedgerEntry) -> list[str]:
    return [check["name"] for check in line.body["trace"] if check["verdict"] == "failed"]


# --- the way it goes ---


def test_genuine_evidence_gets_a_token(house: House, tpm: FakeTpm) -> None:
    """The token's id is the ledger's line and the remembered attestation; the line says what was judged."""
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest, "acme/disk/root")
    message = guest.attestation(challenge)
    claims = house.services.tokens.verify(post(house, session_id, message), house.now)
    [line] = house.lines("acme")
    assert (line.id, line.kind, line.verdict) == (claims["jti"], "attest", "genuine")
    assert line.subject == f"tpm-ek:{hashlib.sha256(tpm.ek_spki).hexdigest()}"
    assert line.body["key"] == "acme/disk/root"
    assert line.body["evidence"] == hashlib.sha256(strictjson.canonical(message.primary_evidence)).hexdigest()
    assert line.body["claims"]["trust"] == "ek-certificate"
    assert "events" not in line.body["claims"]
    assert not failures(line)
    held = house.store.session_attestation(session.store_name(session_id), house.now)
    assert held is not None
    assert held[0] == claims["jti"]
    assert claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["tpm"]["trust"] == "ek-certificate"


def test_an_attestation_lives_as_long_as_its_token(house: House, tpm: FakeTpm) -> None:
    """Session and token die together, five minutes after the evidence was judged."""
    session_id, _ = house.attest(Guest(tpm, declare=True))
    name = session.store_name(session_id)
    assert house.store.session_attestation(name, house.now + 299_999) is not None
    assert house.store.session_attestation(name, house.now + 300_000) is None


@pytest.mark.parametrize("stock", [False, True])
def test_an_enrolled_key_is_enough(house: House, tpm: FakeTpm, stock: bool) -> None:
    """A guest without EK certificate is trusted by its owner's enrolment, in our form of evidence and the stock one."""
    house.instance("acme", "web-1", tpm, by="ak")
    house.attest(Guest(tpm, stock=stock))
    assert house.lines("acme")[0].body["claims"]["trust"] == "enrolled"


def test_init_data_is_compared_with_what_was_measured(house: House, tpm: FakeTpm) -> None:
    """Posted init-data must be what PCR 8 holds; one changed space is refused."""
    text = INIT_DATA.encode()
    tpm.power_cycle()
    digest = hashlib.sha256(text).digest()
    tpm.pcrs[8] = hashlib.sha256(bytes(32) + digest).digest()
    guest = Guest(tpm, declare=True, log=False)
    house.attest(guest, init_data=InitData("toml", INIT_DATA))
    assert house.lines("")[0].body["claims"]["init_data"] == digest.hex()
    session_id, challenge = house.challenge(guest)
    message = guest.attestation(challenge, init_data=InitData("toml", INIT_DATA + " "))
    assert failures(refused(house, session_id, message, VerificationError)) == ["init-data is what PCR 8 holds"]


# --- what cannot be read changes nothing ---


def rsa_key(message: Attestation) -> Attestation:
    guest = Guest(FakeTpm(), key=rsa.generate_private_key(65537, 2048))
    return message._replace(tee_pubkey=guest.tee_pubkey)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: m._replace(additional_evidence="{}"), "additional evidence"),
        (rsa_key, "RSA tee-pubkey"),
        (lambda m: m._replace(primary_evidence="x"), "JSON object"),
        (lambda m: m._replace(primary_evidence=m.primary_evidence | {"x": 1}), "unknown member"),
        (lambda m: m._replace(primary_evidence=m.primary_evidence | {"attest": "*"}), "base64"),
        (lambda m: m._replace(init_data=InitData("json", "{}")), "init-data"),
    ],
)
def test_what_cannot_be_read_changes_nothing(
    house: House, tpm: FakeTpm, change: Callable[[Attestation], Attestation], word: str
) -> None:
    """A malformed message is a ProtocolError without a line in the ledger, and the same challenge is still good."""
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest, "acme/disk/root")
    message = guest.attestation(challenge)
    with pytest.raises(ProtocolError, match=word) as caught:
        post(house, session_id, change(message))
    assert caught.value.decision is None
    assert house.lines("acme") == []
    assert post(house, session_id, message)


def test_an_rsa_key_is_fine_where_nothing_is_mixed_in(house: House, tpm: FakeTpm) -> None:
    """Only credential activation excludes RSA keys; an enrolled guest may bring one."""
    house.instance("acme", "web-1", tpm, by="ak")
    assert house.attest(Guest(tpm, key=rsa.generate_private_key(65537, 2048)))


# --- one use ---


def test_a_challenge_is_good_once(house: House, tpm: FakeTpm) -> None:
    """The same genuine message a second time is refused as used, with a line that says so."""
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest, "acme/disk/root")
    message = guest.attestation(challenge)
    post(house, session_id, message)
    line = refused(house, session_id, message, FreshnessError)
    first, *rest = line.body["trace"]
    assert (first["expected"], first["found"]) == ("unused and in time", "used before")
    assert {check["verdict"] for check in rest} == {"not judged"}
    assert line.owner == "acme"


def test_a_failed_attempt_burns_the_challenge(house: House, tpm: FakeTpm) -> None:
    """After refused evidence even genuine evidence for the same challenge is too late."""
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest)
    message = guest.attestation(challenge)
    broken = message._replace(primary_evidence=message.primary_evidence | {"activation": b64.std(bytes(32))})
    refused(house, session_id, broken, VerificationError)
    assert refused(house, session_id, message, FreshnessError).body["trace"][0]["found"] == "used before"


def test_a_challenge_expires(house: House, tpm: FakeTpm) -> None:
    """Five minutes after it was issued it is refused as expired."""
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest)
    message = guest.attestation(challenge)
    house.now += 300_000
    assert refused(house, session_id, message, FreshnessError).body["trace"][0]["found"] == "expired"


@pytest.mark.parametrize("session_id", [None, "", "0" * 32, "no session"])
def test_an_unknown_session_is_refused(house: House, tpm: FakeTpm, session_id: str | None) -> None:
    """A message without a session, or for none that was issued, is refused and laid to nobody's door."""
    guest = Guest(tpm, declare=True)
    _, challenge = house.challenge(guest, "acme/disk/root")
    line = refused(house, session_id, guest.attestation(challenge), FreshnessError)
    assert (line.owner, line.subject, line.body["tee"]) == ("", "", "")
    assert line.body["trace"][0]["found"] == "unknown"


def test_of_fifty_parallel_uses_exactly_one_is_judged(house: House, tpm: FakeTpm) -> None:
    """Fifty threads post the same genuine message at once: one token, forty-nine refusals, fifty lines."""
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest, "acme/disk/root")
    message = guest.attestation(challenge)
    together = threading.Barrier(50)
    outcomes: Counter[str] = Counter()

    def use() -> None:
        together.wait()
        try:
            post(house, session_id, message)
            outcomes["token"] += 1
        except FreshnessError as error:
            outcomes[str(error.found)] += 1

    threads = [threading.Thread(target=use) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {"token": 1, "used before": 49}
    assert Counter(line.verdict for line in house.store.entries("acme", limit=100)) == {"genuine": 1, "refused": 49}


# --- bound to session, key and challenge ---


def test_the_nonce_must_be_the_sessions_own(house: House, tpm: FakeTpm) -> None:
    """Genuine evidence for another session's challenge is refused, and this session's challenge is gone."""
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest)
    _, other = house.challenge(guest)
    mixed = guest.attestation(other)
    assert failures(refused(house, session_id, mixed, FreshnessError)) == ["nonce is this session's"]
    refused(house, session_id, guest.attestation(challenge), FreshnessError)


@pytest.mark.parametrize("nonce", ["", "é", "n" * 44])
def test_any_other_nonce_is_refused(house: House, tpm: FakeTpm, nonce: str) -> None:
    """Text that is no nonce at all is refused like a wrong one."""
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest)
    message = guest.attestation(challenge)._replace(nonce=nonce)
    assert failures(refused(house, session_id, message, FreshnessError)) == ["nonce is this session's"]


def test_recorded_evidence_is_refused(house: House, tpm: FakeTpm) -> None:
    """A quote that was genuine for an earlier challenge does not answer a new one."""
    house.instance("acme", "web-1", tpm, by="ak")
    guest = Guest(tpm)
    session_id, challenge = house.challenge(guest)
    recorded = guest.attestation(challenge)
    post(house, session_id, recorded)
    session_id, challenge = house.challenge(guest)
    replayed = recorded._replace(nonce=challenge.nonce)
    line = refused(house, session_id, replayed, VerificationError)
    assert failures(line) == ["quote answers this challenge (extraData)"]


def test_a_key_that_the_evidence_is_not_bound_to_is_refused(house: House, tpm: FakeTpm) -> None:
    """Whoever puts his own key beside somebody else's evidence gets nothing."""
    house.instance("acme", "web-1", tpm, by="ak")
    guest = Guest(tpm)
    session_id, challenge = house.challenge(guest)
    message = guest.attestation(challenge)._replace(tee_pubkey=Guest(tpm).tee_pubkey)
    assert failures(refused(house, session_id, message, VerificationError)) == [
        "quote answers this challenge (extraData)"
    ]


def test_another_tpm_cannot_answer_for_the_declared_one(house: House, tpm: FakeTpm) -> None:
    """With somebody else's EK certificate the credential does not open, and a guessed proof is refused."""
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest)
    thief = FakeTpm()
    thief.certificates, thief.ek_public = tpm.certificates, tpm.ek_public
    assert challenge.tpm is not None
    with pytest.raises(ValueError, match="another key"):
        thief.activate(challenge.tpm)
    blind = Guest(thief)
    blind.activation = bytes(32)
    message = blind.attestation(Challenge(challenge.nonce))
    refused(house, session_id, message, VerificationError)


def test_a_stranger_is_refused(house: House, tpm: FakeTpm) -> None:
    """Without a certificate that leads to a root and without enrolment nobody is attested."""
    guest = Guest(FakeTpm(), declare=False)
    session_id, challenge = house.challenge(guest, "acme/disk/root")
    assert failures(refused(house, session_id, guest.attestation(challenge), VerificationError)) == [
        "attestation key is trusted"
    ]


# --- whose line it is ---


@pytest.mark.parametrize(
    ("hint", "enrolled_by", "owner"),
    [
        ("acme/disk/root", (), "acme"),
        ("acme/disk/root", ("other",), "acme"),
        ("nobody/disk/root", (), ""),
        ("nobody/disk/root", ("other",), "other"),
        (None, ("other",), "other"),
        (None, ("acme", "other"), ""),
        (None, (), ""),
    ],
)
def test_a_line_goes_to_the_owner_it_concerns(
    house: House, tpm: FakeTpm, hint: str | None, enrolled_by: tuple[str, ...], owner: str
) -> None:
    """First the owner of the wanted key if there is one, then the one owner who enrolled the guest, else nobody."""
    house.owner("other")
    for name in enrolled_by:
        house.instance(name, "web-1", tpm, by="ak")
    guest = Guest(tpm)
    session_id, challenge = house.challenge(guest, hint)
    message = guest.attestation(challenge)._replace(nonce="x")
    line = refused(house, session_id, message, FreshnessError)
    assert line.owner == owner
    assert line.subject == f"tpm-ak:{tpm.ak_name.hex()}"


def test_a_deleted_enrolment_vouches_for_nobody(house: House, tpm: FakeTpm) -> None:
    """After the owner has deleted the instance its key is a stranger's."""
    house.instance("acme", "web-1", tpm, by="ak")
    house.put(RecordKind.INSTANCE, "acme", "web-1", None)
    guest = Guest(tpm)
    session_id, challenge = house.challenge(guest)
    refused(house, session_id, guest.attestation(challenge), VerificationError)


def other_attributes(tpm: FakeTpm) -> FakeTpm:
    """The same attestation key with another attribute (noDA) in its public area."""
    twin = FakeTpm()
    twin.ak_public = tpm.ak_public.replace(bytes.fromhex("00050072"), bytes.fromhex("00050472"), 1)
    return twin


@pytest.mark.parametrize("hint", [None, "acme/disk/root"])
def test_nobody_spoils_a_guest_by_enrolling_its_key_differently(house: House, tpm: FakeTpm, hint: str | None) -> None:
    """Of two enrolments of one key the wanted key's owner's counts, and without a wanted key the older one."""
    spoiled = other_attributes(tpm)
    if hint is None:
        house.instance("acme", "web-1", tpm, by="ak")
        house.now += 1
    house.instance("aaa", "web-1", spoiled, by="ak")
    house.now += 1
    if hint is not None:
        house.instance("acme", "web-1", tpm, by="ak")
    house.attest(Guest(tpm, stock=True), hint)


def test_an_instance_known_by_its_ek_alone_vouches_for_no_ak(house: House, tpm: FakeTpm) -> None:
    """A record without an attestation key is passed over, also where it is found under that key's id."""
    body: dict[str, Any] = {"ids": [f"tpm-ak:{tpm.ak_name.hex()}"], "enrolled": None, "description": ""}
    house.put(RecordKind.INSTANCE, "acme", "web-1", body)
    guest = Guest(tpm)
    session_id, challenge = house.challenge(guest)
    refused(house, session_id, guest.attestation(challenge), VerificationError)


# --- when the broker itself fails ---


def test_a_fault_of_our_own_leaves_a_line_and_no_token(
    house: House, tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception in a verifier is not swallowed, burns the challenge, and is in the ledger."""
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest, "acme/disk/root")
    message = guest.attestation(challenge)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(TpmVerifier, "verify", broken)
        with pytest.raises(ZeroDivisionError):
            post(house, session_id, message)
    [line] = house.lines("acme")
    assert line.verdict == "refused"
    assert failures(line) == ["the broker failed while judging"]
    refused(house, session_id, message, FreshnessError)


def test_an_error_that_no_check_recorded_is_in_the_trace(
    house: House, tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evidence that a verifier refuses without a check still has a failed check with its words."""
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest, "acme/disk/root")

    def refuse(*_: object) -> None:
        raise VerificationError("no good", expected="a", found="b", mend="c")

    monkeypatch.setattr(TpmVerifier, "verify", refuse)
    house.repeatable = False
    line = refused(house, session_id, guest.attestation(challenge), VerificationError)
    [failed] = [check for check in line.body["trace"] if check["verdict"] == "failed"]
    assert failed | {"stage": ""} == {
        "stage": "", "name": "no good", "verdict": "failed", "expected": "a", "found": "b", "mend": "c"
    }  # fmt: skip


class Failing:
    """A store of which one method does not answer."""

    def __init__(self, store: Any, method: str) -> None:
        self._store, self._method = store, method

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            raise Unavailable("the store does not answer")
        return getattr(self._store, name)


@pytest.mark.parametrize("method", ["session", "by_alias", "record", "consume_session", "append", "put_attestation"])
def test_without_the_store_nobody_is_attested(house: House, tpm: FakeTpm, method: str) -> None:
    """Whichever call to the store fails: no token, and no attestation that a release could find."""
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest, "acme/disk/root")
    services = replace(house.services, store=Failing(house.store, method))
    with pytest.raises(Unavailable):
        attestation.attest(session_id, guest.attestation(challenge), services, now=house.now)
    assert house.store.session_attestation(session.store_name(session_id), house.now) is None


def test_a_session_that_could_not_be_read_is_not_judged(
    house: House, tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A challenge that was not there when the message was read, but is when it is taken, counts as refused."""
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest)
    monkeypatch.setattr(type(house.store), "session", lambda *_: None)
    refused(house, session_id, guest.attestation(challenge), FreshnessError)


def test_no_secret_is_in_the_store(house: House, tpm: FakeTpm, tmp_path: Path) -> None:
    """Neither the session id nor the activation secret nor the token is anywhere in what the store holds."""
    guest = Guest(tpm, declare=True)
    session_id, token = house.attest(guest, "acme/disk/root")
    with closing(sqlite3.connect(tmp_path / "roomkey.db")) as connection:
        dump = "\n".join(connection.iterdump())
    assert guest.activation is not None
    for secret in (session_id, token, b64.std(guest.activation), guest.activation.hex()):
        assert secret not in dump


def test_what_was_measured_after_boot_is_in_the_claims(house: House, tpm: FakeTpm) -> None:
    """The remembered attestation keeps the event log for appraisal, beside the values."""
    tpm.measure(Event(12, EV_IPL, b"override", b"override"))
    session_id, _ = house.attest(Guest(tpm, declare=True))
    held = house.store.session_attestation(session.store_name(session_id), house.now)
    assert held is not None
    assert held[1]["claims"]["measurements"]["sha256:12"] == tpm.pcrs[12].hex()
    assert ["sha256:12", "EV_IPL"] in [event[:2] for event in held[1]["claims"]["events"]]
    assert json.dumps(held[1])


def test_a_p521_key_is_as_good(house: House, tpm: FakeTpm) -> None:
    """The other curve of the protocol attests too, with activation."""
    assert house.attest(Guest(tpm, declare=True, key=ec.generate_private_key(ec.SECP521R1())))


# --- machines that were revoked ---


def revoke(house: House, owner: str, name: str) -> None:
    body = house.store.record(RecordKind.INSTANCE, owner, name).body or {}
    house.put(RecordKind.INSTANCE, owner, name, body | {"standing": "revoked", "why": "stolen"})


def revoked(house: House, tpm: FakeTpm, resource: str | None, *, declare: bool) -> LedgerEntry:
    """The refused attempt of a guest whose evidence is genuine."""
    guest = Guest(tpm, declare=declare)
    session_id, challenge = house.challenge(guest, resource)
    with pytest.raises(VerificationError) as caught:
        post(house, session_id, guest.attestation(challenge))
    [line] = [one for owner in ("", "acme", "other") for one in house.lines(owner) if one.id == caught.value.decision]
    assert line.verdict == "refused"
    return line


def test_a_revoked_machine_gets_no_token_from_its_owner(house: House, tpm: FakeTpm) -> None:
    """Who asks for a key of the owner who revoked it is refused at once, and its owner reads by whom and why."""
    house.instance("acme", "web-1", tpm, by="ek")
    house.attest(Guest(tpm, declare=True), "acme/disk/root")
    revoke(house, "acme", "web-1")
    line = revoked(house, tpm, "acme/disk/root", declare=True)
    [check] = [check for check in line.body["trace"] if check["name"] == "guest web-1 is not revoked by its owner"]
    assert check["found"].endswith("by test: stolen")
    assert "roomkey guest readmit web-1" in check["mend"]


def test_one_owners_word_is_not_anothers(house: House, tpm: FakeTpm) -> None:
    """A machine that its maker vouches for still attests where it asks nobody's key, or another owner's."""
    house.owner("other")
    house.instance("acme", "web-1", tpm, by="ek")
    revoke(house, "acme", "web-1")
    house.attest(Guest(tpm, declare=True))
    house.attest(Guest(tpm, declare=True), "other/disk/root")


def test_a_key_that_only_its_owner_vouched_for_is_nobodys_once_revoked(house: House) -> None:
    """Without a maker's certificate the enrolment is all there was: revoked by the one or by both owners, refused; as
    long as one of two still vouches it is that one's.
    """
    tpm = FakeTpm()
    tpm.boot(Boot())
    house.instance("acme", "web-1", tpm, by="ak")
    revoke(house, "acme", "web-1")
    assert "guest web-1 is not revoked by its owner" in failures(revoked(house, tpm, None, declare=False))
    house.owner("other")
    house.instance("other", "mine", tpm, by="ak")
    house.attest(Guest(tpm))
    revoke(house, "other", "mine")
    assert "an owner still vouches for the attestation key" in failures(revoked(house, tpm, None, declare=False))


def test_a_refusal_that_cannot_be_explained_is_still_a_refusal_with_its_line(
    house: House, tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the rule of the wanted key cannot be looked up, the line says that it was not judged."""
    house.instance("acme", "web-1", tpm, by="ek")
    revoke(house, "acme", "web-1")

    def broken(*_: object, **__: object) -> None:
        raise Unavailable("the store is busy")

    monkeypatch.setattr(attestation, "gather", broken)
    line = revoked(house, tpm, "acme/disk/root", declare=True)
    assert line.body["trace"][-1]["verdict"] == "not judged"
