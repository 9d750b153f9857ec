# SPDX-License-Identifier: Apache-2.0
"""Evidence of Azure's confidential VMs on SEV-SNP as JSON. Shapes only; nothing is judged here.

    {"version": 1 or 2, "tpm_quote": {"signature", "message", "pcrs": [24 values]}, "hcl_report", "vcek"?}
        the quote in lower-case hex, HCL report and certificate (DER) in base64url, padded
    {"quote": {"signature", "message", "pcrs": [24 values]}, "report", "vcek"?}
        version 0, which does not say so: bytes as lists of numbers, the certificate as PEM text

The signature is the raw RSA signature. In version 2 the guest has put its report data into the runtime data before it
read the HCL report. KBS protocol (confidential-containers/trustee), evidence of az-snp-vtpm.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from broker.verifiers.hcl import MAX_HCL_BYTES
from broker.verifiers.snp_cert_table import MAX_CERTIFICATE_BYTES
from broker.verifiers.tpm_quote import PcrValues
from broker.verifiers.tpm_structures import MAX_RSA_BYTES, PCR_COUNT, SHA256
from keys import b64, strictjson
from keys.errors import ProtocolError

MAX_ATTEST_BYTES = 1024  # TPMS_ATTEST
VERSIONS = (1, 2)  # those that are named

_NAMED = frozenset(("version", "tpm_quote", "hcl_report"))
_OLD = frozenset(("quote", "report"))
_VCEK = frozenset(("vcek",))
_QUOTE = frozenset(("signature", "message", "pcrs"))
_HEX = re.compile(r"(?:[0-9a-f]{2})*\Z")

Read = Callable[[object, str, int], bytes]  # value, its name in errors, how many bytes it may have


@dataclass(frozen=True, slots=True)
class AzQuote:
    """A quote of an Azure vTPM: TPMS_ATTEST, the raw RSA signature, and the values of PCR 0 to 23, SHA-256."""

    attest: bytes
    signature: bytes
    pcrs: PcrValues


@dataclass(frozen=True, slots=True)
class AzSnpEvidence:
    """Decoded evidence. `vcek` is DER or PEM, None where the guest sent none."""

    version: int
    quote: AzQuote
    hcl_report: bytes
    vcek: bytes | None


def decode_evidence(value: object) -> AzSnpEvidence:
    """`value`, a parsed JSON object of version 0, 1 or 2. Raises ProtocolError that names the wrong member."""
    name = "Azure SNP evidence"
    if isinstance(value, dict) and "version" in value:
        members = strictjson.members(value, name=name, required=_NAMED, optional=_VCEK)
        version = members["version"]
        if type(version) is not int or version not in VERSIONS:
            raise ProtocolError("version is unknown", expected="1 or 2")
        return AzSnpEvidence(
            version=version,
            quote=decode_quote(members["tpm_quote"], name="tpm_quote"),
            hcl_report=_padded(members["hcl_report"], "hcl_report", MAX_HCL_BYTES),
            vcek=_padded(members["vcek"], "vcek", MAX_CERTIFICATE_BYTES) if "vcek" in members else None,
        )
    members = strictjson.members(value, name=name, required=_OLD, optional=_VCEK)
    vcek = None
    if "vcek" in members:
        vcek = _pem(members["vcek"], "vcek")
    return AzSnpEvidence(
        version=0,
        quote=_quote(members["quote"], "quote", _octets),
        hcl_report=_octets(members["report"], "report", MAX_HCL_BYTES),
        vcek=vcek,
    )


def decode_quote(value: object, *, name: str) -> AzQuote:
    """A quote of version 1 and later, {"signature", "message", "pcrs"} in hex. Raises ProtocolError."""
    return _quote(value, name, _hex)


def _quote(value: object, name: str, read: Read) -> AzQuote:
    """The values get the names that the guest means; the verifier compares these names with the signed ones."""
    members = strictjson.members(value, name=name, required=_QUOTE)
    values = members["pcrs"]
    if not isinstance(values, list) or len(values) != PCR_COUNT:
        raise ProtocolError(f"{name}.pcrs must be a list", expected=f"{PCR_COUNT} values")
    pcrs = {index: read(item, f"{name}.pcrs.{index}", SHA256.size) for index, item in enumerate(values)}
    return AzQuote(
        attest=read(members["message"], f"{name}.message", MAX_ATTEST_BYTES),
        signature=read(members["signature"], f"{name}.signature", MAX_RSA_BYTES),
        pcrs={SHA256.name: pcrs},
    )


def _hex(value: object, name: str, max_bytes: int) -> bytes:
    text = strictjson.string(value, name=name, max_chars=2 * max_bytes)
    if not _HEX.match(text):
        raise ProtocolError(f"{name} must be lower-case hex")
    return bytes.fromhex(text)


def _octets(value: object, name: str, max_bytes: int) -> bytes:
    """A list of numbers 0 to 255; true and false are none."""
    if not isinstance(value, list) or len(value) > max_bytes:
        raise ProtocolError(f"{name} must be a list of bytes", expected=f"at most {max_bytes} numbers")
    if any(type(item) is not int or not 0 <= item <= 0xFF for item in value):
        raise ProtocolError(f"{name} must hold bytes", expected="numbers 0 to 255")
    return bytes(value)


def _pem(value: object, name: str) -> bytes:
    text = strictjson.string(value, name=name, max_chars=MAX_CERTIFICATE_BYTES)
    if not text.isascii():
        raise ProtocolError(f"{name} must be PEM")
    return text.encode()


def _padded(value: object, name: str, max_bytes: int) -> bytes:
    """Base64url with its padding, in the one spelling that its bytes have."""
    bare = strictjson.string(value, name=name, max_chars=(max_bytes + 2) // 3 * 4).rstrip("=")
    if value != bare + "=" * (-len(bare) % 4):
        raise ProtocolError(f"{name} must be padded base64url")
    return b64.from_url(bare, name=name, max_bytes=max_bytes)
