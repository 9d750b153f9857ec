# SPDX-License-Identifier: Apache-2.0
"""An SEV-SNP report through the whole verifier, certificates warm, beside its bare signature check."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import NamedTuple

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from bench.bare import time_of
from broker.claims import Binding, Endorsements
from broker.trace import Trace
from broker.verifiers.snp import SnpVerifier
from broker.verifiers.snp_certificates import read_vek
from broker.verifiers.snp_report import Line, parse_report
from broker.verifiers.snp_roots import built_in
from keys import strictjson
from tests.fakes.amd import Chip as FakeChip
from tests.fakes.amd import FakeAmd, kbs_json, raw_evidence
from tests.vectors import VECTORS

MAX_JSON_BYTES = 64 * 1024


class Cost(NamedTuple):
    """Seconds: the signature alone, `verify` of decoded evidence, and with decoding it from JSON in both forms."""

    what: str
    bare: float
    verify: float
    raw: float
    kbs: float


def measure() -> list[Cost]:
    """For a genuine report of each line where recorded evidence is at hand, else for a made one."""
    recorded = [_recorded(line) for line in Line] if VECTORS.is_dir() else []
    return [_cost(*one) for one in recorded or [_made()]]


def _cost(what: str, report: bytes, vcek: bytes, endorsements: Endorsements, at: datetime) -> Cost:
    parsed, key = parse_report(report), read_vek(vcek).key
    signature, algorithm = encode_dss_signature(parsed.r, parsed.s), ec.ECDSA(hashes.SHA384())
    verifier, binding = SnpVerifier(), Binding(parsed.report_data)
    forms = [json.dumps(make(report, {"vcek": vcek})).encode() for make in (raw_evidence, kbs_json)]

    def verify(form: bytes) -> None:
        evidence = verifier.decode(strictjson.loads(form, name="evidence", max_bytes=MAX_JSON_BYTES))
        verifier.verify(evidence, endorsements, binding, at, Trace())

    evidence = verifier.decode(json.loads(forms[0]))
    return Cost(
        what,
        time_of(lambda: key.verify(signature, parsed.signed, algorithm)),
        time_of(lambda: verifier.verify(evidence, endorsements, binding, at, Trace())),
        *(time_of(lambda form=form: verify(form)) for form in forms),  # type: ignore[misc]
    )


def _recorded(line: Line) -> tuple[str, bytes, bytes, Endorsements, datetime]:
    """The newest genuine report of the line, which meets the default floors."""
    folder = VECTORS / "snp"
    cases = json.loads((folder / "manifest.json").read_bytes())["cases"]
    genuine = [
        case
        for case in cases
        if case["expect"] == "valid" and case.get("product") == line and {"report", "vcek"} <= case["files"].keys()
        and case["claims"]["vmpl"] == 0
    ]  # fmt: skip
    case = max(genuine, key=lambda one: one["claims"]["version"])
    report, vcek = ((folder / case["files"][name]).read_bytes() for name in ("report", "vcek"))
    at = datetime.fromisoformat(case["verify_at"])
    return case["name"], report, vcek, Endorsements(trusted=built_in()), at


def _made() -> tuple[str, bytes, bytes, Endorsements, datetime]:
    amd = FakeAmd()
    chip = FakeChip(amd)
    at = datetime.now(UTC)
    return "a made report", chip.report(), chip.vcek, Endorsements(trusted=amd.trusted()), at
