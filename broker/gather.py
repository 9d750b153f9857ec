# SPDX-License-Identifier: Apache-2.0
"""What a decision about one key stands on, looked up in the store: the case, before it is judged.

An owner's images, rules and machines count for that owner's keys and for nobody else's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from broker import ledger
from broker.appraisal.case import Case, KnownGuest, Lease, Ticket
from broker.appraisal.distrust import Distrust
from broker.appraisal.image_life import ImageState, KnownImage, Life, named_versions
from broker.appraisal.images import Image
from broker.appraisal.instances import Instance
from broker.appraisal.rules import Rule, rule_name
from broker.claims import Claims
from broker.services import Services
from broker.store.protocols import Record, RecordKind, Store, StoredKey
from broker.trace import Trace
from keys.errors import NotFound
from keys.messages import ResourcePath
from keys.report import Report

MAX_COUNTING = 16  # versions of one image that a bare name can mean at once, the newest of them
MAX_OTHERS = 4  # versions of one image that do not count, looked up to say what a denied guest runs ...
MAX_ALL_OTHERS = 16  # ... and of all images of a rule together: a denial must stay cheap


@dataclass(frozen=True, slots=True)
class Attested:
    """A guest whose evidence was verified. `trace` goes on where the verifier left off. `announced`: the only key that
    it may ask for, if it named one. `session`: the store's name of its session. Times in milliseconds; `attestation` is
    the ledger's line, `evidence` the SHA-256 of the evidence in hex, `ticket` that of the ticket that it showed.
    `holder`: the first of the sessions that this one goes on from, itself where it is "". `report`: what it tells of
    its disk.
    """

    claims: Claims
    trace: Trace
    announced: str | None
    session: str
    challenged_at: int
    attested_at: int
    attestation: str
    evidence: str
    ticket: str | None = None
    holder: str = ""
    report: Report | None = None


def gather(path: ResourcePath, attested: Attested, services: Services, *, now: int) -> tuple[Case, StoredKey | None]:
    """The case of this guest and the key at `path`, with the key's sealed bytes. What there is not is None or empty.

    Raises Unavailable.
    """
    store = services.store
    case = Case(
        path=path,
        at=now,
        claims=attested.claims,
        announced=attested.announced,
        session=attested.holder or attested.session,
        challenged_at=attested.challenged_at,
        attested_at=attested.attested_at,
        attestation=attested.attestation,
        evidence=attested.evidence,
        owner="",
    )
    if not owner_of(path, store):
        return case, None
    try:
        key = store.key(path.owner, path.type, path.tag)
    except NotFound:
        key = None
    case = replace(case, owner=path.owner, key=None if key is None else (key.version, str(key.state)))
    try:
        record = store.record(RecordKind.RULE, path.owner, rule_name(path))
    except NotFound:
        return case, key
    rule = Rule.from_body(record.body or {})
    guests = known_guests(path.owner, attested.claims.instance_ids, store)
    case = replace(
        case,
        rule=rule,
        rule_version=record.version,
        images=rule_images(path.owner, rule, store, now),
        guests=guests,
        distrusted=distrusted(path.owner, store),
        clock=_previous_clock(path.owner, guests, attested.claims, store),
        ticket=_ticket(path.owner, attested.ticket, store, now),
    )
    held = None if rule.clones == "allow" else store.lease(lease_name(case))
    return replace(case, lease=None if held is None else Lease(held.holder, held.until)), key


def owner_of(path: ResourcePath, store: Store) -> str:
    """The owner of the namespace that `path` is in, "" where there is none."""
    try:
        return store.record(RecordKind.OWNER, "", path.owner).name
    except NotFound:
        return ""


def rule_images(
    owner: str, rule: Rule, store: Store, now: int, candidates: Mapping[str, Image] | None = None
) -> tuple[KnownImage, ...]:
    """The versions that the rule's images mean now, each once; as if `candidates` were the newest versions of the
    images with these names, and active.
    """
    found: dict[str, KnownImage] = {}
    for reference in rule.images:
        lives = image_lives(owner, reference.name, store)
        newest = store.newest_version(RecordKind.IMAGE, owner, reference.name)
        candidate = None
        if candidates is not None and reference.name in candidates:
            newest += 1
            life = Life(ImageState.ACTIVE, now, "nobody: it is only tried")
            candidate = KnownImage(reference.name, newest, life, candidates[reference.name])
        for version in named_versions(reference, lives, newest, now)[:MAX_COUNTING]:
            known = known_image(owner, reference.name, version, lives, store)
            if candidate is not None and version == newest:
                known = candidate
            if known is not None:
                found.setdefault(known.ref, known)
    return tuple(found.values())


def with_others(case: Case, store: Store) -> Case:
    """`case` with the newest versions of the rule's images that do not count: to say what a denied guest runs."""
    if case.rule is None:
        return case
    there = {known.ref for known in case.images}
    others: dict[str, KnownImage] = {}
    for name in dict.fromkeys(reference.name for reference in case.rule.images):
        lives = image_lives(case.owner, name, store)
        newest = store.newest_version(RecordKind.IMAGE, case.owner, name)
        versions = [version for version in range(newest, 0, -1) if f"{name}@{version}" not in there]
        for version in versions[: min(MAX_OTHERS, MAX_ALL_OTHERS - len(others))]:
            known = known_image(case.owner, name, version, lives, store)
            if known is not None:
                others[known.ref] = known._replace(counts=False)
    return replace(case, images=(*case.images, *others.values()))


def known_image(owner: str, name: str, version: int, lives: dict[int, Life], store: Store) -> KnownImage | None:
    """One version of an image with its life, None where there is no such version."""
    try:
        record = store.record(RecordKind.IMAGE, owner, name, version)
    except NotFound:
        return None
    life = lives.get(version) or Life(ImageState.ACTIVE, record.created_at, record.created_by)
    return KnownImage(name, version, life, Image.from_body(record.body or {}))


def image_lives(owner: str, name: str, store: Store) -> dict[int, Life]:
    """Where the versions of an image stand, of all that were ever changed or proposed; others are active."""
    records = store.records(RecordKind.IMAGE_STATE, owner, f"{name}@")
    return {int(record.name.partition("@")[2]): life_in(record) for record in records}


def known_guests(owner: str, instance_ids: Sequence[str], store: Store) -> tuple[KnownGuest, ...]:
    """The owner's machines that have one of these ids."""
    found = {
        record.name: record
        for instance_id in instance_ids
        for record in store.by_alias(RecordKind.INSTANCE, instance_id)
        # An enrolment counts for the owner who made it and for nobody else.
        if record.owner == owner
    }
    return tuple(known_guest(record) for record in found.values())


def known_guest(record: Record) -> KnownGuest:
    instance = Instance.from_body(record.body or {})
    return KnownGuest(
        record.name,
        instance.ids,
        instance.standing,
        instance.bound,
        record.created_at,
        record.created_by,
        instance.why,
    )


def distrusted(owner: str, store: Store) -> tuple[Distrust, ...]:
    """What the owner does not trust any more."""
    bodies = [record.body or {} for record in store.records(RecordKind.DISTRUST, owner)]
    return tuple(Distrust(body["kind"], body["value"], body["why"]) for body in bodies)


def lease_name(case: Case) -> str:
    """Under what name the lease of this guest for this key is kept."""
    return f"{guest_leases(case.owner, case.guests[0].name if case.guests else case.claims.instance_ids[0])}{case.path}"


def guest_leases(owner: str, guest: str) -> str:
    """What the names of all leases of one guest begin with. Neither part can hold what ends it."""
    return f"{owner}/{guest.replace(' ', '_')} "


def life_in(record: Record) -> Life:
    """Where the version of an image stands that this record of its state is about."""
    body = record.body or {}
    return Life(ImageState(body["state"]), record.created_at, record.created_by, body["why"], body["until"])


def _previous_clock(owner: str, guests: Sequence[KnownGuest], claims: Claims, store: Store) -> dict[str, Any] | None:
    """The clock mark in the newest line about this machine, under whichever of its ids. A readmission leaves none.

    The ids that its owner enrolled count too: with another attestation key it is still the same machine. What has no
    clock clears none: a host can start a guest of its own on a chip whose Azure VM it puts back to a snapshot.
    """
    ids = {*claims.instance_ids, *(instance_id for guest in guests for instance_id in guest.ids)}
    kinds = (ledger.RELEASE, ledger.READMIT)
    newest = [store.entries(owner, kinds=kinds, subject=one, limit=1) for one in ids]
    told = [line for lines in newest for line in lines if line.kind == ledger.READMIT or line.body["clock"] is not None]
    line = max(told, key=lambda line: line.sequence, default=None)
    return None if line is None else line.body["clock"]


def _ticket(owner: str, name: str | None, store: Store, now: int) -> Ticket | None:
    if name is None:
        return None
    stored = store.ticket(name)
    if stored is None or stored.owner != owner:
        return Ticket("unknown")
    state = "used" if stored.used_at is not None else "good" if now < stored.expires_at else "expired"
    return Ticket(state, stored.guest, stored.key, stored.image)
