# SPDX-License-Identifier: Apache-2.0
"""Evidence files as `roomkey-agent evidence` writes them, of a guest in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from keys import b64
from tests.fakes.boot import Boot
from tests.fakes.tpm_guest import FakeTpm


def booted(boot: Boot | None = None, **options: Any) -> FakeTpm:
    """A TPM that has measured `boot`."""
    tpm = FakeTpm(**options)
    tpm.boot(boot or Boot())
    return tpm


def evidence_document(tpm: FakeTpm, report_data: bytes = bytes(range(48))) -> dict[str, Any]:
    certified = bool(tpm.certificates)
    return {
        "tee": "tpm",
        "instance": {
            "ak_public": b64.std(tpm.ak_public),
            "ak_name": tpm.ak_name.hex(),
            "ek_public": b64.std(tpm.ek_public) if certified else None,
            "ek_certificates": [b64.std(der) for der in tpm.certificates],
        },
        "evidence": tpm.evidence(report_data),
        "report_data": b64.std(report_data),
    }


def write_evidence(path: Path, tpm: FakeTpm) -> Path:
    path.write_text(json.dumps(evidence_document(tpm), indent=2))
    return path
