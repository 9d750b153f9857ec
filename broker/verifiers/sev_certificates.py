# SPDX-License-Identifier: Apache-2.0
"""Is this the key (PDH) of a genuine AMD processor that runs SEV or SEV-ES? AMD's own certificates, without X.509.

AMD 55766, Secure Encrypted Virtualization API, appendix B (CA certificate, `CaCertificate`) and appendix C (SEV
certificate, `SevCertificate`). All integers are little-endian. The checks:

    (1) each certificate parses to the last byte: length, version 1, key of the expected kind, padding zero, and in the
        slots for signatures nothing but signatures
    (2) the ARK's public key is one that AMD published for a generation; the ARK is signed by itself
    (3) the ASK names that ARK as its issuer and is signed by it
    (4) the CEK, which is fused into the processor, is signed by an ASK from (3)
    (5) the OCA, whoever owns the platform, is signed by itself
    (6) the PEK is signed by both the OCA and the CEK
    (7) the PDH is signed by the PEK

Each certificate must have the usage of its place, and each slot name its signer's usage and algorithm: a PEK that is
shown as PDH is refused. Nothing here has a date, and nothing can be revoked; so only those ASKs count that the caller
brings, never one from the platform. The OCA proves nothing: the host's owner may make it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.trace import Stage, Trace
from keys.errors import EndorsementError

SEV_CERTIFICATE_BYTES = 2084
SIGNED_BYTES = 0x414  # from the start
PUBLIC_KEY = slice(0x10, 0x414)
SLOTS = (0x414, 0x61C)
SLOT_BYTES = 0x208
CA_CERTIFICATE_BYTES = {832: 2048, 1600: 4096}  # length -> bits of the modulus
CA_HEADER_BYTES = 64
VERSION = 1
P384 = 2  # the curve's number
INTEGER_BYTES = 72  # a coordinate, r or s
RSA_EXPONENT = 65537

NO_ALGORITHM = 0
RSA_SHA256, ECDSA_SHA256, ECDH_SHA256 = 0x1, 0x2, 0x3
RSA_SHA384, ECDSA_SHA384, ECDH_SHA384 = 0x101, 0x102, 0x103
_RSA: Mapping[int, tuple[int, hashes.HashAlgorithm]] = {  # bits -> number, hash; the salt is as long as the digest
    2048: (RSA_SHA256, hashes.SHA256()),
    4096: (RSA_SHA384, hashes.SHA384()),
}
_ECDSA: Mapping[int, hashes.HashAlgorithm] = {ECDSA_SHA256: hashes.SHA256(), ECDSA_SHA384: hashes.SHA384()}
_ECDH = frozenset((ECDH_SHA256, ECDH_SHA384))


class Usage(IntEnum):
    """What a key is for."""

    ARK = 0x0
    ASK = 0x13
    INV = 0x1000  # an empty slot
    OCA = 0x1001
    PEK = 0x1002
    PDH = 0x1003
    CEK = 0x1004


class Generation(StrEnum):
    """EPYC generations, each with an ARK of its own."""

    NAPLES = "Naples"
    ROME = "Rome"
    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"


# SHA-256 of the DER SubjectPublicKeyInfo. Milan's, Genoa's and Turin's are those of the X.509 ARKs for SEV-SNP.
ARK_SPKI_SHA256: Mapping[Generation, str] = {
    Generation.NAPLES: "3a04f8f1347de206c9206a81148ba4ef0a233b245d43a15dd82de043bb3e4f69",
    Generation.ROME: "7447ffa21e2b938bfade89f5e9066c00a328813bfc43685605cceabd18da6fde",
    Generation.MILAN: "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9",
    Generation.GENOA: "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831",
    Generation.TURIN: "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08",
}


@dataclass(frozen=True, slots=True)
class CaCertificate:
    """An ARK or ASK. `signature` is big-endian, as RSA libraries take it."""

    raw: bytes = field(repr=False)
    usage: Usage
    key_id: bytes
    certifying_id: bytes
    key: rsa.RSAPublicKey
    signature: bytes = field(repr=False)

    @property
    def signed(self) -> bytes:
        return self.raw[: -self.key.key_size // 8]

    @property
    def spki_sha256(self) -> str:
        spki = self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).hexdigest()


@dataclass(frozen=True, slots=True)
class SevCertificate:
    """A CEK, OCA, PEK or PDH. `api` is the firmware's (major, minor) when it was made. `slots` maps the usage of each
    signer to the number of the algorithm and the 512 bytes of the signature.
    """

    raw: bytes = field(repr=False)
    api: tuple[int, int]
    usage: Usage
    algorithm: int
    key: ec.EllipticCurvePublicKey
    slots: Mapping[Usage, tuple[int, bytes]] = field(repr=False)

    @property
    def signed(self) -> bytes:
        return self.raw[:SIGNED_BYTES]

    @property
    def public_key(self) -> bytes:
        """The field of the public key as it stands, 1028 bytes."""
        return self.raw[PUBLIC_KEY]


@dataclass(frozen=True, slots=True)
class Ca:
    """An ARK whose key is AMD's, and an ASK that it signed: checks (2) and (3) are done."""

    generation: Generation
    ark: CaCertificate
    ask: CaCertificate


@dataclass(frozen=True, slots=True)
class Chain:
    """What a platform shows of itself, each 2084 bytes, nothing parsed."""

    pdh: bytes = field(repr=False)
    pek: bytes = field(repr=False)
    oca: bytes = field(repr=False)
    cek: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Platform:
    """A genuine processor, by the certificates that say so."""

    generation: Generation
    cek: SevCertificate
    pdh: SevCertificate

    @property
    def instance_id(self) -> str:
        """The processor's name in records: its CEK never changes, whoever owns it."""
        return f"sev-cek:{hashlib.sha256(self.cek.public_key).hexdigest()}"


def verify_platform(chain: Chain, cas: Sequence[Ca], trace: Trace) -> Platform:
    """The platform whose certificates `chain` are, under one of `cas`: checks (1) and (4) to (7).

    Raises EndorsementError; every check is in `trace`.
    """
    with trace.recording(Stage.ENDORSEMENT):  # (1)
        cek = parse_certificate(chain.cek, Usage.CEK, signers={Usage.ASK})
        oca = parse_certificate(chain.oca, Usage.OCA, signers={Usage.OCA})
        pek = parse_certificate(chain.pek, Usage.PEK, signers={Usage.OCA, Usage.CEK})
        pdh = parse_certificate(chain.pdh, Usage.PDH, signers={Usage.PEK})
    issuer = next((ca for ca in cas if _signed_by_ask(cek, ca.ask)), None)  # (4)
    trace.require(
        Stage.ENDORSEMENT,
        "AMD signed the processor's key (CEK)",
        issuer is not None,
        expected="an ASK of " + (", ".join(ca.generation for ca in cas) or "nobody: no AMD key is configured"),
        mend="the host must send the CEK that AMD signed (https://kdsintf.amd.com/cek/id/ID), not the one it exports",
        error=EndorsementError,
    )
    assert issuer is not None  # narrowing: the line above has raised
    for what, certificate, signer in (
        ("platform's owner (OCA) signed itself", oca, oca),  # (5)
        ("owner (OCA) signed the platform's key (PEK)", pek, oca),  # (6)
        ("processor (CEK) signed the platform's key (PEK)", pek, cek),  # (6)
        ("platform's key (PEK) signed the launch key (PDH)", pdh, pek),  # (7)
    ):
        trace.require(
            Stage.ENDORSEMENT,
            what,
            _signed_by(certificate, signer),
            mend="the certificates of one machine at one time belong together: export them again",
            error=EndorsementError,
        )
    return Platform(issuer.generation, cek, pdh)


def verify_ca(ark: CaCertificate, ask: CaCertificate, pins: Mapping[Generation, str] = ARK_SPKI_SHA256) -> Ca:
    """The pair of CA certificates, checks (2) and (3). Raises EndorsementError."""
    generation = verify_ark(ark, pins)
    if ask.usage is not Usage.ASK or ask.certifying_id != ark.key_id:
        raise EndorsementError("the ASK is not of this ARK", expected=ark.key_id.hex(), found=ask.certifying_id.hex())
    if not _rsa_signed(ask.signed, ask.signature, ark.key):
        raise EndorsementError("the ASK is not signed by the ARK")
    return Ca(generation, ark, ask)


def verify_ark(ark: CaCertificate, pins: Mapping[Generation, str] = ARK_SPKI_SHA256) -> Generation:
    """Whose ARK it is, check (2). Raises EndorsementError."""
    generation = next((generation for generation, pin in pins.items() if pin == ark.spki_sha256), None)
    if generation is None:
        raise EndorsementError("the ARK's key is not one that AMD published", found=ark.spki_sha256)
    if ark.usage is not Usage.ARK or ark.certifying_id != ark.key_id:
        raise EndorsementError("the ARK is no root", expected="usage 0 and its own key id as the certifying one")
    if not _rsa_signed(ark.signed, ark.signature, ark.key):
        raise EndorsementError("the ARK is not signed by itself")
    return generation


def parse_ca(data: bytes) -> CaCertificate:
    """A CA certificate, check (1). Raises EndorsementError."""
    bits = CA_CERTIFICATE_BYTES.get(len(data))
    if bits is None:
        expected = " or ".join(map(str, CA_CERTIFICATE_BYTES))
        raise EndorsementError(
            "a CA certificate has another length", expected=f"{expected} bytes", found=str(len(data))
        )
    usage = _u32(data, 0x24)
    if _u32(data, 0x00) != VERSION or usage not in (Usage.ARK, Usage.ASK):
        raise EndorsementError("a CA certificate is none of AMD's", found=f"version {_u32(data, 0)}, usage {usage:#x}")
    if any(data[0x28:0x38]) or (_u32(data, 0x38), _u32(data, 0x3C)) != (bits, bits):
        raise EndorsementError("a CA certificate's header does not fit its length", expected=f"{bits} bits")
    size = bits // 8
    exponent, modulus, signature = (
        int.from_bytes(data[CA_HEADER_BYTES + at * size :][:size], "little") for at in range(3)
    )
    if exponent != RSA_EXPONENT or modulus.bit_length() != bits or modulus % 2 == 0:
        raise EndorsementError("a CA certificate holds no RSA key of AMD's kind", expected=f"{bits} bits, 65537")
    key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    return CaCertificate(data, Usage(usage), data[0x04:0x14], data[0x14:0x24], key, signature.to_bytes(size, "big"))


def parse_certificate(data: bytes, usage: Usage, *, signers: set[Usage]) -> SevCertificate:
    """A SEV certificate for `usage`, which has signatures of exactly `signers`, check (1). Raises EndorsementError."""
    if len(data) != SEV_CERTIFICATE_BYTES:
        found = str(len(data))
        raise EndorsementError(
            f"{usage.name} has another length", expected=f"{SEV_CERTIFICATE_BYTES} bytes", found=found
        )
    if _u32(data, 0x00) != VERSION or any(data[0x06:0x08]):
        raise EndorsementError(f"{usage.name} is no SEV certificate of version 1")
    if _u32(data, 0x08) != usage:
        found = f"{_u32(data, 0x08):#x}"
        raise EndorsementError(f"another key stands for the {usage.name}", expected=f"usage {usage:#x}", found=found)
    algorithm = _u32(data, 0x0C)
    if algorithm not in (_ECDH if usage is Usage.PDH else _ECDSA):
        raise EndorsementError(f"{usage.name} is for another algorithm", found=f"{algorithm:#x}")
    return SevCertificate(
        data, (data[0x04], data[0x05]), usage, algorithm, _ec_key(data, usage), _slots(data, usage, signers)
    )


def _ec_key(data: bytes, usage: Usage) -> ec.EllipticCurvePublicKey:
    at = PUBLIC_KEY.start
    curve = _u32(data, at)
    x, y = (int.from_bytes(data[at + 4 + i * INTEGER_BYTES :][:INTEGER_BYTES], "little") for i in range(2))
    if curve != P384 or any(data[at + 4 + 2 * INTEGER_BYTES : PUBLIC_KEY.stop]):
        raise EndorsementError(f"{usage.name} holds no P-384 key", found=f"curve {curve}")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
    except ValueError:
        raise EndorsementError(f"{usage.name} holds no point of P-384") from None


def _slots(data: bytes, usage: Usage, signers: set[Usage]) -> dict[Usage, tuple[int, bytes]]:
    """In which of the two slots a signature stands is open; a slot without one is empty."""
    slots: dict[Usage, tuple[int, bytes]] = {}
    for at in SLOTS:
        signer, algorithm, signature = _u32(data, at), _u32(data, at + 4), data[at + 8 : at + SLOT_BYTES]
        if signer in signers - slots.keys():
            slots[Usage(signer)] = algorithm, signature
        elif (signer, algorithm) != (Usage.INV, NO_ALGORITHM) or any(signature):
            raise EndorsementError(f"{usage.name} is signed by another key", found=f"usage {signer:#x}")
    if missing := signers - slots.keys():
        names = ", ".join(sorted(signer.name for signer in missing))
        raise EndorsementError(f"{usage.name} lacks a signature", expected=f"of {names}")
    return slots


def _signed_by(certificate: SevCertificate, signer: SevCertificate) -> bool:
    """Whether the slot with the signer's usage holds the signer's signature."""
    algorithm, signature = certificate.slots[signer.usage]
    r, s = (int.from_bytes(signature[i * INTEGER_BYTES :][:INTEGER_BYTES], "little") for i in range(2))
    if algorithm != signer.algorithm or any(signature[2 * INTEGER_BYTES :]):
        return False
    try:
        signer.key.verify(encode_dss_signature(r, s), certificate.signed, ec.ECDSA(_ECDSA[algorithm]))
    except InvalidSignature:
        return False
    return True


def _signed_by_ask(cek: SevCertificate, ask: CaCertificate) -> bool:
    algorithm, signature = cek.slots[Usage.ASK]
    size = ask.key.key_size // 8
    if algorithm != _RSA[ask.key.key_size][0] or any(signature[size:]):
        return False
    return _rsa_signed(cek.signed, signature[:size][::-1], ask.key)


def _rsa_signed(message: bytes, signature: bytes, key: rsa.RSAPublicKey) -> bool:
    algorithm = _RSA[key.key_size][1]
    pss = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=algorithm.digest_size)
    try:
        key.verify(signature, message, pss, algorithm)
    except InvalidSignature:
        return False
    return True


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")
