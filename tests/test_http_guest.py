# SPDX-License-Identifier: Apache-2.0
"""The guests' protocol over HTTP: flows, strict input, and what a guest is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from werkzeug.test import TestResponse

from broker import tokens
from broker.config import Limits
from broker.http import guest as guest_calls
from broker.store.protocols import RecordKind
from keys import envelope, jwe
from keys.envelope import Release
from keys.errors import Unavailable
from keys.messages import MAX_BODY_BYTES, Request, TpmDeclaration
from keys.tee import Tee
from tests.fakes.boot import Boot
from tests.fakes.front import Front, booted, provision
from tests.fakes.tpm_guest import FakeTpm, Guest

PATH = "acme/disk/root"
SECRET = b"correct horse battery staple 32."
ERRORS = "https://github.com/confidential-containers/kbs/errors/"

Spoil = Callable[[dict[str, Any]], Any]


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    front = Front(tmp_path)
    yield front
    front.house.store.close()


@pytest.fixture
def tpm(front: Front) -> FakeTpm:
    tpm = booted(front.house)
    provision(front, PATH, SECRET, tpm)
    return tpm


def error(answer: TestResponse, status: int, kind: str) -> str:
    """The detail of an error that must look as the protocol says."""
    assert answer.status_code == status, answer.data
    assert answer.mimetype == "application/json"
    assert answer.json.keys() == {"type", "detail"}
    assert answer.json["type"] == ERRORS + kind
    assert answer.headers["Cache-Control"] == "no-store"
    detail: str = answer.json["detail"]
    return detail


# --- flows ---


def test_cookie_flow(front: Front, tpm: FakeTpm) -> None:
    """A guest with a certified TPM gets its key by cookie, wrapped to its own key and TPM."""
    guest = Guest(tpm, declare=True)
    cookie, _ = front.attest(guest, PATH)
    answer = front.fetch(PATH, cookie=cookie)
    assert answer.status_code == 200
    assert answer.mimetype == "application/json"
    assert guest.open(answer.json) == SECRET


def test_bearer_flow(front: Front, tpm: FakeTpm) -> None:
    """The token alone gets the key too."""
    guest = Guest(tpm, declare=True)
    _, token = front.attest(guest)
    assert guest.open(front.fetch(PATH, token=token).json) == SECRET


def opened(guest: Guest, answer: TestResponse, front: Front) -> tuple[bytes, Release]:
    """Key and verified release in an answer with an envelope."""
    assert answer.status_code == 200, answer.data
    assert isinstance(guest.key, ec.EllipticCurvePrivateKey)
    packed = jwe.unseal(answer.json, guest.key, activation=guest.activation, max_bytes=jwe.MAX_ENVELOPE_BYTES)
    secret, statement, _ = envelope.unpack(packed)
    keys = envelope.load_keys(json.dumps(front.house.services.signer.jwks()).encode())
    payload = envelope.verify(statement, keys, envelope.RELEASE, max_bytes=envelope.MAX_STATEMENT_BYTES)
    return secret, Release.from_json(payload)


def test_who_accepts_an_envelope_gets_one(front: Front, tpm: FakeTpm) -> None:
    """By cookie or by token: the key, and a release that names the session in which the guest attested."""
    guest = Guest(tpm, declare=True)
    cookie, token = front.attest(guest, PATH)
    name = hashlib.sha256(cookie.partition("=")[2].encode()).hexdigest()
    for way in ({"cookie": cookie}, {"token": token}):
        secret, release = opened(guest, front.fetch(PATH, accept=envelope.MEDIA_TYPE, **way), front)
        assert (secret, release.key, release.session) == (SECRET, PATH, name)
        assert release.decision == front.house.lines("acme", "release")[0].id


def test_the_envelope_names_the_volume_that_is_pinned(front: Front, tpm: FakeTpm) -> None:
    """None before the owner has pinned one, then that one, and none again; the line has what was said."""
    told = []
    for body in (None, {"pin": "12" * 32}, None):
        if told:
            front.house.put(RecordKind.VOLUME, "acme", "disk/root", body)
        guest = Guest(tpm, declare=True)
        cookie, _ = front.attest(guest, PATH)
        _, release = opened(guest, front.fetch(PATH, accept=envelope.MEDIA_TYPE, cookie=cookie), front)
        told.append(release.volume)
        assert front.house.lines("acme", "release")[0].body["volume"] == release.volume
    assert told == [None, "12" * 32, None]


@pytest.mark.parametrize(
    "accept",
    [
        None, "", "*/*", "application/*", "application/json", f"{envelope.MEDIA_TYPE}, application/json",
        f"{envelope.MEDIA_TYPE};q=0",
    ],
)  # fmt: skip
def test_other_guests_get_the_plain_answer(front: Front, tpm: FakeTpm, accept: str | None) -> None:
    """A guest that was made for another KBS gets the key alone, whatever it accepts."""
    guest = Guest(tpm, declare=True)
    cookie, _ = front.attest(guest, PATH)
    assert guest.open(front.fetch(PATH, cookie=cookie, accept=accept).json) == SECRET


def test_a_refusal_looks_the_same_to_both(front: Front, tpm: FakeTpm) -> None:
    """What a guest accepts changes nothing about what it is told."""
    cookie, _ = front.attest(Guest(tpm, declare=True))
    error(front.fetch("acme/disk/none", cookie=cookie, accept=envelope.MEDIA_TYPE), 403, "PolicyDeny")


def test_cookie_comes_first(front: Front, tpm: FakeTpm) -> None:
    """With an attested session the Authorization header is not looked at."""
    guest = Guest(tpm, declare=True)
    cookie, _ = front.attest(guest)
    assert guest.open(front.fetch(PATH, cookie=cookie, token="rubbish").json) == SECRET


def test_token_behind_an_unattested_cookie(front: Front, tpm: FakeTpm) -> None:
    """With a session that has not attested, the token counts."""
    guest = Guest(tpm, declare=True)
    _, token = front.attest(guest)
    cookie, _ = front.auth(Guest(tpm, declare=True))
    assert guest.open(front.fetch(PATH, cookie=cookie, token=token).json) == SECRET


@pytest.mark.parametrize("kind", ["P-256", "P-521", "RSA"])
@pytest.mark.parametrize("flow", ["cookie", "token"])
def test_stock_guest_with_an_enrolled_key(front: Front, kind: str, flow: str) -> None:
    """A guest made for another KBS, its attestation key enrolled, gets its key under each kind of guest key."""
    tpm = booted(front.house)
    provision(front, PATH, SECRET, tpm)
    front.house.instance("acme", "web-1", tpm, by="ak")
    front.house.rule(PATH, images=["debian"], instances=["web-1"])
    key = {
        "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
    }[kind]()
    guest = Guest(tpm, stock=True, key=key)
    cookie, token = front.attest(guest)
    answer = front.fetch(PATH, cookie=cookie) if flow == "cookie" else front.fetch(PATH, token=token)
    assert guest.open(answer.json) == SECRET


@pytest.mark.parametrize("extra", ["", {"supported-hash-algorithms": ["sha256", "sha384", "sha512", "sm3"]}])
def test_auth_of_a_stock_guest(front: Front, extra: object) -> None:
    """Whatever extra-params stock guests send is answered with a nonce of 44 characters and an empty string."""
    answer = front.send("POST", "/kbs/v0/auth", json.dumps({"version": "0.4.0", "tee": "tpm", "extra-params": extra}))
    assert answer.status_code == 200
    assert answer.json.keys() == {"nonce", "extra-params"}
    assert len(answer.json["nonce"]) == 44
    assert answer.json["extra-params"] == ""


def test_cookie_attributes(front: Front, tpm: FakeTpm) -> None:
    """The session cookie is 32 hex digits, for the protocol's paths, and unreadable for scripts."""
    answer = front.send("POST", "/kbs/v0/auth", json.dumps(Guest(tpm).request().to_json()))
    value, *attributes = answer.headers["Set-Cookie"].split("; ")
    name, _, session = value.partition("=")
    assert name == "kbs-session-id"
    assert len(session) == 32
    assert set(session) <= set("0123456789abcdef")
    assert {"Secure", "HttpOnly", "Path=/kbs/v0", "SameSite=Strict"} <= set(attributes)
    [expires] = [item.partition("=")[2] for item in attributes if item.startswith("Expires=")]
    assert parsedate_to_datetime(expires).timestamp() == (front.house.now + 300_000) // 1000


def test_cookie_over_plain_http(front: Front, tpm: FakeTpm) -> None:
    """Without TLS the cookie is not marked Secure, or it would never come back."""
    client = front.app.test_client()
    answer = client.post("/kbs/v0/auth", data=json.dumps(Guest(tpm).request().to_json()), base_url="http://127.0.0.1")
    assert "Secure" not in answer.headers["Set-Cookie"]


def test_attest_sends_the_cookie_again(front: Front, tpm: FakeTpm) -> None:
    """The answer to evidence renews the cookie for as long as the attestation is good."""
    guest = Guest(tpm, declare=True)
    cookie, challenge = front.auth(guest)
    front.house.now += 200_000
    answer = front.answer(cookie, json.dumps(guest.attestation(challenge).to_json()))
    assert answer.headers["Set-Cookie"].startswith(cookie + ";")
    front.house.now += 299_000
    assert front.fetch(PATH, cookie=cookie).status_code == 200


# --- strict input: nothing changes, the challenge is still good ---


def test_challenge_survives_what_cannot_be_read(front: Front, tpm: FakeTpm) -> None:
    """After every kind of malformed evidence the challenge is unused, and each is named to the guest."""
    guest = Guest(tpm, declare=True)
    cookie, challenge = front.auth(guest)
    good = guest.attestation(challenge).to_json()
    lines = len(front.house.lines("acme"))
    for spoil, word in ATTEST_TABLE:
        spoiled = spoil(json.loads(json.dumps(good)))
        body = spoiled if isinstance(spoiled, str | bytes) else json.dumps(spoiled)
        detail = error(front.answer(cookie, body), 401, "AttestationError")
        assert word in detail, (word, detail)
        assert "decision" not in detail
    assert len(front.house.lines("acme")) == lines
    assert front.answer(cookie, json.dumps(good)).status_code == 200


def put(*where: str, value: Any) -> Spoil:
    """Set the member at `where`."""

    def spoil(message: dict[str, Any]) -> dict[str, Any]:
        inner = message
        for name in where[:-1]:
            inner = inner[name]
        inner[where[-1]] = value
        return message

    return spoil


def drop(*where: str) -> Spoil:
    def spoil(message: dict[str, Any]) -> dict[str, Any]:
        inner = message
        for name in where[:-1]:
            inner = inner[name]
        del inner[where[-1]]
        return message

    return spoil


def twice(message: dict[str, Any]) -> str:
    return json.dumps(message)[:-1] + ', "init-data": null}'


ATTEST_TABLE: list[tuple[Spoil, str]] = [
    (lambda message: json.dumps(message)[:-1], "not strict JSON"),
    (lambda message: b"\xff" + json.dumps(message).encode(), "not UTF-8"),
    (twice, "appears twice"),
    (lambda message: [message], "must be a JSON object"),
    (put("surprise", value=1), "unknown member"),
    (drop("runtime-data"), "lacks a member"),
    (drop("tee-evidence"), "lacks a member"),
    (put("runtime-data", "surprise", value=1), "unknown member"),
    (put("runtime-data", "nonce", value=1.5), "only integers"),
    (put("runtime-data", "nonce", value=1), "nonce must be a string"),
    (put("runtime-data", "tee-pubkey", "kid", value="x"), "unknown member"),
    (put("runtime-data", "tee-pubkey", "alg", value="RSA1_5"), "alg does not fit"),
    (put("runtime-data", "tee-pubkey", "kty", value="oct"), "unsupported kty"),
    (put("runtime-data", "tee-pubkey", "crv", value="P-384"), "crv is unsupported"),
    (put("runtime-data", "tee-pubkey", "x", value="AAAA"), "wrong length"),
    (put("runtime-data", "tee-pubkey", "x", value="A" * 43), "not a point"),
    (put("runtime-data", "tee-pubkey", "x", value="+" * 43), "base64url"),
    (
        put("tee-evidence", "additional_evidence", value='{"nvidia":{}}'),
        "the additional evidence lacks a member",
    ),
    (put("tee-evidence", "additional_evidence", value=None), "must be a string"),
    (put("tee-evidence", "primary_evidence", value=""), "must be"),
    (put("tee-evidence", "primary_evidence", "surprise", value=1), "unknown member"),
    (put("tee-evidence", "primary_evidence", "attest", value="AAA"), "base64"),
    (put("tee-evidence", "primary_evidence", "attest", value="AAB="), "base64"),
    (put("tee-evidence", "primary_evidence", "attest", value="/_8="), "base64"),
    (drop("tee-evidence", "primary_evidence", "signature"), "lacks a member"),
    (put("init-data", value={"format": "json", "body": "{}"}), "init-data"),
    (put("init-data", value={"format": "toml"}), "lacks a member"),
]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "not strict JSON"),
        (b"null", "must be a JSON object"),
        (b'{"version":"0.4.0","tee":"tpm"}', "lacks a member"),
        (b'{"tee":"tpm","extra-params":""}', "lacks a member"),
        (b'{"version":"0.4.0","tee":"tpm","extra-params":"","extra-params":""}', "appears twice"),
        (b'{"version":"0.4.0","tee":"tpm","extra-params":"","more":1}', "unknown member"),
        (b'{"version":0.4,"tee":"tpm","extra-params":""}', "only integers"),
        (b'{"version":"0.4.0","tee":"zx81","extra-params":""}', "not a platform"),
        (b'{"version":"0.4.0","tee":"csv","extra-params":""}', "no verifier"),
        (b'{"version":"0.4.0","tee":"tpm","extra-params":{"more":1}}', "unknown member"),
        (b'{"version":"0.4.0","tee":"tpm","extra-params":{"resource":"a/b"}}', "not a resource path"),
        (b'{"version":"0.4.0","tee":"tpm","extra-params":{"tpm":{}}}', "lacks a member"),
        (
            json.dumps(Request(Tee.TPM, tpm=TpmDeclaration(b"-", b"-", (b"-",))).to_json()).encode(),
            "Attestation error",
        ),
        (b"[" * 100_000, "not strict JSON"),
    ],
)
def test_request_that_cannot_be_read(front: Front, body: bytes, word: str) -> None:
    """A malformed request for a challenge is told what is wrong with it."""
    assert word in error(front.send("POST", "/kbs/v0/auth", body), 401, "AttestationError")


@pytest.mark.parametrize("version", ["0.4.1", "0.4", "0.3.0", "v0.4.0", "0.4.0 ", ""])
def test_other_version(front: Front, version: str) -> None:
    """Another version is refused in the words that deployed guests look for."""
    body = json.dumps({"version": version, "tee": "tpm", "extra-params": ""})
    detail = error(front.send("POST", "/kbs/v0/auth", body), 401, "AttestationError")
    assert f"KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is {version}" in detail


@pytest.mark.parametrize("call", ["/kbs/v0/auth", "/kbs/v0/attest"])
def test_body_that_is_too_long(front: Front, call: str) -> None:
    """A body beyond 256 KiB is refused as too long."""
    error(front.send("POST", call, b" " * (MAX_BODY_BYTES + 1)), 413, "AttestationError")


# --- refusals ---


def test_wrong_evidence_says_only_the_decision(front: Front, tpm: FakeTpm) -> None:
    """Evidence that is not genuine burns the challenge; the guest learns the decision's id, the owner the reason."""
    guest = Guest(tpm, declare=True)
    cookie, challenge = front.auth(guest, PATH)
    message = guest.attestation(challenge, changes={"activation": "A" * 43 + "="})
    detail = error(front.answer(cookie, json.dumps(message.to_json())), 401, "AttestationError")
    [line] = front.house.lines("acme", "attest")
    assert detail == f"Attestation error: RCAR handshake Attest failed (decision {line.id})"
    assert line.verdict == "refused"
    again = error(front.answer(cookie, json.dumps(guest.attestation(challenge).to_json())), 401, "AttestationError")
    assert again.startswith("Attestation error: RCAR handshake Attest failed (decision d-")


@pytest.mark.parametrize("cookie", ["", "kbs-session-id=", "kbs-session-id=" + "0" * 32, "kbs-session-id=../../etc"])
def test_evidence_without_a_session(front: Front, tpm: FakeTpm, cookie: str) -> None:
    """Evidence without a session, or with one that does not exist, is refused with a decision's id."""
    guest = Guest(tpm, declare=True)
    _, challenge = front.auth(guest)
    detail = error(front.answer(cookie, json.dumps(guest.attestation(challenge).to_json())), 401, "AttestationError")
    assert "(decision d-" in detail


def test_somebody_elses_challenge(front: Front, tpm: FakeTpm) -> None:
    """A nonce answers only in the session that it was made for."""
    guest = Guest(tpm)
    _, challenge = front.auth(guest)
    cookie, _ = front.auth(guest)
    error(front.answer(cookie, json.dumps(guest.attestation(challenge).to_json())), 401, "AttestationError")


def test_key_without_attestation(front: Front, tpm: FakeTpm) -> None:
    """Without session and token there is no key, attested or not."""
    error(front.fetch(PATH), 401, "TokenNotFound")
    cookie, _ = front.auth(Guest(tpm))
    error(front.fetch(PATH, cookie=cookie), 401, "TokenNotFound")


@pytest.mark.parametrize("token", ["", "rubbish", "a.b.c"])
def test_rubbish_token(front: Front, token: str) -> None:
    """A token that is none is refused."""
    error(front.fetch(PATH, token=token), 401, "TokenVerifierError")


def test_foreign_and_expired_tokens(front: Front, tpm: FakeTpm) -> None:
    """A token of another signer, and one after its time, are refused alike."""
    _, token = front.attest(Guest(tpm, declare=True))
    other = tokens.TokenSigner(
        [ec.generate_private_key(ec.SECP256R1())],
        issuer="roomkey",
        audience=front.house.services.audience,
        lifetime_s=9,
    )
    foreign = other.issue({}, token_id="d-x", now=front.house.now)
    error(front.fetch(PATH, token=foreign), 401, "TokenVerifierError")
    front.house.now += 301_000
    error(front.fetch(PATH, token=token), 401, "TokenVerifierError")


def test_expired_session(front: Front, tpm: FakeTpm) -> None:
    """An attested session is good for as long as its token, and then asks for a new handshake."""
    cookie, _ = front.attest(Guest(tpm, declare=True))
    front.house.now += 301_000
    error(front.fetch(PATH, cookie=cookie), 401, "TokenNotFound")


def test_denials_look_alike(front: Front, tpm: FakeTpm) -> None:
    """No such key, no rule, no such owner and another boot are one answer, but for the decision's id."""
    front.house.key("acme/disk/unruled", SECRET)
    other = booted(front.house)
    other.boot(Boot(kernel=b"another kernel"))
    seen = set()
    for machine, path in (
        (tpm, "acme/disk/none"), (tpm, "acme/disk/unruled"), (tpm, "nobody/disk/root"), (other, PATH)
    ):  # fmt: skip
        cookie, _ = front.attest(Guest(machine, declare=True))
        detail = error(front.fetch(path, cookie=cookie), 403, "PolicyDeny")
        words, _, decision = detail.partition(" (decision ")
        assert decision.startswith("d-")
        assert len(decision) == len("d-") + 20 + len(")")
        seen.add(words)
    assert seen == {"Access denied by policy"}


@pytest.mark.parametrize("path", ["a/b", "a/b/c/d", "a/b/.c", "a/b/c%20d", "a//c", "a/b/c%00", "..%2fa/b/c"])
def test_what_is_no_path(front: Front, path: str) -> None:
    """What is not three segments of plain characters is an error of the call."""
    error(front.fetch(path), 401, "PluginInternalError")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/kbs/v0/auth"),
        ("POST", f"/kbs/v0/resource/{PATH}"),
        ("DELETE", f"/kbs/v0/resource/{PATH}"),
        ("OPTIONS", "/kbs/v0/auth"),
        ("GET", "/kbs/v0/pkcs11/wrap-key"),
        ("POST", "/kbs/v0/attestation-policy"),
        ("GET", "/kbs/v1/auth"),
        ("GET", "/kbs/"),
    ],
)
def test_calls_that_do_not_exist(front: Front, method: str, path: str) -> None:
    """Anything else under the prefix is no plugin of this broker."""
    error(front.send(method, path), 404, "PluginNotFound")


def test_head_releases_nothing(front: Front, tpm: FakeTpm) -> None:
    """A HEAD for a key is no call: nothing is released, nothing recorded."""
    cookie, _ = front.attest(Guest(tpm, declare=True))
    assert front.send("HEAD", f"/kbs/v0/resource/{PATH}", headers={"Cookie": cookie}).status_code == 404
    assert not front.house.lines("acme", "release")


# --- limits and failures ---


def test_too_many_challenges(tmp_path: Path) -> None:
    """One address gets so many challenges a minute and no more, and is told to come again."""
    front = Front(tmp_path, Limits(challenges_per_minute=3))
    body = json.dumps(Request(Tee.TPM).to_json())
    assert [front.send("POST", "/kbs/v0/auth", body).status_code for _ in range(3)] == [200, 200, 200]
    answer = front.send("POST", "/kbs/v0/auth", body)
    error(answer, 429, "AttestationError")
    assert answer.headers["Retry-After"] == "1"
    front.house.now += 60_000
    assert front.send("POST", "/kbs/v0/auth", body).status_code == 200
    front.house.store.close()


def test_expired_challenges_are_forgotten(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so many challenges the store forgets what has expired."""
    purged: list[int] = []
    monkeypatch.setattr(front.house.store, "purge", purged.append)
    monkeypatch.setattr(guest_calls, "PURGE_EVERY", 4)
    for _ in range(8):
        front.auth(Guest(FakeTpm()))
    assert purged == [front.house.now] * 2


@pytest.mark.parametrize("call", ["auth", "attest", "resource"])
def test_store_that_does_not_answer(front: Front, tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Without a store every call is 503 with the protocol's error and a time to come again."""
    guest = Guest(tpm, declare=True)
    cookie, challenge = front.auth(guest)
    message = json.dumps(guest.attestation(challenge).to_json())

    def fail(*_: Any, **__: Any) -> None:
        raise Unavailable("disk full", found="/var/lib/secret-place")

    for method in ("hit", "session", "session_attestation"):
        monkeypatch.setattr(front.house.store, method, fail)
    answer = {
        "auth": lambda: front.send("POST", "/kbs/v0/auth", json.dumps(guest.request().to_json())),
        "attest": lambda: front.answer(cookie, message),
        "resource": lambda: front.fetch(PATH, cookie=cookie),
    }[call]()
    detail = error(answer, 503, "PluginInternalError" if call == "resource" else "AttestationError")
    assert detail == "the broker cannot answer now, try again later"
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize("call", ["/kbs/v0/auth", f"/kbs/v0/resource/{PATH}"])
def test_unexpected_exception_is_a_denial(
    front: Front, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    """A fault of our own is 500 with an id; the log has the id and the place, and not the exception's words."""

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("the secret itself")

    monkeypatch.setattr(front.house.store, "hit", fail)
    monkeypatch.setattr(front.house.store, "session_attestation", fail)
    method = "POST" if call.endswith("auth") else "GET"
    answer = front.send(method, call, json.dumps(Request(Tee.TPM).to_json()) if method == "POST" else None)
    detail = error(answer, 500, "AttestationError" if method == "POST" else "PluginInternalError")
    incident = detail.partition("incident ")[2].rstrip(")")
    [record] = [record for record in caplog.records if record.name == "roomkey.http"]
    assert incident in record.getMessage()
    assert "KeyError" in record.getMessage()
    assert "test_http_guest.py" in record.getMessage()
    assert "the secret itself" not in caplog.text
