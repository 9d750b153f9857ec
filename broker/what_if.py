# SPDX-License-Identifier: Apache-2.0
"""What if: the stored decisions of the last days, judged again under a rule or an image that is not in force yet.

 (1) Each recorded request for a key whose outcome the candidate can touch is judged twice by `broker.appraisal.judge`:
     under what is in force now, and under the same with the candidate in its place. So the difference between the two
     is the candidate's and nothing else's.
 (2) What the guest showed (its claims) is as recorded. Owner's machines, what is distrusted and where images stand are
     as of now: that is what the candidate would meet.
 (3) What belongs to one moment is left out on both sides: the clock's mark, leases, tickets, the announced key.

Nothing is changed, and nobody is enrolled, quarantined or released to by this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from broker.appraisal.case import Case, KnownGuest
from broker.appraisal.distrust import Distrust
from broker.appraisal.image_life import KnownImage
from broker.appraisal.images import Image
from broker.appraisal.judge import judge
from broker.appraisal.rules import Rule, rule_name
from broker.claims import Claims
from broker.gather import distrusted, known_guest, rule_images
from broker.requests import Requests
from broker.store.protocols import LedgerEntry, RecordKind, Store
from broker.trace import Trace
from keys.errors import NotFound
from keys.messages import ResourcePath


class Candidate(NamedTuple):
    """What is tried: rules in the place of those of the keys at these paths, images as the newest versions of these
    names.
    """

    rules: Mapping[str, Rule]
    images: Mapping[str, Image]


class Turned(NamedTuple):
    """A request whose verdict would be another. `reason` is the first check that then fails, "" where it would pass."""

    decision: str
    at: int
    key: str
    guest: str
    reason: str


@dataclass(slots=True)
class Report:
    """`looked_at`: decisions of the time; `judged`: those that the candidate could touch. `truncated`: there were more
    than one report looks at.
    """

    looked_at: int = 0
    judged: int = 0
    refused: list[Turned] = field(default_factory=list)
    let_in: list[Turned] = field(default_factory=list)
    truncated: bool = False


def what_if(owner: str, candidate: Candidate, store: Store, *, since: int, now: int) -> Report:
    """Who would newly be refused or let in, of those who asked since `since` (milliseconds). Raises Unavailable."""
    requests = Requests(owner, store, since)
    report, settings = Report(), _Settings(owner, candidate, store, now)
    for entry in requests:
        report.looked_at += 1
        terms = settings.of(entry.body["key"])
        if terms is None:
            continue
        live, tried = terms
        report.judged += 1
        case = _case(entry, settings, now)
        before = judge(_under(case, live), Trace()).allowed
        trace = Trace()
        after = judge(_under(case, tried), trace).allowed
        if before is not after:
            reason = "" if after else trace.failed[0].name
            turned = Turned(entry.id, entry.at, entry.body["key"], entry.subject, reason)
            (report.let_in if after else report.refused).append(turned)
    report.truncated = requests.truncated
    return report


class _Terms(NamedTuple):
    """What is in force for one key."""

    rule: Rule | None
    images: tuple[KnownImage, ...]


class _Settings:
    """An owner's settings, each looked up once."""

    def __init__(self, owner: str, candidate: Candidate, store: Store, now: int) -> None:
        self._owner, self._candidate, self._store, self._now = owner, candidate, store, now
        self._terms: dict[str, tuple[_Terms, _Terms] | None] = {}
        self._keys = {key.path: (key.version, str(key.state)) for key in store.keys(owner)}  # the newest stays
        self.distrusted: tuple[Distrust, ...] = distrusted(owner, store)
        self._guests: dict[str, list[KnownGuest]] = {}
        for record in store.records(RecordKind.INSTANCE, owner):
            guest = known_guest(record)
            for instance_id in guest.ids:
                self._guests.setdefault(instance_id, []).append(guest)

    def of(self, path: str) -> tuple[_Terms, _Terms] | None:
        """What is in force for the key at `path`, and what would be; None where that is the same."""
        if path not in self._terms:
            live, tried = self._look_up(ResourcePath.parse(path))
            self._terms[path] = None if live == tried else (live, tried)
        return self._terms[path]

    def key(self, path: str) -> tuple[int, str] | None:
        return self._keys.get(path)

    def guests(self, claims: Claims) -> tuple[KnownGuest, ...]:
        found = {guest.name: guest for one in claims.instance_ids for guest in self._guests.get(one, ())}
        return tuple(found.values())

    def _look_up(self, path: ResourcePath) -> tuple[_Terms, _Terms]:
        try:
            body = self._store.record(RecordKind.RULE, self._owner, rule_name(path)).body
            rule = Rule.from_body(body or {})
        except NotFound:
            rule = None
        live = _Terms(rule, self._images(rule, {}))
        other = self._candidate.rules.get(str(path), rule)
        return live, _Terms(other, self._images(other, self._candidate.images))

    def _images(self, rule: Rule | None, candidates: Mapping[str, Image]) -> tuple[KnownImage, ...]:
        return () if rule is None else rule_images(self._owner, rule, self._store, self._now, candidates)


def _case(entry: LedgerEntry, settings: _Settings, now: int) -> Case:
    claims = recorded_claims(entry.body)
    path = ResourcePath.parse(entry.body["key"])
    return Case(
        path=path,
        at=now,
        claims=claims,
        announced=None,
        session="",
        challenged_at=entry.at,
        attested_at=entry.at,
        attestation="",
        evidence=entry.body["evidence"],
        owner=path.owner,
        key=settings.key(str(path)),
        guests=settings.guests(claims),
        distrusted=settings.distrusted,
    )


def recorded_claims(body: Mapping[str, Any]) -> Claims:
    """The claims that a decision's line keeps. Without events, which only explain."""
    return Claims.from_json({**body["claims"], "events": []})


def _under(case: Case, terms: _Terms) -> Case:
    return replace(case, rule=terms.rule, rule_version=None, images=terms.images)
