# SPDX-License-Identifier: Apache-2.0
"""Does a rule let in a guest that it should not? Pure.

For each image that counts and each platform of the rule, a good guest is made up: one that the rule lets in. Then it is
spoiled in every way that `lint_attacks` knows. A spoiled guest that is still let in, by the operator's floors and by
the judge itself (`broker.appraisal.judge`), is a weakness, and is handed out whole: whoever doubts it can judge it.

Nothing is guessed from the rule's text. What the engine refuses is no weakness, and what no attack here tries is not
found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from broker.appraisal.case import Case
from broker.appraisal.judge import judge
from broker.appraisal.lint_attacks import ATTACKS, Attempt
from broker.appraisal.lint_guests import Good, Terms, good_guests
from broker.claims import Claims
from broker.trace import Trace
from broker.verifiers.snp_floors import Floors, check_floors
from keys.tee import Tee

MAX_WEAKNESSES = 200  # of one rule
MAX_GUESTS = 256  # good ones that are spoiled
_SNP = frozenset((Tee.SNP, Tee.AZ_SNP_VTPM))


class Change(NamedTuple):
    """A value of the spoiled guest beside that of the good one."""

    what: str
    good: str
    bad: str


class Weakness(NamedTuple):
    """`kind` in a word or two, `what` in a sentence: what such a guest could do. `image` as name@version. `changes`:
    how it differs from a good one, empty where a good one is too much already. `case`: judged, it is let in.
    """

    kind: str
    what: str
    image: str
    platform: str
    changes: tuple[Change, ...]
    mend: str
    case: Case


class Linted(NamedTuple):
    """`examined`: images with their platforms, as "debian-12@4 on tpm", for which there is a good guest."""

    weaknesses: tuple[Weakness, ...]
    examined: tuple[str, ...]


def lint(terms: Terms) -> Linted:
    """The weaknesses of the rule in `terms`, each kind once for an image, at most MAX_WEAKNESSES."""
    found: dict[tuple[str, str, str, str], Weakness] = {}
    examined: dict[str, None] = {}
    for good in islice(_accepted(terms), MAX_GUESTS):
        examined[f"{good.known.ref} on {good.case.claims.tee}"] = None
        for attempt in _attempts(terms, good):
            key = (attempt.kind, attempt.detail, good.known.ref, str(good.case.claims.tee))
            if key not in found and len(found) < MAX_WEAKNESSES and _let_in(attempt.case, good, terms):
                found[key] = _weakness(attempt, good)
    return Linted(tuple(found.values()), tuple(examined))


def accepted(case: Case, floors: Floors) -> bool:
    """Whether the engine lets this guest in: the operator's floors, then the judge."""
    claims = case.claims
    if claims.tee in _SNP and not check_floors(claims.facts, claims.measurements, floors, Trace(), quiet=True):
        return False
    return judge(case, Trace()).allowed


def _accepted(terms: Terms) -> Iterator[Good]:
    return (good for good in good_guests(terms) if _let_in(good.case, good, terms))


def _let_in(case: Case, good: Good, terms: Terms) -> bool:
    """Whether the engine lets it in: first by the one image, because most are refused and a rule can have very many,
    then as it is.
    """
    return accepted(replace(case, images=(good.known,)), terms.floors) and accepted(case, terms.floors)


def _attempts(terms: Terms, good: Good) -> Iterator[Attempt]:
    for attack in ATTACKS:
        yield from attack(terms, good)


def _weakness(attempt: Attempt, good: Good) -> Weakness:
    return Weakness(
        attempt.kind,
        attempt.what,
        good.known.ref,
        str(good.case.claims.tee),
        tuple(_changes(good.case.claims, attempt.case.claims)),
        attempt.mend,
        attempt.case,
    )


def _changes(good: Claims, bad: Claims) -> Iterator[Change]:
    for before, after in ((good.measurements, bad.measurements), (good.facts, bad.facts)):
        for name, value in after.items():
            if before.get(name) != value:
                yield Change(name, str(before.get(name, "not there")), str(value))
    if good.instance_ids != bad.instance_ids:
        yield Change("instance", ", ".join(good.instance_ids), ", ".join(bad.instance_ids))
