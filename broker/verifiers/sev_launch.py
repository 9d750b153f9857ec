# SPDX-License-Identifier: Apache-2.0
"""A launch session with an AMD processor, and what its measurement proves. SEV and SEV-ES.

AMD 55766, Secure Encrypted Virtualization API, 2.2 (key derivation), 6.2 LAUNCH_START, 6.5 LAUNCH_MEASURE. The owner
shares two keys (TEK, TIK) with the processor before the guest starts; whoever can compute an HMAC with TIK is that
processor. Pure: ephemeral key, nonce, IV, TEK and TIK come in as arguments.

    Z       = ECDH(ephemeral key, PDH): the x coordinate, 48 bytes big-endian
    master  = KDF(Z, "sev-master-secret", nonce);  kek = KDF(master, "sev-kek");  kik = KDF(master, "sev-kik")
    wrap    = AES-128-CTR(kek, IV, TEK || TIK)
    session = nonce (16) || wrap (32) || IV (16) || HMAC-SHA256(kik, wrap) || HMAC-SHA256(TIK, policy u32)

KDF is NIST SP 800-108 in counter mode with HMAC-SHA256. The guest policy is in the session under TIK, so the host
cannot start the guest with another; the measurement has it once more.

    measure = HMAC-SHA256(TIK, 0x04 || API major u8 || API minor u8 || build u8 || policy u32 || launch digest (32)
                               || nonce of the processor (16))

API version and build come from the host and are the firmware's own words under TIK: they are consistent, not proven.
An old firmware with a hole in it has the same CEK. The launch digest is SHA-256 over what was loaded.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from broker.verifiers.sev_certificates import (
    ECDH_SHA256,
    INTEGER_BYTES,
    NO_ALGORITHM,
    P384,
    PUBLIC_KEY,
    SLOT_BYTES,
    SLOTS,
    VERSION,
    Usage,
)
from keys.errors import ProtocolError
from keys.sev_packet import IV_BYTES, KEY_BYTES, MEASURE_BYTES, LaunchKeys

NONCE_BYTES = 16
SESSION_BYTES = 128
DIGEST_BYTES = 32
MEASUREMENT_BYTES = MEASURE_BYTES + NONCE_BYTES
MIN_API = (0, 17)  # older firmware does not bind a packet to one launch

# Bits of the guest policy (table 2). Each forbids the host something, or (ES, SEV) the guest to be anything else.
POLICY_BITS: Mapping[str, int] = {"nodbg": 0, "noks": 1, "es": 2, "nosend": 3, "domain": 4, "sev": 5}
NODBG, NOKS, ES, NOSEND, DOMAIN, SEV = (1 << bit for bit in POLICY_BITS.values())
STRICT_POLICY = NODBG | NOKS | NOSEND | DOMAIN | SEV

_MEASURE_CONTEXT = b"\x04"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the host brings from LAUNCH_MEASURE, and what it says of its firmware. `api`: major, minor."""

    measure: bytes
    mnonce: bytes
    api: tuple[int, int]
    build: int


@dataclass(frozen=True, slots=True)
class Session:
    """What LAUNCH_START takes: the owner's ephemeral public key as a SEV certificate (GODH, 2084 bytes), the session
    (128 bytes).
    """

    godh: bytes = field(repr=False)
    blob: bytes = field(repr=False)


def parse_measurement(blob: bytes, *, api: tuple[int, int], build: int) -> Measurement:
    """LAUNCH_MEASURE's 48 bytes and the numbers (one byte each) that belong to them. Raises ProtocolError."""
    if len(blob) != MEASUREMENT_BYTES:
        found = str(len(blob))
        raise ProtocolError("measurement has another length", expected=f"{MEASUREMENT_BYTES} bytes", found=found)
    for name, number in (("api_major", api[0]), ("api_minor", api[1]), ("build_id", build)):
        if not 0 <= number <= 0xFF:
            raise ProtocolError(f"{name} is not one byte", expected="0 to 255", found=str(number))
    return Measurement(blob[:MEASURE_BYTES], blob[MEASURE_BYTES:], api, build)


def policy_of(bits: int, api: tuple[int, int] = (0, 0)) -> int:
    """The guest policy with these bits, for firmware of at least this API version, which the processor checks."""
    return bits | api[0] << 16 | api[1] << 24


def make_session(
    keys: LaunchKeys, policy: int, *, ephemeral: ec.EllipticCurvePrivateKey, pdh: ec.EllipticCurvePublicKey,
    nonce: bytes, iv: bytes,
) -> Session:  # fmt: skip
    """A session with the processor that has `pdh`. `ephemeral` (P-384), `nonce` and `iv` (16 bytes each) are fresh."""
    return Session(
        _godh(ephemeral.public_key()), session_blob(ephemeral.exchange(ec.ECDH(), pdh), keys, policy, nonce, iv)
    )


def session_blob(shared: bytes, keys: LaunchKeys, policy: int, nonce: bytes, iv: bytes) -> bytes:
    """The session's 128 bytes for the shared secret Z."""
    if (len(keys.tek), len(keys.tik), len(nonce), len(iv)) != (KEY_BYTES, KEY_BYTES, NONCE_BYTES, IV_BYTES):
        raise RuntimeError("a launch session has a part of the wrong length")
    master = derive(shared, b"sev-master-secret", nonce)
    kek, kik = derive(master, b"sev-kek"), derive(master, b"sev-kik")
    encryptor = Cipher(algorithms.AES(kek), modes.CTR(iv)).encryptor()
    wrap = encryptor.update(keys.tek + keys.tik) + encryptor.finalize()
    wrap_mac = hmac.digest(kik, wrap, "sha256")
    policy_mac = hmac.digest(keys.tik, struct.pack("<I", policy), "sha256")
    return nonce + wrap + iv + wrap_mac + policy_mac


def derive(key: bytes, label: bytes, context: bytes = b"") -> bytes:
    """16 bytes: the first block of NIST SP 800-108 (counter mode, HMAC-SHA256), numbers little-endian as AMD has it."""
    block = struct.pack("<I", 1) + label + b"\0" + context + struct.pack("<I", 8 * KEY_BYTES)
    return hmac.digest(key, block, "sha256")[:KEY_BYTES]


def measure(tik: bytes, measurement: Measurement, policy: int, digest: bytes) -> bytes:
    """What LAUNCH_MEASURE gives for a guest with this launch digest (32 bytes)."""
    major, minor = measurement.api
    words = struct.pack("<BBBI", major, minor, measurement.build, policy)
    return hmac.digest(tik, _MEASURE_CONTEXT + words + digest + measurement.mnonce, "sha256")


def fitting_digest(tik: bytes, measurement: Measurement, policy: int, digests: Iterable[str]) -> str | None:
    """The one of `digests` (hex) that was launched, or None. Every one is tried, each compared in constant time."""
    found = None
    for digest in digests:
        if hmac.compare_digest(measure(tik, measurement, policy, bytes.fromhex(digest)), measurement.measure):
            found = digest
    return found


def _godh(key: ec.EllipticCurvePublicKey) -> bytes:
    numbers = key.public_numbers()
    header = struct.pack("<IBBHII", VERSION, 0, 0, 0, Usage.PDH, ECDH_SHA256)
    point = b"".join(number.to_bytes(INTEGER_BYTES, "little") for number in (numbers.x, numbers.y))
    public_key = struct.pack("<I", P384) + point
    body = header + public_key + bytes(PUBLIC_KEY.stop - PUBLIC_KEY.start - len(public_key))
    empty = struct.pack("<II", Usage.INV, NO_ALGORITHM) + bytes(SLOT_BYTES - 8)
    return body + empty * len(SLOTS)
