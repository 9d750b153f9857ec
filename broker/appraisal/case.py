# SPDX-License-Identifier: Apache-2.0
"""A case: everything that one decision about one key stands on, and nothing else.

It is gathered once (`broker.release`), judged by a pure function (`broker.appraisal.judge`), kept with the decision,
and judged again by whoever doubts it, or wants to know what another rule would have said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from broker.appraisal.distrust import Distrust
from broker.appraisal.image_life import KnownImage, Life
from broker.appraisal.images import Image
from broker.appraisal.instances import Bound, Standing
from broker.appraisal.rules import Rule
from broker.claims import Claims
from keys.messages import ResourcePath


class KnownGuest(NamedTuple):
    """A machine that the key's owner knows and that shares an id with the guest. `since` (milliseconds), `who` and
    `why` tell of the last change of its standing.
    """

    name: str
    ids: tuple[str, ...]
    standing: Standing
    bound: Bound | None
    since: int
    who: str
    why: str

    def to_json(self) -> list[Any]:
        bound = None if self.bound is None else list(self.bound)
        return [self.name, list(self.ids), str(self.standing), bound, self.since, self.who, self.why]

    @classmethod
    def from_json(cls, value: Any) -> KnownGuest:
        name, ids, standing, bound, *rest = value
        return cls(name, tuple(ids), Standing(standing), None if bound is None else Bound(*bound), *rest)


class Ticket(NamedTuple):
    """What a ticket that the guest showed is good for: to enrol one guest as `name`, for one key and image. `state`:
    "good", "used", "expired", or "unknown" to the key's owner.
    """

    state: str
    name: str = ""
    key: str = ""
    image: str = ""


class Lease(NamedTuple):
    """A release that still counts as live: of which session, until when (milliseconds)."""

    holder: str
    until: int


@dataclass(frozen=True, slots=True)
class Case:
    """`at`, `challenged_at`, `attested_at` in milliseconds. `owner` is "" where there is no such owner, `key` None or
    version and state of the newest version. `images`: versions of the rule's images, those that count first and perhaps
    some that do not, for what can be said about them. `guests`: of this owner only, as all else. `clock`: what
    `clock_mark` gave at the last decision about the same machine. `lease`: of this machine and key, whoever holds it.
    `attestation`: the ledger's line of the attestation; `evidence`: SHA-256 of the evidence in hex.
    """

    path: ResourcePath
    at: int
    claims: Claims
    announced: str | None
    session: str
    challenged_at: int
    attested_at: int
    attestation: str
    evidence: str
    owner: str
    key: tuple[int, str] | None = None
    rule: Rule | None = None
    rule_version: int | None = None
    images: tuple[KnownImage, ...] = ()
    guests: tuple[KnownGuest, ...] = ()
    distrusted: tuple[Distrust, ...] = ()
    clock: Mapping[str, Any] | None = None
    lease: Lease | None = None
    ticket: Ticket | None = None

    def to_json(self, *, whole: bool) -> dict[str, Any]:
        """As JSON. Unless `whole`, without what is kept elsewhere and never changes: claims, rule, images."""
        value: dict[str, Any] = {
            "path": str(self.path),
            "at": self.at,
            "announced": self.announced,
            "session": self.session,
            "challenged_at": self.challenged_at,
            "attested_at": self.attested_at,
            "attestation": self.attestation,
            "evidence": self.evidence,
            "owner": self.owner,
            "key": None if self.key is None else list(self.key),
            "rule_version": self.rule_version,
            "images": [[known.name, known.version, known.counts, known.life.to_json()] for known in self.images],
            "guests": [guest.to_json() for guest in self.guests],
            "distrusted": [list(distrust) for distrust in self.distrusted],
            "clock": None if self.clock is None else dict(self.clock),
            "lease": None if self.lease is None else list(self.lease),
            "ticket": None if self.ticket is None else list(self.ticket),
        }
        if whole:
            value["rule"] = None if self.rule is None else self.rule.to_body()
            value["image_bodies"] = [known.image.to_body() for known in self.images]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any], claims: Claims) -> Case:
        """What `to_json(whole=True)` wrote. Raises KeyError, TypeError, ValueError or ProtocolError on others."""
        return cls(
            path=ResourcePath.parse(value["path"]),
            at=value["at"],
            claims=claims,
            announced=value["announced"],
            session=value["session"],
            challenged_at=value["challenged_at"],
            attested_at=value["attested_at"],
            attestation=value["attestation"],
            evidence=value["evidence"],
            owner=value["owner"],
            key=None if value["key"] is None else (value["key"][0], value["key"][1]),
            rule=None if value["rule"] is None else Rule.from_body(value["rule"]),
            rule_version=value["rule_version"],
            images=tuple(
                KnownImage(name, version, Life.from_json(life), Image.from_body(body), counts)
                for (name, version, counts, life), body in zip(value["images"], value["image_bodies"], strict=True)
            ),
            guests=tuple(KnownGuest.from_json(guest) for guest in value["guests"]),
            distrusted=tuple(Distrust(*distrust) for distrust in value["distrusted"]),
            clock=value["clock"],
            lease=None if value["lease"] is None else Lease(*value["lease"]),
            ticket=None if value["ticket"] is None else Ticket(*value["ticket"]),
        )
