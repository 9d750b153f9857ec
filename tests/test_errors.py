# SPDX-License-Identifier: Apache-2.0
"""The error tree: each error says what it is to a machine, to an owner, and to a process."""

from __future__ import annotations

import pytest

from keys import errors
from keys.errors import RoomkeyError

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, RoomkeyError) and value is not RoomkeyError
]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.ProtocolError("bad"), "bad"),
        (errors.ProtocolError("bad", expected="a"), "bad (expected a)"),
        (errors.ProtocolError("bad", found="b"), "bad (found b)"),
        (errors.ProtocolError("bad", expected="a", found="b", mend="c"), "bad (expected a, found b)"),
    ],
)
def test_text_says_what_was_expected_and_found(error: RoomkeyError, text: str) -> None:
    """An error's text is its message, and what was expected and found where that is known."""
    assert str(error) == text
    assert error.args == ("bad",)


def test_every_error_has_its_own_word_and_exit_status() -> None:
    """No two errors share a wire code; exit statuses differ except within a branch, and none is a shell's own."""
    assert len({error.code for error in CLASSES}) == len(CLASSES)
    statuses = {error.exit_status for error in CLASSES}
    assert len(statuses) == len(CLASSES) - 1
    assert errors.EndorsementError.exit_status == errors.VerificationError.exit_status
    assert statuses <= set(range(10, 64))


def test_only_passing_troubles_are_retried() -> None:
    """A retry is offered where the same request may succeed later, and nowhere else."""
    assert {error for error in CLASSES if error.retry} == {errors.FreshnessError, errors.Unavailable}


def test_statuses_are_errors() -> None:
    """Every error's HTTP status is one of an error."""
    assert all(400 <= error.http_status < 600 for error in CLASSES)


def test_decision_is_not_in_the_text() -> None:
    """The decision's id is set by who made it, and is no part of the owner's words."""
    error = errors.ReleaseDenied("no rule")
    assert error.decision is None
    error.decision = "d-abc"
    assert "d-abc" not in str(error)
