# SPDX-License-Identifier: Apache-2.0
"""The guest's ephemeral public key as it travels in `tee-pubkey`.

KBS attestation protocol 0.4.0: EC keys on P-256 and P-521 with "ECDH-ES+A256KW" (RFC 7518 section 6.2), RSA keys with
"RSA-OAEP-256" (section 6.3). RSA1_5 is refused: PKCS #1 v1.5 padding can be decrypted through its errors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec

from keys import b64, strictjson
from keys.errors import ProtocolError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

ALG_EC = "ECDH-ES+A256KW"
ALG_RSA = "RSA-OAEP-256"
Curves = Mapping[str, tuple[type[ec.EllipticCurve], int]]  # JWK name -> curve, bytes of a coordinate
CURVES: Curves = {
    "P-256": (ec.SECP256R1, 32),
    "P-521": (ec.SECP521R1, 66),
}
RSA_BITS = range(2048, 4097)  # bits of an accepted modulus
RSA_EXPONENTS = range(65537, 1 << 32)


class TeePubkey(NamedTuple):
    """A checked public key: `members` exactly as the protocol lists them, `key` ready for use."""

    members: dict[str, str]
    key: ec.EllipticCurvePublicKey | RSAPublicKey

    @property
    def is_ec(self) -> bool:
        return self.members["kty"] == "EC"


def parse(value: object) -> TeePubkey:
    """The key in a `tee-pubkey` object. A point off its curve is refused here, before anything is wrapped to it.

    Raises ProtocolError.
    """
    kty = value.get("kty") if isinstance(value, dict) else None
    if kty == "EC":
        return _parse_ec(value)
    if kty == "RSA":
        return _parse_rsa(value)
    raise ProtocolError("tee-pubkey has an unsupported kty", expected="EC or RSA", found=str(kty)[:64])


def from_ec(key: ec.EllipticCurvePublicKey) -> TeePubkey:
    """`key` (P-256 or P-521) as `tee-pubkey`."""
    return TeePubkey(ec_members(key) | {"alg": ALG_EC}, key)


def ec_members(key: ec.EllipticCurvePublicKey, curves: Curves = CURVES) -> dict[str, str]:
    """crv, kty, x, y of `key`, in that order: the order in which an `epk` is written."""
    numbers = key.public_numbers()
    for name, (curve, size) in curves.items():
        if isinstance(key.curve, curve):
            x, y = (b64.url(number.to_bytes(size, "big")) for number in (numbers.x, numbers.y))
            return {"crv": name, "kty": "EC", "x": x, "y": y}
    raise RuntimeError(f"no JWK curve for {key.curve.name}")


def ec_key(members: dict[str, str], *, name: str, curves: Curves = CURVES) -> ec.EllipticCurvePublicKey:
    """The key of crv, x and y: known curve, coordinates of its exact size, a point on it. Raises ProtocolError."""
    if members["crv"] not in curves:
        raise ProtocolError(f"{name}.crv is unsupported", expected=" or ".join(curves), found=str(members["crv"])[:64])
    curve, size = curves[members["crv"]]
    x, y = (b64.from_url(members[axis], name=f"{name}.{axis}", max_bytes=size) for axis in ("x", "y"))
    if len(x) != size or len(y) != size:
        raise ProtocolError(f"{name} has a coordinate of the wrong length", expected=f"{size} bytes")
    try:
        return ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve()).public_key()
    except ValueError:
        raise ProtocolError(f"{name} is not a point on its curve") from None


def thumbprint(members: Mapping[str, str]) -> str:
    """RFC 7638: base64url of SHA-256 over what an EC or RSA key cannot do without. Other members do not count."""
    names = ("crv", "kty", "x", "y") if members["kty"] == "EC" else ("e", "kty", "n")
    return b64.url(hashlib.sha256(strictjson.canonical({name: members[name] for name in names})).digest())


def _parse_ec(value: object) -> TeePubkey:
    jwk = strictjson.members(value, name="tee-pubkey", required=frozenset(("kty", "crv", "alg", "x", "y")))
    members = {key: strictjson.string(item, name=f"tee-pubkey.{key}", max_chars=128) for key, item in jwk.items()}
    if members["alg"] != ALG_EC:
        raise ProtocolError("tee-pubkey.alg does not fit kty EC", expected=ALG_EC, found=members["alg"])
    return TeePubkey(members, ec_key(members, name="tee-pubkey"))


def _parse_rsa(value: object) -> TeePubkey:
    # Imported here: a guest never parses an RSA key, and the import would cost it milliseconds at boot.
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers  # noqa: PLC0415

    jwk = strictjson.members(value, name="tee-pubkey", required=frozenset(("kty", "alg", "n", "e")))
    members = {key: strictjson.string(item, name=f"tee-pubkey.{key}", max_chars=1024) for key, item in jwk.items()}
    if members["alg"] != ALG_RSA:
        raise ProtocolError("tee-pubkey.alg does not fit kty RSA", expected=ALG_RSA, found=members["alg"])
    n, e = (
        int.from_bytes(b64.from_url(members[axis], name=f"tee-pubkey.{axis}", max_bytes=512), "big")
        for axis in ("n", "e")
    )
    if n.bit_length() not in RSA_BITS or n % 2 == 0:
        raise ProtocolError("tee-pubkey.n is not an acceptable modulus", expected="2048 to 4096 bits, odd")
    if e not in RSA_EXPONENTS or e % 2 == 0:
        raise ProtocolError("tee-pubkey.e is not an acceptable exponent", expected="odd, 65537 or more")
    return TeePubkey(members, RSAPublicNumbers(e, n).public_key())
