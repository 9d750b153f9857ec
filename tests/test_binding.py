# SPDX-License-Identifier: Apache-2.0
"""What evidence is bound to: the digests that every peer of the protocol computes."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from keys.binding import activation_proof, activation_proof_key, report_data, tpm_qualifying_data
from keys.tee import Tee
from tests.fakes.kbs_vectors import DEVICES, DIGEST, DIGEST_SE, DIGEST_WITH_DEVICES, NONCE, TEE_PUBKEY


@pytest.mark.parametrize(
    ("tee", "devices", "digest"),
    [(Tee.TPM, "", DIGEST), (Tee.SNP, "", DIGEST), (Tee.SE, "", DIGEST_SE), (Tee.TDX, DEVICES, DIGEST_WITH_DEVICES)],
)
def test_report_data_is_the_published_one(tee: Tee, devices: str, digest: str) -> None:
    """The digest of the fixed exchange is the known one, SHA-512 for Secure Execution, SHA-384 for all others."""
    assert report_data(tee, NONCE, TEE_PUBKEY, devices).hex() == digest


def test_order_of_members_does_not_matter() -> None:
    """The key's members are hashed in canonical order, however they came."""
    assert report_data(Tee.TPM, NONCE, dict(reversed(TEE_PUBKEY.items()))).hex() == DIGEST


def test_nonce_key_and_evidence_all_count() -> None:
    """Another nonce, another key or other device evidence gives another digest."""
    digests = {
        report_data(Tee.TPM, nonce, key, devices)
        for nonce, key, devices in (
            (NONCE, TEE_PUBKEY, ""),
            (NONCE[:-2] + "k=", TEE_PUBKEY, ""),
            (NONCE, TEE_PUBKEY | {"x": TEE_PUBKEY["y"]}, ""),
            (NONCE, TEE_PUBKEY, " "),
        )
    }
    assert len(digests) == 4


def test_quote_carries_the_first_32_bytes() -> None:
    """A TPM quote's extraData is the start of the report data."""
    assert tpm_qualifying_data(bytes.fromhex(DIGEST)).hex() == DIGEST[:64]


def test_activation_proof_is_bound_to_the_quote() -> None:
    """The proof is the documented HMAC, and differs for another secret and for another quote."""
    secret, data = bytes(range(32)), bytes(32)
    key = hmac.new(secret, b"roomkey tpm activation proof key v1\0", hashlib.sha256).digest()
    assert activation_proof_key(secret) == key
    expected = hmac.new(key, b"roomkey tpm activation v1\0" + data, hashlib.sha256).digest()
    assert activation_proof(key, data) == expected
    assert activation_proof(activation_proof_key(bytes(32)), data) != expected
    assert activation_proof(key, bytes(31) + b"\1") != expected
