# SPDX-License-Identifier: Apache-2.0
"""Who asks: an owner's request carries a short-lived JWT that only the owner's key can sign, for this one request.

Owners are records of the operator's: `{"keys": [{"kid": ..., "jwk": {...}, "role": ...}]}`, public keys only. The
algorithm belongs to the registered key and is never taken from the token. So does the role: a key that may only propose
(a build's) can be stolen, and still nobody gets a disk key for it.

Checks of `authenticate`, in order:

 (1) `Authorization: Bearer` and a token of three parts of canonical base64url, at most 4 KiB
 (2) the header is strict JSON with `alg`, `kid`, `typ` and nothing else, so that it can neither bring nor point to a
     key of its own (`jwk`, `jku`, `x5c`, `x5u`), nor change what is verified (`crit`, `b64`); `typ` is ours
 (3) the claims are strict JSON with all of `aud`, `exp`, `htm`, `htu`, `iat`, `iss`, `jti`, `sha256` and nothing else
 (4) `iss` is an owner, `kid` one of the owner's keys, `alg` that key's algorithm
 (5) the signature
 (6) `aud` is this broker; `htm`, `htu` and `sha256` are this request's method, path with query, and body
 (7) issued not later than now, not expired, and for two minutes at most
 (8) `jti` has at least 16 bytes and was never used before

Whatever fails, the answer is the same; the cause of the error says which, for the operator's log.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from broker.store.protocols import RecordKind, Store
from keys import b64, strictjson
from keys.errors import NotFound, ProtocolError, Unauthorized
from keys.jwk import ec_key

TOKEN_TYPE = "roomkey-owner+jwt"  # noqa: S105  the name of a type
MAX_TOKEN_CHARS = 4096
MAX_LIFETIME_S = 120  # from `iat` to `exp`
MAX_SKEW_S = 30  # how far the owner's clock may be ahead of ours
MIN_JTI_BYTES = 16
MAX_JTI_BYTES = 64
MAX_KEYS = 16  # of one owner

PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey

_BEARER = "Bearer "
_HEADER = frozenset(("alg", "kid", "typ"))
_CLAIMS = frozenset(("aud", "exp", "htm", "htu", "iat", "iss", "jti", "sha256"))
_JWS = jwt.PyJWS()


class Role(StrEnum):
    """What a registered key may do: everything, or only propose images. Which calls that is, the routes say."""

    OWNER = "owner"
    PROPOSE = "propose"


class Identity(NamedTuple):
    """Who asks: the owner's name, the thumbprint of the key that signed, and what that key may do."""

    owner: str
    kid: str
    role: Role


class OwnerKey(NamedTuple):
    """A registered key: RFC 7638 thumbprint, the JWK's members, its one JWS algorithm, the key, and what it may do."""

    kid: str
    jwk: dict[str, str]
    algorithm: str
    key: PublicKey
    role: Role = Role.OWNER


def parse_key(value: object) -> OwnerKey:
    """A public JWK: OKP on Ed25519 (RFC 8037 section 2) or EC on P-256 (RFC 7518 section 6.2), and no other members.

    Raises ProtocolError; for a private key too, which then has been shown around and should be made anew.
    """
    if isinstance(value, dict) and "d" in value:
        raise ProtocolError("that is a private key", expected="a public JWK", mend="make a new one and keep it private")
    curve = value.get("crv") if isinstance(value, dict) else None
    names = frozenset(("crv", "kty", "x") if curve == "Ed25519" else ("crv", "kty", "x", "y"))
    members = {
        name: strictjson.string(item, name=f"the key's {name}", max_chars=64)
        for name, item in strictjson.members(value, name="the owner's key", required=names).items()
    }
    key: PublicKey
    if (members["kty"], curve) == ("OKP", "Ed25519"):
        raw = b64.from_url(members["x"], name="the key's x", max_bytes=32)
        if len(raw) != 32:
            raise ProtocolError("the owner's key is of the wrong length", expected="32 bytes")
        algorithm, key = "EdDSA", ed25519.Ed25519PublicKey.from_public_bytes(raw)
    elif (members["kty"], curve) == ("EC", "P-256"):
        algorithm, key = "ES256", ec_key(members, name="the owner's key")
    else:
        raise ProtocolError("the owner's key is of another kind", expected="OKP Ed25519 or EC P-256")
    kid = b64.url(hashlib.sha256(strictjson.canonical(members)).digest())  # RFC 7638 section 3
    return OwnerKey(kid, members, algorithm, key)


def to_body(keys: list[OwnerKey]) -> dict[str, Any]:
    """The body of an owner's record. Raises ProtocolError unless there are 1 to 16 keys, all different, one of them for
    everything.
    """
    if not 1 <= len(keys) <= MAX_KEYS:
        raise ProtocolError("an owner needs a key", expected=f"1 to {MAX_KEYS} keys", found=str(len(keys)))
    if len({key.kid for key in keys}) != len(keys):
        raise ProtocolError("the owner has that key already")
    if not any(key.role is Role.OWNER for key in keys):
        raise ProtocolError("an owner needs a key that may do everything", expected="one of role owner")
    return {"keys": [{"kid": key.kid, "jwk": key.jwk, "role": str(key.role)} for key in keys]}


def registered_key(entry: dict[str, Any]) -> OwnerKey:
    """One of the keys in the body of an owner's record. A key from before there were roles may do everything. Raises
    ProtocolError or ValueError where `to_body` did not write it.
    """
    return parse_key(entry["jwk"])._replace(role=Role(entry.get("role", Role.OWNER)))


def authenticate(
    header: str | None, *, method: str, path: str, body: bytes, store: Store, audience: str, now: int
) -> Identity:
    """The owner whose key signed this request. `path` includes the query; `now` in milliseconds.

    Raises Unauthorized, always in the same words; Unavailable.
    """
    try:
        return _authenticate(header, (method, path, hashlib.sha256(body).digest()), store, audience, now)
    except (ProtocolError, NotFound, jwt.PyJWTError) as error:
        raise Unauthorized(
            "the request is not signed by an owner's key",
            expected="a fresh token for exactly this request, by a key that the operator has registered",
            mend="check the identity (roomkey identity show), this machine's clock and the broker's audience",
        ) from error


def _authenticate(
    header: str | None, request: tuple[str, str, bytes], store: Store, audience: str, now: int
) -> Identity:
    token, head, claims = _read(header)  # (1) (2) (3)
    key = _registered(store, claims["iss"], head)  # (4)
    _JWS.decode(token, key.key, algorithms=[key.algorithm])  # (5)
    method, path, digest = request
    if claims["aud"] != audience:  # (6)
        raise ProtocolError("the token is for another audience")
    if (claims["htm"], claims["htu"], claims["sha256"]) != (method, path, b64.url(digest)):
        raise ProtocolError("the token is for another request")
    at = now // 1000
    if not (claims["iat"] <= at + MAX_SKEW_S and at < claims["exp"] <= claims["iat"] + MAX_LIFETIME_S):  # (7)
        raise ProtocolError("the token is not valid now", expected=f"valid at {at}")
    if len(b64.from_url(claims["jti"], name="jti", max_bytes=MAX_JTI_BYTES)) < MIN_JTI_BYTES:  # (8)
        raise ProtocolError("jti is too short")
    # Only what passed everything else is remembered: a stranger can neither fill the store nor use up an owner's id.
    once = hashlib.sha256(strictjson.canonical([claims["iss"], claims["jti"]])).hexdigest()
    if not store.first_use(f"owner {once}", claims["exp"] * 1000):
        raise ProtocolError("the token was used before")
    return Identity(claims["iss"], key.kid, key.role)


def _read(header: str | None) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Token, header and claims, of the right shape and types, and still to be believed by nobody."""
    if header is None or not header.startswith(_BEARER):
        raise ProtocolError("no bearer token")
    token = header.removeprefix(_BEARER)
    parts = strictjson.string(token, name="the token", max_chars=MAX_TOKEN_CHARS).split(".")
    if len(parts) != 3:
        raise ProtocolError("the token does not have three parts")
    head = _object(parts[0], "the token's header", _HEADER)
    if head["typ"] != TOKEN_TYPE:
        raise ProtocolError("the token is of another type")
    claims = _object(parts[1], "the token's claims", _CLAIMS)
    if type(claims["iat"]) is not int or type(claims["exp"]) is not int or not isinstance(claims["iss"], str):
        raise ProtocolError("a claim is of the wrong type")
    return token, head, claims


def _object(part: str, name: str, required: frozenset[str]) -> dict[str, Any]:
    data = b64.from_url(part, name=name, max_bytes=MAX_TOKEN_CHARS)
    return strictjson.members(
        strictjson.loads(data, name=name, max_bytes=MAX_TOKEN_CHARS), name=name, required=required
    )


def _registered(store: Store, owner: str, head: dict[str, Any]) -> OwnerKey:
    body = store.record(RecordKind.OWNER, "", owner).body or {}
    for entry in body["keys"]:
        if entry["kid"] == head["kid"]:
            key = registered_key(entry)
            if head["alg"] != key.algorithm:
                raise ProtocolError("alg is not the registered key's")
            return key
    raise ProtocolError("kid is none of the owner's keys")
