# SPDX-License-Identifier: Apache-2.0
"""One request for a key: from an attested guest to the key, wrapped for that guest alone.

 (1) The guest's attestation: of its session, else of its token. A token is only a pointer; what counts is what the
     store remembers under its id. (A guest of SEV is attested by its launch: `broker.sev_launches`.)
 (2) The key's owner, the key itself, its release rule, the rule's images and the owner's instances are looked up. What
     is missing is a failed check like any other.
 (3) A session that announced one key may fetch only that one.
 (4) The claims are appraised; the machine's clock must not have gone back. A trace that came with a failed check leads
     to no key, whatever appraisal says.
 (5) Custody opens the key; it must fit into what carries it.
 (6) The line in the ledger is durable.
 (7) The key is wrapped to the key that the evidence was bound to, and for a session that declared a TPM with the
     activation secret besides, which only that TPM opened.

Whoever is denied learns only the id of the line: no such owner, key or rule looks the same as the wrong measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from broker import ledger, session
from broker.appraisal.appraise import Outcome, appraise, clock_mark, clock_not_behind
from broker.appraisal.images import Image
from broker.appraisal.instances import Instance
from broker.appraisal.rules import ImageRef, Rule, rule_name
from broker.claims import Claims
from broker.services import Services
from broker.store.protocols import KeyState, RecordKind, StoredKey
from broker.trace import Stage, Trace
from keys import jwe, jwk
from keys.errors import AppraisalDenied, FreshnessError, NotFound, ReleaseDenied, Unauthorized, VerificationError
from keys.messages import ResourcePath

Wrapped = TypeVar("Wrapped")


class Wanted(NamedTuple):
    """What an owner has under a key's path; None or empty for what there is not."""

    owner: str
    key: StoredKey | None
    rule: Rule | None
    images: dict[str, Image]
    instances: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Attested:
    """A guest whose evidence was verified. `trace` goes on where the verifier left off. `announced`: the only key that
    it may ask for, if it named one. Times in milliseconds; `evidence` is the SHA-256 of the evidence in hex.
    """

    claims: Claims
    trace: Trace
    announced: str | None
    challenged_at: int
    attested_at: int
    evidence: str


def release(
    path: ResourcePath, services: Services, *, session_id: str | None, token: str | None, now: int
) -> dict[str, str]:
    """The key at `path` as a JWE. `session_id` from the cookie, `token` from the Authorization header; `now` in
    milliseconds.

    Raises FreshnessError (neither an attested session nor a token), Unauthorized (the token is no good, or what it
    stands for has expired), ReleaseDenied (its `decision` is all that the guest may see), Unavailable.
    """
    held = _attestation(services, session_id, token, now)  # (1)
    attested = Attested(
        claims=Claims.from_json(held["claims"]),
        trace=Trace.from_json(held["trace"]),
        announced=held["resource"],
        challenged_at=held["challenged_at"],
        attested_at=held["attested_at"],
        evidence=held["evidence"],
    )

    def wrap(plaintext: bytes) -> dict[str, str]:
        return jwe.seal(plaintext, jwk.parse(held["tee_pubkey"]), activation=_activation(held, services))  # (7)

    wanted = look_up(path, attested.claims.instance_ids, services)  # (2)
    return decide(path, wanted, attested, services, now=now, wrap=wrap)


def decide(
    path: ResourcePath,
    wanted: Wanted,
    attested: Attested,
    services: Services,
    *,
    now: int,
    wrap: Callable[[bytes], Wrapped],
    max_bytes: int = jwe.MAX_PLAINTEXT_BYTES,
) -> Wrapped:
    """Steps (3) to (7): what `wrap` makes of the key at `path`, called only once the line that says so is durable.

    `max_bytes` is how long a key may be that `wrap` can carry. Raises ReleaseDenied with its `decision`, Unavailable.
    """
    claims, trace = attested.claims, attested.trace
    sound = not trace.failed
    previous = _previous_clock(services, wanted, claims)

    key = check_wanted(path, wanted, attested.announced, trace)  # (3)
    outcome = Outcome(allowed=False, image=None, instances=())
    if wanted.rule is not None:
        outcome = appraise(claims, wanted.rule, path, images=wanted.images, instances=wanted.instances, trace=trace)
    steady = clock_not_behind(previous, claims, attested.challenged_at, trace)  # (4)
    plaintext = None
    if key is not None and outcome.allowed and steady and sound:
        plaintext = _open(key, services, max_bytes, trace)  # (5)

    decision = ledger.new_id(services.random)
    body = {
        "key": str(path),
        "version": None if wanted.key is None else wanted.key.version,
        "image": outcome.image,
        "names": list(outcome.instances),
        "instances": list(claims.instance_ids),
        "evidence": attested.evidence,
        "claims": ledger.claims_summary(claims),
        "clock": clock_mark(previous, claims, attested.attested_at) if steady else previous,
        "trace": trace.to_json(),
    }
    ledger.record(services, id_=decision, owner=wanted.owner, at=now, kind=ledger.RELEASE,
                  verdict="denied" if plaintext is None else "released", subject=claims.instance_ids[0],
                  body=body)  # (6)  # fmt: skip
    if plaintext is None:
        # Which of the two it is, our own log may say; to a guest both look alike.
        denied = ReleaseDenied if wanted.rule is None or (outcome.allowed and steady) else AppraisalDenied
        error = denied("the key is not released to this guest")
        error.decision = decision
        raise error
    return wrap(plaintext)


def _attestation(services: Services, session_id: str | None, token: str | None, now: int) -> dict[str, Any]:
    held = services.store.session_attestation(session.store_name(session_id), now)
    if held is not None:
        return held[1]
    if token is None:
        raise FreshnessError("neither an attested session nor a token")
    attestation = services.store.attestation(services.tokens.verify(token, now)["jti"], now)
    if attestation is None:
        raise Unauthorized("the token stands for no attestation that is still good")
    return attestation


def look_up(path: ResourcePath, instance_ids: Sequence[str], services: Services) -> Wanted:
    """What there is under `path` for a guest with these ids, step (2). Raises Unavailable."""
    store = services.store
    try:
        store.record(RecordKind.OWNER, "", path.owner)
    except NotFound:
        return Wanted("", None, None, {}, {})
    try:
        key = store.key(path.owner, path.type, path.tag)
    except NotFound:
        key = None
    try:
        rule = Rule.from_body(store.record(RecordKind.RULE, path.owner, rule_name(path)).body or {})
    except NotFound:
        return Wanted(path.owner, key, None, {}, {})
    images = {}
    for reference in rule.images:
        image = _image(path.owner, reference, services)
        if image is not None:
            images[image[0]] = image[1]
    instances = {
        record.name: Instance.from_body(record.body or {}).ids
        for instance_id in instance_ids
        for record in store.by_alias(RecordKind.INSTANCE, instance_id)
        # An enrolment counts for the owner who made it and for nobody else.
        if record.owner == path.owner
    }
    return Wanted(path.owner, key, rule, images, instances)


def _image(owner: str, reference: ImageRef, services: Services) -> tuple[str, Image] | None:
    try:
        record = services.store.record(RecordKind.IMAGE, owner, reference.name, reference.version)
    except NotFound:
        return None
    return f"{record.name}@{record.version}", Image.from_body(record.body or {})


def check_wanted(path: ResourcePath, wanted: Wanted, announced: str | None, trace: Trace) -> StoredKey | None:
    """The key, if this session may ask for it and it has a rule."""
    ours = trace.check(
        Stage.SECRET,
        "session asks for the key that it announced",
        announced is None or announced == str(path),
        expected="the key named when the challenge was asked for",
        found=path,
        mend="let the guest attest again for this key",
    )
    exists = trace.check(
        Stage.SECRET,
        "key exists",
        wanted.key is not None and wanted.key.state is KeyState.ACTIVE,
        expected=path,
        found="no such key" if wanted.key is None else wanted.key.state,
        mend=f"roomkey key put {path} or roomkey key generate {path}",
    )
    ruled = trace.check(
        Stage.TRUST,
        "key has a release rule",
        wanted.rule is not None,
        expected="a rule; without one nobody gets the key",
        mend=f"roomkey rule set {path} --image NAME --platform tpm --instance NAME",
    )
    return wanted.key if ours and exists and ruled else None


def _previous_clock(services: Services, wanted: Wanted, claims: Claims) -> dict[str, Any] | None:
    """The clock mark in the newest line about this machine, under whichever of its ids. A readmission leaves none.

    The ids that its owner enrolled count too: with another attestation key it is still the same machine. What has no
    clock clears none: a host can start a guest of its own on a chip whose Azure VM it puts back to a snapshot.
    """
    ids = {*claims.instance_ids, *(instance_id for ids in wanted.instances.values() for instance_id in ids)}
    kinds = (ledger.RELEASE, ledger.READMIT)
    newest = [services.store.entries(wanted.owner, kinds=kinds, subject=one, limit=1) for one in ids]
    told = [line for lines in newest for line in lines if line.kind == ledger.READMIT or line.body["clock"] is not None]
    line = max(told, key=lambda line: line.sequence, default=None)
    return None if line is None else line.body["clock"]


def _open(key: StoredKey, services: Services, max_bytes: int, trace: Trace) -> bytes | None:
    """The plaintext, or None where the store's bytes are not what custody sealed, or too many."""
    try:
        # An active key without its bytes is a damaged store like any other: custody opens no empty bytes.
        plaintext = services.custody.open(key.owner, key.type, key.tag, key.version, key.sealed or b"")
    except VerificationError as error:
        trace.fail(Stage.SECRET, error)
        return None
    trace.check(Stage.SECRET, "custody opens the key", True, found=f"version {key.version}")
    if len(plaintext) <= max_bytes:
        return plaintext
    trace.check(
        Stage.SECRET,
        "key fits into what carries it to this guest",
        False,
        expected=f"at most {max_bytes} bytes",
        found=len(plaintext),
        mend=f"put a shorter key: roomkey key put {key.path}",
    )
    return None


def _activation(attested: dict[str, Any], services: Services) -> bytes | None:
    made_for = attested["activation"]
    if made_for is None:
        return None
    return session.activation_secret(services.custody, made_for["session"], made_for["nonce"])
