# SPDX-License-Identifier: Apache-2.0
"""Evidence files: what `roomkey-agent evidence` writes, and owners enrol machines and images from.

    {"tee": "tpm",
     "instance": {"ak_public": b64 TPMT_PUBLIC, "ak_name": hex,
                  "ek_public": b64 TPMT_PUBLIC or null, "ek_certificates": [b64 DER, leaf first]},
     "evidence": {...primary evidence...},
     "report_data": b64}

Without a certificate for its endorsement key a TPM has null and [] there. Of `snp` the instance is {"snp_chip_id": hex}
or {"snp_csp_id": text}, or like that of `az-snp-vtpm` {} or missing: what names such a machine stands in the evidence.
Nothing in a file vouches for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.cli.options import read_input
from broker.verifiers import az_vtpm_evidence, snp_evidence
from broker.verifiers.hcl import parse_hcl, read_runtime_data
from broker.verifiers.snp_certificates import read_vek
from broker.verifiers.snp_evidence import CertificateKind
from broker.verifiers.snp_report import CHIP_ID_BYTES, SigningKey, parse_report
from broker.verifiers.tpm_structures import parse_public
from keys import b64, strictjson
from keys.errors import ConfigError, ProtocolError, RoomkeyError
from keys.messages import MAX_CERTIFICATE_BYTES, MAX_CERTIFICATES, MAX_PUBLIC_BYTES
from keys.tee import Tee

MAX_EVIDENCE_BYTES = 512 * 1024
_TPM = frozenset(("ak_public", "ak_name", "ek_public", "ek_certificates"))
_SNP = frozenset(("snp_chip_id", "snp_csp_id"))


class EvidenceFile(NamedTuple):
    """`raw` is the whole file, for the verifier. `keys` is what the machine is enrolled by, under the names and in the
    form that `PUT /v1/instances` takes. `ak_name` (hex, of a TPM) is computed, never taken over.
    """

    raw: bytes
    tee: Tee
    keys: Mapping[str, str]
    ak_name: str = ""


def read_evidence(path: Path) -> EvidenceFile:
    """The evidence file in `path`, `-` for standard input. Raises ConfigError."""
    raw = read_input(path, max_bytes=MAX_EVIDENCE_BYTES)
    try:
        return _parse(raw)
    except RoomkeyError as error:
        raise ConfigError(
            f"{path} is not an evidence file: {error.message}",
            expected=error.expected,
            found=error.found,
            mend=error.mend or "make one in the guest: roomkey-agent evidence > guest.json",
        ) from None


def _parse(raw: bytes) -> EvidenceFile:
    document = strictjson.members(
        strictjson.loads(raw, name="the file", max_bytes=MAX_EVIDENCE_BYTES),
        name="the file",
        required=frozenset(("tee", "evidence")),
        optional=frozenset(("instance", "report_data")),
    )
    tee = document["tee"]
    if not isinstance(tee, str) or tee not in _READERS:
        raise ProtocolError(
            "it is of a platform that cannot be enrolled", expected=", ".join(_READERS), found=str(tee)[:32]
        )
    keys = _READERS[Tee(tee)](document["evidence"], document.get("instance", {}))
    ak_name = ""
    if tee == Tee.TPM:
        ak_name = parse_public(_bytes(keys["ak_public"], "ak_public", MAX_PUBLIC_BYTES)).name.hex()
    return EvidenceFile(raw, Tee(tee), keys, ak_name)


def _tpm(evidence: Any, instance: object) -> dict[str, str]:
    described = strictjson.members(instance, name="instance", required=_TPM)
    _bytes(described["ak_public"], "ak_public", MAX_PUBLIC_BYTES)
    if not isinstance(evidence, dict) or evidence.get("ak_public") != described["ak_public"]:
        raise ProtocolError("its instance and its evidence name different attestation keys")
    keys = {"ak_public": described["ak_public"]}
    if described["ek_public"] is not None:
        _bytes(described["ek_public"], "ek_public", MAX_PUBLIC_BYTES)
        keys["ek_public"] = described["ek_public"]
    certificates = described["ek_certificates"]
    if not isinstance(certificates, list) or len(certificates) > MAX_CERTIFICATES:
        raise ProtocolError("ek_certificates must be a list", expected=f"at most {MAX_CERTIFICATES} certificates")
    for der in certificates:
        _bytes(der, "ek_certificates", MAX_CERTIFICATE_BYTES)
    return keys | ({"ek_certificate": certificates[0]} if certificates else {})


def _snp(evidence: Any, instance: object) -> dict[str, str]:
    """The chip, or with a VLEK the provider."""
    described = strictjson.members(instance, name="instance", required=frozenset(), optional=_SNP)
    decoded = snp_evidence.decode_evidence(evidence)
    report = parse_report(decoded.report)
    keys: dict[str, str] = {}
    if report.signing_key is SigningKey.VLEK:
        vlek = decoded.certificates.get(CertificateKind.VLEK)
        csp_id = None if vlek is None else read_vek(vlek).csp_id
        if csp_id is None:
            raise ProtocolError("it lacks the certificate of the VLEK that signed", mend="give the name with --csp-id")
        keys["snp_csp_id"] = csp_id
    elif not any(report.chip_id):
        raise ProtocolError("its host masks CHIP_ID", mend="give the chip's hardware id with --chip-id")
    else:
        keys["snp_chip_id"] = report.chip_id.hex()
    chip_id = described.get("snp_chip_id")
    if isinstance(chip_id, str):  # Turin's is the first 8 bytes of the field
        described["snp_chip_id"] = chip_id.ljust(2 * CHIP_ID_BYTES, "0")
    if any(keys.get(member) != value for member, value in described.items()):
        raise ProtocolError("its instance and its evidence name different machines")
    return keys


def _az_snp_vtpm(evidence: Any, instance: object) -> dict[str, str]:
    """The vTPM: Azure moves a guest from chip to chip."""
    strictjson.members(instance, name="instance", required=frozenset())
    decoded = az_vtpm_evidence.decode_evidence(evidence)
    key = read_runtime_data(parse_hcl(decoded.hcl_report).runtime_data).ak
    return {"az_ak": b64.std(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))}


_READERS: Mapping[Tee, Callable[[Any, object], dict[str, str]]] = {
    Tee.TPM: _tpm,
    Tee.SNP: _snp,
    Tee.AZ_SNP_VTPM: _az_snp_vtpm,
}


def _bytes(text: object, name: str, max_bytes: int) -> bytes:
    return b64.from_std(text, name=name, max_bytes=max_bytes)
