# SPDX-License-Identifier: Apache-2.0
"""One attempt to attest: from a posted message to a signed attestation result.

(1) The message is one that this session's platform can read: the evidence's shape, init-data, additional evidence that
    is none or a report on a disk (`keys.report`), a key that the platform's wrapping can use; and what vouches for the
    evidence is looked up. What is refused here, or cannot be had now, has changed nothing.
(2) The challenge is taken, once. From here on every end leaves a line in the ledger, and there is no second try.
(3) Nonce, evidence and the standing of the machine are judged (`broker.evidence`). A machine that its owner has revoked
    gets no token.
(4) The line is durable. What was judged is kept beside it (`broker.dossiers`), so that it can be judged again.
(5) The result is remembered under the session, then the token is signed.

Where the evidence is refused and the guest has said which key it wants, its owner also reads what the key's rule would
have said: of genuine evidence below the operator's floors all of it, else that it was not judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from broker import initdata, ledger, session
from broker.appraisal.case import Case
from broker.appraisal.ear import ear_claims
from broker.appraisal.instances import Instance
from broker.claims import Claims, Endorsements, Trusted, Verifier
from broker.dossier import Dossier
from broker.evidence import Judged, Standings, Submission, explain, judge_evidence
from broker.gather import Attested, gather, known_guests, owner_of, with_others
from broker.services import Services
from broker.store.protocols import Record, RecordKind
from broker.trace import Trace
from broker.verifiers.registry import verifier_for
from keys import strictjson
from keys.binding import activation_proof_key
from keys.errors import ProtocolError, RoomkeyError
from keys.messages import Attestation, ResourcePath, TpmDeclaration
from keys.report import Report
from keys.tee import Tee

TRUSTED_BY_OWNER = "enrolled"


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
    submission = None if attempt is None else _submission(attempt, message, services, now)
    canonical = strictjson.canonical(message.primary_evidence)
    evidence = hashlib.sha256(canonical).hexdigest()
    outcome, _ = services.store.consume_session(name, now)  # (2)
    decision, trace = ledger.new_id(services.random), Trace()
    judged = judge_evidence(outcome, submission, partial(_standings, attempt, owner, services), trace)  # (3)
    case = None
    if judged.error is not None and attempt is not None and owner and attempt.challenge["resource"] is not None:
        case = _explain(attempt, judged.claims, services, decision, evidence, now, trace)
    _line(attempt, judged, case, services, trace, decision=decision, owner=owner, evidence=evidence, now=now)  # (4)
    if submission is not None:
        services.dossiers.keep(decision, owner, Dossier(outcome, submission, judged.standings), canonical,
                               refused=judged.error is not None, now=now)  # fmt: skip
    if judged.error is not None:
        if isinstance(judged.error, RoomkeyError):
            judged.error.decision = decision
        raise judged.error
    claims = judged.claims
    assert attempt is not None  # narrowing: without a session, and without claims, there was an error
    assert claims is not None
    body = {
        "claims": claims.to_json(),
        "tee_pubkey": message.tee_pubkey.members,
        "resource": attempt.challenge["resource"],
        "session": name,
        "ticket": attempt.challenge["ticket"],
        "holder": attempt.challenge["holder"],
        "report": message.additional_evidence or None,
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
        Report.from_text(message.additional_evidence)
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


def _submission(attempt: _Attempt, message: Attestation, services: Services, now: int) -> Submission:
    nonce, hint = attempt.challenge["nonce"], attempt.challenge["resource"]
    proof_key = None
    if attempt.tpm is not None:
        proof_key = activation_proof_key(session.activation_secret(services.custody, attempt.session, nonce))
    endorsements = Endorsements(
        trusted=services.trusted.get(attempt.verifier.tee, Trusted()),
        found=attempt.found,
        enrolled=_public_areas(attempt.enrolled, None if hint is None else ResourcePath.parse(hint).owner),
        activation=proof_key,
        session={} if attempt.tpm is None else attempt.tpm._asdict(),
    )
    return Submission(
        verifier=attempt.verifier,
        at=now,
        nonce=nonce,
        answered=message.nonce,
        additional=message.additional_evidence,
        tee_pubkey=message.tee_pubkey.members,
        init_data=attempt.init_data,
        evidence=attempt.evidence,
        endorsements=endorsements,
    )


def _standings(attempt: _Attempt | None, owner: str, services: Services, claims: Claims) -> Standings:
    """Where the machine with these claims stands with those who have a say. Raises Unavailable."""
    assert attempt is not None  # narrowing: claims come from an attempt
    by_owner = claims.trust == TRUSTED_BY_OWNER
    # Where a vendor vouches for the machine, no owner has a say in this before a key of his is asked for.
    asked = owner if by_owner or attempt.challenge["resource"] is not None else ""
    guests = known_guests(asked, claims.instance_ids, services.store)
    if not by_owner:
        return Standings(guests, None)
    records = [record for found in attempt.enrolled.values() for record in found]
    return Standings(guests, frozenset(Instance.from_body(record.body or {}).standing for record in records))


def _explain(
    attempt: _Attempt, claims: Claims | None, services: Services, decision: str, evidence: str, now: int, trace: Trace
) -> Case | None:
    """Add to the trace of refused evidence what the rule of the wanted key would have said: by the case, if there is
    one. Changes no verdict.
    """
    case, told = None, Trace([*trace.checks])
    try:
        if claims is not None:
            case = _case(attempt, claims, services, decision, evidence, now, trace)
        explain(case, told)
    except Exception:  # noqa: BLE001  the evidence is refused whatever this says, and the refusal must leave its line
        case, told = None, Trace([*trace.checks])
        explain(None, told)
    trace.checks[:] = told.checks
    return case


def _case(
    attempt: _Attempt, claims: Claims, services: Services, decision: str, evidence: str, now: int, trace: Trace
) -> Case:
    path = ResourcePath.parse(attempt.challenge["resource"])
    attested = Attested(
        claims=claims,
        trace=trace,
        announced=str(path),
        session=attempt.session,
        challenged_at=attempt.challenge["issued_at"],
        attested_at=now,
        attestation=decision,
        evidence=evidence,
    )
    case, _ = gather(path, attested, services, now=now)
    return with_others(case, services.store)


def _line(
    attempt: _Attempt | None, judged: Judged, case: Case | None, services: Services, trace: Trace,
    *, decision: str, owner: str, evidence: str, now: int,
) -> None:  # fmt: skip
    """Raises Unavailable."""
    claims = judged.claims
    ids = list(claims.instance_ids) if claims is not None else [] if attempt is None else list(attempt.enrolled)
    body = {
        "tee": attempt.challenge["tee"] if attempt is not None else "",
        "key": attempt.challenge["resource"] if attempt is not None else None,
        "instances": ids,
        "evidence": evidence,
        "claims": None if claims is None else ledger.claims_summary(claims),
        "case": None if case is None else case.to_json(whole=False),
        "trace": trace.to_json(),
    }
    ledger.record(services, id_=decision, owner=owner, at=now, kind=ledger.ATTEST,
                  verdict="genuine" if judged.error is None else "refused", subject=ids[0] if ids else "",
                  body=body)  # fmt: skip


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
