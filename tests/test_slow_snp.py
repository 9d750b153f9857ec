# SPDX-License-Identifier: Apache-2.0
"""Every single bit of a genuine SEV-SNP report counts: no flip in what is signed, or in the signature, goes through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.claims import Endorsements
from broker.trace import Trace
from broker.verifiers.snp import verify_report
from broker.verifiers.snp_evidence import CertificateKind, SnpEvidence
from broker.verifiers.snp_floors import NOTHING
from broker.verifiers.snp_report import SIGNED_BYTES, Line
from broker.verifiers.snp_roots import built_in
from keys.errors import RoomkeyError
from tests.conformance.manifest import Folder
from tests.vectors import VECTORS, needs_vectors

R_AND_S = range(0x2A0, 0x2A0 + 2 * 72)  # two integers of 72 bytes
FLIPPED = (*range(SIGNED_BYTES), *R_AND_S)


def genuine(line: Line) -> dict[str, Any]:
    """The newest genuine report of a line, as an entry of the manifest."""
    entries = [
        entry
        for entry in Folder(VECTORS / "snp").entries
        if entry.get("product") == line
        and entry["expect"] == "valid"
        and "vcek" in entry["files"]
        and "claims" in entry
    ]
    return max(entries, key=lambda entry: entry["claims"]["version"])


@needs_vectors
@pytest.mark.slow
@pytest.mark.parametrize("line", list(Line))
def test_every_bit_counts(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of the 6528 single-bit flips over the signed bytes and r and s is refused, with one of our errors."""
    entry = genuine(line)
    case = Folder(VECTORS / "snp").case(entry)
    report, vcek = case.bytes("report"), case.bytes("vcek")
    endorsements = Endorsements(trusted=replace(built_in(), floors=NOTHING))

    def judge(raw: bytes) -> None:
        evidence = SnpEvidence(raw, {CertificateKind.VCEK: vcek})
        # The report's own REPORT_DATA: a flip in there must fall to the signature, not to the comparison.
        verify_report(evidence, endorsements, raw[0x50:0x90], case.at, Trace())

    judge(report)
    refused = 0
    for at in FLIPPED:
        for bit in range(8):
            changed = report[:at] + bytes((report[at] ^ 1 << bit,)) + report[at + 1 :]
            with pytest.raises(RoomkeyError):
                judge(changed)
            refused += 1
    with capsys.disabled():
        print(f"\n{line}: {refused} single-bit flips of {Path(entry['files']['report']).stem}, all refused")
    assert refused == 8 * (672 + 2 * 72)
