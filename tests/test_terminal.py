# SPDX-License-Identifier: Apache-2.0
"""What people and programs see of `roomkey`."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import terminal
from broker.trace import Stage, Trace
from keys.errors import ConfigError


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_nothing_from_outside_can_move_the_cursor(text: str) -> None:
    """Whatever a guest put into its log, what is printed has printable characters only."""
    assert terminal.printable(text).isprintable()


def test_escape_sequences_are_shown_and_not_sent() -> None:
    """An escape, a bell, a line feed and a right-to-left override come out as text."""
    assert terminal.printable("a\x1b[2J\x07\n\u202eé") == "a\\x1b[2J\\x07\\n\\u202eé"


def test_tables_align_and_cut_nothing_off(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns line up under their headings and the longest value is whole."""
    terminal.table(("name", "digest"), [("a", "f" * 96), ("longer\x1b", 1)], empty="none")
    assert capsys.readouterr().out.splitlines() == [
        "NAME        DIGEST",
        "a           " + "f" * 96,
        "longer\\x1b  1",
    ]


def test_an_empty_table_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """No rows: the hint instead of bare headings."""
    terminal.table(("name",), [], empty="No keys yet.")
    assert capsys.readouterr().out == "No keys yet.\n"


def test_json_is_ascii_and_parses(capsys: pytest.CaptureFixture[str]) -> None:
    """Programs get JSON that no terminal can be moved by either."""
    terminal.print_json({"what": "\x1b\u202e"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"what": "\x1b\u202e"}
    assert out.isascii()


def test_errors_name_cause_and_mend(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error: message, expected, found and mend, and no line for what the error does not have."""
    terminal.show_error(ConfigError("no\x1b key", found="0644", mend="chmod 0400 kek"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["Error: no\\x1b key", "  found       0644", "  to mend it  chmod 0400 kek"]


def test_times_are_utc_to_the_second() -> None:
    """Milliseconds of the wire as a date."""
    assert terminal.when(1_800_000_000_999) == "2027-01-15 08:00:00Z"


def _trace() -> list[dict[str, str]]:
    trace = Trace()
    trace.check(Stage.ROOT_OF_TRUST, "challenge", True, expected="unused", found="unused")
    trace.check(Stage.MEASUREMENT, "PCR 4", False, expected="aa", found="bb", mend="roomkey image enrol")
    trace.not_required(Stage.MEASUREMENT, "PCR 9")
    trace.check(Stage.MEASUREMENT, "PCR 7", False, expected="cc", found="dd", mend="roomkey image enrol")
    trace.check(Stage.ROOT_OF_TRUST, "nonce", True)
    return trace.to_json()


def test_a_trace_goes_by_stage_and_ends_with_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """Every check stands once under its stage; the end repeats each failed one, and then what mends it, each once."""
    terminal.trace(_trace(), verbose=False)
    checks, _, summary = capsys.readouterr().out.partition("What failed (2 checks)")
    assert checks.count("measurement") == 1
    places = [checks.index(word) for word in ("root of trust", "challenge", "nonce", "measurement", "PCR 4", "PCR 7")]
    assert places == sorted(places)
    assert "not required  PCR 9" in checks
    assert [line.strip() for line in summary.splitlines() if line.strip()] == [
        "1. PCR 4",
        "expected  aa",
        "found     bb",
        "2. PCR 7",
        "expected  cc",
        "found     dd",
        "To mend it",
        "roomkey image enrol",
    ]


def test_values_of_passed_checks_are_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    """A line each is what one reads first; `--verbose` adds what was found."""
    terminal.trace(_trace(), verbose=False)
    assert "unused" not in capsys.readouterr().out
    terminal.trace(_trace(), verbose=True)
    assert "unused" in capsys.readouterr().out


def test_a_failure_without_a_mend_has_no_empty_heading(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing would help, nothing is promised."""
    trace = Trace()
    trace.check(Stage.TRUST, "nonce", False)
    terminal.trace(trace.to_json(), verbose=False)
    assert capsys.readouterr().out.splitlines()[-1] == "  1. nonce"


def test_a_trace_without_failures_has_no_summary(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing failed, nothing repeated."""
    terminal.trace(_trace()[:1], verbose=False)
    assert "failed" not in capsys.readouterr().out


def test_colour_only_where_a_terminal_reads() -> None:
    """Captured output has no escape; a terminal's has."""

    @click.command()
    def show() -> None:
        terminal.trace(_trace(), verbose=False)

    assert "\x1b" not in CliRunner().invoke(show).output
    assert "\x1b[31m" in CliRunner().invoke(show, color=True).output
