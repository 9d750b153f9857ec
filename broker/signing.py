# SPDX-License-Identifier: Apache-2.0
"""The broker's signing key: what it says to agents and owners about a decision is signed with it.

It is another key than the one of tokens: tokens are for third parties, who look the key up; this one agents and owners
have pinned beforehand. Whoever holds it can make a guest believe that a key is the owner's. What is signed is read by
`keys.envelope`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from broker.files import read_file
from broker.tokens import load_signing_key
from keys import b64, strictjson
from keys.envelope import ALGORITHMS, CURVES, public_jwk
from keys.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from broker.config import Config

WHAT = "the signing key"


class Signer:
    """`key` is on P-256 or P-384."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.jwk = public_jwk(key.public_key())
        self.kid = self.jwk["kid"]

    def __repr__(self) -> str:
        return f"Signer(kid={self.kid!r})"

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The public key as a JWK set (RFC 7517 section 5)."""
        return {"keys": [dict(self.jwk)]}

    def sign(self, payload: dict[str, Any], typ: str) -> str:
        """A statement of type `typ`: `payload` as canonical JSON in a compact JWS (RFC 7515 section 3.1)."""
        header = {"alg": self.jwk["alg"], "kid": self.kid, "typ": typ}
        signed = ".".join(b64.url(strictjson.canonical(part)) for part in (header, payload))
        size, hashed = CURVES[self.jwk["crv"]][1], ALGORITHMS[self.jwk["crv"]][1]()
        r, s = decode_dss_signature(self._key.sign(signed.encode("ascii"), ec.ECDSA(hashed)))
        return f"{signed}.{b64.url(r.to_bytes(size, 'big') + s.to_bytes(size, 'big'))}"


def published(key_file: Path) -> Path:
    """Where `roomkey init` puts the public half of the signing key in `key_file`, as a JWK set."""
    return key_file.with_suffix(".pub.json")


def load_signer(config: Config) -> Signer:
    """The signer whose key the config names. Raises ConfigError, also where the key signs tokens, too."""
    signer = read_signer(config.signing.key_file)
    for path in (config.token.key_file, *config.token.old_key_files):
        token_key = load_signing_key(read_file(path, private=True))
        if public_jwk(token_key.public_key())["kid"] == signer.kid:
            raise ConfigError(
                "tokens are signed with the signing key",
                found=str(path),
                mend="give each a key of its own: signing.key_file, token.key_file",
            )
    return signer


def read_signer(path: Path) -> Signer:
    """The signer with the private key in `path`. Raises ConfigError."""
    data = read_file(path, private=True)
    try:
        return Signer(load_signing_key(data, what=WHAT))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", expected=error.expected) from None
