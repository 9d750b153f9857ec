# SPDX-License-Identifier: Apache-2.0
"""TPM 2.0 structures as the TPM marshals them: big-endian, exact, nothing left over.

Source: TCG TPM 2.0 Library, Part 2 (Structures) and Part 1, 16 (Names). TPM2B_x is a u16 size and that many bytes,
TPML_x a u32 count and the elements, TPMT_x begins with its selector. Every parser raises VerificationError on anything
that a TPM would not have written, and on what is genuine but outside what this broker judges (curves, key sizes,
signature schemes); no other exception leaves this module on bad input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.verifiers.reader import Reader
from keys.errors import VerificationError

MAX_NAME_BYTES = 66  # TPM2B_NAME: hash id and a SHA-512 digest
MAX_DATA_BYTES = 66  # TPM2B_DATA, the size of a TPMT_HA
MAX_DIGEST_BYTES = 64  # TPM2B_DIGEST, SHA-512
MAX_RSA_BYTES = 512  # modulus or signature, RSA-4096
MAX_COORDINATE_BYTES = 66  # P-521
MAX_SELECTIONS = 16  # banks in a TPML_PCR_SELECTION (HASH_COUNT of the reference implementation)
CACHED = 256  # public areas that are remembered
SELECT_BYTES = 3  # of a PCR bitmap: PCR 0 to 23
PCR_COUNT = 8 * SELECT_BYTES

GENERATED_VALUE = 0xFF544347  # TPM_GENERATED_VALUE
ST_ATTEST_QUOTE = 0x8018

ALG_RSA = 0x0001
ALG_AES = 0x0006
ALG_NULL = 0x0010
ALG_RSASSA = 0x0014
ALG_RSAPSS = 0x0016
ALG_OAEP = 0x0017
ALG_ECDSA = 0x0018
ALG_ECDH = 0x0019
ALG_ECC = 0x0023
ALG_CFB = 0x0043
SCHEMES = {ALG_RSASSA: "rsassa", ALG_RSAPSS: "rsapss", ALG_ECDSA: "ecdsa"}  # of signatures

FIXED_TPM = 1 << 1
FIXED_PARENT = 1 << 4
SENSITIVE_DATA_ORIGIN = 1 << 5
ENCRYPTED_DUPLICATION = 1 << 11
RESTRICTED = 1 << 16
DECRYPT = 1 << 17
SIGN = 1 << 18
ATTRIBUTES = {
    "fixedTPM": FIXED_TPM,
    "fixedParent": FIXED_PARENT,
    "sensitiveDataOrigin": SENSITIVE_DATA_ORIGIN,
    "encryptedDuplication": ENCRYPTED_DUPLICATION,
    "restricted": RESTRICTED,
    "decrypt": DECRYPT,
    "sign": SIGN,
}

RH_OWNER = 0x40000001
RH_NULL = 0x40000007
RH_ENDORSEMENT = 0x4000000B
RH_PLATFORM = 0x4000000C


@dataclass(frozen=True, slots=True)
class Hash:
    """A TPM hash algorithm: its TPM_ALG_ID, its name as PCR banks spell it, and its digest's size in bytes."""

    id: int
    name: str
    size: int
    algorithm: hashes.HashAlgorithm = field(repr=False)

    def digest(self, data: bytes) -> bytes:
        return hashlib.new(self.name, data, usedforsecurity=self.name != "sha1").digest()


SHA1 = Hash(0x0004, "sha1", 20, hashes.SHA1())  # noqa: S303  known so that it can be refused by name
SHA256 = Hash(0x000B, "sha256", 32, hashes.SHA256())
SHA384 = Hash(0x000C, "sha384", 48, hashes.SHA384())
SHA512 = Hash(0x000D, "sha512", 64, hashes.SHA512())
HASHES: Mapping[int, Hash] = {known.id: known for known in (SHA1, SHA256, SHA384, SHA512)}
BANKS: Mapping[str, Hash] = {known.name: known for known in HASHES.values()}

_CURVES: Mapping[int, ec.EllipticCurve] = {3: ec.SECP256R1(), 4: ec.SECP384R1(), 5: ec.SECP521R1()}
_RSA_BITS = (2048, 3072, 4096)
_RSA_EXPONENT = 65537  # what a TPM writes as 0


@dataclass(frozen=True, slots=True)
class Public:
    """A TPMT_PUBLIC. `raw` are its exact bytes, over which the Name is made.

    `symmetric_bits` is the AES key size of a storage key, `scheme` and `scheme_hash` are set where the key has one.
    """

    raw: bytes
    name_hash: Hash
    attributes: int
    symmetric_bits: int | None
    scheme: int | None
    scheme_hash: Hash | None
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey

    @property
    def name(self) -> bytes:
        """nameAlg || H_nameAlg(TPMT_PUBLIC)."""
        return self.name_hash.id.to_bytes(2, "big") + self.name_hash.digest(self.raw)

    @property
    def spki(self) -> bytes:
        """The key as SubjectPublicKeyInfo, DER."""
        return self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def require_attributes(self, what: str, *, needed: int, forbidden: int) -> None:
        """Every bit of `needed` is set and none of `forbidden`. Raises VerificationError that names the bits."""
        lacks = _attribute_names(needed & ~self.attributes)
        has = _attribute_names(forbidden & self.attributes)
        if lacks or has:
            raise VerificationError(
                f"the {what} has the wrong attributes",
                expected=f"{_attribute_names(needed)} set, {_attribute_names(forbidden)} clear",
                found=f"{self.attributes:08x}: {lacks or 'nothing'} missing, {has or 'nothing'} too much",
            )


def _attribute_names(bits: int) -> str:
    return " ".join(name for name, bit in ATTRIBUTES.items() if bits & bit)


@dataclass(frozen=True, slots=True)
class Signature:
    """A TPMT_SIGNATURE. `value` is the raw RSA signature or, for ECDSA, the pair (r, s)."""

    scheme: int
    hash: Hash
    value: bytes | tuple[int, int]


@dataclass(frozen=True, slots=True)
class Attest:
    """A TPMS_ATTEST of a quote.

    `selection` is what the TPM signed: (bank, PCR indices ascending), in the order of the list. `clock` is in
    milliseconds, `firmware_version` 8 bytes vendor-defined.
    """

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: bytes
    selection: tuple[tuple[Hash, tuple[int, ...]], ...]
    pcr_digest: bytes


def parse_attest(data: bytes) -> Attest:
    """`data` as a TPMS_ATTEST of type quote (without a TPM2B's size in front). Part 2, 10.12.12."""
    read = Reader(data, "TPMS_ATTEST")
    # A restricted key signs attacker-written bytes too, but never such that begin with this value.
    if (magic := read.uint(4)) != GENERATED_VALUE:
        raise VerificationError("the TPM did not generate what it signed", expected="ff544347", found=f"{magic:08x}")
    if (kind := read.uint(2)) != ST_ATTEST_QUOTE:
        raise VerificationError("TPMS_ATTEST is not a quote", expected=f"{ST_ATTEST_QUOTE:04x}", found=f"{kind:04x}")
    qualified_signer = read.sized(2, MAX_NAME_BYTES, "qualifiedSigner")
    extra_data = read.sized(2, MAX_DATA_BYTES, "extraData")
    clock, reset_count, restart_count, safe = read.uint(8), read.uint(4), read.uint(4), read.uint(1)
    if safe > 1:
        raise VerificationError("TPMS_ATTEST: safe is not a TPMI_YES_NO", expected="0 or 1", found=str(safe))
    firmware_version = read.take(8)
    count = read.uint(4)
    if count > MAX_SELECTIONS:
        raise VerificationError(
            "TPML_PCR_SELECTION is too long", expected=f"at most {MAX_SELECTIONS}", found=str(count)
        )
    selection = tuple(_selection(read) for _ in range(count))
    pcr_digest = read.sized(2, MAX_DIGEST_BYTES, "pcrDigest")
    read.end()
    return Attest(
        qualified_signer=qualified_signer,
        extra_data=extra_data,
        clock=clock,
        reset_count=reset_count,
        restart_count=restart_count,
        safe=bool(safe),
        firmware_version=firmware_version,
        selection=selection,
        pcr_digest=pcr_digest,
    )


def _selection(read: Reader) -> tuple[Hash, tuple[int, ...]]:
    bank = _hash(read, "PCR bank")
    if (size := read.uint(1)) != SELECT_BYTES:
        raise VerificationError("TPMS_PCR_SELECTION has another size", expected=str(SELECT_BYTES), found=str(size))
    bitmap = int.from_bytes(read.take(SELECT_BYTES), "little")
    return bank, tuple(index for index in range(PCR_COUNT) if bitmap >> index & 1)


def parse_signature(data: bytes) -> Signature:
    """`data` as a TPMT_SIGNATURE of scheme RSASSA, RSAPSS or ECDSA. Part 2, 11.3.4."""
    read = Reader(data, "TPMT_SIGNATURE")
    scheme = read.uint(2)
    if scheme not in SCHEMES:
        raise VerificationError(
            "this signature scheme is not allowed", expected=" ".join(SCHEMES.values()), found=f"{scheme:04x}"
        )
    hashed = _hash(read, "signature hash")
    value: bytes | tuple[int, int]
    if scheme == ALG_ECDSA:
        r = read.sized(2, MAX_COORDINATE_BYTES, "signatureR")
        s = read.sized(2, MAX_COORDINATE_BYTES, "signatureS")
        value = int.from_bytes(r, "big"), int.from_bytes(s, "big")
    else:
        value = read.sized(2, MAX_RSA_BYTES, "signature")
    read.end()
    return Signature(scheme, hashed, value)


@lru_cache(maxsize=CACHED)
def parse_public(data: bytes) -> Public:
    """`data` as a TPMT_PUBLIC of an RSA or ECC key. Part 2, 12.2.4.

    The newest are remembered: a guest shows the same two keys when it asks for a challenge and when it answers.
    """
    public, rest = parse_public_prefix(data)
    if rest:
        raise VerificationError("TPMT_PUBLIC has trailing bytes", expected="0", found=str(len(rest)))
    return public


def parse_public_2b(data: bytes) -> Public:
    """`data` as a TPM2B_PUBLIC: the TPMT_PUBLIC after its size."""
    read = Reader(data, "TPM2B_PUBLIC")
    body = read.sized(2, len(data), "publicArea")
    read.end()
    return parse_public(body)


def parse_public_prefix(data: bytes) -> tuple[Public, bytes]:
    """The TPMT_PUBLIC at the front of `data`, and what follows it."""
    read = Reader(data, "TPMT_PUBLIC")
    kind = read.uint(2)
    if kind not in {ALG_RSA, ALG_ECC}:
        raise VerificationError("TPMT_PUBLIC is not an RSA or ECC key", found=f"{kind:04x}")
    name_hash = _hash(read, "nameAlg")
    attributes = read.uint(4)
    read.sized(2, MAX_DIGEST_BYTES, "authPolicy")
    symmetric_bits = _symmetric(read)
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    if kind == ALG_RSA:
        scheme, scheme_hash = _scheme(read, (ALG_RSASSA, ALG_RSAPSS, ALG_OAEP))
        key = _rsa_key(read)
    else:
        scheme, scheme_hash = _scheme(read, (ALG_ECDSA, ALG_ECDH))
        key = _ecc_key(read)
    return Public(
        raw=data[: read.at],
        name_hash=name_hash,
        attributes=attributes,
        symmetric_bits=symmetric_bits,
        scheme=scheme,
        scheme_hash=scheme_hash,
        key=key,
    ), data[read.at :]


def _hash(read: Reader, field_name: str) -> Hash:
    number = read.uint(2)
    if number not in HASHES:
        raise VerificationError(f"{field_name} is not a known hash", expected=" ".join(BANKS), found=f"{number:04x}")
    return HASHES[number]


def _symmetric(read: Reader) -> int | None:
    """TPMT_SYM_DEF_OBJECT: nothing, or AES in CFB mode, the only one that MakeCredential is defined for here."""
    if (algorithm := read.uint(2)) == ALG_NULL:
        return None
    bits, mode = read.uint(2), read.uint(2)
    if algorithm != ALG_AES or mode != ALG_CFB or bits not in {128, 256}:
        raise VerificationError(
            "TPMT_PUBLIC has an unknown symmetric algorithm",
            expected="AES-128 or AES-256 in CFB mode",
            found=f"{algorithm:04x} {bits} {mode:04x}",
        )
    return bits


def _scheme(read: Reader, allowed: tuple[int, ...]) -> tuple[int | None, Hash | None]:
    """TPMT_RSA_SCHEME or TPMT_ECC_SCHEME: nothing, or a scheme with its hash."""
    if (scheme := read.uint(2)) == ALG_NULL:
        return None, None
    if scheme not in allowed:
        raise VerificationError("TPMT_PUBLIC has an unknown scheme", found=f"{scheme:04x}")
    return scheme, _hash(read, "scheme hash")


def _rsa_key(read: Reader) -> rsa.RSAPublicKey:
    bits, exponent = read.uint(2), read.uint(4) or _RSA_EXPONENT
    modulus = int.from_bytes(read.sized(2, MAX_RSA_BYTES, "modulus"), "big")
    if bits not in _RSA_BITS or modulus.bit_length() != bits or modulus % 2 == 0 or exponent != _RSA_EXPONENT:
        raise VerificationError(
            "this RSA key is not allowed",
            expected=f"an odd modulus of 2048, 3072 or 4096 bits and exponent {_RSA_EXPONENT}",
            found=f"{modulus.bit_length()} bits, keyBits {bits}, exponent {exponent}",
        )
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _ecc_key(read: Reader) -> ec.EllipticCurvePublicKey:
    curve = read.uint(2)
    if (kdf := read.uint(2)) != ALG_NULL:
        raise VerificationError("TPMT_PUBLIC has an unknown kdf", expected="none", found=f"{kdf:04x}")
    x = int.from_bytes(read.sized(2, MAX_COORDINATE_BYTES, "x"), "big")
    y = int.from_bytes(read.sized(2, MAX_COORDINATE_BYTES, "y"), "big")
    if curve not in _CURVES:
        raise VerificationError("this curve is not allowed", expected="P-256, P-384 or P-521", found=f"{curve:04x}")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, _CURVES[curve]).public_key()
    except ValueError as error:
        raise VerificationError("this ECC key is not a point on its curve") from error


def name_of(public: bytes) -> bytes:
    """The Name of a marshalled TPMT_PUBLIC, of which only the nameAlg is looked at. Part 1, 16."""
    read = Reader(public, "TPMT_PUBLIC")
    read.take(2)
    name_hash = _hash(read, "nameAlg")
    return name_hash.id.to_bytes(2, "big") + name_hash.digest(public)


def qualified_name(parent: int | bytes, public: Public) -> bytes:
    """The qualified name of `public` under `parent`: a hierarchy's handle, or the parent's qualified name."""
    above = parent.to_bytes(4, "big") if isinstance(parent, int) else parent
    return public.name_hash.id.to_bytes(2, "big") + public.name_hash.digest(above + public.name)
