# SPDX-License-Identifier: Apache-2.0
"""One attempt to attest: from a posted message to a signed attestation result.

(1) The message is one that this session's platform can read: the evidence's shape, init-data, no additional evidence,
    a key that the platform's wrapping can use; and what vouches for the evidence is looked up. What is refused here, or
    cannot be had now, has changed nothing.
(2) The challenge is taken, once. From here on every end leaves a line in the ledger, and there is no second try.
(3) The nonce in the message is the session's, compared in constant time.
(4) The verifier judges the evidence against the binding: nonce, guest's key, init-data.
(5) A machine that its owner has revoked gets no token: neither from the owner whose key it wants, nor from the one who
    alone vouches for its attestation key.
(6) The line is durable, then the result is remembered under the session, then the token is signed.

Where the evidence is refused and the guest has said which key it wants, its owner also reads what the key's rule would
have said: of genuine evidence below the operator's floors all of it, else that it was not judged.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from broker import initdata, ledger, session
from broker.appraisal.ear import ear_claims
from broker.appraisal.image_life import when
from broker.appraisal.instances import Instance, Standing
from broker.appraisal.judge import judge, not_judged
from broker.claims import BelowFloors, Binding, Claims, Endorsements, Trusted, Verifier
from broker.gather import Attested, gather, known_guests, owner_of, with_others
from broker.services import Services
from broker.store.protocols import Consumption, Record, RecordKind
from broker.trace import Stage, Trace
from broker.verifiers.registry import verifier_for
from keys import strictjson
from keys.binding import report_data
from keys.errors import FreshnessError, ProtocolError, RoomkeyError, VerificationError
from keys.messages import Attestation, ResourcePath, TpmDeclaration
from keys.tee import Tee

TRUSTED_BY_OWNER = "enrolled"

_STATES = {
    Consumption.JUDGE: "unused and in time",
    Consumption.USED: "used before",
    Consumption.EXPIRED: "expired",
    Consumption.UNKNOWN: "unknown",
}


class _Attempt(NamedTuple):
    """What is known before the challenge is taken. `enrolled` are the records, of whatever owner, that name a key which
    the evidence claims to be signed with; `found` the vendor's endorsements that it does not bring.
    """

    session: str
    challenge: dict[str, Any]
    verifier: Verifier
    evidence: Any
    init_data: bytes | None
    tpm: TpmDeclaration | None
    enrolled: dict[str, list[Record]]
    found: Mapping[str, bytes]


def attest(
    session_id: str | None,
    message: Attestation,
    services: Services,
    *,
    now: int,
    client: str | None = None,
    may_wait: bool = True,
) -> str:
    """The token of a guest whose evidence is genuine. `now` in milliseconds. `client` is who posted the message.

    Raises ProtocolError (cannot be read), WouldWait (something must be fetched and the caller does not want to wait for
    it) or Unavailable: the challenge is still good. Raises FreshnessError or VerificationError: refused, the challenge
    is gone, and the error's `decision` is the ledger's line.
    """
    name = session.store_name(session_id)
    attempt = _read(name, message, services, now, client, may_wait)  # (1)
    owner = _owner(attempt, services)
    outcome, _ = services.store.consume_session(name, now)  # (2)
    decision = ledger.new_id(services.random)
    evidence = hashlib.sha256(strictjson.canonical(message.primary_evidence)).hexdigest()
    trace = Trace()

    def line(verdict: str, claims: Claims | None) -> None:
        claimed = list(attempt.enrolled) if attempt is not None else []
        ids = list(claims.instance_ids) if claims is not None else claimed
        body = {
            "tee": attempt.challenge["tee"] if attempt is not None else "",
            "key": attempt.challenge["resource"] if attempt is not None else None,
            "instances": ids,
            "evidence": evidence,
            "claims": None if claims is None else ledger.claims_summary(claims),
            "trace": trace.to_json(),
        }
        ledger.record(services, id_=decision, owner=owner, at=now, kind=ledger.ATTEST, verdict=verdict,
                      subject=ids[0] if ids else "", body=body)  # fmt: skip

    claims: Claims | None = None
    try:
        trace.require(Stage.ROOT_OF_TRUST, "challenge", outcome is Consumption.JUDGE and attempt is not None,
                      expected=_STATES[Consumption.JUDGE], found=_STATES[outcome],
                      mend="let the guest ask for a new challenge", error=FreshnessError)  # fmt: skip
        assert attempt is not None  # narrowing: the line above has raised
        claims = _judge(attempt, message, services, now, trace)
        _check_not_revoked(claims, attempt, owner, services, trace)  # (5)
    except Exception as error:
        # The challenge is gone whatever went wrong, a fault of our own too, so the attempt must leave its line.
        known = error if isinstance(error, RoomkeyError) else VerificationError("the broker failed while judging")
        known.decision = decision
        if not trace.failed:
            trace.fail(Stage.ROOT_OF_TRUST, known)
        if isinstance(error, BelowFloors):
            claims = error.claims
        _explain(attempt, owner, claims, services, decision, evidence, now, trace)
        line("refused", claims)
        raise
    line("genuine", claims)  # (6)
    body = {
        "claims": claims.to_json(),
        "tee_pubkey": message.tee_pubkey.members,
        "resource": attempt.challenge["resource"],
        "session": name,
        "ticket": attempt.challenge["ticket"],
        "nonce": message.nonce,
        "activation": None if attempt.tpm is None else {"session": name, "nonce": attempt.challenge["nonce"]},
        "challenged_at": attempt.challenge["issued_at"],
        "attested_at": now,
        "evidence": evidence,
        "trace": trace.to_json(),
    }
    expires_at = now + services.tokens.lifetime_s * 1000
    services.store.put_attestation(decision, name, body, expires_at)
    floors = services.trusted.get(claims.tee, Trusted()).floors
    return services.tokens.issue(ear_claims(claims, message, floors), token_id=decision, now=now)


def _read(
    name: str, message: Attestation, services: Services, now: int, client: str | None, may_wait: bool
) -> _Attempt | None:
    """None where there is no such session. Raises ProtocolError, WouldWait, Unavailable."""
    challenge = services.store.session(name)
    if challenge is None:
        return None
    if message.additional_evidence:
        raise ProtocolError("additional evidence is not supported", expected='additional_evidence ""')
    declaration = None if challenge["tpm"] is None else TpmDeclaration.from_json(challenge["tpm"])
    if declaration is not None and not message.tee_pubkey.is_ec:
        raise ProtocolError("an RSA tee-pubkey cannot be used with TPM credential activation", expected="kty EC")
    verifier = verifier_for(Tee(challenge["tee"]))
    evidence = verifier.decode(message.primary_evidence)
    init_data = None if message.init_data is None else initdata.digest(message.init_data)
    needed = verifier.needs(evidence)
    enrolled = {
        instance_id: services.store.by_alias(RecordKind.INSTANCE, instance_id) for instance_id in needed.instance_ids
    }
    found: Mapping[str, bytes] = {}
    if services.endorsements is not None:
        # Last, because it may cost time: nothing that cannot be read makes the broker ask a vendor.
        found = services.endorsements.look_up(needed, now, may_wait=may_wait, client=client)
    return _Attempt(name, challenge, verifier, evidence, init_data, declaration, enrolled, found)


def _judge(attempt: _Attempt, message: Attestation, services: Services, now: int, trace: Trace) -> Claims:
    nonce: str = attempt.challenge["nonce"]
    same = hmac.compare_digest(message.nonce.encode("utf-8"), nonce.encode("ascii"))
    trace.require(Stage.ROOT_OF_TRUST, "nonce is this session's", same, expected=nonce, found=message.nonce,
                  mend="recorded evidence, or two sessions mixed up: evidence is good for its own challenge only",
                  error=FreshnessError)  # (3)  # fmt: skip
    activation = None
    if attempt.tpm is not None:
        activation = session.activation_secret(services.custody, attempt.session, nonce)
    hint = attempt.challenge["resource"]
    endorsements = Endorsements(
        trusted=services.trusted.get(attempt.verifier.tee, Trusted()),
        found=attempt.found,
        enrolled=_public_areas(attempt.enrolled, None if hint is None else ResourcePath.parse(hint).owner),
        activation=activation,
        session={} if attempt.tpm is None else attempt.tpm._asdict(),
    )
    bound_to = Binding(
        report_data(attempt.verifier.tee, nonce, message.tee_pubkey.members, message.additional_evidence),
        attempt.init_data,
    )
    at = datetime.fromtimestamp(now / 1000, UTC)
    return attempt.verifier.verify(attempt.evidence, endorsements, bound_to, at, trace)  # (4)


def _check_not_revoked(claims: Claims, attempt: _Attempt, owner: str, services: Services, trace: Trace) -> None:
    """Step (5). Raises VerificationError."""
    by_owner = claims.trust == TRUSTED_BY_OWNER
    # Where a vendor vouches for the machine, no owner has a say in this before a key of his is asked for.
    asked = owner if by_owner or attempt.challenge["resource"] is not None else ""
    for guest in known_guests(asked, claims.instance_ids, services.store):
        trace.require(
            Stage.IDENTITY,
            f"guest {guest.name} is not revoked by its owner",
            guest.standing is not Standing.REVOKED,
            found=f"revoked since {when(guest.since)}, by {guest.who}" + (f": {guest.why}" if guest.why else ""),
            mend=f"if you trust it again: roomkey guest readmit {guest.name}",
        )
    if by_owner:
        records = [record for found in attempt.enrolled.values() for record in found]
        standings = {Instance.from_body(record.body or {}).standing for record in records}
        trace.require(
            Stage.IDENTITY,
            "an owner still vouches for the attestation key",
            standings != {Standing.REVOKED},
            found="revoked by everybody who enrolled it",
            mend="roomkey guest list",
        )


def _explain(
    attempt: _Attempt | None, owner: str, claims: Claims | None, services: Services, decision: str, evidence: str,
    now: int, trace: Trace,
) -> None:  # fmt: skip
    """Add to the trace of refused evidence what the rule of the wanted key would have said. Changes no verdict."""
    if attempt is None or not owner or attempt.challenge["resource"] is None:
        return
    if claims is None:
        not_judged(trace)
        return
    attested = Attested(
        claims=claims,
        trace=trace,
        announced=attempt.challenge["resource"],
        session=attempt.session,
        challenged_at=attempt.challenge["issued_at"],
        attested_at=now,
        attestation=decision,
        evidence=evidence,
    )
    try:
        case, _ = gather(ResourcePath.parse(attempt.challenge["resource"]), attested, services, now=now)
        judge(with_others(case, services.store), trace)
    except Exception:  # noqa: BLE001  the evidence is refused whatever this says, and the refusal must leave its line
        not_judged(trace)


def _public_areas(enrolled: dict[str, list[Record]], owner: str | None) -> dict[str, bytes]:
    """The enrolled public area under each instance id.

    Two owners can have enrolled one key with different attributes. Then the owner whose key the guest wants decides,
    else who enrolled it first: nobody can spoil a guest of somebody else by enrolling it later.
    """
    chosen: dict[str, bytes] = {}
    for instance_id, records in enrolled.items():
        for record in sorted(records, key=lambda record: (record.owner != owner, record.created_at)):
            public = Instance.from_body(record.body or {}).enrolled
            if public is not None:
                chosen.setdefault(instance_id, public)
    return chosen


def _owner(attempt: _Attempt | None, services: Services) -> str:
    """Whose ledger an attempt goes into: the owner of the wanted key, if there is one of that name, else the one owner
    who enrolled the guest, else "".
    """
    if attempt is None:
        return ""
    if attempt.challenge["resource"] is not None:
        owner = owner_of(ResourcePath.parse(attempt.challenge["resource"]), services.store)
        if owner:
            return owner
    owners = {record.owner for records in attempt.enrolled.values() for record in records}
    return owners.pop() if len(owners) == 1 else ""
