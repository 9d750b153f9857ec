# SPDX-License-Identifier: Apache-2.0
"""A guest with a TPM made of a few keys in memory: as strict in what it says as a real one, and far faster.

It signs quotes with a throw-away attestation key, has an endorsement key that a throw-away maker certified, and opens
credentials in software. Written from TPM 2.0 Library Part 1 and 2 and not from the broker's code, so that both sides
cannot share a mistake. Tests of the whole broker and the load generator use it; the real thing is `tests.fakes.swtpm`.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keys import b64, jwe, jwk
from keys.binding import activation_proof, activation_proof_key, report_data, tpm_qualifying_data
from keys.messages import Attestation, Challenge, InitData, Request, ResourcePath, TpmCredential, TpmDeclaration
from keys.tee import Tee
from tests.fakes.boot import Boot, Event, event_log
from tests.fakes.ek_ca import EkCa

AK_ATTRIBUTES = 0x00050072
EK_ATTRIBUTES = 0x000300B2
ENDORSEMENT = 0x4000000B
BANK = "sha256"

_SHA256, _AES, _CFB, _NULL, _ECDSA = 0x000B, 0x0006, 0x0043, 0x0010, 0x0018
_RSA_TYPE, _ECC_TYPE, _P256 = 0x0001, 0x0023, 0x0003
_STORAGE = struct.pack(">HHH", _AES, 128, _CFB)


class FakeTpm:
    """`ca` certifies its endorsement key: on P-256, or RSA-2048 with `rsa_ek`. Without `ca` it has no certificate.
    `ak` is its attestation key, by default a fresh one.
    """

    def __init__(
        self,
        ca: EkCa | None = None,
        *,
        rsa_ek: bool = False,
        attributes: int = AK_ATTRIBUTES,
        ak: ec.EllipticCurvePrivateKey | None = None,
    ) -> None:
        self._ak = ak or ec.generate_private_key(ec.SECP256R1())
        self._ek: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
        policy = _sized(hashlib.sha256(b"PolicyA").digest())
        head = struct.pack(">HI", _SHA256, EK_ATTRIBUTES) + policy + _STORAGE
        if rsa_ek:
            self._ek = rsa.generate_private_key(65537, 2048)
            modulus = self._ek.public_key().public_numbers().n.to_bytes(256, "big")
            self.ek_public = struct.pack(">H", _RSA_TYPE) + head + struct.pack(">HHI", _NULL, 2048, 0) + _sized(modulus)
        else:
            self._ek = ec.generate_private_key(ec.SECP256R1())
            self.ek_public = struct.pack(">H", _ECC_TYPE) + head + struct.pack(">H", _NULL) + _p256(self._ek)
        scheme = struct.pack(">HHH", _NULL, _ECDSA, _SHA256)
        self.ak_public = struct.pack(">HHIH", _ECC_TYPE, _SHA256, attributes, 0) + scheme + _p256(self._ak)
        self.certificates: tuple[bytes, ...] = ()
        if ca is not None:
            chain = (ca.certify(self._ek.public_key()), ca.intermediate)
            self.certificates = tuple(certificate.public_bytes(Encoding.DER) for certificate in chain)
        self.clock, self.reset_count, self.restart_count = 1_000, 1, 0
        self.events: list[Event] = []
        self.pcrs: list[bytes] = []
        self.power_cycle()

    @property
    def ak_name(self) -> bytes:
        return _SHA256.to_bytes(2, "big") + hashlib.sha256(self.ak_public).digest()

    @property
    def ak_spki(self) -> bytes:
        return self._ak.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def ek_spki(self) -> bytes:
        return self._ek.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def declaration(self) -> TpmDeclaration:
        return TpmDeclaration(self.ak_public, self.ek_public, self.certificates)

    def power_cycle(self) -> None:
        self.reset_count += 1
        self.events = []
        self.pcrs = [bytes(32)] * 17 + [b"\xff" * 32] * 6 + [bytes(32)]

    def boot(self, boot: Boot) -> None:
        """A power cycle, and everything that `boot` measures."""
        self.power_cycle()
        for event in boot.events():
            self.measure(event)

    def measure(self, event: Event) -> None:
        self.events.append(event)
        self.pcrs[event.pcr] = hashlib.sha256(self.pcrs[event.pcr] + event.digest(BANK)).digest()

    def cap(self) -> None:
        """What `roomkey-agent cap` does; no log has it."""
        self.pcrs[15] = hashlib.sha256(self.pcrs[15] + hashlib.sha256(b"roomkey cap v1").digest()).digest()

    def quote(self, qualifying_data: bytes) -> tuple[bytes, bytes]:
        """TPMS_ATTEST over all 24 PCRs of the SHA-256 bank, and its TPMT_SIGNATURE."""
        self.clock += 10
        signer = _SHA256.to_bytes(2, "big") + hashlib.sha256(struct.pack(">I", ENDORSEMENT) + self.ak_name).digest()
        attest = (
            struct.pack(">IH", 0xFF544347, 0x8018)
            + _sized(signer)
            + _sized(qualifying_data)
            + struct.pack(">QIIB", self.clock, self.reset_count, self.restart_count, 1)
            + bytes.fromhex("2026010100000001")
            + struct.pack(">IHB3s", 1, _SHA256, 3, b"\xff\xff\xff")
            + _sized(hashlib.sha256(b"".join(self.pcrs)).digest())
        )
        r, s = decode_dss_signature(self._ak.sign(attest, ec.ECDSA(SHA256())))
        signature = struct.pack(">HH", _ECDSA, _SHA256) + b"".join(_sized(n.to_bytes(32, "big")) for n in (r, s))
        return attest, signature

    def activate(self, credential: TpmCredential) -> bytes:
        """The secret in `credential`, if it was made for this EK and AK. Part 1, 24."""
        blob, secret = credential
        if isinstance(self._ek, rsa.RSAPrivateKey):
            seed = self._ek.decrypt(secret, padding.OAEP(padding.MGF1(SHA256()), SHA256(), b"IDENTITY\0"))
        else:
            x, y = (int.from_bytes(secret[at : at + 32], "big") for at in (2, 36))
            point = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
            own = self._ek.public_key().public_numbers().x.to_bytes(32, "big")
            shared = self._ek.exchange(ec.ECDH(), point)
            seed = hashlib.sha256(struct.pack(">I", 1) + shared + b"IDENTITY\0" + secret[2:34] + own).digest()
        tag, sealed = blob[2:34], blob[34:]
        expected = hmac.digest(_kdfa(seed, b"INTEGRITY", b"", 256), sealed + self.ak_name, "sha256")
        if not hmac.compare_digest(tag, expected):
            raise ValueError("this credential is for another key")
        return _cfb_decrypt(_kdfa(seed, b"STORAGE", self.ak_name, 128), sealed)[2:]

    def evidence(self, data: bytes, activation: bytes | None = None, *, log: bool = True) -> dict[str, Any]:
        """Evidence in Roomkey's form; `data` is the report data."""
        qualifying_data = tpm_qualifying_data(data)
        attest, signature = self.quote(qualifying_data)
        evidence: dict[str, Any] = {
            "ak_public": b64.std(self.ak_public),
            "attest": b64.std(attest),
            "signature": b64.std(signature),
            "pcrs": {BANK: {str(index): value.hex() for index, value in enumerate(self.pcrs)}},
        }
        if log:
            evidence["eventlog"] = b64.std(event_log(self.events, (BANK,)))
        if activation is not None:
            proof = activation_proof(activation_proof_key(activation), qualifying_data)
            evidence["activation"] = b64.std(proof)
        return evidence

    def stock_evidence(self, data: bytes) -> dict[str, Any]:
        """Evidence as a stock KBS guest sends it."""
        attest, signature = self.quote(tpm_qualifying_data(data))
        return {
            "tpm_quote": {
                "signature": b64.std(signature),
                "message": b64.std(attest),
                "pcrs": [value.hex() for value in self.pcrs],
            },
            "ak_public": b64.std(self.ak_spki),
        }


class Guest:
    """One handshake: `request` for /auth, `attestation` for /attest, `open` for the resource.

    `declare`: announce the EK certificate and answer with an activation proof. `stock`: speak like a guest that was
    made for another KBS. `key`: its private key, by default a fresh one on P-256.
    """

    def __init__(
        self,
        tpm: FakeTpm,
        *,
        declare: bool = False,
        stock: bool = False,
        log: bool = True,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    ) -> None:
        self.tpm, self._declare, self._stock, self._log = tpm, declare, stock, log
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.activation: bytes | None = None

    @property
    def tee_pubkey(self) -> jwk.TeePubkey:
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return jwk.from_ec(self.key.public_key())
        numbers = self.key.public_key().public_numbers()
        n, e = (b64.url(number.to_bytes((number.bit_length() + 7) // 8, "big")) for number in (numbers.n, numbers.e))
        return jwk.parse({"kty": "RSA", "alg": jwk.ALG_RSA, "n": n, "e": e})

    def request(self, resource: ResourcePath | None = None) -> Request:
        return Request(Tee.TPM, resource, self.tpm.declaration if self._declare else None)

    def attestation(
        self, challenge: Challenge, *, init_data: InitData | None = None, changes: Mapping[str, Any] | None = None
    ) -> Attestation:
        """The answer to `challenge`. `changes` overwrite members of the evidence."""
        if challenge.tpm is not None:
            self.activation = self.tpm.activate(challenge.tpm)
        data = report_data(Tee.TPM, challenge.nonce, self.tee_pubkey.members)
        if self._stock:
            evidence = self.tpm.stock_evidence(data)
        else:
            evidence = self.tpm.evidence(data, self.activation, log=self._log)
        return Attestation(challenge.nonce, self.tee_pubkey, evidence | dict(changes or {}), init_data=init_data)

    def open(self, wrapped: object) -> bytes:
        """The key in the broker's answer."""
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return jwe.unseal(wrapped, self.key, activation=self.activation)
        return _open_rsa(wrapped, self.key)


def _open_rsa(wrapped: Any, key: rsa.RSAPrivateKey) -> bytes:
    parts = {
        name: b64.from_url(wrapped[name], name=name, max_bytes=jwe.MAX_PLAINTEXT_BYTES)
        for name in ("encrypted_key", "iv", "ciphertext", "tag")
    }
    cek = key.decrypt(parts["encrypted_key"], padding.OAEP(padding.MGF1(SHA256()), SHA256(), None))
    return AESGCM(cek).decrypt(parts["iv"], parts["ciphertext"] + parts["tag"], wrapped["protected"].encode())


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _p256(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Curve, no KDF, the point."""
    numbers = key.public_key().public_numbers()
    point = b"".join(_sized(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    return struct.pack(">HH", _P256, _NULL) + point


def _kdfa(seed: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    fixed = struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits)
    return hmac.digest(seed, fixed, "sha256")[: bits // 8]


def _cfb_decrypt(key: bytes, sealed: bytes) -> bytes:
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  one block at a time: CFB
    plain, previous = b"", bytes(16)
    for start in range(0, len(sealed), 16):
        chunk = sealed[start : start + 16]
        plain += bytes(a ^ b for a, b in zip(chunk, block.update(previous), strict=False))
        previous = chunk
    return plain
