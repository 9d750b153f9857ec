# SPDX-License-Identifier: Apache-2.0
"""Azure's HCL report: what the paravisor (host compatibility layer) of a confidential VM keeps in NV 01400001.

It binds the keys of the vTPM to the hardware: a header, the hardware's report (SEV-SNP's or TDX's), and runtime data,
JSON whose hash the hardware report carries as REPORT_DATA. All integers are little-endian; u32 where nothing is said.

    0     "HCLA", version, report size, request type, status, 12 reserved bytes
    32    hardware report, 1184 bytes: SEV-SNP's ATTESTATION_REPORT, or a TDREPORT (1024) and zeros
    1216  size of all that follows (20 + n), version, hardware report type, hash type, n
    1236  n bytes of JSON, then the zeros of the NV area

The checks:

    (1) the header: "HCLA", version 1 or 2, request type 2 (AK certificate), status 0, reserved bytes zero
    (2) the three sizes agree, and all of it is there
    (3) runtime data of version 1, for SEV-SNP or TDX, by SHA-256, SHA-384 or SHA-512; behind a TDREPORT zeros
    (4) nothing but zeros follows
    (5) the JSON is strict (no member twice), and one key of it, no more, is HCLAkPub: RSA of 2048, 3072 or 4096 bits,
        exponent 65537
    (6) the hardware report's REPORT_DATA is the hash of the JSON's bytes as they are, and zeros

Nothing here says that the hardware report is genuine, nor who wrote the JSON: that is the paravisor only where the
hardware report's measurement is known to be the paravisor's.

We know of no specification: the layout is that of real reports, as az-cvm-vtpm (kinvolk/azure-cvm-tooling) reads it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.claims import Fact
from broker.verifiers.reader import Reader
from broker.verifiers.tpm_structures import SHA256, SHA384, SHA512, Hash
from keys import b64, strictjson
from keys.errors import ProtocolError, VerificationError

MAX_HCL_BYTES = 16 * 1024  # the NV area has 2600 today
HEADER_BYTES = 32
HARDWARE_BYTES = 1184
DATA_HEADER_BYTES = 20
REPORT_DATA_BYTES = 64
MAX_KEYS = 16
MAX_TEXT_CHARS = 128  # of a value in vm-configuration
USER_DATA_CHARS = 128  # hex digits
MAX_MODULUS_BYTES = 512  # RSA-4096
MAX_EXPONENT_BYTES = 8
AK = "HCLAkPub"

_MAGIC = b"HCLA"
_VERSIONS = (1, 2)
_AK_CERT_REQUEST = 2
_DATA_VERSION = 1
_HASHES: Mapping[int, Hash] = {1: SHA256, 2: SHA384, 3: SHA512}
_RSA_BITS = (2048, 3072, 4096)
_RSA_EXPONENT = 65537
_HEX = re.compile(r"[0-9A-Fa-f]*\Z")
# What the paravisor says about the VM: member of vm-configuration, name of the fact, type. Others are left alone.
_CONFIGURATION: Mapping[str, tuple[str, type]] = {
    "secure-boot": ("azure_secure_boot", bool),
    "tpm-enabled": ("azure_tpm_enabled", bool),
    "tpm-persisted": ("azure_tpm_persisted", bool),
    "console-enabled": ("azure_console_enabled", bool),
    "root-cert-thumbprint": ("azure_root_cert_thumbprint", str),
    "vmUniqueId": ("azure_vm_unique_id", str),
    "current-time": ("azure_current_time", int),
}


class Hardware(IntEnum):
    """Whose hardware report it is, by its number in the HCL report."""

    SNP = 2
    TDX = 4


_SIZE = {Hardware.SNP: 1184, Hardware.TDX: 1024}
_REPORT_DATA_AT = {Hardware.SNP: 0x50, Hardware.TDX: 128}


@dataclass(frozen=True, slots=True)
class HclReport:
    """An HCL report's parts: `report` is the hardware's own, exact, `runtime_data` the JSON's bytes as they are."""

    version: int
    hardware: Hardware
    report: bytes
    hash_type: int
    runtime_data: bytes

    @property
    def expected_report_data(self) -> bytes:
        """The 64 bytes that bind the runtime data to the hardware report."""
        return _HASHES[self.hash_type].digest(self.runtime_data).ljust(REPORT_DATA_BYTES, b"\0")

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the hardware report carries."""
        at = _REPORT_DATA_AT[self.hardware]
        return self.report[at : at + REPORT_DATA_BYTES]


@dataclass(frozen=True, slots=True)
class RuntimeData:
    """What the paravisor says: its vTPM's attestation key, the names of all keys, the VM's configuration as it stands,
    and the 64 bytes that the guest last asked it to have in a fresh hardware report (None where it says nothing).
    """

    ak: rsa.RSAPublicKey
    keys: tuple[str, ...]
    configuration: Mapping[str, Any]
    user_data: bytes | None

    @property
    def ak_id(self) -> str:
        """The AK's name as an instance: "az-ak:" and the SHA-256 of its SubjectPublicKeyInfo, lower-case hex."""
        spki = self.ak.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"az-ak:{sha256(spki).hexdigest()}"

    @property
    def facts(self) -> dict[str, Fact]:
        """The known members of the configuration: as good as the paravisor that wrote them."""
        known = _CONFIGURATION.items()
        return {fact: self.configuration[name] for name, (fact, _) in known if name in self.configuration}


def parse_hcl(raw: bytes) -> HclReport:
    """The HCL report in `raw`, checks (1) to (4). Raises VerificationError."""
    if len(raw) > MAX_HCL_BYTES:
        raise VerificationError("the HCL report is too long", expected=f"at most {MAX_HCL_BYTES} bytes")
    read = Reader(raw, "the HCL report", "little")
    version, report_size = _header(read)  # (1)
    hardware_report = read.take(HARDWARE_BYTES)
    data_size, data_version = read.uint(4), read.uint(4)
    kind, hash_type, size = read.uint(4), read.uint(4), read.uint(4)
    # (2) each says the same in its own way, so that no reader can take another part for the hashed one
    sizes = DATA_HEADER_BYTES + size, HEADER_BYTES + HARDWARE_BYTES + DATA_HEADER_BYTES + size
    _equal("sizes", (data_size, report_size), (sizes,))
    runtime_data = read.take(size)
    # (3) from here on it is clear what the hardware report is
    _equal("version of runtime data", data_version, (_DATA_VERSION,))
    _equal("hardware report type", kind, tuple(Hardware))
    _equal("hash type", hash_type, tuple(_HASHES))
    end = _SIZE[Hardware(kind)]
    _zeros(hardware_report[end:], "behind the hardware report")
    _zeros(read.take(read.left), "behind the runtime data")  # (4)
    return HclReport(version, Hardware(kind), hardware_report[:end], hash_type, runtime_data)


def _header(read: Reader) -> tuple[int, int]:
    """Check (1): version and report size."""
    _equal("signature", read.take(4), (_MAGIC,))
    version, report_size, request, status = (read.uint(4) for _ in range(4))
    _equal("version", version, _VERSIONS)
    _equal("request type", request, (_AK_CERT_REQUEST,))
    _equal("status", status, (0,))
    _zeros(read.take(12), "reserved")
    return version, report_size


def _equal(what: str, found: object, allowed: Sequence[object]) -> None:
    if found not in allowed:
        raise VerificationError(
            f"the HCL report's {what} is not allowed", expected=" or ".join(map(str, allowed)), found=str(found)
        )


def _zeros(data: bytes, where: str) -> None:
    if any(data):
        raise VerificationError(f"the HCL report holds something {where}", expected="zeros")


def read_runtime_data(data: bytes) -> RuntimeData:
    """The paravisor's JSON, check (5). Members that are not known are left alone: paravisors add some, and the hash is
    over all of it. Raises VerificationError.
    """
    with _runtime_errors():
        value = strictjson.loads(data, name="runtime data", max_bytes=MAX_HCL_BYTES)
        if not isinstance(value, dict):
            raise ProtocolError("runtime data must be a JSON object")
        keys = _keys(value.get("keys"))
        aks = [key for key in keys if key["kid"] == AK]
        if len(aks) != 1:
            raise ProtocolError(f"runtime data must have one {AK}", expected="1", found=str(len(aks)))
        return RuntimeData(
            ak=_rsa_key(aks[0]),
            keys=tuple(key["kid"] for key in keys),
            configuration=_configuration(value.get("vm-configuration")),
            user_data=_user_data(value["user-data"]) if "user-data" in value else None,
        )


def check_binding(report: HclReport) -> None:
    """Check (6). Raises VerificationError."""
    expected = report.expected_report_data
    if not hmac.compare_digest(report.report_data, expected):
        raise VerificationError(
            "the hardware report's REPORT_DATA is not the hash of the runtime data",
            expected=expected.hex(),
            found=report.report_data.hex(),
            mend="read the HCL report from the vTPM again, and change nothing in it",
        )


def _keys(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > MAX_KEYS:
        raise ProtocolError("runtime data's keys must be a list", expected=f"at most {MAX_KEYS} keys")
    for key in value:
        if not isinstance(key, dict):
            raise ProtocolError("a key must be a JSON object")
        strictjson.string(key.get("kid"), name="a key's kid", max_chars=MAX_TEXT_CHARS)
    return value


def _rsa_key(key: Mapping[str, Any]) -> rsa.RSAPublicKey:
    """A JWK's public key. RFC 7518, section 6.3.1."""
    modulus = int.from_bytes(b64.from_url(key.get("n"), name=f"{AK}.n", max_bytes=MAX_MODULUS_BYTES), "big")
    exponent = int.from_bytes(b64.from_url(key.get("e"), name=f"{AK}.e", max_bytes=MAX_EXPONENT_BYTES), "big")
    allowed = modulus.bit_length() in _RSA_BITS and modulus % 2 == 1 and exponent == _RSA_EXPONENT
    if key.get("kty") != "RSA" or not allowed:
        raise ProtocolError(
            f"{AK} is not allowed",
            expected=f"RSA, an odd modulus of 2048, 3072 or 4096 bits and exponent {_RSA_EXPONENT}",
            found=f"{modulus.bit_length()} bits, exponent {exponent}",
        )
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _configuration(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError("vm-configuration must be a JSON object")
    for name, (_, kind) in _CONFIGURATION.items():
        if name in value and type(value[name]) is not kind:
            raise ProtocolError(f"vm-configuration.{name} has another type", expected=kind.__name__)
        if kind is str and name in value:
            strictjson.string(value[name], name=f"vm-configuration.{name}", max_chars=MAX_TEXT_CHARS)
    return value


def _user_data(value: object) -> bytes:
    text = strictjson.string(value, name="user-data", max_chars=USER_DATA_CHARS)
    if len(text) != USER_DATA_CHARS or not _HEX.match(text):
        raise ProtocolError("user-data must be hex", expected=f"{USER_DATA_CHARS} digits", found=f"{len(text)}")
    return bytes.fromhex(text)


@contextmanager
def _runtime_errors() -> Iterator[None]:
    """The one place where what is wrong with the JSON becomes a fault of the evidence."""
    try:
        yield
    except ProtocolError as error:
        raise VerificationError(
            f"the HCL report's runtime data: {error.message}", expected=error.expected, found=error.found
        ) from None
