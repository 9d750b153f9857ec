# SPDX-License-Identifier: Apache-2.0
"""What a guest tells of its disk: strict in reading, and nothing of the disk's own words goes on as it is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys.errors import ProtocolError
from keys.report import MAX_FOUND_CHARS, MAX_REPORT_BYTES, MAX_VERSION, Report, Step, printable
from tests.fakes.json_values import mutations

PIN = "5a" * 32
GOOD = {"done": "add", "found": "", "pin": PIN, "version": 2}


@pytest.mark.parametrize(
    "report",
    [Report(), Report(PIN), Report(found="no LUKS2 header"), *(Report(PIN, "", step, 7) for step in Step)],
)
def test_a_report_comes_back(report: Report) -> None:
    """What the agent writes the broker reads."""
    assert Report.from_text(report.to_text()) == report


@given(st.text(max_size=400))
def test_words_of_a_disk_become_plain_ones(words: str) -> None:
    """Whatever a disk says, a report of it can be sent, read and shown."""
    text = Report(found=words).to_text()
    assert len(text) <= MAX_REPORT_BYTES
    assert Report.from_text(text).found == printable(words)


@pytest.mark.parametrize(
    "change",
    [
        {"done": "format!"}, {"done": None}, {"done": ""}, {"done": 1}, {"version": 0}, {"version": -1},
        {"version": True}, {"version": MAX_VERSION + 1}, {"version": "2"}, {"pin": None}, {"pin": PIN.upper()},
        {"pin": PIN[:-1]}, {"pin": f"{PIN}\n"}, {"pin": 7}, {"found": None}, {"found": "\n"}, {"found": "é"},
        {"found": "x" * (MAX_FOUND_CHARS + 1)}, {"more": 1},
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(change: dict[str, object]) -> None:
    """Every member has one form; a step that is done has its volume and version, and no version stands alone."""
    Report.from_text(json.dumps({"roomkey-volume": GOOD}))
    with pytest.raises(ProtocolError):
        Report.from_text(json.dumps({"roomkey-volume": GOOD | change}))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"nvidia":{}}', '{"roomkey-volume":1}', "\ud800", "x" * 2000])
def test_other_additional_evidence_is_refused(text: str) -> None:
    """Another platform's additional evidence, and what is none at all."""
    with pytest.raises(ProtocolError):
        Report.from_text(text)


@given(mutations({"roomkey-volume": GOOD}))
def test_only_our_errors_escape(text: bytes) -> None:
    """A mutated report is read or refused with our error."""
    try:
        Report.from_text(text.decode("utf-8", "replace"))
    except ProtocolError:
        return
