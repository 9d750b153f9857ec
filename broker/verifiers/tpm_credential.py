# SPDX-License-Identifier: Apache-2.0
"""TPM2_MakeCredential in software: a secret that only the TPM with this EK opens, and only for this AK Name.

Source: TCG TPM 2.0 Library, Part 1, 24 (credential protection), 11.4.10 (KDFa, KDFe), B.10.4 (RSA), C.6.4 (ECC). With
H the hash of the EK's nameAlg:

    seed      RSA: random, sealed with OAEP (H, label "IDENTITY"); ECC: KDFe of an ECDH with an ephemeral key
    symKey    KDFa(seed, "STORAGE", AK Name), the EK's symmetric key size
    ct        AES-CFB128(symKey, IV 0, TPM2B(secret))
    tag       HMAC-H(KDFa(seed, "INTEGRITY"), ct || AK Name)

Nothing in it names a boot: the same TPM opens a recorded credential again after booting anything. Never deliver a key
by it alone.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from broker.verifiers.roca import has_roca_fingerprint
from broker.verifiers.tpm_structures import (
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SHA1,
    SIGN,
    Hash,
    Public,
    parse_public,
)
from keys.errors import ProtocolError, VerificationError

# Of an endorsement key: a storage key that was made in one TPM and never leaves it.
EK_NEEDED = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | DECRYPT
EK_FORBIDDEN = SIGN

_IDENTITY = b"IDENTITY\0"  # the label, its NUL included


def make_challenge(session: Mapping[str, Any], secret: bytes, random: Callable[[int], bytes]) -> tuple[bytes, bytes]:
    """(credential_blob, encrypted_secret) for the guest that declared `session` when it asked for a challenge.

    `session` is the decoded "tpm" object: "ak_public" and "ek_public" are TPMT_PUBLICs. `secret` has at most the bytes
    of the EK's name hash (32 always fit). `random` gives that many random bytes. The answers are the bodies of
    TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET. Raises ProtocolError for keys that cannot be used.
    """
    try:
        ek = check_ek(parse_public(session["ek_public"]))
        ak_name = parse_public(session["ak_public"]).name
    except VerificationError as error:
        raise ProtocolError(
            f"the declared TPM keys cannot be used: {error.message}", expected=error.expected, found=error.found
        ) from error
    if isinstance(ek.key, rsa.RSAPublicKey):
        seed = random(ek.name_hash.size)
        return seal(ek, seed, ak_name, secret), seal_rsa_seed(ek.key, ek.name_hash, seed)
    seed, point = ecc_seed(ek.key, ek.name_hash, _ephemeral(ek.key.curve, random))
    return seal(ek, seed, ak_name, secret), point


def check_ek(ek: Public) -> Public:
    """`ek` if it is a key that MakeCredential protects a secret with. Raises VerificationError."""
    ek.require_attributes("endorsement key", needed=EK_NEEDED, forbidden=EK_FORBIDDEN)
    if ek.name_hash is SHA1 or ek.symmetric_bits is None:
        raise VerificationError(
            "the endorsement key is too weak",
            expected="nameAlg SHA-256, SHA-384 or SHA-512 and AES in CFB mode",
            found=f"{ek.name_hash.name}, {ek.symmetric_bits or 'no'} symmetric bits",
        )
    if isinstance(ek.key, rsa.RSAPublicKey) and has_roca_fingerprint(ek.key.public_numbers().n):
        raise VerificationError(
            "the endorsement key is a weak RSA key",
            expected="no ROCA fingerprint (CVE-2017-15361)",
            mend="use the TPM's ECC endorsement key",
        )
    return ek


def seal(ek: Public, seed: bytes, ak_name: bytes, secret: bytes) -> bytes:
    """The body of TPM2B_ID_OBJECT: TPM2B(tag) || ct. `ek` has passed `check_ek`."""
    if len(secret) > ek.name_hash.size or ek.symmetric_bits is None:
        raise RuntimeError("a credential holds at most one digest and needs a storage key")
    key = kdfa(ek.name_hash, seed, b"STORAGE", ak_name, ek.symmetric_bits)
    sealed = _cfb128(key, len(secret).to_bytes(2, "big") + secret)
    mac_key = kdfa(ek.name_hash, seed, b"INTEGRITY", b"", 8 * ek.name_hash.size)
    tag = hmac.digest(mac_key, sealed + ak_name, ek.name_hash.name)
    return len(tag).to_bytes(2, "big") + tag + sealed


def seal_rsa_seed(key: rsa.RSAPublicKey, hashed: Hash, seed: bytes) -> bytes:
    """The body of TPM2B_ENCRYPTED_SECRET for an RSA EK: OAEP, randomised by the library."""
    oaep = padding.OAEP(mgf=padding.MGF1(hashed.algorithm), algorithm=hashed.algorithm, label=_IDENTITY)
    return key.encrypt(seed, oaep)


def ecc_seed(
    key: ec.EllipticCurvePublicKey, hashed: Hash, ephemeral: ec.EllipticCurvePrivateKey
) -> tuple[bytes, bytes]:
    """The seed for an ECC EK, and the body of TPM2B_ENCRYPTED_SECRET: the ephemeral point, both coordinates padded."""
    size = (key.curve.key_size + 7) // 8
    ours, theirs = ephemeral.public_key().public_numbers(), key.public_numbers()
    z = ephemeral.exchange(ec.ECDH(), key)
    x, y = ours.x.to_bytes(size, "big"), ours.y.to_bytes(size, "big")
    # KDFe for exactly one digest: one round, counter 1
    seed = hashed.digest((1).to_bytes(4, "big") + z + _IDENTITY + x + theirs.x.to_bytes(size, "big"))
    length = size.to_bytes(2, "big")
    return seed, length + x + length + y


def kdfa(hashed: Hash, key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa for at most one digest of `bits`: SP 800-108 counter mode, one round. contextU is `context`, V is empty."""
    fixed = (1).to_bytes(4, "big") + label + b"\0" + context + bits.to_bytes(4, "big")
    return hmac.digest(key, fixed, hashed.name)[: bits // 8]


def _ephemeral(curve: ec.EllipticCurve, random: Callable[[int], bytes]) -> ec.EllipticCurvePrivateKey:
    """A private key out of `random`, 64 bits longer than the order, so that the modulus leaves no bias to speak of.

    FIPS 186-5, A.2.1.
    """
    wide = int.from_bytes(random((curve.group_order.bit_length() + 64 + 7) // 8), "big")
    return ec.derive_private_key(wide % (curve.group_order - 1) + 1, curve)


def _cfb128(key: bytes, plain: bytes) -> bytes:
    """AES-CFB128 with a zero IV, out of single blocks: the library is moving its CFB to where it is not maintained."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  one block at a time, as CFB is defined
    sealed, previous = b"", bytes(16)
    for start in range(0, len(plain), 16):
        stream = block.update(previous)
        previous = bytes(a ^ b for a, b in zip(plain[start : start + 16], stream, strict=False))
        sealed += previous
    return sealed
