# SPDX-License-Identifier: Apache-2.0
"""The steps from one boot's log to another's: which event answers to which, over the whole of both.

 (1) events with the same digest, as many as can be without changing the order of either log
 (2) of the rest, what has the same digest but another place has moved
 (3) between the events of (1), one answers to one that is described alike: in the same words; in the same words but for
     versions; about the same thing; of the same type; or where as many are left on either side, to the one in its place
 (4) what is left was removed, or added

Only (1) and (2) are proved. Types and words are in no hash: they choose what is shown beside what, and nothing else.
One of the logs is a guest's own, of any content, and it is judged while others wait. So the time that this takes grows
with n log n.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple, Protocol

_VERSION = re.compile(r"[0-9][\w.+~-]*")
_COMMAND = "grub_cmd:"  # what follows is a line of GRUB's script, which its first word tells from others


class Event(Protocol):
    """`registers.ExpectedEvent` and `claims.LoggedEvent`."""

    @property
    def digest(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def what(self) -> str: ...


class Step(NamedTuple):
    """One difference. `kind`: "changed", "added", "removed" or "moved". `before` and `after` are places in the old and
    the new log, counted from 0, None where there is none. `at` is where it shows in the new log.
    """

    kind: str
    at: int
    before: int | None
    after: int | None


_Pairs = list[tuple[int, int]]  # places in the old and the new log, both ascending


def steps(old: Sequence[Event], new: Sequence[Event]) -> list[Step]:
    """All differences, in the order in which they show. [] exactly where the digests are the same."""
    same = _align(old, new, range(len(old)), range(len(new)), _SAME)  # (1)
    moved = _moved(old, new, same)  # (2)
    gone, come = set(moved), set(moved.values())
    changed: _Pairs = []
    for left, right in _gaps(same, range(len(old)), range(len(new))):  # (3)
        rest = [i for i in left if i not in gone], [j for j in right if j not in come]
        alike = _align(old, new, *rest, _ALIKE)
        changed += alike
        for some, others in _gaps(alike, *rest):
            changed += zip(some, others, strict=True) if len(some) == len(others) else ()
    return _walk(sorted([*same, *changed]), set(changed), moved, len(old), len(new))


def _walk(pairs: _Pairs, changed: set[tuple[int, int]], moved: dict[int, int], before: int, after: int) -> list[Step]:
    """Both logs from pair to pair. What has moved is told once, where it is missed or met first."""
    origin = {j: i for i, j in moved.items()}
    told: set[int] = set()
    found: list[Step] = []
    i = j = 0
    for to_i, to_j in [*pairs, (before, after)]:
        for old in range(i, to_i):
            if old not in moved:
                found.append(Step("removed", j, old, None))  # (4)
            elif old not in told:
                told.add(old)
                found.append(Step("moved", j, old, moved[old]))
        for new in range(j, to_j):
            if new not in origin:
                found.append(Step("added", new, None, new))
            elif origin[new] not in told:
                told.add(origin[new])
                found.append(Step("moved", new, origin[new], new))
        if (to_i, to_j) in changed:
            found.append(Step("changed", to_j, to_i, to_j))
        i, j = to_i + 1, to_j + 1
    return found


def _moved(old: Sequence[Event], new: Sequence[Event], same: _Pairs) -> dict[int, int]:
    """Where events of the old log that are in no pair have gone, by their place."""
    paired_old, paired_new = {i for i, _ in same}, {j for _, j in same}
    free: dict[str, list[int]] = defaultdict(list)
    for j in reversed(range(len(new))):
        if j not in paired_new:
            free[new[j].digest].append(j)
    return {
        i: free[event.digest].pop() for i, event in enumerate(old) if i not in paired_old and free.get(event.digest)
    }


_Key = Callable[[Event], Hashable]


def _align(
    old: Sequence[Event], new: Sequence[Event], left: Sequence[int], right: Sequence[int], keys: Sequence[_Key]
) -> _Pairs:
    """Pairs out of the places `left` and `right`, both ascending: by the first key, and between those by the next."""
    if not left or not right or not keys:
        return []
    key, *others = keys
    found = _common([key(old[i]) for i in left], [key(new[j]) for j in right])
    pairs = [(left[a], right[b]) for a, b in found]
    inner = [pair for a, b in _gaps(pairs, left, right) for pair in _align(old, new, a, b, others)]
    return sorted([*pairs, *inner])


def _gaps(pairs: _Pairs, left: Sequence[int], right: Sequence[int]) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """The places before, between and after the pairs, which are some of `left` and `right`."""
    a = b = 0
    for i, j in pairs:
        to_a, to_b = bisect_left(left, i), bisect_left(right, j)
        yield left[a:to_a], right[b:to_b]
        a, b = to_a + 1, to_b + 1
    yield left[a:], right[b:]


def _common(old: Sequence[Hashable], new: Sequence[Hashable]) -> _Pairs:
    """The longest common subsequence, where the nth of equal keys answers to the nth only: the longest ascending run of
    places, by patience sorting.
    """
    place = {key: j for j, key in enumerate(_numbered(new))}
    pairs = [(i, place[key]) for i, key in enumerate(_numbered(old)) if key in place]
    ends: list[int] = []  # for each length, the lowest place at which a run of it ends
    last: list[int] = []  # ... and which pair that is
    previous: list[int | None] = []
    for number, (_, j) in enumerate(pairs):
        length = bisect_left(ends, j)
        previous.append(last[length - 1] if length else None)
        ends[length : length + 1], last[length : length + 1] = [j], [number]
    run: _Pairs = []
    at = last[-1] if last else None
    while at is not None:
        run.append(pairs[at])
        at = previous[at]
    return run[::-1]


def _numbered(keys: Sequence[Hashable]) -> Iterator[tuple[Hashable, int]]:
    seen: Counter[Hashable] = Counter()
    for key in keys:
        seen[key] += 1
        yield key, seen[key]


def _digest(event: Event) -> Hashable:
    return event.digest


def _words(event: Event) -> Hashable:
    return event.type, event.what


def _without_versions(event: Event) -> Hashable:
    return event.type, _VERSION.sub("", event.what)


def _subject(event: Event) -> Hashable:
    """What the words are about: a file, a variable, a command."""
    first, _, rest = _VERSION.sub("", event.what).partition(" ")
    return event.type, first, rest.split(" ")[0] if first == _COMMAND else ""


def _type(event: Event) -> Hashable:
    return event.type


_SAME = (_digest, _digest, _digest)  # again between what was found: there the nth of equal events is another one
_ALIKE = (_words, _without_versions, _subject, _type)
