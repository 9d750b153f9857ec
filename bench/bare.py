# SPDX-License-Identifier: Apache-2.0
"""The cryptography that one flow cannot do without, on the broker's side, with nothing around it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

ROUNDS, REPEAT = 20, 50  # the best mean of so many rounds counts


def measure() -> list[tuple[str, float]]:
    """(operation, seconds) for everything that a flow with a P-256 TPM needs; their sum is the floor."""
    curve, hashed = ec.SECP256R1(), ec.ECDSA(hashes.SHA256())
    private, other = ec.generate_private_key(curve), ec.generate_private_key(curve)
    public = private.public_key()
    data = os.urandom(145)
    signature = private.sign(data, hashed)
    key, iv = os.urandom(32), os.urandom(12)
    sealed = AESGCM(key).encrypt(iv, data[:44], b"")

    def agree() -> None:
        ec.generate_private_key(curve).exchange(ec.ECDH(), other.public_key())

    def wrap() -> None:
        aes_key_wrap(key, key)
        AESGCM(key).encrypt(iv, data[:44], b"")

    check = time_of(_verify(public, signature, data))
    return [
        ("/auth      ECDH to the EK (new key, exchange)", time_of(agree)),
        (
            "/attest    2 ECDSA verifications: EK certificate, intermediate",
            2 * check,
        ),
        ("/attest    ECDSA verification: the quote", check),
        ("/attest    ES256 signature: the token", time_of(lambda: private.sign(data, hashed))),
        ("/resource  AES-GCM: the key out of custody", time_of(lambda: AESGCM(key).decrypt(iv, sealed, b""))),
        ("/resource  ECDH to the guest's key (new key, exchange)", time_of(agree)),
        ("/resource  AES key wrap, AES-GCM", time_of(wrap)),
    ]


def _verify(public: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> Callable[[], None]:
    return lambda: public.verify(signature, data, ec.ECDSA(hashes.SHA256()))


def time_of(operation: Callable[[], object]) -> float:
    """Seconds of one call, the best mean of ROUNDS."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(REPEAT):
            operation()
        best = min(best, (time.perf_counter() - began) / REPEAT)
    return best
