# SPDX-License-Identifier: Apache-2.0
"""Signed attestation results: JSON Web Tokens (RFC 7519) under the broker's own keys.

The algorithm belongs to the key, never to the token's header, and a header that tries to bring or point to a key of its
own (`jku`, `x5u`, `jwk`, `x5c`, `crit`) is refused, because it may hold `alg`, `kid` and `typ` and nothing else
(RFC 8725 sections 3.1, 3.9, 3.10). The newest key signs, all of them verify.

Checks of `verify`, in order:

 (1) parts of canonical base64url, at most 16 KiB
 (2) the header is strict JSON with `alg`, `kid`, `typ` and no other member; `typ` is JWT
 (3) `kid` is the thumbprint of one of our keys
 (4) `alg` is that key's algorithm, and the signature is right
 (5) `iss` and `aud` are ours; `iat`, `nbf`, `exp`, `jti` are present and of the right type
 (6) not before `nbf`, not at or after `exp`, and no longer-lived than we issue
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from keys import b64, strictjson
from keys.errors import ConfigError, ProtocolError, Unauthorized

MAX_TOKEN_BYTES = 16 * 1024
MAX_HEADER_BYTES = 512
MAX_LIFETIME_S = 300  # seconds

_HEADER = frozenset(("alg", "kid", "typ"))
_REQUIRED = ["aud", "exp", "iat", "iss", "jti", "nbf"]


class _Key(NamedTuple):
    private: ec.EllipticCurvePrivateKey
    algorithm: str
    jwk: dict[str, str]


def load_signing_key(pem: bytes, what: str = "the token key") -> ec.EllipticCurvePrivateKey:
    """An unencrypted PEM private key on P-256 or P-384. `what` names it in errors. Raises ConfigError."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise ConfigError(f"{what} is not an unencrypted PEM private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        raise ConfigError(f"{what} is of the wrong kind", expected="an EC key on P-256 or P-384")
    return key


class TokenSigner:
    """`keys`: newest first. `lifetime_s` in seconds, at most 300. Raises ConfigError."""

    def __init__(self, keys: list[ec.EllipticCurvePrivateKey], *, issuer: str, audience: str, lifetime_s: int) -> None:
        if not keys:
            raise ConfigError("there is no key to sign tokens with")
        if not 0 < lifetime_s <= MAX_LIFETIME_S:
            raise ConfigError("tokens live too long", expected=f"1 to {MAX_LIFETIME_S} s", found=f"{lifetime_s}")
        self._keys = {key.jwk["kid"]: key for key in map(_describe, keys)}
        self._newest = next(iter(self._keys.values()))
        self.issuer = issuer
        self.audience = audience
        self.lifetime_s = lifetime_s

    def __repr__(self) -> str:
        return f"TokenSigner(issuer={self.issuer!r}, keys={len(self._keys)})"

    def issue(self, claims: dict[str, Any], *, token_id: str, now: int) -> str:
        """`claims` with issuer, audience, times and `jti` added, signed. `now` in milliseconds."""
        at = now // 1000
        registered = {
            "iss": self.issuer,
            "aud": self.audience,
            "iat": at,
            "nbf": at,
            "exp": at + self.lifetime_s,
            "jti": token_id,
        }
        key = self._newest
        return jwt.encode(
            {**claims, **registered}, key.private, algorithm=key.algorithm, headers={"kid": key.jwk["kid"]}
        )

    def verify(self, token: str, now: int) -> dict[str, Any]:
        """The claims of a token that we issued and that is still good. Raises Unauthorized."""
        key = self._key_of(token)  # (1) (2) (3)
        try:
            claims: dict[str, Any] = jwt.decode(  # (4) (5)
                token,
                key.private.public_key(),
                algorithms=[key.algorithm],
                issuer=self.issuer,
                audience=self.audience,
                # The times are judged below, by the time that was handed in.
                options={"require": _REQUIRED, "verify_exp": False, "verify_nbf": False, "verify_iat": False},
            )
        except jwt.PyJWTError as error:
            raise Unauthorized("the token is not one of ours", found=type(error).__name__) from None
        not_before, until = claims["nbf"], claims["exp"]
        if type(not_before) is not int or type(until) is not int:
            raise Unauthorized("the token's times are not integers")
        at = now // 1000
        if not not_before <= at < until <= not_before + self.lifetime_s:  # (6)
            raise Unauthorized("the token is not valid now", expected=f"{not_before} to {until}", found=str(at))
        return claims

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The public keys as a JWK set (RFC 7517 section 5)."""
        return {"keys": [dict(key.jwk) for key in self._keys.values()]}

    def _key_of(self, token: str) -> _Key:
        try:
            parts = strictjson.string(token, name="the token", max_chars=MAX_TOKEN_BYTES).split(".")
            encoded = [b64.from_url(part, name="a part of the token", max_bytes=MAX_TOKEN_BYTES) for part in parts]
            header = strictjson.members(
                strictjson.loads(encoded[0], name="the token's header", max_bytes=MAX_HEADER_BYTES),
                name="the token's header",
                required=_HEADER,
            )
        except ProtocolError as error:
            raise Unauthorized(error.message, expected=error.expected, found=error.found) from None
        key = self._keys.get(header["kid"]) if isinstance(header["kid"], str) else None
        if key is None or header["typ"] != "JWT":
            raise Unauthorized("the token names no key of ours")
        return key


def _describe(private: ec.EllipticCurvePrivateKey) -> _Key:
    public = private.public_key().public_numbers()
    wide = isinstance(private.curve, ec.SECP384R1)
    curve, size, algorithm = ("P-384", 48, "ES384") if wide else ("P-256", 32, "ES256")
    members = {"crv": curve, "kty": "EC"} | {
        axis: b64.url(number.to_bytes(size, "big")) for axis, number in (("x", public.x), ("y", public.y))
    }
    kid = b64.url(hashlib.sha256(strictjson.canonical(members)).digest())  # RFC 7638 section 3
    return _Key(private, algorithm, {**members, "alg": algorithm, "use": "sig", "kid": kid})
