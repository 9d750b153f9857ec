# SPDX-License-Identifier: Apache-2.0
"""Evidence files: what `roomkey-agent evidence` writes, and owners enrol machines and images from.

    {"tee": "tpm",
     "instance": {"ak_public": b64 TPMT_PUBLIC, "ak_name": hex,
                  "ek_public": b64 TPMT_PUBLIC or null, "ek_certificates": [b64 DER, leaf first]},
     "evidence": {...primary evidence...},
     "report_data": b64}

Without a certificate for its endorsement key a TPM has null and [] there. Nothing in a file vouches for itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from broker.cli.options import read_input
from broker.verifiers.tpm_structures import parse_public
from keys import b64, strictjson
from keys.errors import ConfigError, ProtocolError, RoomkeyError
from keys.messages import MAX_CERTIFICATE_BYTES, MAX_CERTIFICATES, MAX_PUBLIC_BYTES
from keys.tee import Tee

MAX_EVIDENCE_BYTES = 512 * 1024
_INSTANCE = frozenset(("ak_public", "ak_name", "ek_public", "ek_certificates"))


class EvidenceFile(NamedTuple):
    """`raw` is the whole file, for the verifier. `ak_name` (hex) is computed from `ak_public`, never taken over."""

    raw: bytes
    ak_public: bytes
    ak_name: str
    ek_public: bytes | None
    ek_certificates: tuple[bytes, ...]


def read_evidence(path: Path) -> EvidenceFile:
    """The TPM evidence file in `path`, `-` for standard input. Raises ConfigError."""
    raw = read_input(path, max_bytes=MAX_EVIDENCE_BYTES)
    try:
        return _parse(raw)
    except RoomkeyError as error:
        raise ConfigError(
            f"{path} is not an evidence file: {error.message}",
            expected=error.expected,
            found=error.found,
            mend="make one in the guest: roomkey-agent evidence > guest.json",
        ) from None


def _parse(raw: bytes) -> EvidenceFile:
    document = strictjson.members(
        strictjson.loads(raw, name="the file", max_bytes=MAX_EVIDENCE_BYTES),
        name="the file",
        required=frozenset(("tee", "instance", "evidence")),
        optional=frozenset(("report_data",)),
    )
    if document["tee"] != Tee.TPM:
        raise ProtocolError("it is of a platform that cannot be enrolled", expected=Tee.TPM, found=str(document["tee"]))
    instance = strictjson.members(document["instance"], name="instance", required=_INSTANCE)
    ak_public = _bytes(instance["ak_public"], "ak_public", MAX_PUBLIC_BYTES)
    evidence: Any = document["evidence"]
    if not isinstance(evidence, dict) or evidence.get("ak_public") != instance["ak_public"]:
        raise ProtocolError("its instance and its evidence name different attestation keys")
    ek_public, certificates = instance["ek_public"], instance["ek_certificates"]
    if not isinstance(certificates, list) or len(certificates) > MAX_CERTIFICATES:
        raise ProtocolError("ek_certificates must be a list", expected=f"at most {MAX_CERTIFICATES} certificates")
    return EvidenceFile(
        raw,
        ak_public,
        parse_public(ak_public).name.hex(),
        None if ek_public is None else _bytes(ek_public, "ek_public", MAX_PUBLIC_BYTES),
        tuple(_bytes(der, "ek_certificates", MAX_CERTIFICATE_BYTES) for der in certificates),
    )


def _bytes(text: object, name: str, max_bytes: int) -> bytes:
    return b64.from_std(text, name=name, max_bytes=max_bytes)
