# SPDX-License-Identifier: Apache-2.0
"""`/v1/decisions` and `/v1/whoami`: what happened in an owner's name, and who asks."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from broker.appraisal.instances import Instance
from broker.bundle import export
from broker.decision_reason import Reason, reason
from broker.http import types
from broker.http.call import Call
from broker.store.protocols import LedgerEntry, RecordKind
from broker.trace import Verdict
from keys.errors import ProtocolError

PAGE = 200  # lines read at once
MAX_LOOKED_AT = 5000  # lines, for one answer
DENIED = ("refused", "denied")
FAILED = Verdict.FAILED.value


def whoami(call: Call, _: None) -> types.Whoami:
    return types.Whoami(call.who.owner, call.who.kid, str(call.who.role))


def list_decisions(call: Call, query: types.DecisionQuery) -> types.Decisions:
    if query.before is not None and query.after is not None:
        raise ProtocolError("before and after exclude each other")
    wanted = _filter(call, query)
    found: list[types.DecisionSummary] = []
    looked_at, at = 0, query.before if query.after is None else query.after
    while True:
        page = call.services.store.entries(
            call.who.owner,
            kinds=() if query.kind is None else (query.kind,),
            subject=query.subject,
            verdicts=DENIED if query.denied else (),
            since=query.since,
            before=at if query.after is None else None,
            after=None if query.after is None else at,
            limit=PAGE,
        )
        for entry in page:
            looked_at, at = looked_at + 1, entry.sequence
            if wanted(entry):
                found.append(_summary(entry))
            if len(found) == query.limit:
                return types.Decisions(found, at)
        if len(page) < PAGE:
            return types.Decisions(found, None if query.after is None else at)
        if looked_at >= MAX_LOOKED_AT:
            return types.Decisions(found, at)


def _filter(call: Call, query: types.DecisionQuery) -> Callable[[LedgerEntry], bool]:
    """What only the line's body tells. Raises NotFound."""
    ids = None if query.guest is None else _ids(call, query.guest)

    def wanted(entry: LedgerEntry) -> bool:
        body = entry.body
        if query.key is not None and body.get("key") != query.key:
            return False
        return ids is None or not ids.isdisjoint((entry.subject, body.get("guest", ""), *body.get("instances", ())))

    return wanted


def _ids(call: Call, guest: str) -> frozenset[str]:
    """All under which a guest can turn up in a line: its name and its ids. An id stands for itself."""
    if ":" in guest:
        return frozenset((guest,))
    record = call.services.store.record(RecordKind.INSTANCE, call.who.owner, guest)
    return frozenset((guest, *Instance.from_body(record.body or {}).ids))


def show_decision(call: Call, _: None) -> types.Decision:
    entry = call.services.store.entry(call.who.owner, call.params["id"])
    return types.Decision(**msgspec.structs.asdict(_summary(entry)), body=entry.body, hash=entry.hash)


def export_decision(call: Call, _: None) -> types.Bundle:
    entry = call.services.store.entry(call.who.owner, call.params["id"])
    return types.Bundle(export(entry, call.services))


def _summary(entry: LedgerEntry) -> types.DecisionSummary:
    body = entry.body
    failed = [check for check in body.get("trace", ()) if check["verdict"] == FAILED]
    why = reason(failed) if failed else Reason(body.get("why", ""), 0)
    return types.DecisionSummary(
        id=entry.id,
        sequence=entry.sequence,
        at=entry.at,
        kind=entry.kind,
        verdict=entry.verdict,
        subject=entry.subject,
        key=body.get("key"),
        guests=body.get("names", []),
        failed=len(failed),
        why=why.words,
        more=len(failed) - why.told,
    )
