# SPDX-License-Identifier: Apache-2.0
"""Wrapping a key to the guest's ephemeral key: RFC 7516 flattened JSON in the dialect that deployed KBS guests read.

Written here and not taken from a JOSE library, because those guests serialise the protected header again before they
use it as additional data: it must be compact, `alg` first, `enc` second, then `epk` with its members in alphabetical
order, and `epk` must be nowhere else (KBS protocol, resource response). Content encryption is always A256GCM.

Three key encryption algorithms:

    ECDH-ES+A256KW        RFC 7518 section 4.6; Concat KDF over Z with empty party infos
    RSA-OAEP-256          RFC 7518 section 4.3
    ECDH-ES+TPM2+A256KW   ours: the same Concat KDF with the TPM's activation secret as SuppPrivInfo
                          (NIST SP 800-56A rev. 3, 5.8.2.1.1). Opening needs both the ephemeral key that the quote is
                          bound to and the TPM that opened the credential, so a recorded credential blob alone is worth
                          nothing, and nor is a stolen ephemeral key. The algorithm's name is part of the derivation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from keys import b64, strictjson
from keys.errors import ProtocolError, VerificationError
from keys.jwk import ALG_EC, ALG_RSA, TeePubkey, ec_key, ec_members

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

ALG_TPM = "ECDH-ES+TPM2+A256KW"
ENC = "A256GCM"
CEK_BYTES = 32
IV_BYTES = 12
TAG_BYTES = 16
ACTIVATION_BYTES = 32  # length of a TPM activation secret
MAX_PLAINTEXT_BYTES = 64 * 1024  # what one resource may hold
MAX_ENVELOPE_BYTES = 92 * 1024  # such a resource in base64 with a signed statement beside it (`keys.envelope`)
MEMBERS = frozenset(("protected", "encrypted_key", "iv", "ciphertext", "tag"))


def seal(
    plaintext: bytes,
    recipient: TeePubkey,
    *,
    activation: bytes | None = None,
    random: Callable[[int], bytes] = os.urandom,
    ephemeral: ec.EllipticCurvePrivateKey | None = None,
) -> dict[str, str]:
    """`plaintext` for the holder of `recipient` and, if given, of the `activation` secret (32 bytes).

    `random` and `ephemeral` are for known answers only. A session with an activation secret and an RSA key is refused
    when it attests; here it is a RuntimeError.
    """
    cek, iv = random(CEK_BYTES), random(IV_BYTES)
    if recipient.is_ec:
        public = cast("ec.EllipticCurvePublicKey", recipient.key)
        ephemeral = ephemeral or ec.generate_private_key(public.curve)
        alg = ALG_EC if activation is None else ALG_TPM
        header: dict[str, object] = {"alg": alg, "enc": ENC, "epk": ec_members(ephemeral.public_key())}
        encrypted_key = aes_key_wrap(_concat_kdf(ephemeral.exchange(ec.ECDH(), public), alg, activation), cek)
    else:
        if activation is not None:
            raise RuntimeError("an activation secret cannot be mixed into RSA-OAEP")
        header = {"alg": ALG_RSA, "enc": ENC}
        encrypted_key = _rsa_oaep(cast("RSAPublicKey", recipient.key), cek)
    protected = b64.url(strictjson.compact(header))
    sealed = AESGCM(cek).encrypt(iv, plaintext, protected.encode("ascii"))
    return {
        "protected": protected,
        "encrypted_key": b64.url(encrypted_key),
        "iv": b64.url(iv),
        "ciphertext": b64.url(sealed[:-TAG_BYTES]),
        "tag": b64.url(sealed[-TAG_BYTES:]),
    }


def unseal(
    value: object,
    private: ec.EllipticCurvePrivateKey,
    *,
    activation: bytes | None = None,
    max_bytes: int = MAX_PLAINTEXT_BYTES,
) -> bytes:
    """The plaintext, at most `max_bytes` long, of a JWE made for `private`.

    With an `activation` secret only ECDH-ES+TPM2+A256KW is accepted, without one only ECDH-ES+A256KW: whoever sits
    between cannot talk a guest out of the stronger form. Raises ProtocolError (not such a JWE) or VerificationError
    (not for us, or changed on the way).
    """
    jwe = strictjson.members(value, name="the wrapped key", required=MEMBERS)
    protected = strictjson.string(jwe["protected"], name="protected", max_chars=1024)
    encrypted_key, iv, ciphertext, tag = (
        b64.from_url(jwe[name], name=name, max_bytes=limit)
        for name, limit in (
            ("encrypted_key", CEK_BYTES + 8), ("iv", IV_BYTES), ("ciphertext", max_bytes), ("tag", TAG_BYTES)
        )
    )  # fmt: skip
    if len(encrypted_key) != CEK_BYTES + 8 or len(iv) != IV_BYTES or len(tag) != TAG_BYTES:
        raise ProtocolError("the wrapped key has a part of the wrong length")
    alg = ALG_EC if activation is None else ALG_TPM
    epk = _ephemeral_key(protected, alg)
    if epk.curve.name != private.curve.name:
        raise ProtocolError("epk is on another curve", expected=private.curve.name, found=epk.curve.name)
    try:
        cek = aes_key_unwrap(_concat_kdf(private.exchange(ec.ECDH(), epk), alg, activation), encrypted_key)
        return AESGCM(cek).decrypt(iv, ciphertext + tag, protected.encode("ascii"))
    except (InvalidUnwrap, InvalidTag):
        raise VerificationError("the wrapped key does not open with this guest's key") from None


def _ephemeral_key(protected: str, alg: str) -> ec.EllipticCurvePublicKey:
    header = strictjson.members(
        strictjson.loads(b64.from_url(protected, name="protected", max_bytes=768), name="protected", max_bytes=768),
        name="protected",
        required=frozenset(("alg", "enc", "epk")),
    )
    if header["alg"] != alg or header["enc"] != ENC:
        raise ProtocolError("the key is wrapped another way", expected=f"{alg}, {ENC}", found=str(header["alg"])[:64])
    epk = strictjson.members(header["epk"], name="epk", required=frozenset(("crv", "kty", "x", "y")))
    members = {key: strictjson.string(item, name=f"epk.{key}", max_chars=128) for key, item in epk.items()}
    if members["kty"] != "EC":
        raise ProtocolError("epk is no EC key", found=members["kty"])
    return ec_key(members, name="epk")


def _concat_kdf(shared: bytes, alg: str, activation: bytes | None) -> bytes:
    """One round of the Concat KDF with SHA-256: 32 bytes. `shared` is Z, at the fixed width of the curve's field."""
    if activation is not None and len(activation) != ACTIVATION_BYTES:
        raise RuntimeError("an activation secret has 32 bytes")
    algorithm_id = len(alg).to_bytes(4, "big") + alg.encode("ascii")
    other_info = algorithm_id + bytes(4) + bytes(4) + (256).to_bytes(4, "big") + (activation or b"")
    return hashlib.sha256((1).to_bytes(4, "big") + shared + other_info).digest()


def _rsa_oaep(key: RSAPublicKey, cek: bytes) -> bytes:
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415  only the broker wraps to RSA keys
    from cryptography.hazmat.primitives.asymmetric import padding  # noqa: PLC0415

    return key.encrypt(cek, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None))
