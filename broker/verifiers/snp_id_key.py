# SPDX-License-Identifier: Apache-2.0
"""The digest by which an SEV-SNP report names the key that signed the guest's ID block, or the author's that signed it.

AMD 56860, 8.17 (SNP_LAUNCH_FINISH) and chapter 10 (keys): SHA-384 over the public key as a structure of 1028 bytes,
integers little-endian: curve u32 = 2 (P-384), x and y in 72 bytes each, 880 zero bytes.
"""

from __future__ import annotations

from hashlib import sha384

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

from keys.errors import ProtocolError

STRUCTURE_BYTES = 1028
DIGEST_BYTES = 48
MAX_KEY_BYTES = 4096  # of a file with a public key

_P384 = 2
_COORDINATE_BYTES = 72


def read_key(data: bytes) -> ec.EllipticCurvePublicKey:
    """A P-384 public key, SubjectPublicKeyInfo in PEM or DER. Raises ProtocolError."""
    if len(data) > MAX_KEY_BYTES:
        raise ProtocolError("the public key is too long", expected=f"at most {MAX_KEY_BYTES} bytes")
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        key = load_pem_public_key(data) if pem else load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ProtocolError(
            "this is no public key",
            expected="SubjectPublicKeyInfo in PEM or DER",
            mend="make it of the private key: openssl ec -in id.pem -pubout",
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ProtocolError("the key is of another kind", expected="P-384, as SEV-SNP firmware takes no other")
    return key


def structure(key: ec.EllipticCurvePublicKey) -> bytes:
    """The 1028 bytes of AMD's form. The key is one of `read_key`."""
    point = key.public_numbers()
    parts = (_P384.to_bytes(4, "little"), *(n.to_bytes(_COORDINATE_BYTES, "little") for n in (point.x, point.y)))
    return b"".join(parts).ljust(STRUCTURE_BYTES, b"\0")


def key_digest(key: ec.EllipticCurvePublicKey) -> bytes:
    """What ID_KEY_DIGEST or AUTHOR_KEY_DIGEST holds, 48 bytes."""
    return sha384(structure(key)).digest()
