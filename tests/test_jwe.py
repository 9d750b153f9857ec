# SPDX-License-Identifier: Apache-2.0
"""The wrapped key: byte for byte what deployed guests read, and nothing that anybody else opens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwe as oracle
from joserfc.jwk import ECKey, RSAKey

from keys import b64, jwe, jwk
from keys.errors import ProtocolError, VerificationError
from tests.fakes.json_values import mutations
from tests.fakes.kbs_vectors import CEK, EPHEMERAL_KEY, IV, JWE, KEK, PLAINTEXT, RECIPIENT, SHARED, TEE_KEY

ACTIVATION = bytes(range(32))
PARTS = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
ALGORITHMS = ["ECDH-ES+A256KW", "RSA-OAEP-256", "A256GCM"]


def fixed(size: int) -> bytes:
    return {32: CEK, 12: IV}[size]


def compact(value: dict[str, str]) -> str:
    return ".".join(value[part] for part in PARTS)


def header(value: dict[str, str]) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(b64.from_url(value["protected"], name="protected", max_bytes=1024))
    return parsed


def with_header(value: dict[str, str], **change: Any) -> dict[str, str]:
    return value | {"protected": b64.url(json.dumps(header(value) | change, separators=(",", ":")).encode())}


def test_known_answer_is_written_and_read() -> None:
    """The fixed exchange's wrapped key is written byte for byte, and opens."""
    assert jwe.seal(PLAINTEXT, RECIPIENT, random=fixed, ephemeral=EPHEMERAL_KEY) == JWE
    assert jwe.unseal(JWE, TEE_KEY) == PLAINTEXT


def test_key_derivation_is_the_published_one() -> None:
    """The Concat KDF gives the fixed exchange's key encryption key from its shared secret."""
    assert EPHEMERAL_KEY.exchange(ec.ECDH(), TEE_KEY.public_key()) == SHARED
    assert jwe._concat_kdf(SHARED, "ECDH-ES+A256KW", None) == KEK


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP521R1()])
@pytest.mark.parametrize("plaintext", [b"", b"\0", PLAINTEXT, bytes(range(256)) * 16])
def test_an_independent_library_opens_ours(curve: ec.EllipticCurve, plaintext: bytes) -> None:
    """A JOSE library opens what we wrap, on both curves."""
    private = ec.generate_private_key(curve)
    sealed = jwe.seal(plaintext, jwk.from_ec(private.public_key()))
    opened = oracle.decrypt_compact(compact(sealed), ECKey.import_key(private), algorithms=ALGORITHMS)
    assert opened.plaintext == plaintext
    assert jwe.unseal(sealed, private) == plaintext


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP521R1()])
def test_we_open_an_independent_library(curve: ec.EllipticCurve) -> None:
    """We open what a JOSE library wraps, on both curves."""
    private = ec.generate_private_key(curve)
    text = oracle.encrypt_compact(
        {"alg": "ECDH-ES+A256KW", "enc": "A256GCM"}, PLAINTEXT, ECKey.import_key(private.public_key()), ALGORITHMS
    )
    assert jwe.unseal(dict(zip(PARTS, text.split("."), strict=True)), private) == PLAINTEXT


def test_an_independent_library_opens_ours_with_rsa() -> None:
    """A JOSE library opens what we wrap to an RSA key."""
    private = rsa.generate_private_key(65537, 2048)
    numbers = private.public_key().public_numbers()
    n, e = (b64.url(value.to_bytes((value.bit_length() + 7) // 8, "big")) for value in (numbers.n, numbers.e))
    sealed = jwe.seal(PLAINTEXT, jwk.parse({"kty": "RSA", "alg": "RSA-OAEP-256", "n": n, "e": e}))
    assert header(sealed) == {"alg": "RSA-OAEP-256", "enc": "A256GCM"}
    key = RSAKey.import_key(private)
    assert oracle.decrypt_compact(compact(sealed), key, algorithms=ALGORITHMS).plaintext == PLAINTEXT
    with pytest.raises(RuntimeError):
        jwe.seal(PLAINTEXT, jwk.TeePubkey({"kty": "RSA"}, private.public_key()), activation=ACTIVATION)


def test_header_survives_the_peers_serialising_it_again() -> None:
    """The protected header is compact, alg and enc first and the rest sorted, in both of our algorithms."""
    for activation in (None, ACTIVATION):
        sealed = jwe.seal(PLAINTEXT, RECIPIENT, activation=activation)
        parsed = header(sealed)
        assert list(parsed) == ["alg", "enc", "epk"]
        assert list(parsed["epk"]) == ["crv", "kty", "x", "y"]
        assert b64.url(json.dumps(parsed, separators=(",", ":")).encode()) == sealed["protected"]
        assert tuple(sealed) == PARTS


def test_each_wrapping_is_fresh() -> None:
    """Two wrappings of one key share no part."""
    first, second = jwe.seal(PLAINTEXT, RECIPIENT), jwe.seal(PLAINTEXT, RECIPIENT)
    assert all(first[part] != second[part] for part in PARTS)


def test_no_more_is_opened_than_may_be() -> None:
    """A longer plaintext is refused unopened; where an envelope is expected it may be as long as one."""
    for size, opens in ((jwe.MAX_PLAINTEXT_BYTES, True), (jwe.MAX_PLAINTEXT_BYTES + 1, False)):
        sealed = jwe.seal(bytes(size), RECIPIENT)
        assert len(jwe.unseal(sealed, TEE_KEY, max_bytes=jwe.MAX_ENVELOPE_BYTES)) == size
        if opens:
            assert len(jwe.unseal(sealed, TEE_KEY)) == size
            continue
        with pytest.raises(ProtocolError, match="ciphertext is too long"):
            jwe.unseal(sealed, TEE_KEY)


def test_activation_needs_both_the_key_and_the_secret() -> None:
    """With an activation secret the key opens with both, and not with another secret or another key."""
    sealed = jwe.seal(PLAINTEXT, RECIPIENT, activation=ACTIVATION)
    assert header(sealed)["alg"] == "ECDH-ES+TPM2+A256KW"
    assert jwe.unseal(sealed, TEE_KEY, activation=ACTIVATION) == PLAINTEXT
    with pytest.raises(VerificationError):
        jwe.unseal(sealed, TEE_KEY, activation=bytes(32))
    with pytest.raises(VerificationError):
        jwe.unseal(sealed, EPHEMERAL_KEY, activation=ACTIVATION)


def test_neither_form_passes_for_the_other() -> None:
    """A guest that asked for activation refuses the plain form, and the other way round, relabelled or not."""
    plain, activated = jwe.seal(PLAINTEXT, RECIPIENT), jwe.seal(PLAINTEXT, RECIPIENT, activation=ACTIVATION)
    with pytest.raises(ProtocolError, match="wrapped another way"):
        jwe.unseal(plain, TEE_KEY, activation=ACTIVATION)
    with pytest.raises(ProtocolError, match="wrapped another way"):
        jwe.unseal(activated, TEE_KEY)
    with pytest.raises(VerificationError):
        jwe.unseal(with_header(plain, alg=jwe.ALG_TPM), TEE_KEY, activation=ACTIVATION)
    with pytest.raises(VerificationError):
        jwe.unseal(with_header(activated, alg=jwk.ALG_EC), TEE_KEY)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_activation_secret_of_another_length_is_misuse(size: int) -> None:
    """An activation secret that is not 32 bytes is a programming error on both sides."""
    sealed = jwe.seal(PLAINTEXT, RECIPIENT, activation=ACTIVATION)
    with pytest.raises(RuntimeError):
        jwe.seal(PLAINTEXT, RECIPIENT, activation=bytes(size))
    with pytest.raises(RuntimeError):
        jwe.unseal(sealed, TEE_KEY, activation=bytes(size))


def test_derivation_names_the_algorithm_and_mixes_the_secret() -> None:
    """No two of plain, activated and otherwise activated derivations give the same key."""
    keys = {
        jwe._concat_kdf(SHARED, jwk.ALG_EC, None),
        jwe._concat_kdf(SHARED, jwe.ALG_TPM, None),
        jwe._concat_kdf(SHARED, jwe.ALG_TPM, ACTIVATION),
        jwe._concat_kdf(SHARED, jwe.ALG_TPM, bytes(32)),
    }
    assert len(keys) == 4


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PARTS), st.data())
def test_any_changed_bit_is_refused(part: str, data: st.DataObject) -> None:
    """No changed bit of any part goes unnoticed."""
    raw = bytearray(b64.from_url(JWE[part], name=part, max_bytes=1024))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises((ProtocolError, VerificationError)):
        jwe.unseal(JWE | {part: b64.url(bytes(raw))}, TEE_KEY)


@pytest.mark.parametrize("part", PARTS[1:])
def test_part_of_another_length_is_refused(part: str) -> None:
    """A part that is shorter or longer than it must be is refused before anything is computed with it."""
    raw = b64.from_url(JWE[part], name=part, max_bytes=1024)
    for wrong in (raw[:-1], raw + b"\0", b""):
        with pytest.raises(VerificationError if part == "ciphertext" else ProtocolError):
            jwe.unseal(JWE | {part: b64.url(wrong)}, TEE_KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "dir"}, {"alg": None}, {"enc": "A128GCM"}, {"zip": "DEF"}, {"crit": []}, {"apu": "AA"},
        {"epk": None}, {"epk": {}}, {"epk": header(JWE)["epk"] | {"kty": "OKP"}},
        {"epk": header(JWE)["epk"] | {"d": "AA"}}, {"epk": header(JWE)["epk"] | {"x": 7}},
        {"epk": header(JWE)["epk"] | {"crv": "P-384"}}, {"epk": header(JWE)["epk"] | {"x": header(JWE)["epk"]["y"]}},
    ],
)  # fmt: skip
def test_other_headers_are_refused(change: dict[str, Any]) -> None:
    """Other algorithms, further header members, and ephemeral keys of other kinds or off the curve are refused."""
    with pytest.raises(ProtocolError):
        jwe.unseal(with_header(JWE, **change), TEE_KEY)


def test_ephemeral_key_on_another_curve_is_refused() -> None:
    """A key that fits its own curve but not the guest's is refused by name."""
    other = jwk.ec_members(ec.generate_private_key(ec.SECP521R1()).public_key())
    with pytest.raises(ProtocolError, match="another curve"):
        jwe.unseal(with_header(JWE, epk=other), TEE_KEY)


@pytest.mark.parametrize(
    "value", [None, [], "a.b.c.d.e", {}, JWE | {"aad": ""}, JWE | {"tag": 7}, JWE | {"protected": "e30" * 400}]
)
def test_other_shapes_are_refused(value: object) -> None:
    """Only the flattened object with its five parts is read."""
    with pytest.raises(ProtocolError):
        jwe.unseal(value, TEE_KEY)


@settings(max_examples=200, deadline=None)
@given(mutations(JWE))
def test_only_our_errors_escape(text: bytes) -> None:
    """A mutated wrapped key is refused with our error, or is not changed in what counts."""
    try:
        opened = jwe.unseal(json.loads(text), TEE_KEY)
    except (ProtocolError, VerificationError):
        return
    assert opened == PLAINTEXT


@settings(max_examples=200, deadline=None)
@given(mutations(header(JWE)))
def test_only_our_errors_escape_from_the_header(text: bytes) -> None:
    """A mutated header is refused with our error, or is the same bytes."""
    value = JWE | {"protected": b64.url(text)}
    try:
        jwe.unseal(value, TEE_KEY)
    except (ProtocolError, VerificationError):
        return
    assert value == JWE
