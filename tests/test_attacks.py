# SPDX-License-Identifier: Apache-2.0
"""What a malicious host, guest, owner, client or thief tries, played through the real broker. Each must fail."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import logging
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from broker import attestation, ledger
from broker.appraisal.images import parse_image
from broker.appraisal.instances import parse_instance
from broker.config import Limits
from broker.http import types
from broker.http.guest import network
from broker.logs import LineFormatter
from broker.owners import TOKEN_TYPE
from broker.store.protocols import KeyState, LedgerEntry, RecordKind, StoredKey
from broker.store.sqlite import SqliteStore
from broker.verifiers.tpm_evidence import decode_evidence
from keys import b64, jwe, jwk
from keys.binding import report_data, tpm_qualifying_data
from keys.errors import (
    FreshnessError,
    ProtocolError,
    ReleaseDenied,
    RoomkeyError,
    Unauthorized,
    VerificationError,
)
from keys.messages import Attestation, InitData, ResourcePath, TpmDeclaration
from keys.tee import Tee
from tests.fakes import tpm_forge
from tests.fakes.boot import Boot
from tests.fakes.ek_ca import EkCa
from tests.fakes.front import Front, Owner, booted, provision
from tests.fakes.house import House, draft
from tests.fakes.tpm_guest import AK_ATTRIBUTES, FakeTpm, Guest

PATH = "acme/disk/root"
SECRET = b"correct horse battery staple 32."
NO_DA = 0x400  # an attribute that no check asks for


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    front = Front(tmp_path)
    yield front
    front.house.store.close()


@pytest.fixture
def house(front: Front) -> House:
    return front.house


@pytest.fixture
def tpm(front: Front) -> FakeTpm:
    """acme's machine; acme gives its key to any certified machine with this boot."""
    tpm = booted(front.house)
    provision(front, PATH, SECRET, tpm)
    return tpm


def enrolled(house: House, tpm: FakeTpm, *, by: str = "ak") -> None:
    """acme gives the key to this machine alone."""
    house.instance("acme", "web-1", tpm, by=by)
    house.rule(PATH, images=["debian"], instances=["web-1"])


def newest(house: House, owner: str = "acme") -> LedgerEntry:
    return house.lines(owner)[0]


def failed(entry: LedgerEntry) -> list[str]:
    return [check["name"] for check in entry.body["trace"] if check["verdict"] == "failed"]


# --- a rogue owner ---


def test_a_software_key_that_a_rogue_owner_enrolled_opens_nothing_of_others(front: Front, tpm: FakeTpm) -> None:
    """Mallory may call her software key a TPM, and by the name in acme's rule; acme's key stays where it is."""
    house = front.house
    enrolled(house, tpm)
    house.owner("mallory")
    software = FakeTpm()
    software.boot(Boot())
    house.instance("mallory", "web-1", software, by="ak")
    for instances in (["web-1"], ["any"]):
        house.rule(PATH, images=["debian"], instances=instances)
        session_id, _ = house.attest(Guest(software))
        with pytest.raises(ReleaseDenied):
            house.release(PATH, session_id)
        assert newest(house).verdict == "denied"


def test_a_software_key_with_a_stolen_certificate_is_not_that_machine(front: Front, tpm: FakeTpm) -> None:
    """Mallory's enrolled key beside the certificate of acme's TPM is not acme's TPM: it opens no credential."""
    house = front.house
    enrolled(house, tpm, by="ek")
    house.owner("mallory")
    software = FakeTpm()
    software.boot(Boot())
    house.instance("mallory", "web-1", software, by="ak")
    stolen = replace_declaration(software, tpm)
    session_id, challenge = house.challenge(stolen)
    for activation in (None, bytes(32)):
        stolen.activation = activation
        message = attest_as_is(stolen, challenge.nonce)
        with pytest.raises((VerificationError, FreshnessError)):
            attestation.attest(session_id, message, house.services, now=house.now)
        session_id, challenge = house.challenge(stolen)


class _Borrowing(FakeTpm):
    """A software key with another machine's declaration."""

    other: FakeTpm

    @property
    def declaration(self) -> TpmDeclaration:
        return TpmDeclaration(self.ak_public, self.other.ek_public, self.other.certificates)


def replace_declaration(software: FakeTpm, other: FakeTpm) -> Guest:
    borrowing = _Borrowing()
    borrowing.__dict__.update(software.__dict__)
    borrowing.other = other
    return Guest(borrowing, declare=True)


def attest_as_is(guest: Guest, nonce: str) -> Attestation:
    data = report_data(Tee.TPM, nonce, guest.tee_pubkey.members)
    return Attestation(nonce, guest.tee_pubkey, guest.tpm.evidence(data, guest.activation))


def test_a_rogue_owner_does_not_move_the_clock_of_anothers_machine(house: House, tpm: FakeTpm) -> None:
    """Denials that Mallory provokes in acme's ledger, and readmissions in her own, leave acme's clock mark alone."""
    enrolled(house, tpm)
    assert house.flow(Guest(tpm), PATH) == SECRET
    house.owner("mallory")
    house.instance("mallory", "m", tpm, by="ak")
    ledger.readmit(house.services, owner="mallory", ids=[f"tpm-ak:{tpm.ak_name.hex()}"], who="m", why="", now=house.now)
    other = FakeTpm()
    other.boot(Boot())
    other.clock = 1 << 60
    house.instance("mallory", "other", other, by="ak")
    session_id, _ = house.attest(Guest(other))
    with pytest.raises(ReleaseDenied):
        house.release(PATH, session_id)
    house.now += 10
    tpm.clock -= 500
    session_id, _ = house.attest(Guest(tpm))
    with pytest.raises(ReleaseDenied):
        house.release(PATH, session_id)
    assert failed(newest(house)) == ["TPM's clock goes on from where it was last seen"]
    tpm.clock += 1000
    assert house.flow(Guest(tpm), PATH) == SECRET


def test_a_named_key_decides_whose_enrolment_counts(house: House, tpm: FakeTpm) -> None:
    """A rogue owner who enrolled the victim's key first, with other attributes, does not keep its stock guest out."""
    house.owner("mallory")
    twisted = struct.pack(">I", AK_ATTRIBUTES | NO_DA).join((tpm.ak_public[:4], tpm.ak_public[8:]))
    body = parse_instance({"ak_public": b64.std(twisted)}).to_body()
    house.put(RecordKind.INSTANCE, "mallory", "spoiler", body)
    house.now += 1
    enrolled(house, tpm)
    session_id, _ = house.attest(Guest(tpm, stock=True), PATH)
    assert house.release(PATH, session_id)


OWNER_CALLS: list[tuple[str, str, Any]] = [
    ("GET", "/v1/keys/acme/disk/root", None),
    ("PUT", "/v1/keys/acme/disk/root", {"key": b64.std(b"mine")}),
    ("POST", "/v1/keys/acme/disk/root/generate", {}),
    ("POST", "/v1/keys/acme/disk/root/rotate", {}),
    ("DELETE", "/v1/keys/acme/disk/root", None),
    ("GET", "/v1/rules/acme/disk/root", None),
    ("PUT", "/v1/rules/acme/disk/root", {"images": ["x"], "platforms": ["tpm"], "instances": ["any"]}),
    ("DELETE", "/v1/rules/acme/disk/root", None),
    ("GET", "/v1/images/debian", None),
    ("GET", "/v1/instances/web-1", None),
    ("DELETE", "/v1/instances/web-1", None),
    ("POST", "/v1/guests/web-1/approve", {}),
    ("POST", "/v1/guests/web-1/deny", {}),
    ("POST", "/v1/guests/web-1/revoke", {}),
    ("POST", "/v1/guests/web-1/readmit", {}),
    ("POST", "/v1/tickets", {"guest": "web-2", "key": "acme/disk/root", "image": "debian"}),
    ("DELETE", "/v1/tickets/web-1", {}),
    ("DELETE", "/v1/distrust/product%3AMilan", {}),
]


@pytest.mark.parametrize(("method", "path", "body"), OWNER_CALLS)
def test_another_owners_things_are_not_there(
    front: Front, tpm: FakeTpm, method: str, path: str, body: dict[str, Any] | None
) -> None:
    """Every call about another owner's thing is the 404 of a thing that does not exist, and leaves no line with him."""
    enrolled(front.house, tpm)
    mallory = front.owner("mallory")
    before = len(front.house.lines("acme"))
    answer = mallory.send(method, path, body)
    nothing = mallory.send(
        method, path.replace("acme", "nobody").replace("debian", "none").replace("web-1", "none"), body
    )
    assert answer.status_code == nothing.status_code == 404
    assert answer.data == nothing.data
    assert len(front.house.lines("acme")) == before
    assert front.house.flow(Guest(tpm), PATH) == SECRET


def test_another_owners_decisions_are_not_there(front: Front, tpm: FakeTpm) -> None:
    """Neither by id nor by subject does an owner read a line that is not hers."""
    front.attest(Guest(tpm, declare=True), PATH)
    line = newest(front.house)
    mallory = front.owner("mallory")
    assert mallory.send("GET", f"/v1/decisions/{line.id}").status_code == 404
    assert mallory.call("GET", f"/v1/decisions?subject={line.subject}")["decisions"] == []
    assert mallory.call("GET", "/v1/decisions")["decisions"] == []


@pytest.mark.parametrize(
    "text", ["' OR '1'='1", "acme'; DROP TABLE ledger; --", '"] UNION SELECT * FROM key', "%", "_", "\x00", "\\"]
)
def test_no_text_is_sql(front: Front, tpm: FakeTpm, text: str) -> None:
    """What looks like SQL is compared as text wherever an owner may write, and finds nothing."""
    front.attest(Guest(tpm, declare=True), PATH)
    mallory = front.owner("mallory")
    quoted = base64.b16encode(text.encode()).decode()
    escaped = "".join(f"%{quoted[at : at + 2]}" for at in range(0, len(quoted), 2))
    for name in ("subject", "kind"):
        answer = mallory.send("GET", f"/v1/decisions?{name}={escaped}")
        assert answer.status_code == 200
        assert answer.json["decisions"] == []
    path = f"/v1/images/{escaped}"
    assert mallory.send("GET", path, signed={"path": f"/v1/images/{escaped}"}).status_code in {401, 404}
    assert front.house.store.verify_chain() > 0


@pytest.mark.parametrize("query", ["/v1/decisions?before={}", "/v1/images/debian?version={}"])
@pytest.mark.parametrize("number", [2**63, 2**64, 10**30])
def test_a_number_that_no_database_has_is_a_plain_refusal(front: Front, tpm: FakeTpm, query: str, number: int) -> None:
    """Numbers beyond 64 bits are the request's fault, and no failure of the broker."""
    assert front.owner("acme2").send("GET", query.format(number)).status_code == 400


# --- an owner's request, captured or forged ---


def unsigned(front: Front, owner: Owner, header: dict[str, Any], key: Any, algorithm: str) -> int:
    now = front.house.now // 1000
    claims = {
        "iss": owner.name, "aud": owner.identity.audience, "iat": now, "exp": now + 60, "htm": "GET",
        "jti": b64.url(os.urandom(16)), "htu": "/v1/whoami", "sha256": b64.url(hashlib.sha256(b"").digest()),
    }  # fmt: skip
    head = {"alg": algorithm, "typ": TOKEN_TYPE, "kid": owner.identity.kid} | header
    signed = ".".join(b64.url(json.dumps(part).encode()) for part in (head, claims)).encode()
    signature = {
        "none": lambda: b"",
        "HS256": lambda: hmac.digest(key, signed, "sha256"),
        "EdDSA": lambda: key.sign(signed),
    }[algorithm]()
    token = f"{signed.decode()}.{b64.url(signature)}"
    return front.send("GET", "/v1/whoami", headers={"Authorization": f"Bearer {token}"}).status_code


def test_no_algorithm_of_the_tokens_choice(front: Front) -> None:
    """`none`, the public key as an HMAC secret, a key brought along, another's key id: 401."""
    owner, other = front.owner("acme"), front.owner("mallory")
    public = b64.from_url(owner.identity.jwk["x"], name="x", max_bytes=32)
    assert unsigned(front, owner, {}, owner.identity.key, "EdDSA") == 200
    assert unsigned(front, owner, {}, None, "none") == 401
    assert unsigned(front, owner, {}, public, "HS256") == 401
    assert unsigned(front, owner, {"alg": "EdDSA"}, None, "none") == 401
    assert unsigned(front, owner, {"jwk": other.identity.jwk}, other.identity.key, "EdDSA") == 401
    assert unsigned(front, owner, {"kid": other.identity.kid}, other.identity.key, "EdDSA") == 401
    assert unsigned(front, other, {"kid": owner.identity.kid}, other.identity.key, "EdDSA") == 401


def test_a_captured_request_is_good_for_no_other_worker(front: Front, tmp_path: Path) -> None:
    """A one-time id that one process has seen is used for all of them, by whichever of any number comes first."""
    others = [SqliteStore(tmp_path / "roomkey.db") for _ in range(3)]
    stores = [front.house.store, *others]
    won: list[bool] = []
    barrier = threading.Barrier(len(stores))

    def use(store: Any) -> None:
        barrier.wait()
        won.append(store.first_use("owner x", front.house.now + 60_000))

    threads = [threading.Thread(target=use, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in others:
        store.close()
    assert sorted(won) == [False, False, False, True]


@pytest.mark.parametrize(
    "path",
    ["/v1/%77hoami", "//v1/whoami", "/v1//whoami", "/v1/./whoami", "/v1/keys/../whoami", "/v1/whoami/", "/v1/whoami?",
     "/v1/whoami?x=1", "/V1/whoami", "/v1/whoami;x", "/v1/whoami%2f", "/v1/whoami%00"],
)  # fmt: skip
def test_a_signature_is_for_one_spelling_of_a_path(front: Front, path: str) -> None:
    """A captured signature opens nothing under another path, and no other spelling of it reaches another thing."""
    owner = front.owner("acme")
    answer = owner.send("GET", path, signed={"path": "/v1/whoami"})
    assert answer.status_code in {200, 400, 401, 404}
    if answer.status_code == 200:  # an equal path after decoding is the same request
        assert answer.json["owner"] == "acme"


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-For"])
def test_no_header_changes_what_was_asked(front: Front, tpm: FakeTpm, header: str) -> None:
    """Headers with which proxies override a request are not looked at."""
    cookie, _ = front.attest(Guest(tpm, declare=True), PATH)
    answer = front.send("GET", f"/kbs/v0/resource/{PATH}", headers={"Cookie": cookie, header: "DELETE"})
    assert answer.status_code == 200
    assert front.house.store.key(*ResourcePath.parse(PATH)).state is KeyState.ACTIVE


# --- sessions and tokens ---


def test_a_planted_session_gives_the_planter_nothing(front: Front, tpm: FakeTpm) -> None:
    """A victim that was given an attacker's session gets nothing that it could open, and nor does the attacker."""
    attacker, victim = Guest(booted(front.house), declare=True), Guest(tpm, declare=True)
    cookie, challenge = front.auth(attacker, PATH)
    answer = front.answer(cookie, json.dumps(attest_as_is(victim, challenge.nonce).to_json()))
    assert answer.status_code == 401
    assert front.fetch(PATH, cookie=cookie).status_code == 401


def test_a_stolen_cookie_and_token_open_nothing(front: Front, tpm: FakeTpm) -> None:
    """Whoever steals session and token gets the key wrapped for the guest, and cannot open it."""
    cookie, token = front.attest(Guest(tpm, declare=True), PATH)
    wrapped = front.fetch(PATH, cookie=cookie, token=token).json
    thief = Guest(tpm, declare=True)
    thief.activation = os.urandom(32)
    with pytest.raises(VerificationError):
        thief.open(wrapped)


@pytest.mark.parametrize("order", [1, -1])
def test_two_cookies_are_not_two_guests(front: Front, tpm: FakeTpm, order: int) -> None:
    """Of two cookies one counts, and the answer is for that session's guest alone."""
    guests = [Guest(tpm, declare=True), Guest(tpm, declare=True)]
    cookies = [front.attest(guest, PATH)[0] for guest in guests]
    answer = front.fetch(PATH, cookie="; ".join(cookies[::order]))
    opened = 0
    for guest in guests:
        with contextlib.suppress(VerificationError):
            opened += guest.open(answer.json) == SECRET
    assert opened == 1


def test_a_hint_binds_cookie_and_token_alike(front: Front, tpm: FakeTpm) -> None:
    """A session that announced one key gets no other, whoever owns it and however it asks."""
    front.house.key("acme/disk/other", SECRET)
    front.house.rule("acme/disk/other", images=["debian"])
    cookie, token = front.attest(Guest(tpm, declare=True), PATH)
    fresh, _ = front.auth(Guest(tpm, declare=True), "acme/disk/other")
    for answer in (
        front.fetch("acme/disk/other", cookie=cookie),
        front.fetch("acme/disk/other", token=token),
        front.fetch("acme/disk/other", cookie=fresh, token=token),
    ):
        assert answer.status_code == 403


def test_a_result_for_others_is_no_token_for_us(house: House, tpm: FakeTpm) -> None:
    """A token by our own key for another audience or issuer, or of an owner's type, gets nothing."""
    _, token = house.attest(Guest(tpm, declare=True))
    header, claims = jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})
    for change, type_ in (({"aud": "https://other"}, "JWT"), ({"iss": "other"}, "JWT"), ({}, TOKEN_TYPE)):
        forged = jwt.encode(claims | change, house.signing_key, "ES256", headers={"kid": header["kid"], "typ": type_})
        with pytest.raises(Unauthorized):
            house.release(PATH, token=forged)


# --- evidence ---


def forged(house: House, quote: tpm_forge.Quote, **more: Any) -> tuple[str, Attestation]:
    """A session and a message with `quote`, whose extraData is set here, by a key that acme enrolled."""
    guest = Guest(FakeTpm())
    session_id, challenge = house.challenge(guest)
    quote.extra_data = tpm_qualifying_data(report_data(Tee.TPM, challenge.nonce, guest.tee_pubkey.members))
    evidence = {
        "ak_public": b64.std(quote.public),
        "attest": b64.std(quote.attest()),
        "signature": b64.std(quote.signature()),
        "pcrs": {bank: {str(i): v.hex() for i, v in values.items()} for bank, values in quote.values.items()},
        **more,
    }
    return session_id, Attestation(challenge.nonce, guest.tee_pubkey, evidence)


def acme_enrols(house: House, quote: tpm_forge.Quote) -> None:
    body = parse_instance({"ak_public": b64.std(quote.public)}).to_body()
    house.put(RecordKind.INSTANCE, "acme", "web-1", body)
    house.rule(PATH, images=["debian"], instances=["web-1"])


@pytest.mark.parametrize(
    "banks", [(("sha384", range(24)),), (("sha384", range(24)), ("sha256", (0, 2))), (("sha256", (0, 2, 4, 7, 8)),)]
)
def test_what_the_image_names_must_be_quoted_in_its_bank(
    house: House, tpm: FakeTpm, banks: tuple[tuple[str, range], ...]
) -> None:
    """The right values in another bank, or all but one in the right one, are not the image."""
    quote = tpm_forge.Quote(tpm_forge.ec_key(), banks=banks)
    quote.pcrs = {
        bank: {i: tpm.pcrs[i] if bank == "sha256" else tpm.pcrs[i].ljust(48, b"\0") for i in indices}
        for bank, indices in banks
    }
    acme_enrols(house, quote)
    session_id, message = forged(house, quote)
    attestation.attest(session_id, message, house.services, now=house.now)
    with pytest.raises(ReleaseDenied):
        house.release(PATH, session_id)
    assert any("PCR" in name for name in failed(newest(house)))


def test_values_of_a_bank_that_was_not_quoted_are_refused(house: House, tpm: FakeTpm) -> None:
    """Beside a genuine quote of PCR 16, which anybody extends, the approved values as if they had been quoted."""
    quote = tpm_forge.Quote(tpm_forge.ec_key(), banks=(("sha256", (16,)),))
    acme_enrols(house, quote)
    values = {"sha256": {str(i): value.hex() for i, value in enumerate(tpm.pcrs)}}
    for pcrs in (values, {"sha256": values["sha256"], "sha384": {}}):
        session_id, message = forged(house, quote, pcrs=pcrs)
        with pytest.raises(VerificationError):
            attestation.attest(session_id, message, house.services, now=house.now)


def test_the_largest_clock_is_recorded_and_judged(house: House, tpm: FakeTpm) -> None:
    """A TPM whose clock was set to its end is let in with it, and refused with any earlier one."""
    enrolled(house, tpm)
    tpm.clock = (1 << 64) - 11
    assert house.flow(Guest(tpm), PATH) == SECRET
    assert newest(house).body["clock"]["clock"] == (1 << 64) - 1
    house.now += 1
    tpm.clock -= 500
    with pytest.raises(ReleaseDenied):
        house.flow(Guest(tpm), PATH)
    assert house.store.verify_chain() > 0


def test_a_challenge_fetched_in_advance_does_not_hide_a_snapshot(house: House, tpm: FakeTpm) -> None:
    """The host gets a challenge, lets the machine get its key, boots an older snapshot and answers: denied."""
    snapshot = tpm.reset_count
    tpm.power_cycle()
    tpm.boot(Boot())
    guest = Guest(tpm, declare=True)
    session_id, challenge = house.challenge(guest)
    house.now += 1000
    assert house.flow(Guest(tpm, declare=True), PATH) == SECRET
    tpm.reset_count = snapshot
    attestation.attest(session_id, guest.attestation(challenge), house.services, now=house.now)
    with pytest.raises(ReleaseDenied):
        house.release(PATH, session_id)


def test_what_runs_after_boot_may_lie_in_the_log_but_not_in_the_values(house: House, tpm: FakeTpm) -> None:
    """Another kernel with the approved boot's event log is judged by its values."""
    other = booted(house)
    other.boot(Boot(kernel=b"evil"))
    other.events = list(tpm.events)
    with pytest.raises(ReleaseDenied):
        house.flow(Guest(other, declare=True), PATH)
    assert any(name.startswith("PCR 4") for name in failed(newest(house)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace('"ak_public"', '"ak_public":"","ak_public"', 1),
        lambda text: text.replace('"ak_public"', '"\\u0061k_public":"","ak_public"', 1),
        lambda text: "\ufeff" + text,
        lambda text: text + " 1",
        lambda text: text.replace('{"', '{"x":NaN,"', 1),
        lambda text: text.replace('{"', '{"x":' + "9" * 200_000 + ',"', 1),
        lambda text: text.replace('{"', '{"x":' + "[" * 100_000 + ',"', 1),
        lambda text: text.replace('{"', '{"\\ud800":1,"', 1),
    ],
)
def test_json_that_two_readers_could_read_differently(front: Front, tpm: FakeTpm, spoil: Any) -> None:
    """Members twice, escaped or not, marks, rests, odd numbers, depth and surrogates: malformed, challenge intact."""
    guest = Guest(tpm, declare=True)
    cookie, challenge = front.auth(guest)
    message = guest.attestation(challenge)
    good = json.dumps(message.to_json())
    start = time.process_time()
    answer = front.answer(cookie, spoil(good).encode())
    assert time.process_time() - start < 1
    assert answer.status_code == 401
    assert "decision" not in answer.json["detail"]
    assert front.answer(cookie, good).status_code == 200


@pytest.mark.parametrize(
    "key",
    [
        {"kty": "EC", "crv": "P-256", "alg": jwk.ALG_EC, "x": b64.url(bytes(32)), "y": b64.url(bytes(32))},
        {"kty": "EC", "crv": "P-256", "alg": jwk.ALG_EC, "x": b64.url(b"\xff" * 32), "y": b64.url(b"\1" * 32)},
        {"kty": "EC", "crv": "P-384", "alg": jwk.ALG_EC, "x": b64.url(bytes(48)), "y": b64.url(bytes(48))},
        {"kty": "RSA", "alg": jwk.ALG_RSA, "n": b64.url(b"\xff" * 128), "e": "AQAB"},
        {"kty": "RSA", "alg": jwk.ALG_RSA, "n": b64.url(b"\xff" * 256), "e": "Aw"},
        {"kty": "RSA", "alg": jwk.ALG_RSA, "n": b64.url(b"\xff" * 255 + b"\xfe"), "e": "AQAB"},
        {"kty": "RSA", "alg": jwk.ALG_RSA, "n": b64.url(b"\xff" * 256), "e": "AQAC"},
        {"kty": "RSA", "alg": "RSA1_5", "n": b64.url(b"\xff" * 256), "e": "AQAB"},
        {"kty": "oct", "k": "AAAA"},
    ],
)
def test_no_key_that_anybody_could_open(key: dict[str, str]) -> None:
    """Points that are none, weak moduli and exponents, padding that leaks: nothing is ever wrapped to them."""
    with pytest.raises(ProtocolError):
        jwk.parse(key)


def test_a_weaker_wrapping_is_not_opened(house: House, tpm: FakeTpm) -> None:
    """A key that somebody wrapped to the guest's public key alone is refused by a guest whose TPM took part."""
    guest = Guest(tpm, declare=True)
    session_id, _ = house.attest(guest)
    assert guest.activation is not None
    assert isinstance(guest.key, ec.EllipticCurvePrivateKey)
    planted = jwe.seal(b"attacker's key", guest.tee_pubkey)
    with pytest.raises(ProtocolError):
        jwe.unseal(planted, guest.key, activation=guest.activation)
    genuine = house.release(PATH, session_id)
    with pytest.raises(ProtocolError):
        jwe.unseal(genuine, guest.key)
    header = json.loads(b64.from_url(genuine["protected"], name="protected", max_bytes=1024)) | {"alg": jwk.ALG_EC}
    downgraded = genuine | {"protected": b64.url(json.dumps(header, separators=(",", ":")).encode())}
    with pytest.raises(VerificationError):
        jwe.unseal(downgraded, guest.key)


def test_evidence_of_two_forms_is_of_neither(tpm: FakeTpm) -> None:
    """Members of both forms, or a key's area where its plain form belongs, are not read."""
    ours, stock = tpm.evidence(bytes(48)), tpm.stock_evidence(bytes(48))
    for value in (ours | stock, ours | {"tpm_quote": stock["tpm_quote"]}, stock | {"pcrs": ours["pcrs"]}):
        with pytest.raises(ProtocolError):
            decode_evidence(value)


# --- certificates ---


def test_an_endorsement_key_certifies_no_other(house: House) -> None:
    """Who has a certified TPM cannot issue a certificate for a software key with it, nor pass the maker's CA as one."""
    ca = house.ca
    device = ec.generate_private_key(ec.SECP256R1())
    leaf = ca.certify(device.public_key())
    software = FakeTpm()
    now = datetime.now(UTC)
    below = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(leaf.subject)
        .public_key(ek_key(software))
        .serial_number(7)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(usage(), critical=True)
        .sign(device, hashes.SHA256())
    )
    software.certificates = tuple(one.public_bytes(Encoding.DER) for one in (below, leaf, ca.intermediate, ca.root))
    software.boot(Boot())
    with pytest.raises(VerificationError):
        house.attest(Guest(software, declare=True))


def test_a_tangle_of_certificates_costs_little(house: House) -> None:
    """Six certificates that all could have issued each other are sorted out in a moment."""
    rogue = EkCa()
    software = FakeTpm(rogue)
    software.boot(Boot())
    software.certificates = (software.certificates[0], *[rogue.intermediate.public_bytes(Encoding.DER)] * 5)
    start = time.process_time()
    with pytest.raises(VerificationError):
        house.attest(Guest(software, declare=True))
    assert time.process_time() - start < 1


def ek_key(tpm: FakeTpm) -> ec.EllipticCurvePublicKey:
    key = load_der_public_key(tpm.ek_spki)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=True, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


# --- one client against all ---


def test_a_short_text_takes_no_long_time(front: Front, tpm: FakeTpm) -> None:
    """Init-data that would keep a TOML parser busy for a minute is refused at once."""
    guest = Guest(tpm, declare=True)
    cookie, challenge = front.auth(guest)
    body = "[" + ".".join(["a"] * 16000) + "]\n" + "\n".join(f"{n:x}=1" for n in range(5000))
    message = guest.attestation(challenge)._replace(init_data=InitData("toml", body))
    start = time.process_time()
    assert front.answer(cookie, json.dumps(message.to_json())).status_code == 401
    assert time.process_time() - start < 1


@pytest.mark.parametrize("cookie", ["kbs-session-id=" + "0" * 32, "", "kbs-session-id=../../x"])
def test_nobody_writes_the_ledger_full(tmp_path: Path, cookie: str) -> None:
    """Attempts without a challenge are counted for each address, and leave no more lines than that."""
    front = Front(tmp_path, Limits(challenges_per_minute=3))
    tpm = FakeTpm()
    guest = Guest(tpm)
    body = json.dumps(attest_as_is(guest, "none").to_json())
    statuses = [front.answer(cookie, body).status_code for _ in range(8)]
    assert statuses == [401] * 3 + [429] * 5
    assert len(front.house.lines("")) == 3
    front.house.store.close()


def test_an_attested_guest_does_not_write_an_owners_ledger_full(tmp_path: Path) -> None:
    """Denials, too, are counted for each address."""
    front = Front(tmp_path, Limits(challenges_per_minute=3))
    tpm = booted(front.house)
    provision(front, PATH, SECRET, tpm)
    cookie, _ = front.attest(Guest(tpm, declare=True))
    statuses = [front.fetch("acme/disk/none", cookie=cookie).status_code for _ in range(6)]
    assert statuses == [403] * 3 + [429] * 3
    front.house.store.close()


def test_a_network_is_one_client() -> None:
    """A client with 2^64 IPv6 addresses is counted once, and those behind a mapped prefix one by one."""
    assert network("2001:db8::1") == network("[2001:db8::ffff:1%eth0]") != network("2001:db8:0:1::1")
    assert network("::ffff:192.0.2.1") == network("192.0.2.1") != network("192.0.2.2")
    assert network(None) == network("unix:") == "unknown"


def test_what_cannot_be_read_writes_nothing(front: Front, tpm: FakeTpm) -> None:
    """Malformed messages of all kinds leave neither line nor challenge behind."""
    before = front.house.store.verify_chain()
    for body in (
        b"",
        b"{}",
        b"[]",
        b"\xff",
        json.dumps({"version": "0.4.0", "tee": "tpm", "extra-params": {"tpm": {}}}),
    ):
        assert front.send("POST", "/kbs/v0/auth", body).status_code == 401
        assert front.send("POST", "/kbs/v0/attest", body).status_code == 401
    assert front.house.store.verify_chain() == before


# --- what a guest, a thief and a log's reader can learn ---


def test_a_denial_tells_nothing_but_its_line(front: Front, tpm: FakeTpm) -> None:
    """Headers, length and words of a denial are the same for a missing key, owner, rule and a wrong measurement."""
    front.house.key("acme/disk/unruled", SECRET)
    other = booted(front.house)
    other.boot(Boot(kernel=b"evil"))
    answers = []
    for machine, path in (
        (tpm, "acme/disk/none"), (tpm, "acme/disk/unruled"), (tpm, "nobody/disk/root"), (other, PATH)
    ):  # fmt: skip
        cookie, _ = front.attest(Guest(machine, declare=True))
        answers.append(front.fetch(path, cookie=cookie))
    shapes = {(a.status_code, len(a.data), tuple(sorted((k, v) for k, v in a.headers.items()))) for a in answers}
    assert len(shapes) == 1
    for answer in answers:
        assert not any(value.hex() in answer.text for value in tpm.pcrs if any(value))
        assert "debian" not in answer.text
        assert "acme" not in answer.text


def test_nothing_prints_a_secret(house: House, tpm: FakeTpm) -> None:
    """Whatever a log line or a traceback shows of our objects, no key, KEK, proof or sealed byte is in it."""
    proof = os.urandom(32)
    evidence = tpm.evidence(bytes(48), proof)
    sealed = house.custody.seal("acme", "disk", "root", 1, SECRET)
    shown = " ".join(
        repr(one)
        for one in (
            house.services,
            house.custody,
            house.services.tokens,
            StoredKey("acme", "disk", "root", 1, KeyState.ACTIVE, 0, "x", sealed),
            decode_evidence(evidence),
            types.PutKey(key=b64.std(SECRET)),
        )
    )
    kek = next(iter(house.custody._keks.values()))
    for secret in (SECRET, kek, sealed, b64.from_std(evidence["activation"], name="activation", max_bytes=32)):
        for form in (repr(secret)[2:-1], secret.hex(), b64.std(secret), b64.url(secret)):
            assert form not in shown


def test_a_thief_of_the_store_takes_no_session_over(house: House, tpm: FakeTpm, tmp_path: Path) -> None:
    """What the store holds of a session and its attestation is not accepted as session, token or secret."""
    session_id, token = house.attest(Guest(tpm, declare=True))
    with sqlite3.connect(tmp_path / "roomkey.db") as connection:
        [(name, id_)] = connection.execute("SELECT session, id FROM attestation").fetchall()
        stolen = " ".join(str(row) for row in connection.execute("SELECT * FROM session"))
        stolen += " ".join(str(row) for row in connection.execute("SELECT * FROM attestation"))
    connection.close()
    assert session_id not in stolen
    assert token not in stolen
    for cookie, bearer in ((name, None), (name[:32], None), (id_, None), (None, id_), (None, name)):
        with pytest.raises(RoomkeyError) as caught:
            house.release(PATH, cookie, bearer)
        assert isinstance(caught.value, FreshnessError | Unauthorized)


def test_a_thief_who_writes_moves_no_key_to_another_place(house: House, tpm: FakeTpm, tmp_path: Path) -> None:
    """A sealed key under another version of its own path is not opened either: an old key does not come back."""
    house.key(PATH, b"the rotated key of 32 bytes long")
    with sqlite3.connect(tmp_path / "roomkey.db") as connection:
        [(old,)] = connection.execute(
            "SELECT sealed FROM key_material JOIN key ON id = key WHERE version = 1"
        ).fetchall()
        connection.execute(
            "UPDATE key_material SET sealed = ? WHERE key = (SELECT id FROM key WHERE version = 2)", (old,)
        )
    connection.close()
    with pytest.raises(ReleaseDenied):
        house.flow(Guest(tpm, declare=True), PATH)


def test_a_line_of_the_log_is_one_line() -> None:
    """Neither line feeds, nor escapes, nor bidirectional marks of a stranger reach the log as they are."""
    record = logging.LogRecord(
        "x", logging.INFO, "", 0, "a %s", ("\n2026 INFO ok\x1b[2J\x9b\u202e\u2028\r\ud800",), None
    )
    line = LineFormatter().format(record)
    assert line.isprintable()
    assert line.isascii()


def test_a_key_is_not_released_by_what_was_deleted(front: Front, tpm: FakeTpm) -> None:
    """A session that was attested before a rule, an instance or a key was taken away gets nothing afterwards."""
    owner = front.owner("beta")
    for number, (method, path) in enumerate((
        ("DELETE", "/v1/rules/beta/disk/{}"), ("DELETE", "/v1/keys/beta/disk/{}"), ("DELETE", "/v1/instances/m{}"),
    )):  # fmt: skip
        wanted = f"beta/disk/{number}"
        front.house.key(wanted, SECRET)
        front.house.image("beta", "debian", draft(tpm))
        front.house.instance("beta", f"m{number}", tpm, by="ek")
        front.house.rule(wanted, images=["debian"], instances=[f"m{number}"])
        cookie, _ = front.attest(Guest(tpm, declare=True))
        assert front.fetch(wanted, cookie=cookie).status_code == 200
        owner.call(method, path.format(number), {})
        assert front.fetch(wanted, cookie=cookie).status_code == 403


def test_an_image_without_registers_is_never_stored() -> None:
    """An image that every guest would fit cannot be written."""
    for text in (
        'platform = "tpm"\n[tpm]\nbank = "sha256"\n',
        'platform = "tpm"\n[tpm]\nbank = "sha256"\n[tpm.pcrs]\n',
        'platform = "tpm"\n[tpm]\nbank = "sha256"\n[tpm.pcrs]\n0 = "' + "ab" * 32 + '"\n',
        'platform = "tpm"\n[tpm]\nbank = "sha256"\n[tpm.pcrs]\n4 = []\n',
    ):
        with pytest.raises(ProtocolError):
            parse_image(text)
