# SPDX-License-Identifier: Apache-2.0
"""Owners' requests: who signed, for what, when, how often."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.owner_identity import OwnerKey, public_jwk
from broker.owners import MAX_LIFETIME_S, MAX_SKEW_S, Identity, Role, authenticate, parse_key, registered_key, to_body
from broker.store.protocols import Record, RecordKind
from broker.store.sqlite import SqliteStore
from keys import b64
from keys.errors import ProtocolError, Unauthorized, Unavailable

NOW = 1_800_000_000_000
AUDIENCE = "https://broker.test"
KEYS: dict[str, tuple[str, OwnerKey]] = {
    "acme": ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
    "globex": ("ES256", ec.generate_private_key(ec.SECP256R1())),
}
REQUEST = ("PUT", "/v1/images/a?b=c", b'{"toml":""}')


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path_factory.mktemp("owners") / "roomkey.db")
    for name, (_, key) in KEYS.items():
        body = to_body([parse_key(public_jwk(key))])
        store.put_record(Record(RecordKind.OWNER, "", name, 1, body, NOW, "operator"))
    yield store
    store.close()


def kid(owner: str) -> str:
    return parse_key(public_jwk(KEYS[owner][1])).kid


def claims(owner: str = "acme", **changes: Any) -> dict[str, Any]:
    method, path, body = REQUEST
    whole = {
        "iss": owner, "aud": AUDIENCE, "iat": NOW // 1000, "exp": NOW // 1000 + 60, "jti": b64.url(os.urandom(16)),
        "htm": method, "htu": path, "sha256": b64.url(hashlib.sha256(body).digest()),
    } | changes  # fmt: skip
    return {name: value for name, value in whole.items() if value is not None}


def token(
    owner: str = "acme", *, header: dict[str, Any] | None = None, key: Any = None, algorithm: str | None = None,
    **changes: Any,
) -> str:  # fmt: skip
    own_algorithm, own_key = KEYS[owner]
    head = {"typ": "roomkey-owner+jwt", "kid": kid(owner)} | (header or {})
    return jwt.encode(claims(owner, **changes), key or own_key, algorithm or own_algorithm, headers=head)


def ask(store: SqliteStore, header: str | None, **changes: Any) -> Identity:
    method, path, body = REQUEST
    asked = {"method": method, "path": path, "body": body, "audience": AUDIENCE, "now": NOW} | changes
    return authenticate(header, store=store, **asked)


def refused(store: SqliteStore, header: str | None, **changes: Any) -> str:
    """The cause of a refusal; what everybody sees is always the same."""
    with pytest.raises(Unauthorized) as caught:
        ask(store, header, **changes)
    assert caught.value.message == "the request is not signed by an owner's key"
    return str(caught.value.__cause__)


@pytest.mark.parametrize("owner", KEYS)
def test_signed_request_names_owner_and_key(store: SqliteStore, owner: str) -> None:
    """A request signed with a registered key, Ed25519 or P-256, is its owner's."""
    assert ask(store, f"Bearer {token(owner)}") == Identity(owner, kid(owner), Role.OWNER)


def test_replay_is_refused(store: SqliteStore) -> None:
    """The same token is good once."""
    header = f"Bearer {token()}"
    ask(store, header)
    assert "used before" in refused(store, header)


def test_refused_token_uses_up_nothing(store: SqliteStore) -> None:
    """A token that is refused for another reason leaves its id unused."""
    header = f"Bearer {token()}"
    refused(store, header, method="DELETE")
    assert ask(store, header).owner == "acme"


def test_same_jti_of_two_owners(store: SqliteStore) -> None:
    """One owner's id does not use up another's."""
    jti = b64.url(os.urandom(16))
    assert ask(store, f"Bearer {token('acme', jti=jti)}").owner == "acme"
    assert ask(store, f"Bearer {token('globex', jti=jti)}").owner == "globex"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"method": "DELETE"}, "another request"),
        ({"path": "/v1/images/a"}, "another request"),
        ({"path": "/v1/images/b?b=c"}, "another request"),
        ({"body": b'{"toml":"x"}'}, "another request"),
        ({"audience": "https://other.test"}, "another audience"),
        ({"now": NOW + 60_000}, "not valid now"),
        ({"now": NOW - (MAX_SKEW_S + 1) * 1000}, "not valid now"),
    ],
)
def test_token_is_for_one_request(store: SqliteStore, changes: dict[str, Any], why: str) -> None:
    """Another method, path, query, body, audience or time than the signed one is refused."""
    assert why in refused(store, f"Bearer {token()}", **changes)


def test_clock_may_be_a_little_ahead(store: SqliteStore) -> None:
    """An owner whose clock is half a minute ahead is let in."""
    assert ask(store, f"Bearer {token()}", now=NOW - MAX_SKEW_S * 1000).owner == "acme"


def test_last_moment_of_a_token(store: SqliteStore) -> None:
    """A token is good until the second before `exp`, and two minutes are its longest life."""
    longest = token(exp=NOW // 1000 + MAX_LIFETIME_S)
    assert ask(store, f"Bearer {longest}", now=NOW + (MAX_LIFETIME_S - 1) * 1000).owner == "acme"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"exp": NOW // 1000 + MAX_LIFETIME_S + 1}, "not valid now"),
        ({"iat": NOW // 1000 - 3600}, "not valid now"),
        ({"exp": NOW // 1000 + 60.0}, "only integers"),
        ({"exp": str(NOW // 1000 + 60)}, "wrong type"),
        ({"iat": True}, "wrong type"),
        ({"iss": 7}, "wrong type"),
        ({"iss": "nobody"}, "no such owner"),
        ({"iss": "globex"}, "none of the owner's keys"),
        ({"jti": b64.url(bytes(15))}, "jti is too short"),
        ({"jti": 5}, "jti must be a string"),
        ({"jti": "%%%"}, "jti is not"),
        ({"aud": [AUDIENCE]}, "another audience"),
        ({"nbf": 0}, "unknown member"),
        *(({name: None}, "lacks a member") for name in ("iss", "aud", "iat", "exp", "jti", "htm", "htu", "sha256")),
    ],
)
def test_claims(store: SqliteStore, changes: dict[str, Any], why: str) -> None:
    """Every claim must be there, of its type, and right."""
    if changes.get("iss") == "globex":
        mixed = claims("acme", **changes)
        header = {"typ": "roomkey-owner+jwt", "kid": kid("acme")}
        assert why in refused(store, "Bearer " + jwt.encode(mixed, KEYS["acme"][1], "EdDSA", headers=header))
        return
    payload = json.dumps(claims(**changes)).encode()
    header = {"typ": "roomkey-owner+jwt", "kid": kid("acme")}
    signed = jwt.PyJWS().encode(payload, KEYS["acme"][1], "EdDSA", headers=header)
    assert why in refused(store, f"Bearer {signed}")


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"jku": "https://evil.test/jwks"}, "unknown member"),
        ({"x5u": "https://evil.test/cert"}, "unknown member"),
        ({"jwk": public_jwk(KEYS["globex"][1])}, "unknown member"),
        ({"x5c": ["AAAA"]}, "unknown member"),
        ({"crit": ["exp"]}, "unknown member"),
        ({"b64": True}, "unknown member"),
        ({"typ": "JWT"}, "another type"),
        ({"kid": "other"}, "none of the owner's keys"),
        ({"kid": 1}, "none of the owner's keys"),
    ],
)
def test_header_brings_nothing_of_its_own(store: SqliteStore, header: dict[str, Any], why: str) -> None:
    """A header with a key, a pointer to one, a critical extension or another type is refused."""
    payload = json.dumps(claims()).encode()
    head = {"alg": "EdDSA", "typ": "roomkey-owner+jwt", "kid": kid("acme")} | header
    parts = [b64.url(json.dumps(head).encode()), b64.url(payload)]
    key = KEYS["acme"][1]
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    parts.append(b64.url(key.sign(".".join(parts).encode())))
    assert why in refused(store, "Bearer " + ".".join(parts))


def test_signature_of_another_key(store: SqliteStore) -> None:
    """A signature by a key that is not the registered one is refused."""
    assert "verification failed" in refused(store, f"Bearer {token(key=ed25519.Ed25519PrivateKey.generate())}").lower()


def test_algorithm_belongs_to_the_key(store: SqliteStore) -> None:
    """A token under another algorithm is refused: none, the public key as an HMAC secret, another curve's."""
    stolen = hashlib.sha256(json.dumps(public_jwk(KEYS["acme"][1])).encode()).digest() * 2
    for key, algorithm in ((None, "none"), (stolen, "HS256"), (KEYS["globex"][1], "ES256")):
        payload = json.dumps(claims()).encode()
        header = {"typ": "roomkey-owner+jwt", "kid": kid("acme")}
        signed = jwt.PyJWS().encode(payload, key, algorithm, headers=header)  # type: ignore[arg-type]  # none has none
        assert "alg" in refused(store, f"Bearer {signed}")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "{whole}",
        "bearer {whole}",
        "Bearer  {whole}",
        "Bearer {whole}.",
        "Bearer {whole}=",
        "Bearer {cut}",
        "Bearer {headless}",
        "Bearer ..",
        "Bearer {whole}, Bearer {whole}",
        "Bearer " + "a" * 5000,
    ],
)
def test_header_of_another_shape(store: SqliteStore, header: str | None) -> None:
    """Anything but `Bearer` and one compact token is refused."""
    whole = token()
    refused(store, header and header.format(whole=whole, cut=whole[:-2], headless=whole.partition(".")[2]))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_header_is_refused_in_our_words(text: str) -> None:
    """Whatever stands in the header, only Unauthorized comes out, before any store is asked."""
    with pytest.raises(Unauthorized):
        authenticate(f"Bearer {text}", method="GET", path="/", body=b"", store=None, audience="", now=0)  # type: ignore[arg-type]


def test_store_that_does_not_answer_is_no_refusal(tmp_path: Path) -> None:
    """A failing store is Unavailable and not a wrong signature."""

    class Broken(SqliteStore):
        def record(self, *args: Any, **kwargs: Any) -> Record:
            raise Unavailable("gone")

    broken = Broken(tmp_path / "roomkey.db")
    with pytest.raises(Unavailable):
        ask(broken, f"Bearer {token()}")
    broken.close()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda jwk: [jwk], "must be a JSON object"),
        (lambda jwk: jwk | {"d": "AAAA"}, "private key"),
        (lambda jwk: jwk | {"use": "sig"}, "unknown member"),
        (lambda jwk: jwk | {"kty": "RSA"}, "another kind"),
        (lambda jwk: jwk | {"x": b64.url(bytes(31))}, "length"),
        (lambda jwk: jwk | {"x": 5}, "must be a string"),
    ],
)
@pytest.mark.parametrize("owner", KEYS)
def test_key_that_cannot_be_registered(owner: str, spoil: Callable[[dict[str, str]], Any], why: str) -> None:
    """Only a public key of a known kind, and nothing beside it, is registered."""
    with pytest.raises(ProtocolError, match=why):
        parse_key(spoil(public_jwk(KEYS[owner][1])))


def test_ed25519_on_another_kind(store: SqliteStore) -> None:
    """An EC key that claims another curve is of no known kind."""
    with pytest.raises(ProtocolError, match="another kind"):
        parse_key(public_jwk(KEYS["globex"][1]) | {"crv": "P-521"})


def test_record_of_an_owner() -> None:
    """An owner has one to sixteen different keys, one of which may do everything."""
    key = parse_key(public_jwk(KEYS["acme"][1]))
    assert to_body([key]) == {"keys": [{"kid": key.kid, "jwk": key.jwk, "role": "owner"}]}
    proposer = key._replace(role=Role.PROPOSE)
    for keys, why in (
        ([], "needs a key"),
        ([key] * 17, "needs a key"),
        ([key, key], "already"),
        ([proposer], "may do everything"),
    ):
        with pytest.raises(ProtocolError, match=why):
            to_body(keys)


@pytest.mark.parametrize(
    ("entry", "role"), [({}, Role.OWNER), ({"role": "owner"}, Role.OWNER), ({"role": "propose"}, Role.PROPOSE)]
)
def test_role_of_a_registered_key(store: SqliteStore, entry: dict[str, str], role: Role) -> None:
    """The role stands beside the registered key; a key from before there were roles may do everything."""
    key = parse_key(public_jwk(KEYS["acme"][1]))
    version = store.newest_version(RecordKind.OWNER, "", "acme") + 1
    body = {"keys": [{"kid": key.kid, "jwk": key.jwk} | entry]}
    store.put_record(Record(RecordKind.OWNER, "", "acme", version, body, NOW, "operator"))
    assert ask(store, f"Bearer {token()}").role is role


def test_a_role_that_is_none_is_nobody() -> None:
    """A stored role that this release does not know lets nothing in."""
    key = parse_key(public_jwk(KEYS["acme"][1]))
    with pytest.raises(ValueError, match="admin"):
        registered_key({"kid": key.kid, "jwk": key.jwk, "role": "admin"})
