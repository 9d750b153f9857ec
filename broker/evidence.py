# SPDX-License-Identifier: Apache-2.0
"""The pure core of an attempt to attest: all that it stands on, and the judgement of it, now or years later.

(1) The challenge was unused and in time.
(2) The nonce in the message is the session's, compared in constant time.
(3) The verifier judges the evidence against the binding: nonce, guest's key, init-data.
(4) A machine that its owner has revoked is refused: by the owner whose key it wants, or by the one who alone vouches
    for its attestation key.

Where the evidence is refused and the guest has said which key it wants, `explain` adds what the key's rule would have
said: of what is genuine all of it, else that it was not judged.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from broker.appraisal.case import Case, KnownGuest
from broker.appraisal.image_life import when
from broker.appraisal.instances import Standing
from broker.appraisal.judge import judge, not_judged
from broker.claims import BelowFloors, Binding, Claims, Endorsements, Verifier
from broker.store.protocols import Consumption
from broker.trace import Stage, Trace
from broker.verifiers.steps import Step, in_steps
from keys.binding import report_data
from keys.errors import FreshnessError, RoomkeyError, VerificationError

STEPS: tuple[Step, ...] = (
    (Stage.ROOT_OF_TRUST, "challenge"),
    (Stage.ROOT_OF_TRUST, "nonce is this session's"),
    (Stage.ROOT_OF_TRUST, "evidence is genuine"),
    (Stage.IDENTITY, "machine is not revoked by its owner"),
)
_STATES = {
    Consumption.JUDGE: "unused and in time",
    Consumption.USED: "used before",
    Consumption.EXPIRED: "expired",
    Consumption.UNKNOWN: "unknown",
}


@dataclass(frozen=True, slots=True)
class Submission:
    """What a guest sent in answer to its challenge, who judges it, and what vouches for it. `at` in milliseconds.
    `nonce` is the challenge's, `answered` the one in the guest's message, `tee_pubkey` the key's members in the same,
    `additional` its additional evidence. `evidence` is as `Verifier.decode` made it, `init_data` the digest of what
    was posted as that.
    """

    verifier: Verifier
    at: int
    nonce: str
    answered: str
    tee_pubkey: Mapping[str, str]
    init_data: bytes | None
    evidence: Any
    endorsements: Endorsements
    additional: str = ""


class Standings(NamedTuple):
    """Where the machine stands. `guests`: as which the owner who has a say knows it. `enrolments`: the standings with
    all who enrolled its attestation key, if nothing else vouches for that.
    """

    guests: tuple[KnownGuest, ...]
    enrolments: frozenset[Standing] | None


class Judged(NamedTuple):
    """`claims`: of genuine evidence, also where it is refused all the same. `standings`: None where they were not asked
    for. Without an `error` the evidence is taken.
    """

    claims: Claims | None
    standings: Standings | None
    error: Exception | None


def judge_evidence(
    outcome: Consumption,
    submission: Submission | None,
    standings: Callable[[Claims], Standings],
    trace: Trace,
) -> Judged:
    """Checks (1) to (4), each in `trace`. `outcome`: what became of the attempt to use the challenge; `submission` is
    None where no session was found; `standings` looks up where a machine stands. Raises nothing: a fault of our own
    refuses, too.
    """
    claims = found = None
    try:
        with in_steps(trace, STEPS, genuine=BelowFloors) as next_step:
            next_step()
            _check_challenge(outcome if submission is not None else Consumption.UNKNOWN, trace)  # (1)
            assert submission is not None  # narrowing: the line above has raised
            next_step()
            _check_nonce(submission, trace)  # (2)
            next_step()
            claims = _verify(submission, trace)  # (3)
            next_step()
            found = standings(claims)
            _check_standings(found, trace)  # (4)
    except Exception as error:  # noqa: BLE001  the challenge is gone whatever went wrong: the attempt must leave its line
        if isinstance(error, BelowFloors):
            claims = error.claims
        if not trace.failed:
            trace.fail(Stage.ROOT_OF_TRUST, as_refusal(error))
        return Judged(claims, found, error)
    return Judged(claims, found, None)


def _check_challenge(outcome: Consumption, trace: Trace) -> None:
    """Check (1). Raises FreshnessError."""
    trace.require(
        Stage.ROOT_OF_TRUST,
        "challenge",
        outcome is Consumption.JUDGE,
        expected=_STATES[Consumption.JUDGE],
        found=_STATES[outcome],
        mend="let the guest ask for a new challenge",
        error=FreshnessError,
    )


def explain(case: Case | None, trace: Trace) -> None:
    """Add to the trace of refused evidence what the rule of the wanted key would have said. Changes no verdict."""
    if case is None:
        not_judged(trace)
    else:
        judge(case, trace)


def as_refusal(error: Exception) -> RoomkeyError:
    """What is told of `error`: nothing of a fault of our own."""
    return error if isinstance(error, RoomkeyError) else VerificationError("the broker failed while judging")


def _check_nonce(submission: Submission, trace: Trace) -> None:
    """Check (2). Raises FreshnessError."""
    nonce, answered = submission.nonce, submission.answered
    trace.require(
        Stage.ROOT_OF_TRUST,
        "nonce is this session's",
        hmac.compare_digest(answered.encode("utf-8"), nonce.encode("utf-8")),
        expected=nonce,
        found=answered,
        mend="recorded evidence, or two sessions mixed up: evidence is good for its own challenge only",
        error=FreshnessError,
    )


def _verify(submission: Submission, trace: Trace) -> Claims:
    """Check (3)."""
    tee, nonce = submission.verifier.tee, submission.nonce
    data = report_data(tee, nonce, dict(submission.tee_pubkey), submission.additional)
    bound_to = Binding(data, submission.init_data)
    at = datetime.fromtimestamp(submission.at / 1000, UTC)
    return submission.verifier.verify(submission.evidence, submission.endorsements, bound_to, at, trace)


def _check_standings(standings: Standings, trace: Trace) -> None:
    """Check (4). Raises VerificationError."""
    for guest in standings.guests:
        trace.require(
            Stage.IDENTITY,
            f"guest {guest.name} is not revoked by its owner",
            guest.standing is not Standing.REVOKED,
            found=f"revoked since {when(guest.since)}, by {guest.who}" + (f": {guest.why}" if guest.why else ""),
            mend=f"if you trust it again: roomkey guest readmit {guest.name}",
        )
    if standings.enrolments is not None:
        trace.require(
            Stage.IDENTITY,
            "an owner still vouches for the attestation key",
            standings.enrolments != {Standing.REVOKED},
            found="revoked by everybody who enrolled it",
            mend="roomkey guest list",
        )
