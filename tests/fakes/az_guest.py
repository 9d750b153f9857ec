# SPDX-License-Identifier: Apache-2.0
"""A confidential VM on Azure: a paravisor with a vTPM in it, on a throw-away chip of `tests.fakes.amd`.

Written from the format and from real HCL reports, not from the broker's code. Everything is as Azure has it, and can be
made otherwise.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keys import b64
from tests.fakes import tpm_forge as forge
from tests.fakes.amd import Chip
from tests.fakes.boot import Boot

NV_BYTES = 2600  # of the NV area that holds the HCL report
POLICY = 0x3001F
ID_KEY_DIGEST = bytes(range(0x60, 0x90))  # whose key signs the paravisor's launch
ALL_PCRS = (("sha256", tuple(range(24))),)
CONFIGURATION = {
    "console-enabled": True,
    "root-cert-thumbprint": "6nZZnYaJc4KqUZ_yvA-mucFdYNouvlPnITnNMXsHl-0",
    "secure-boot": True,
    "tpm-enabled": True,
    "tpm-persisted": True,
    "vmUniqueId": "3B09DD36-2237-4532-A5A6-C4624BE05DD6",
}
HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}


class AzGuest:
    """`ak` is the vTPM's attestation key; `fields` are what the hardware report says otherwise (`amd.FIELDS`)."""

    def __init__(self, chip: Chip, *, ak: rsa.RSAPrivateKey | None = None, boot: Boot | None = None, **fields: Any):
        self.chip, self.ak = chip, ak or forge.rsa_key()
        self.fields: dict[str, Any] = {"policy": POLICY, "guest_svn": 0x10009, "id_key_digest": ID_KEY_DIGEST} | fields
        self.pcrs = [bytes(32)] * 17 + [b"\xff" * 32] * 6 + [bytes(32)]
        for event in (boot or Boot()).events():
            self.extend(event.pcr, event.digest("sha256"))

    @property
    def ak_id(self) -> str:
        spki = self.ak.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"az-ak:{hashlib.sha256(spki).hexdigest()}"

    def extend(self, pcr: int, digest: bytes) -> None:
        self.pcrs[pcr] = hashlib.sha256(self.pcrs[pcr] + digest).digest()

    def runtime(self, user_data: bytes = b"") -> bytes:
        """The paravisor's JSON, with what the guest wrote for it to repeat."""
        return runtime_data([jwk("HCLAkPub", self.ak), jwk("HCLEkPub", self.ak)], user_data=user_data)

    def hcl(self, runtime: bytes, **otherwise: Any) -> bytes:
        """The HCL report over `runtime`; `otherwise` as for `hcl_report`."""
        report = self.chip.report(digest(runtime), **self.fields)
        return hcl_report(report, runtime, **otherwise)

    def quote(self, data: bytes) -> forge.Quote:
        """A quote to be, over all PCRs, with the whole `data` as extraData."""
        values = dict(enumerate(self.pcrs))
        return forge.Quote(self.ak, extra_data=data, banks=ALL_PCRS, pcrs={"sha256": values})

    def evidence(self, data: bytes, version: int = 2) -> dict[str, Any]:
        """Evidence in JSON; `data` is the report data."""
        runtime = self.runtime(data if version == 2 else b"")
        attest = self.quote(data).attest()
        return evidence(version, attest, sign(self.ak, attest), self.pcrs, self.hcl(runtime), self.chip.vek)


def jwk(kid: str, key: rsa.RSAPrivateKey, **members: Any) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    n = b64.url(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big"))
    return {"kid": kid, "key_ops": ["sign"], "kty": "RSA", "e": "AQAB", "n": n} | members


def runtime_data(keys: Any, members: Mapping[str, Any] | None = None, *, user_data: bytes = b"") -> bytes:
    """The JSON as the paravisor writes it; `members` overwrite its members."""
    value = {
        "keys": keys,
        "vm-configuration": CONFIGURATION,
        "user-data": user_data.ljust(64, b"\0").hex().upper(),
    }
    return compact(value | dict(members or {}))


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def digest(runtime: bytes, hash_type: int = 1) -> bytes:
    """The REPORT_DATA that binds the JSON: 64 bytes."""
    return hashlib.new(HASHES[hash_type], runtime).digest().ljust(64, b"\0")


def hcl_report(
    report: bytes,
    runtime: bytes,
    *,
    magic: bytes = b"HCLA",
    version: int = 2,
    report_size: int | None = None,
    request: int = 2,
    status: int = 0,
    reserved: bytes = bytes(12),
    data_size: int | None = None,
    data_version: int = 1,
    hardware: int = 2,
    hash_type: int = 1,
    size: int | None = None,
    tail: bytes | None = None,
) -> bytes:
    """An HCL report of these parts, filled up to the size of its NV area if `tail` does not say otherwise."""
    variable = len(runtime)
    whole = 32 + 1184 + 20 + variable
    raw = magic + struct.pack("<4I", version, whole if report_size is None else report_size, request, status) + reserved
    raw += report.ljust(1184, b"\0")
    raw += struct.pack(
        "<5I",
        20 + variable if data_size is None else data_size,
        data_version,
        hardware,
        hash_type,
        variable if size is None else size,
    )
    raw += runtime
    return raw + (bytes(max(0, NV_BYTES - len(raw))) if tail is None else tail)


def sign(key: rsa.RSAPrivateKey, attest: bytes) -> bytes:
    """The raw signature of an Azure vTPM."""
    return key.sign(attest, padding.PKCS1v15(), SHA256())


def evidence(
    version: int, attest: bytes, signature: bytes, pcrs: list[bytes], hcl: bytes, vcek: bytes
) -> dict[str, Any]:
    """Evidence of this version. `vcek`: DER."""
    if version == 0:
        quote: dict[str, Any] = {"signature": list(signature), "message": list(attest), "pcrs": [*map(list, pcrs)]}
        lines = base64.encodebytes(vcek).decode()
        pem = f"-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n"
        return {"quote": quote, "report": list(hcl), "vcek": pem}
    quote = {"signature": signature.hex(), "message": attest.hex(), "pcrs": [value.hex() for value in pcrs]}
    hcl_text, vcek_text = (base64.urlsafe_b64encode(data).decode() for data in (hcl, vcek))
    return {"version": version, "tpm_quote": quote, "hcl_report": hcl_text, "vcek": vcek_text}
