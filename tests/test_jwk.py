# SPDX-License-Identifier: Apache-2.0
"""The guest's public key: the protocol's shapes, and nothing that a key should not be wrapped to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings

from keys import b64, jwk
from keys.errors import ProtocolError
from tests.fakes.json_values import mutations
from tests.fakes.kbs_vectors import TEE_KEY, TEE_PUBKEY, X, Y

P256 = 2**256 - 2**224 + 2**192 + 2**96 - 1  # the field's prime


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPublicKey:
    return rsa.generate_private_key(65537, 2048).public_key()


def number(value: int, size: int | None = None) -> str:
    return b64.url(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def rsa_jwk(n: int, e: int = 65537) -> dict[str, Any]:
    return {"kty": "RSA", "alg": "RSA-OAEP-256", "n": number(n), "e": number(e)}


def test_known_key_is_read_and_written() -> None:
    """The protocol's example key is read to the key it is, its members are kept, and it is written the same."""
    parsed = jwk.parse(TEE_PUBKEY)
    assert parsed.key == TEE_KEY.public_key()
    assert parsed.members == TEE_PUBKEY == jwk.from_ec(TEE_KEY.public_key()).members
    assert parsed.is_ec


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP521R1()])
def test_any_key_of_its_curves_round_trips(curve: ec.EllipticCurve) -> None:
    """Coordinates keep their curve's fixed size, leading zeros and all."""
    for private in (ec.derive_private_key(value, curve) for value in range(1, 300)):
        written = jwk.from_ec(private.public_key())
        assert jwk.parse(dict(written.members)) == written


def test_ephemeral_key_is_written_in_the_peers_order() -> None:
    """crv, kty, x, y: the order in which deployed guests serialise the header again."""
    assert list(jwk.ec_members(TEE_KEY.public_key())) == ["crv", "kty", "x", "y"]


def test_rsa_key_is_read(rsa_key: rsa.RSAPublicKey) -> None:
    """An RSA key of 2048 bits is read to the key it is."""
    parsed = jwk.parse(rsa_jwk(rsa_key.public_numbers().n))
    assert parsed.key == rsa_key
    assert not parsed.is_ec


@pytest.mark.parametrize(
    "change",
    [
        {"kty": "OKP"}, {"kty": None}, {"kty": ["EC"]}, {"alg": "ECDH-ES"}, {"alg": "RSA-OAEP-256"}, {"alg": None},
        {"crv": "P-384"}, {"crv": "P-521"}, {"crv": "secp256k1"}, {"crv": 256}, {"kid": "x"}, {"d": X},
        {"x": Y}, {"x": X[:-1]}, {"x": X + "AA"}, {"x": X + "="}, {"x": b64.url(bytes(31))}, {"x": b64.url(bytes(33))},
        {"x": 7}, {"x": "A" * 129}, {"y": b64.url(bytes(31))}, {"x": b64.url(bytes(32)), "y": b64.url(bytes(32))},
        {"x": number(P256 + 5), "y": Y},
    ],
)  # fmt: skip
def test_other_ec_keys_are_refused(change: dict[str, Any]) -> None:
    """Other types, algorithms, curves, members, sizes and spellings are refused, and so is a point off the curve."""
    with pytest.raises(ProtocolError):
        jwk.parse(TEE_PUBKEY | change)


@pytest.mark.parametrize("missing", ["kty", "crv", "alg", "x", "y"])
def test_each_ec_member_is_required(missing: str) -> None:
    """A key without any one of its members is refused."""
    with pytest.raises(ProtocolError):
        jwk.parse({name: value for name, value in TEE_PUBKEY.items() if name != missing})


def test_point_off_the_curve_is_named() -> None:
    """A key that would leak the ephemeral key's bits is refused as what it is."""
    with pytest.raises(ProtocolError, match="not a point on its curve"):
        jwk.parse(TEE_PUBKEY | {"y": X})


@pytest.mark.parametrize("value", [None, 7, "EC", [], [TEE_PUBKEY]])
def test_only_an_object_is_a_key(value: object) -> None:
    """Anything but an object is refused."""
    with pytest.raises(ProtocolError):
        jwk.parse(value)


@pytest.mark.parametrize(
    ("n", "e", "message"),
    [
        (2**2047 - 1, 65537, "modulus"), (2**4097 - 1, 65537, "too long"), (2**4096 + 1, 65537, "too long"),
        (2**2048 - 2, 65537, "modulus"), (2**2048 - 1, 3, "exponent"), (2**2048 - 1, 65536, "exponent"),
        (2**2048 - 1, 65538, "exponent"), (2**2048 - 1, 2**32 + 1, "exponent"),
    ],
)  # fmt: skip
def test_weak_rsa_keys_are_refused(n: int, e: int, message: str) -> None:
    """Moduli that are short, long or even, and exponents that are small, huge or even, are refused."""
    with pytest.raises(ProtocolError, match=message):
        jwk.parse(rsa_jwk(n, e))


@pytest.mark.parametrize("change", [{"alg": "RSA1_5"}, {"alg": "RSA-OAEP"}, {"n": "AA=="}, {"n": 7}, {"crv": "P-256"}])
def test_other_rsa_keys_are_refused(rsa_key: rsa.RSAPublicKey, change: dict[str, Any]) -> None:
    """PKCS #1 v1.5, OAEP with SHA-1, other spellings and members are refused."""
    with pytest.raises(ProtocolError):
        jwk.parse(rsa_jwk(rsa_key.public_numbers().n) | change)


def test_other_curves_are_misuse() -> None:
    """To write a key that the protocol has no name for is a programming error."""
    with pytest.raises(RuntimeError):
        jwk.from_ec(ec.generate_private_key(ec.SECP384R1()).public_key())


def test_thumbprint_is_that_of_the_rfc() -> None:
    """RFC 7638 section 3.1: the thumbprint of its example, whose other members do not count."""
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3ok"
        "njhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu"
        "6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8a"
        "wapJzKnqDKgw"
    )
    key = {"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"}
    assert jwk.thumbprint(key) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_thumbprint_of_an_ec_key_is_over_its_point() -> None:
    """Curve and coordinates count, the algorithm does not."""
    thumbprint = jwk.thumbprint(TEE_PUBKEY)
    assert jwk.thumbprint(TEE_PUBKEY | {"alg": "ES256", "use": "sig"}) == thumbprint
    assert len({thumbprint, *(jwk.thumbprint(TEE_PUBKEY | {name: "A"}) for name in ("crv", "x", "y"))}) == 4


@settings(max_examples=200, deadline=None)
@given(mutations(TEE_PUBKEY) | mutations(rsa_jwk(2**2048 - 1)))
def test_only_our_errors_escape(text: bytes) -> None:
    """A mutated key is read or refused with our error."""
    try:
        parsed = jwk.parse(json.loads(text))
    except ProtocolError:
        return
    assert parsed.key.key_size >= 256
