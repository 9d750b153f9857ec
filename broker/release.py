# SPDX-License-Identifier: Apache-2.0
"""One request for a key: from an attested guest to the key, wrapped for that guest alone.

 (1) The guest's attestation: of its session, else of its token. A token is only a pointer; what counts is what the
     store remembers under its id. (A guest of SEV is attested by its launch: `broker.sev_launches`.)
 (2) All that the decision stands on is looked up (`broker.gather`). What is missing is a failed check like any other.
 (3) The case is judged (`broker.appraisal.judge`).
 (4) Custody opens the key; it must fit into what carries it. The disk that the guest tells of must be the volume that
     the key is for, where that is known (`broker.appraisal.volume`).
 (5) What only one guest may have is taken: the lease, where the rule forbids clones, the ticket, and the volume that is
     to be made. Who comes second is denied. What the guest has done to its volume counts from here on.
 (6) The line in the ledger is durable, with what a shadow of the rule says of the same case (`broker.shadow`). What the
     decision changes about the guest follows.
 (7) The key is wrapped to the key that the evidence was bound to, and for a session that declared a TPM with the
     activation secret besides, which only that TPM opened. Who asked for it gets the key in a release envelope, signed
     by the broker (`keys.envelope`).

Whoever is denied learns only the id of the line: no such owner, key or rule looks the same as the wrong measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from broker import ledger, session
from broker.appraisal.case import Case
from broker.appraisal.clock import clock_mark
from broker.appraisal.identity import Act
from broker.appraisal.image_life import when
from broker.appraisal.instances import Bound, Instance, Standing
from broker.appraisal.judge import Judged, judge
from broker.appraisal.volume import CHECKS as VOLUME_CHECKS
from broker.appraisal.volume import Volume, judge_volume
from broker.claims import Claims
from broker.gather import Attested, gather, lease_name, with_others
from broker.services import Services
from broker.shadow import beside
from broker.store.protocols import Record, RecordKind, StoredKey
from broker.trace import Stage, Trace
from broker.volumes import BROKER, Other, change, other_key, settle
from keys import envelope, jwe, jwk
from keys.errors import (
    AppraisalDenied,
    Conflict,
    FreshnessError,
    NotFound,
    ReleaseDenied,
    Unauthorized,
    VerificationError,
)
from keys.messages import ResourcePath
from keys.report import Report, Step

ENVELOPE_LIFETIME_MS = 60_000  # from the release until the guest must have checked it
MAX_PENDING = 1000  # machines of one owner that wait for approval

# The checks of steps (4) and (5). What came of them can be told, but not judged again.
OPENS = "custody opens the key"
FITS = "key fits into what carries it to this guest"
ALONE = "the lease is this session's"
ENROLLED = "the guest is enrolled"
KEPT = "the volume's record is kept"
ONCE = frozenset((OPENS, FITS, ALONE, ENROLLED, KEPT)) | VOLUME_CHECKS

Wrapped = TypeVar("Wrapped")


class Released(NamedTuple):
    """What a release says of itself, beside the key: the ledger's line, the key's version, the image that the guest
    runs, the version of the rule that let it, the pin of the volume that the key is for, whether the guest is to make
    that, and what it shall do to its keyslots.
    """

    decision: str
    version: int
    image: str
    rule: int
    volume: str | None
    format: bool = False
    other: Other | None = None


class _Opened(NamedTuple):
    """A key that custody has opened; what is known of its volume, and what was known `before` the guest's word."""

    key: StoredKey
    plaintext: bytes
    before: Volume | None
    volume: Volume | None
    format: bool = False
    other: Other | None = None

    def __repr__(self) -> str:
        return f"_Opened(key={self.key!r})"


def release(
    path: ResourcePath,
    services: Services,
    *,
    session_id: str | None,
    token: str | None,
    now: int,
    in_envelope: bool = False,
) -> dict[str, str]:
    """The key at `path` as a JWE. `session_id` from the cookie, `token` from the Authorization header; `now` in
    milliseconds. `in_envelope`: the guest asked for a release envelope (`keys.envelope`).

    Raises FreshnessError (neither an attested session nor a token), Unauthorized (the token is no good, or what it
    stands for has expired), ReleaseDenied (its `decision` is all that the guest may see), Unavailable.
    """
    attestation, held = _attestation(services, session_id, token, now)  # (1)
    attested = Attested(
        claims=Claims.from_json(held["claims"]),
        trace=Trace.from_json(held["trace"]),
        announced=held["resource"],
        session=held["session"],
        challenged_at=held["challenged_at"],
        attested_at=held["attested_at"],
        attestation=attestation,
        evidence=held["evidence"],
        ticket=held["ticket"],
        holder=held["holder"],
        report=None if held["report"] is None else Report.from_text(held["report"]),
    )

    def wrap(plaintext: bytes, released: Released) -> dict[str, str]:
        if in_envelope:
            plaintext = _envelope(plaintext, path, held, attested, released, services, now)
        return jwe.seal(plaintext, jwk.parse(held["tee_pubkey"]), activation=_activation(held, services))  # (7)

    return decide(path, attested, services, now=now, wrap=wrap)


def decide(
    path: ResourcePath,
    attested: Attested,
    services: Services,
    *,
    now: int,
    wrap: Callable[[bytes, Released], Wrapped],
    max_bytes: int = jwe.MAX_PLAINTEXT_BYTES,
) -> Wrapped:
    """Steps (2) to (7): what `wrap` makes of the key at `path`, called only once the line that says so is durable.

    `max_bytes` is how long a key may be that `wrap` can carry. Raises ReleaseDenied with its `decision`, Unavailable.
    """
    verified, decision = attested.trace, ledger.new_id(services.random)
    case, key = gather(path, attested, services, now=now)  # (2)
    case, judged, trace = _judge(case, verified, services)  # (3)
    opened = None
    if judged.allowed and key is not None:
        opened = _opened(key, attested, case, services, max_bytes, trace)  # (4)
    if opened is not None:
        opened = _taken(opened, case, judged, attested, decision, services, trace)  # (5)

    body = {
        "tee": str(case.claims.tee),
        "key": str(path),
        "version": opened.key.version if opened is not None else None if case.key is None else case.key[0],
        "volume": None if opened is None or opened.volume is None else opened.volume.pin,
        "report": None if attested.report is None else attested.report._asdict(),
        "step": None if opened is None else str(Step.FORMAT) if opened.format else _step(opened.other),
        "image": judged.image,
        "names": list(judged.names),
        "instances": list(case.claims.instance_ids),
        "evidence": case.evidence,
        "claims": ledger.claims_summary(case.claims),
        "clock": clock_mark(case.clock, case.claims, case.attested_at) if judged.steady else case.clock,
        "act": str(judged.act),
        "guest": judged.guest,
        "shadow": beside(case, verified, judged.allowed, services.store),
        "case": case.to_json(whole=False),
        "verified": len(verified.checks),
        "trace": trace.to_json(),
    }
    ledger.record(services, id_=decision, owner=case.owner, at=now, kind=ledger.RELEASE,
                  verdict="denied" if opened is None else "released", subject=case.claims.instance_ids[0],
                  body=body)  # (6)  # fmt: skip
    _follow(case, judged, decision, services)
    if opened is None:
        # Which of the two it is, our own log may say; to a guest both look alike.
        denied = ReleaseDenied if case.rule is None or judged.allowed else AppraisalDenied
        error = denied("the key is not released to this guest")
        error.decision = decision
        raise error
    assert judged.image is not None  # narrowing: nothing is opened for a guest without one
    assert case.rule_version is not None
    pin = None if opened.volume is None else opened.volume.pin
    released = Released(decision, opened.key.version, judged.image, case.rule_version, pin, opened.format, opened.other)
    return wrap(opened.plaintext, released)


def _attestation(services: Services, session_id: str | None, token: str | None, now: int) -> tuple[str, dict[str, Any]]:
    held = services.store.session_attestation(session.store_name(session_id), now)
    if held is not None:
        return held
    if token is None:
        raise FreshnessError("neither an attested session nor a token")
    attestation: str = services.tokens.verify(token, now)["jti"]
    body = services.store.attestation(attestation, now)
    if body is None:
        raise Unauthorized("the token stands for no attestation that is still good")
    return attestation, body


def _judge(case: Case, verified: Trace, services: Services) -> tuple[Case, Judged, Trace]:
    """The judgement. A denied guest may run what the rule does not mean any more: then that is looked up too, for its
    owner to read, and changes nothing about the verdict.
    """
    trace = Trace([*verified.checks])
    judged = judge(case, trace)
    if judged.image is None and case.rule is not None:
        case = with_others(case, services.store)
        trace = Trace([*verified.checks])
        judged = judge(case, trace)
    return case, judged, trace


def _step(other: Other | None) -> str | None:
    return None if other is None else str(other.step)


def _opened(
    key: StoredKey, attested: Attested, case: Case, services: Services, max_bytes: int, trace: Trace
) -> _Opened | None:
    """Step (4). A change of the key that its guest has confirmed before is carried out first."""
    path = case.path
    try:
        volume = settle(path, services, case.at)
        key = services.store.key(*path) if volume is not None else key
    except (Conflict, NotFound, VerificationError) as error:
        trace.check(Stage.SECRET, KEPT, False, found=error, mend="it may ask again")
        return None
    plaintext = _open(key, services, max_bytes, trace)
    if plaintext is None:
        return None
    told = judge_volume(str(path), volume, attested.report, key.version, case.claims.instance_ids, trace)
    if not told.allowed:
        return None
    return _Opened(key, plaintext, volume, volume if told.volume is None else told.volume, told.format)


def _taken(
    opened: _Opened, case: Case, judged: Judged, attested: Attested, decision: str, services: Services, trace: Trace
) -> _Opened | None:
    """Step (5). Where the guest's word makes another version the key, that one."""
    if not _take(case, judged, attested.ticket, decision, services, trace):
        return None
    if opened.volume is None or opened.before is None:
        return opened
    path, key, plaintext, volume = case.path, opened.key, opened.plaintext, opened.volume
    try:
        if volume != opened.before:
            volume = change(path, opened.before, volume, services, case.at)
            key = services.store.key(*path)
            plaintext = services.custody.open(*path, key.version, key.sealed or b"")
        tells = attested.report is not None and attested.report.pin is not None
        other = other_key(path, volume, services) if tells and volume.pin is not None else None
    except (Conflict, NotFound, VerificationError) as error:
        trace.check(Stage.SECRET, KEPT, False, found=error, mend="another request came between: it may ask again")
        return None
    return _Opened(key, plaintext, opened.before, volume, opened.format, other)


def _open(key: StoredKey, services: Services, max_bytes: int, trace: Trace) -> bytes | None:
    """The plaintext, or None where the store's bytes are not what custody sealed, or too many."""
    try:
        # An active key without its bytes is a damaged store like any other: custody opens no empty bytes.
        plaintext = services.custody.open(key.owner, key.type, key.tag, key.version, key.sealed or b"")
    except VerificationError as error:
        trace.check(Stage.SECRET, OPENS, False, expected=f"version {key.version}", found=error, mend=error.mend or "")
        return None
    trace.check(Stage.SECRET, OPENS, True, found=f"version {key.version}")
    if len(plaintext) <= max_bytes:
        return plaintext
    trace.check(
        Stage.SECRET,
        FITS,
        False,
        expected=f"at most {max_bytes} bytes",
        found=len(plaintext),
        mend=f"put a shorter key: roomkey key put {key.path}",
    )
    return None


def _take(case: Case, judged: Judged, ticket: str | None, decision: str, services: Services, trace: Trace) -> bool:
    """Step (5). Each of these is one statement in the store, so that of two guests one comes second."""
    alone = enrolled = True
    if case.rule is not None and case.rule.clones != "allow":
        until = case.at + case.rule.lease_s * 1000
        alone = trace.check(
            Stage.IDENTITY,
            ALONE,
            services.store.take_lease(lease_name(case), case.session, case.at, until),
            expected="none, or its own",
            found=f"until {when(until)}",
            mend="two sessions of one guest at the same moment: it may come again when the other's lease is over",
        )
    if alone and judged.act in {Act.REDEEM, Act.FIRST_USE}:
        enrolled = trace.check(
            Stage.IDENTITY,
            ENROLLED,
            _enrol(case, judged, ticket, decision, services),
            expected=f"{judged.guest}, by {'the ticket' if judged.act is Act.REDEEM else 'first use'}",
            found="another was quicker, or the name is taken",
            mend=f"roomkey guest list; for another guest: roomkey guest ticket NAME --key {case.path} --image IMAGE",
        )
    return alone and enrolled


def _enrol(case: Case, judged: Judged, ticket: str | None, decision: str, services: Services) -> bool:
    """Whether the guest is now its owner's, under its name and with all its ids, for this key and image."""
    store, ids = services.store, case.claims.instance_ids
    image = str(judged.image).partition("@")[0] if case.ticket is None else case.ticket.image
    bound = Bound(str(case.path), image, case.claims.init_data)
    instance = Instance(ids, bound=bound, why=f"{judged.act}, decision {decision}", decision=decision)
    record = _first_record(case, judged.guest, instance, services)
    if record is None:
        return False
    if judged.act is Act.REDEEM:
        return store.redeem_ticket(ticket or "", ids[0], case.at, record, ids)
    try:
        store.put_record(record, ids)
    except Conflict:
        return False
    return True


def _follow(case: Case, judged: Judged, decision: str, services: Services) -> None:
    """What the decision changes about the guest, once its line is durable. Raises Unavailable."""
    store = services.store
    standing = {Act.FAIL: Standing.FAILED, Act.QUARANTINE: Standing.QUARANTINED, Act.QUEUE: Standing.PENDING}.get(
        judged.act
    )
    if standing is None:
        return
    if standing is Standing.PENDING:
        if len(store.records(RecordKind.INSTANCE, case.owner, "g-")) >= MAX_PENDING:
            return
        bound = Bound(str(case.path), str(judged.image).partition("@")[0], case.claims.init_data)
        waiting = Instance(case.claims.instance_ids, None, "", standing, bound, f"decision {decision}", decision)
        record = _first_record(case, judged.guest, waiting, services)
    else:
        known = store.record(RecordKind.INSTANCE, case.owner, judged.guest)
        instance = Instance.from_body(known.body or {})
        changed = replace(instance, standing=standing, why=f"decision {decision}", decision=decision)
        record = _record(case, judged.guest, known.version + 1, changed)
    if record is not None:
        # Where somebody changed the guest in this moment, that stays, and its next request is judged by it.
        with suppress(Conflict):
            store.put_record(record, (record.body or {})["ids"])


def _first_record(case: Case, name: str, instance: Instance, services: Services) -> Record | None:
    """The record of a machine whose name nobody has; None where somebody has. The version is read before that is looked
    at, so that a name which is given in between is a conflict.
    """
    version = services.store.newest_version(RecordKind.INSTANCE, case.owner, name) + 1
    try:
        services.store.record(RecordKind.INSTANCE, case.owner, name)
    except NotFound:
        return _record(case, name, version, instance)
    return None


def _record(case: Case, name: str, version: int, instance: Instance) -> Record:
    return Record(RecordKind.INSTANCE, case.owner, name, version, instance.to_body(), case.at, BROKER)


def _envelope(
    secret: bytes,
    path: ResourcePath,
    held: dict[str, Any],
    attested: Attested,
    released: Released,
    services: Services,
    now: int,
) -> bytes:
    """The key with the broker's signed word about it, and the other key that goes with it."""
    other = released.other
    statement = envelope.Release(
        key=str(path),
        version=released.version,
        session=attested.session,
        nonce=held["nonce"],
        tee_pubkey=jwk.thumbprint(held["tee_pubkey"]),
        decision=released.decision,
        evidence=attested.evidence,
        image=released.image,
        rule=released.rule,
        volume=released.volume,
        format=released.format,
        also=None if other is None else envelope.Also(other.step, other.version, envelope.digest(other.secret)),
        challenged_at=attested.challenged_at,
        released_at=now,
        expires_at=now + ENVELOPE_LIFETIME_MS,
        sha256=envelope.digest(secret),
    )
    signed = services.signer.sign(statement.to_json(), envelope.RELEASE)
    return envelope.pack(secret, signed, None if other is None else other.secret)


def _activation(attested: dict[str, Any], services: Services) -> bytes | None:
    made_for = attested["activation"]
    if made_for is None:
        return None
    return session.activation_secret(services.custody, made_for["session"], made_for["nonce"])
