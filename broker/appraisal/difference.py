# SPDX-License-Identifier: Apache-2.0
"""Where a boot's log leaves the enrolled one: the events to look at when a register has another value.

Only digests are compared (`event_steps`). Type and description are in no hash and so prove nothing; they are there to
be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from broker.appraisal.event_steps import Step, steps
from broker.appraisal.registers import ExpectedEvent
from broker.claims import LoggedEvent

MAX_DIFFERENCES = 8  # of one register that are told; an update of a kernel has fewer, another machine's boot more
MAX_WHOLE_CHARS = 100  # of two texts that are shown whole beside each other
DIGEST_CHARS = 16  # of a digest, enough to tell two events apart


class Difference(NamedTuple):
    """`position` is the place in the found log, from 1. `kind`: "changed", "added", "removed" or "moved"; "left out"
    where only a number of events is told. `expected` and `found` are words.
    """

    position: int
    kind: str
    expected: str
    found: str


def first_difference(expected: Sequence[ExpectedEvent], found: Sequence[LoggedEvent]) -> Difference | None:
    """The first event in which the two sequences differ, or None."""
    told = differences(expected, found)
    return told[0] if told else None


def differences(expected: Sequence[ExpectedEvent], found: Sequence[LoggedEvent]) -> list[Difference]:
    """The first in the order of the found log, at most MAX_DIFFERENCES; where there are more, the last of these counts
    the rest. [] exactly where the digests are the same.
    """
    every = steps(expected, found)
    if len(every) <= MAX_DIFFERENCES:
        return [_told(step, expected, found) for step in every]
    told, rest = every[: MAX_DIFFERENCES - 1], every[MAX_DIFFERENCES - 1 :]
    count = Difference(rest[0].at + 1, "left out", "", f"this and {len(rest) - 1} more events differ")
    return [*(_told(step, expected, found) for step in told), count]


def apart(one: str, other: str) -> tuple[str, str]:
    """Two texts, of which long ones without the words that they share at either end, but for the first and those next
    to the difference.
    """
    if one == other or max(len(one), len(other)) <= MAX_WHOLE_CHARS:
        return one, other
    left, right = one.split(" "), other.split(" ")
    shortest = min(len(left), len(right))
    head = next((i for i in range(shortest) if left[i] != right[i]), shortest)
    tail = next((i for i in range(shortest - head) if left[-1 - i] != right[-1 - i]), shortest - head)
    return _middle(left, head, tail), _middle(right, head, tail)


def _middle(words: list[str], head: int, tail: int) -> str:
    start = [words[0], "…", words[head - 1]] if head > 2 else words[:head]
    end = [words[len(words) - tail], "…"] if tail > 1 else words[len(words) - tail :]
    return " ".join((*start, *words[head : len(words) - tail], *end))


def _told(step: Step, expected: Sequence[ExpectedEvent], found: Sequence[LoggedEvent]) -> Difference:
    position = step.at + 1
    if step.before is None:
        return Difference(position, step.kind, "no event here", _words(found[step.at]))
    wanted = expected[step.before]
    if step.after is None:
        return Difference(position, step.kind, _words(wanted), "no such event")
    got = found[step.after]
    if step.kind == "changed":
        was, now = apart(wanted.what, got.what)
        return Difference(position, step.kind, _words(wanted, was), _words(got, now))
    if step.at == step.after:  # moved: met here, expected later
        return Difference(position, step.kind, "this event later", _words(got))
    return Difference(position, step.kind, _words(wanted), f"the same as event {step.after + 1}")


def _words(event: ExpectedEvent | LoggedEvent, what: str | None = None) -> str:
    told = event.what if what is None else what
    return " ".join(part for part in (event.type, told, f"digest {event.digest[:DIGEST_CHARS]}…") if part)
