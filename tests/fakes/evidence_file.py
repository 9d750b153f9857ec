# SPDX-License-Identifier: Apache-2.0
"""Evidence files as `roomkey-agent evidence` writes them, of a guest in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from keys import b64
from keys.binding import tpm_qualifying_data
from tests.fakes.boot import Boot, event_log
from tests.fakes.tpm_guest import FakeTpm


def booted(boot: Boot | None = None, **options: Any) -> FakeTpm:
    """A TPM that has measured `boot`."""
    tpm = FakeTpm(**options)
    tpm.boot(boot or Boot())
    return tpm


def evidence_document(tpm: FakeTpm, report_data: bytes = bytes(range(48))) -> dict[str, Any]:
    attest, signature = tpm.quote(tpm_qualifying_data(report_data))
    certified = bool(tpm.certificates)
    return {
        "tee": "tpm",
        "instance": {
            "ak_public": b64.std(tpm.ak_public),
            "ak_name": tpm.ak_name.hex(),
            "ek_public": b64.std(tpm.ek_public) if certified else None,
            "ek_certificates": [b64.std(der) for der in tpm.certificates],
        },
        "evidence": {
            "ak_public": b64.std(tpm.ak_public),
            "attest": b64.std(attest),
            "signature": b64.std(signature),
            "pcrs": {"sha256": {str(index): value.hex() for index, value in enumerate(tpm.pcrs)}},
            "eventlog": b64.std(event_log(tpm.events)),
        },
        "report_data": b64.std(report_data),
    }


def write_evidence(path: Path, tpm: FakeTpm) -> Path:
    path.write_text(json.dumps(evidence_document(tpm), indent=2))
    return path
