# SPDX-License-Identifier: Apache-2.0
"""Where a boot's log first leaves the enrolled one: the event to look at when a register has another value.

Only digests are compared. Type and description are in no hash and so prove nothing; they are there to be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from broker.appraisal.registers import ExpectedEvent
from broker.claims import LoggedEvent

_DIGEST_CHARS = 16  # of a digest, enough to tell two events apart


class Difference(NamedTuple):
    """`position` counts from 1. `kind`: "changed", "added", "removed" or "moved". `expected` and `found` are words."""

    position: int
    kind: str
    expected: str
    found: str


def first_difference(expected: Sequence[ExpectedEvent], found: Sequence[LoggedEvent]) -> Difference | None:
    """The first event in which the two sequences differ, or None."""
    wanted = [event.digest for event in expected]
    got = [event.digest for event in found]
    at = next((i for i, (one, other) in enumerate(zip(wanted, got, strict=False)) if one != other), None)
    if at is None:
        if len(wanted) == len(got):
            return None
        at = min(len(wanted), len(got))
    comes_later = at < len(wanted) and wanted[at] in got[at:]
    was_due_later = at < len(got) and got[at] in wanted[at:]
    if at == len(wanted) or (comes_later and not was_due_later):
        return Difference(at + 1, "added", "no event here", _words(found[at]))
    if at == len(got) or (was_due_later and not comes_later):
        return Difference(at + 1, "removed", _words(expected[at]), "no such event")
    kind = "moved" if comes_later else "changed"
    return Difference(at + 1, kind, _words(expected[at]), _words(found[at]))


def _words(event: ExpectedEvent | LoggedEvent) -> str:
    return " ".join(part for part in (event.type, event.what, f"digest {event.digest[:_DIGEST_CHARS]}…") if part)
