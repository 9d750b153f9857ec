# SPDX-License-Identifier: Apache-2.0
"""TPM structures out of any values, the impossible ones too: what an attacker with a software key can write.

`tests.fakes.tpm_guest` behaves like a TPM; this writes what a TPM never would, one wrong field at a time.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

AK, EK = 0x00050072, 0x000300B2  # usual attributes
HASHES = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
CURVES: Mapping[str, tuple[int, ec.EllipticCurve]] = {
    "P-256": (3, ec.SECP256R1()),
    "P-384": (4, ec.SECP384R1()),
    "P-521": (5, ec.SECP521R1()),
}
NULL, RSASSA, RSAPSS, ECDSA, AES, CFB = 0x0010, 0x0014, 0x0016, 0x0018, 0x0006, 0x0043
ENDORSEMENT, OWNER = 0x4000000B, 0x40000001

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """One key a size for the whole run: making one takes longer than all else."""
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(curve: str = "P-256", which: int = 0) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(0x524F4F4D + which, CURVES[curve][1])


def sized(data: bytes) -> bytes:
    """A TPM2B."""
    return struct.pack(">H", len(data)) + data


def public_area(
    key: PrivateKey,
    *,
    attributes: int = AK,
    name_hash: int = HASHES["sha256"],
    symmetric: bytes = struct.pack(">H", NULL),
    scheme: bytes | None = None,
    policy: bytes = b"",
) -> bytes:
    """A TPMT_PUBLIC; by default of an attestation key with ECDSA or RSASSA and SHA-256."""
    kind = 1 if isinstance(key, rsa.RSAPrivateKey) else 0x23
    if scheme is None:
        scheme = struct.pack(">HH", RSASSA if kind == 1 else ECDSA, HASHES["sha256"])
    head = struct.pack(">HHI", kind, name_hash, attributes) + sized(policy) + symmetric + scheme
    if isinstance(key, rsa.RSAPrivateKey):
        n = key.public_key().public_numbers().n
        return head + struct.pack(">HI", n.bit_length(), 0) + sized(n.to_bytes((n.bit_length() + 7) // 8, "big"))
    size = (key.curve.key_size + 7) // 8
    point = key.public_key().public_numbers()
    curve = next(number for number, known in CURVES.values() if known.name == key.curve.name)
    coordinates = sized(point.x.to_bytes(size, "big")) + sized(point.y.to_bytes(size, "big"))
    return head + struct.pack(">HH", curve, NULL) + coordinates


def storage_area(key: PrivateKey, *, attributes: int = EK, name: str = "sha256", bits: int = 128) -> bytes:
    """A TPMT_PUBLIC of an endorsement key."""
    return public_area(
        key,
        attributes=attributes,
        name_hash=HASHES[name],
        symmetric=struct.pack(">HHH", AES, bits, CFB),
        scheme=struct.pack(">H", NULL),
        policy=bytes(32),
    )


def name(public: bytes) -> bytes:
    number = int.from_bytes(public[2:4], "big")
    algorithm = next(known for known, value in HASHES.items() if value == number)
    return public[2:4] + hashlib.new(algorithm, public).digest()


def signer(public: bytes, parent: int | bytes = ENDORSEMENT) -> bytes:
    """The qualified name of the key under a hierarchy or a parent's qualified name."""
    above = struct.pack(">I", parent) if isinstance(parent, int) else parent
    number = int.from_bytes(public[2:4], "big")
    algorithm = next(known for known, value in HASHES.items() if value == number)
    return public[2:4] + hashlib.new(algorithm, above + name(public)).digest()


def selection(banks: Sequence[tuple[str, Sequence[int]]]) -> bytes:
    """A TPML_PCR_SELECTION."""
    items = b""
    for bank, indices in banks:
        bitmap = sum(1 << index for index in indices)
        items += struct.pack(">HB", HASHES[bank], 3) + bitmap.to_bytes(3, "little")
    return struct.pack(">I", len(banks)) + items


@dataclass
class Quote:
    """A quote to be: change a field, then `attest()` and `signature()`."""

    key: PrivateKey
    public: bytes = b""
    extra_data: bytes = bytes(range(32))
    banks: Sequence[tuple[str, Sequence[int]]] = (("sha256", (0, 4, 7)),)
    pcrs: Mapping[str, Mapping[int, bytes]] | None = None
    hash: str = "sha256"
    scheme: int = 0
    qualified_signer: bytes | None = None
    magic: int = 0xFF544347
    type: int = 0x8018
    clock: int = 1234
    safe: int = 1
    digest: bytes | None = None
    tail: bytes = b""

    def __post_init__(self) -> None:
        self.public = self.public or public_area(self.key)
        self.scheme = self.scheme or (RSASSA if isinstance(self.key, rsa.RSAPrivateKey) else ECDSA)

    @property
    def values(self) -> Mapping[str, Mapping[int, bytes]]:
        """{bank: {index: value}}: made up, or as given."""
        if self.pcrs is not None:
            return self.pcrs
        return {
            bank: {index: hashlib.new(bank, bytes([index])).digest() for index in indices}
            for bank, indices in self.banks
        }

    def attest(self) -> bytes:
        quoted = b"".join(self.values[bank][index] for bank, indices in self.banks for index in sorted(indices))
        digest = hashlib.new(self.hash, quoted).digest() if self.digest is None else self.digest
        own = signer(self.public) if self.qualified_signer is None else self.qualified_signer
        return (
            struct.pack(">IH", self.magic, self.type)
            + sized(own)
            + sized(self.extra_data)
            + struct.pack(">QIIB", self.clock, 5, 6, self.safe)
            + bytes.fromhex("0102030405060708")
            + selection(self.banks)
            + sized(digest)
            + self.tail
        )

    def signature(self, over: bytes | None = None) -> bytes:
        """The TPMT_SIGNATURE, over other bytes if given."""
        message = self.attest() if over is None else over
        algorithm: hashes.HashAlgorithm = getattr(hashes, self.hash.upper())()
        head = struct.pack(">HH", self.scheme, HASHES[self.hash])
        if isinstance(self.key, rsa.RSAPrivateKey):
            pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.MAX_LENGTH)
            pad = pss if self.scheme == RSAPSS else padding.PKCS1v15()
            return head + sized(self.key.sign(message, pad, algorithm))
        r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(algorithm)))
        return head + b"".join(sized(part.to_bytes((part.bit_length() + 7) // 8, "big")) for part in (r, s))
