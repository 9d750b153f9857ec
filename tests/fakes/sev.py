# SPDX-License-Identifier: Apache-2.0
"""A throw-away AMD for SEV: CA keys, platforms with certificates, and the firmware's side of a launch.

The firmware's side is written from AMD 55766 alone and shares no code with the broker's: what one makes, the other must
understand.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from functools import cache
from uuid import UUID

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from broker.verifiers.sev_certificates import Ca, Chain, Generation, parse_ca, verify_ca
from keys import b64

ARK, ASK, INV, OCA, PEK, PDH, CEK = 0x0, 0x13, 0x1000, 0x1001, 0x1002, 0x1003, 0x1004
ECDSA, ECDH = 0x2, 0x3

Key = ec.EllipticCurvePrivateKey


@cache
def rsa_key(bits: int, which: str) -> rsa.RSAPrivateKey:
    """One for each purpose and size in a process: making them takes time."""
    return rsa.generate_private_key(65537, bits)


def ec_key() -> Key:
    return ec.generate_private_key(ec.SECP384R1())


def ca_certificate(
    key: rsa.RSAPrivateKey, usage: int, key_id: bytes, certifying_id: bytes, signer: rsa.RSAPrivateKey
) -> bytes:
    """An ARK's or ASK's certificate in AMD's format."""
    numbers = key.public_key().public_numbers()
    size = key.key_size // 8
    header = struct.pack("<I16s16sI16sII", 1, key_id, certifying_id, usage, bytes(16), key.key_size, key.key_size)
    body = header + numbers.e.to_bytes(size, "little") + numbers.n.to_bytes(size, "little")
    return body + rsa_signature(body, signer)


def rsa_signature(body: bytes, signer: rsa.RSAPrivateKey) -> bytes:
    algorithm = hashes.SHA256() if signer.key_size == 2048 else hashes.SHA384()
    pss = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=algorithm.digest_size)
    return signer.sign(body, pss, algorithm)[::-1]


def ec_field(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key's 1028 bytes."""
    numbers = key.public_numbers()
    field = struct.pack("<I", 2) + b"".join(n.to_bytes(72, "little") for n in (numbers.x, numbers.y))
    return field.ljust(1028, b"\0")


def sev_body(key: Key, usage: int, *, algorithm: int | None = None, api: tuple[int, int] = (1, 49)) -> bytes:
    """The signed part of a SEV certificate."""
    if algorithm is None:
        algorithm = ECDH if usage == PDH else ECDSA
    return struct.pack("<IBBHII", 1, *api, 0, usage, algorithm) + ec_field(key.public_key())


def slot(body: bytes, usage: int = INV, signer: Key | rsa.RSAPrivateKey | None = None) -> bytes:
    """A slot with the signature of `signer`, or an empty one."""
    if signer is None:
        return struct.pack("<II", usage, 0) + bytes(512)
    if isinstance(signer, rsa.RSAPrivateKey):
        algorithm, signature = (0x1 if signer.key_size == 2048 else 0x101), rsa_signature(body, signer)
    else:
        r, s = decode_dss_signature(signer.sign(body, ec.ECDSA(hashes.SHA256())))
        algorithm, signature = ECDSA, r.to_bytes(72, "little") + s.to_bytes(72, "little")
    return struct.pack("<II", usage, algorithm) + signature.ljust(512, b"\0")


class FakeSev:
    """AMD, or another `maker`, for one generation. Naples's keys have 2048 bits, all later ones 4096."""

    def __init__(self, generation: Generation = Generation.NAPLES, maker: str = "AMD") -> None:
        self.generation = generation
        bits = 2048 if generation is Generation.NAPLES else 4096
        self.ark_key, self.ask_key = rsa_key(bits, f"{maker} ARK"), rsa_key(bits, f"{maker} ASK")
        self.ark_id, self.ask_id = b"A" * 16, b"B" * 16
        self.ark = ca_certificate(self.ark_key, ARK, self.ark_id, self.ark_id, self.ark_key)
        self.ask = ca_certificate(self.ask_key, ASK, self.ask_id, self.ark_id, self.ark_key)
        self.pins = {generation: parse_ca(self.ark).spki_sha256}

    @property
    def ca(self) -> Ca:
        return verify_ca(parse_ca(self.ark), parse_ca(self.ask), self.pins)


class FirmwareError(Exception):
    """The processor refuses a command."""


class FakePlatform:
    """A processor of `amd` with its certificates, and the commands of its firmware."""

    def __init__(self, amd: FakeSev, *, api: tuple[int, int] = (1, 49), build: int = 6) -> None:
        self.amd = amd
        self.api = api
        self.build = build
        self.cek_key, self.oca_key, self.pek_key, self.pdh_key = (ec_key() for _ in range(4))
        self.cek = self.certificate(self.cek_key, CEK, (ASK, amd.ask_key))
        self.oca = self.certificate(self.oca_key, OCA, (OCA, self.oca_key))
        self.pek = self.certificate(self.pek_key, PEK, (OCA, self.oca_key), (CEK, self.cek_key))
        self.pdh = self.certificate(self.pdh_key, PDH, (PEK, self.pek_key))

    def certificate(self, key: Key, usage: int, *signers: tuple[int, Key | rsa.RSAPrivateKey]) -> bytes:
        body = sev_body(key, usage, api=self.api)
        slots = [slot(body, *signer) for signer in signers] + [slot(body)]
        return body + b"".join(slots[:2])

    @property
    def chain(self) -> Chain:
        return Chain(self.pdh, self.pek, self.oca, self.cek)

    def to_json(self) -> dict[str, str]:
        """The chain as a host posts it."""
        return {name: b64.std(getattr(self, name)) for name in ("pdh", "pek", "oca", "cek")}

    @property
    def instance_id(self) -> str:
        return f"sev-cek:{hashlib.sha256(self.cek[0x10:0x414]).hexdigest()}"

    def launch_start(self, godh: bytes, session: bytes, policy: int) -> FakeLaunch:
        """Raises FirmwareError where the session is not for this processor or this policy."""
        if len(godh) != 2084 or struct.unpack_from("<IBBHII", godh)[4:] != (PDH, ECDH):
            raise FirmwareError("no DH key")
        x, y = (int.from_bytes(godh[at : at + 72], "little") for at in (0x14, 0x5C))
        owner = ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
        shared = self.pdh_key.exchange(ec.ECDH(), owner)
        nonce, wrap, iv, wrap_mac, policy_mac = struct.unpack("16s32s16s32s32s", session)
        master = kdf(shared, b"sev-master-secret", nonce)
        if hmac.digest(kdf(master, b"sev-kik", b""), wrap, "sha256") != wrap_mac:
            raise FirmwareError("BAD_MEASUREMENT: session")
        keys = ctr(kdf(master, b"sev-kek", b""), iv, wrap)
        tek, tik = keys[:16], keys[16:]
        if hmac.digest(tik, policy.to_bytes(4, "little"), "sha256") != policy_mac:
            raise FirmwareError("BAD_MEASUREMENT: policy")
        if self.api < (policy >> 16 & 0xFF, policy >> 24):
            raise FirmwareError("POLICY_FAILURE")
        return FakeLaunch(self, policy, tek, tik)


class FakeLaunch:
    """A guest that is being launched."""

    def __init__(self, platform: FakePlatform, policy: int, tek: bytes, tik: bytes) -> None:
        self._platform = platform
        self._policy = policy
        self._tek = tek
        self._tik = tik
        self._content = hashlib.sha256()
        self.mnonce = os.urandom(16)
        self.memory = b""

    def update(self, data: bytes) -> FakeLaunch:
        """LAUNCH_UPDATE_DATA."""
        self._content.update(data)
        return self

    def measure(self) -> bytes:
        """LAUNCH_MEASURE: 48 bytes."""
        return self._measure() + self.mnonce

    def inject(self, header: bytes, packet: bytes) -> None:
        """LAUNCH_SECRET. Raises FirmwareError where the packet is not for this guest."""
        flags, iv, mac = struct.unpack("<I16s32s", header)
        lengths = struct.pack("<II", len(packet), len(packet))
        message = b"\x01" + struct.pack("<I", flags) + iv + lengths + packet + self._measure()
        if len(packet) % 16 or hmac.digest(self._tik, message, "sha256") != mac:
            raise FirmwareError("BAD_MEASUREMENT: packet")
        self.memory = ctr(self._tek, iv, packet)

    def secret(self, guid: str) -> bytes:
        """What Linux shows as the entry `guid` (efi_secret). Raises KeyError."""
        header, length = self.memory[:16], int.from_bytes(self.memory[16:20], "little")
        assert str(UUID(bytes_le=header)) == "1e74f542-71dd-4d66-963e-ef4287ff173b"
        assert length <= len(self.memory) <= 0xC00
        at, entries = 20, {}
        while at < length:
            size = int.from_bytes(self.memory[at + 16 : at + 20], "little")
            entries[str(UUID(bytes_le=self.memory[at : at + 16]))] = self.memory[at + 20 : at + size]
            at += size
        return entries[guid]

    def _measure(self) -> bytes:
        major, minor = self._platform.api
        words = struct.pack("<BBBBI", 0x04, major, minor, self._platform.build, self._policy)
        return hmac.digest(self._tik, words + self._content.digest() + self.mnonce, "sha256")


def kdf(key: bytes, label: bytes, context: bytes) -> bytes:
    message = (1).to_bytes(4, "little") + label + b"\0" + context + (128).to_bytes(4, "little")
    return hmac.digest(key, message, "sha256")[:16]


def ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    cipher = Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor()
    return cipher.update(data) + cipher.finalize()
