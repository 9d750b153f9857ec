# SPDX-License-Identifier: Apache-2.0
"""The trace and the claims: everything that was checked is kept, and comes back from the store as it was."""

from __future__ import annotations

from typing import Any

import pytest

from broker.claims import Claims, LoggedEvent
from broker.trace import MAX_VALUE_CHARS, Check, Stage, Trace, Verdict
from keys.errors import EndorsementError, ProtocolError, VerificationError
from keys.tee import Tee


def test_checks_are_kept_in_order_with_their_verdicts() -> None:
    """Passed, failed, left out and meaningless checks all stand in the trace, in the order they were made."""
    trace = Trace()
    assert trace.check(Stage.IDENTITY, "a", True, expected=1, found=b"\x01", mend="never shown")
    assert not trace.check(Stage.TRUST, "b", False, expected="x", found="y", mend="do this")
    trace.not_required(Stage.MEASUREMENT, "c", found=7)
    trace.not_judged(Stage.SECRET, "d")
    assert trace.checks == [
        Check(Stage.IDENTITY, "a", Verdict.PASSED, "1", "01"),
        Check(Stage.TRUST, "b", Verdict.FAILED, "x", "y", "do this"),
        Check(Stage.MEASUREMENT, "c", Verdict.NOT_REQUIRED, "", "7"),
        Check(Stage.SECRET, "d", Verdict.NOT_JUDGED),
    ]
    assert trace.failed == [trace.checks[1]]


def test_required_check_goes_on_or_raises() -> None:
    """A required check that passes lets the verifier go on; one that fails is recorded first and then raised."""
    trace = Trace()
    trace.require(Stage.ENDORSEMENT, "a", True)
    with pytest.raises(EndorsementError) as caught:
        trace.require(Stage.ENDORSEMENT, "b", False, expected="x", found="y", mend="z", error=EndorsementError)
    assert (caught.value.message, caught.value.expected, caught.value.found, caught.value.mend) == ("b", "x", "y", "z")
    with pytest.raises(VerificationError) as caught:
        trace.require(Stage.ENDORSEMENT, "c", False)
    assert str(caught.value) == "c"
    assert [check.verdict for check in trace.checks] == [Verdict.PASSED, Verdict.FAILED, Verdict.FAILED]


def test_error_from_elsewhere_is_a_failed_check() -> None:
    """A parser's error stands in the trace with its words, and its missing words are empty."""
    trace = Trace()
    trace.fail(Stage.MEASUREMENT, ProtocolError("bad log", expected="a", found="b", mend="c"))
    trace.fail(Stage.MEASUREMENT, ProtocolError("worse log"))
    assert trace.failed == [
        Check(Stage.MEASUREMENT, "bad log", Verdict.FAILED, "a", "b", "c"),
        Check(Stage.MEASUREMENT, "worse log", Verdict.FAILED),
    ]


def test_refusal_inside_a_recorded_block_is_a_failed_check_and_goes_on_up() -> None:
    """What a recorded block raises stands in the trace and is raised still; a block that passes leaves nothing."""
    trace = Trace()
    with trace.recording(Stage.MEASUREMENT):
        pass
    assert trace.checks == []
    with pytest.raises(ProtocolError, match="bad log"), trace.recording(Stage.MEASUREMENT):
        raise ProtocolError("bad log", found="b")
    assert trace.checks == [Check(Stage.MEASUREMENT, "bad log", Verdict.FAILED, found="b")]


def test_long_values_are_cut() -> None:
    """A value from outside takes a bounded place in the trace, and shows that it was cut."""
    trace = Trace()
    trace.check(Stage.TRUST, "a", True, expected="x" * MAX_VALUE_CHARS, found="y" * (MAX_VALUE_CHARS + 1))
    assert trace.checks[0].expected == "x" * MAX_VALUE_CHARS
    assert trace.checks[0].found == "y" * MAX_VALUE_CHARS + "…"


def test_trace_comes_back_from_json() -> None:
    """A stored trace is read back equal, and its JSON is plain strings."""
    trace = Trace()
    trace.check(Stage.ROOT_OF_TRUST, "a", True, expected="é", found=b"\xff")
    trace.not_judged(Stage.SECRET, "d")
    stored = trace.to_json()
    assert stored[0]["stage"] == "root of trust"
    assert all(type(value) is str for check in stored for value in check.values())
    assert Trace.from_json(stored) == trace


@pytest.mark.parametrize(
    "items", [7, [7], ["a"], [{}], [{"stage": "x", "verdict": "passed", "name": "a"}], [{"stage": "trust"}]]
)
def test_other_json_is_no_trace(items: Any) -> None:
    """What is no stored trace is refused."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        Trace.from_json(items)


def claims() -> Claims:
    return Claims(
        Tee.TPM, ("tpm-ek:1", "tpm-ak:2"), "ek-certificate", {"sha256:4": "00"}, {"safe": True, "clock": 7, "x": None},
        (LoggedEvent("sha256:4", "EV_SEPARATOR", "00", "separator"),), "ff",
    )  # fmt: skip


def test_claims_come_back_from_json() -> None:
    """Stored claims are read back equal."""
    assert Claims.from_json(claims().to_json()) == claims()
    bare = Claims(Tee.SNP, (), "", {})
    assert Claims.from_json(bare.to_json()) == bare


@pytest.mark.parametrize("change", [{"tee": "toaster"}, {"instance_ids": 7}, {"events": [["too", "few"]]}])
def test_other_json_is_no_claims(change: dict[str, Any]) -> None:
    """What are no stored claims is refused."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        Claims.from_json(claims().to_json() | change)
    with pytest.raises(KeyError):
        Claims.from_json({})
