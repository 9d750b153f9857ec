# SPDX-License-Identifier: Apache-2.0
"""A decision judged again from its bundle, years later and without a broker. Pure.

(1) The bundle is signed by a pinned key of the broker, for this use.
(2) The evidence has the SHA-256 that the ledger's line names, and is verified again, as of its own time, against the
    roots, floors, endorsements and enrolments of that time.
(3) The case is appraised again, with the claims of (2); of a SEV launch, whose keys are not kept, with the line's.
(4) What happened once, at the store and in custody, is taken as recorded: a lease, a ticket, an opened key.
(5) Verdict, claims, image and the whole trace are compared with the line's, byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from broker import ledger
from broker.appraisal.case import Case
from broker.appraisal.judge import judge
from broker.bundle import MAX_BUNDLE_BYTES
from broker.claims import Claims
from broker.dossier import from_json
from broker.evidence import Standings, explain, judge_evidence
from broker.release import ONCE
from broker.trace import Check, Trace, Verdict
from keys import envelope, strictjson
from keys.errors import ProtocolError

_MEMBERS = frozenset(("roomkey", "line", "dossier", "case"))


class Difference(NamedTuple):
    """What is another now: `recorded` in the line, `now` by this replay."""

    what: str
    recorded: str
    now: str


class Replay(NamedTuple):
    """`line` as recorded, `verdict` and `trace` as judged now; the same if there are no `differences`. `verified`: the
    evidence was verified again, too. `roomkey`: the version that decided.
    """

    line: Mapping[str, Any]
    verdict: str
    trace: Trace
    verified: bool
    differences: tuple[Difference, ...]
    roomkey: str


class _Judged(NamedTuple):
    """A judgement: what is compared with the line beside the trace."""

    verdict: str
    values: dict[str, Any]


def replay(bundle: str, keys: envelope.Keys) -> Replay:
    """The decision in `bundle`, judged again. Raises ProtocolError (no bundle) or VerificationError (not signed)."""
    payload = envelope.verify(bundle, keys, envelope.BUNDLE, max_bytes=MAX_BUNDLE_BYTES)  # (1)
    members = strictjson.members(payload, name="the bundle", required=_MEMBERS)
    try:
        return _replay(members)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # Signed, so not forged: written by a version with another form.
        raise ProtocolError(
            "the bundle has another form",
            expected="that of this version",
            found=f"roomkey {members['roomkey']}: {type(error).__name__}",
            mend="use the roomkey that wrote it",
        ) from None


def _replay(members: Mapping[str, Any]) -> Replay:
    line, dossier, case = members["line"], members["dossier"], members["case"]
    body, trace = line["body"], Trace()
    judged = (_attempt if line["kind"] == ledger.ATTEST else _request)(line, dossier, case, trace)
    differences = [
        Difference(name, _text(recorded), _text(now))
        for name, recorded, now in (
            ("verdict", line["verdict"], judged.verdict),
            *((name, body[name], now) for name, now in judged.values.items()),
        )
        if _text(recorded) != _text(now)
    ]
    differences += _trace_differences(Trace.from_json(body["trace"]), trace)
    return Replay(line, judged.verdict, trace, dossier is not None, tuple(differences), members["roomkey"])  # (5)


def _attempt(line: Mapping[str, Any], dossier: Any, case: Any, trace: Trace) -> _Judged:
    """An attempt to attest."""
    claims, refused = _verify(dossier, trace)
    if refused and line["owner"] and line["body"]["key"] is not None:
        explain(None if case is None or claims is None else Case.from_json(case, claims), trace)
    values = {"evidence": _digest(dossier), "claims": None if claims is None else ledger.claims_summary(claims)}
    return _Judged("refused" if refused else "genuine", values)


def _request(line: Mapping[str, Any], dossier: Any, case: Any, trace: Trace) -> _Judged:
    """A request for a key."""
    body = line["body"]
    recorded = Trace.from_json(body["trace"]).checks
    values: dict[str, Any] = {}
    if dossier is None:
        claims = Claims.from_json({**body["claims"], "events": []})
        trace.checks.extend(recorded[: body["verified"]])
    else:
        verified, _ = _verify(dossier, trace)
        if verified is None:
            return _Judged("denied", {"evidence": _digest(dossier), "claims": None})
        claims = verified
        values = {"evidence": _digest(dossier), "claims": ledger.claims_summary(claims)}
    judged = judge(Case.from_json(case, claims), trace)  # (3)
    once = [check for check in recorded[len(trace.checks) :] if check.name in ONCE] if judged.allowed else []
    trace.checks.extend(once)  # (4)
    released = bool(once) and all(check.verdict is Verdict.PASSED for check in once)
    values |= {"image": judged.image, "names": list(judged.names), "act": str(judged.act), "guest": judged.guest}
    return _Judged("released" if released else "denied", values)


def _verify(dossier: Any, trace: Trace) -> tuple[Claims | None, bool]:
    """Step (2): the claims, and whether the evidence is refused."""
    kept = from_json(dossier, dossier["evidence"], dossier["trusted"])

    def standings(_claims: Claims) -> Standings:
        if kept.standings is None:
            raise ProtocolError("the evidence was refused before anybody asked where the machine stands")
        return kept.standings

    judged = judge_evidence(kept.outcome, kept.submission, standings, trace)
    return judged.claims, judged.error is not None


def _digest(dossier: Any) -> str:
    return hashlib.sha256(strictjson.canonical(dossier["evidence"])).hexdigest()


def _trace_differences(recorded: Trace, now: Trace) -> list[Difference]:
    """The first check that is another, and where one trace ends before the other."""
    for old, new in zip(recorded.checks, now.checks, strict=False):
        if old != new:
            return [Difference(f"check: {old.name}", _check(old), _check(new))]
    if len(recorded.checks) != len(now.checks):
        return [Difference("number of checks", str(len(recorded.checks)), str(len(now.checks)))]
    return []


def _check(check: Check) -> str:
    words = [check.verdict.value, check.name]
    words += [f"{name} {value}" for name, value in (("expected", check.expected), ("found", check.found)) if value]
    return ", ".join(words if check.verdict is not Verdict.PASSED else words[:2])


def _text(value: object) -> str:
    return value if isinstance(value, str) else strictjson.canonical(value).decode("utf-8")
