# SPDX-License-Identifier: Apache-2.0
"""Digests of ID and author keys."""

from __future__ import annotations

import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from broker.verifiers.snp_id_key import MAX_KEY_BYTES, key_digest, read_key, structure
from keys.errors import ProtocolError
from tests.vectors import VECTORS, needs_vectors

KEY = ec.generate_private_key(ec.SECP384R1())
SPKI = {
    encoding: KEY.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    for encoding in (Encoding.PEM, Encoding.DER)
}


@needs_vectors
def test_recorded_digests() -> None:
    """The digests are those that launches with these keys show."""
    for answer in json.loads((VECTORS / "snp" / "manifest.json").read_text())["id_key_digests"]:
        key = read_key(bytes.fromhex(answer["spki_der_hex"]))
        assert len(structure(key)) == answer["amd_public_key_length"]
        assert key_digest(key).hex() == answer["digest_sha384"]


@pytest.mark.parametrize("encoding", SPKI)
def test_structure(encoding: Encoding) -> None:
    """Curve, coordinates and padding stand where AMD puts them, from either encoding of the key."""
    made = structure(read_key(SPKI[encoding]))
    point = KEY.public_key().public_numbers()
    assert (len(made), made[:4], made[148:]) == (1028, b"\x02\0\0\0", bytes(880))
    assert (int.from_bytes(made[4:76], "little"), int.from_bytes(made[76:148], "little")) == (point.x, point.y)
    assert key_digest(read_key(SPKI[encoding])) == hashlib.sha384(made).digest()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no public key"),
        (b"-----BEGIN PUBLIC KEY-----", "no public key"),
        (KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "no public key"),
        (
            ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            "another kind",
        ),
        (
            rsa.generate_private_key(65537, 2048)
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "another kind",
        ),
        (SPKI[Encoding.PEM] + bytes(MAX_KEY_BYTES), "too long"),
    ],
)
def test_other_keys_are_refused(data: bytes, why: str) -> None:
    """What is no P-384 public key, a private one above all, is refused."""
    with pytest.raises(ProtocolError, match=why):
        read_key(data)


@given(st.binary(max_size=200), st.integers(0, 119), st.integers(1, 255))
def test_nothing_else_escapes(data: bytes, at: int, mask: int) -> None:
    """Whatever the bytes, there is a key or one of our errors."""
    spki = SPKI[Encoding.DER]
    changed = bytearray(spki)
    changed[at % len(spki)] ^= mask
    for attempt in (data, bytes(changed)):
        try:
            assert len(key_digest(read_key(attempt))) == 48
        except ProtocolError:
            continue
