# SPDX-License-Identifier: Apache-2.0
"""`/v1/decisions` and `/v1/whoami`: what happened in an owner's name, and who asks."""

from __future__ import annotations

import msgspec

from broker.bundle import export
from broker.http import types
from broker.http.call import Call
from broker.store.protocols import LedgerEntry


def whoami(call: Call, _: None) -> types.Whoami:
    return types.Whoami(call.who.owner, call.who.kid, str(call.who.role))


def list_decisions(call: Call, query: types.DecisionQuery) -> types.Decisions:
    entries = call.services.store.entries(
        call.who.owner,
        kinds=() if query.kind is None else (query.kind,),
        subject=query.subject,
        before=query.before,
        limit=query.limit,
    )
    more = len(entries) == query.limit
    return types.Decisions([_summary(entry) for entry in entries], entries[-1].sequence if more else None)


def show_decision(call: Call, _: None) -> types.Decision:
    entry = call.services.store.entry(call.who.owner, call.params["id"])
    return types.Decision(**msgspec.structs.asdict(_summary(entry)), body=entry.body, hash=entry.hash)


def export_decision(call: Call, _: None) -> types.Bundle:
    entry = call.services.store.entry(call.who.owner, call.params["id"])
    return types.Bundle(export(entry, call.services))


def _summary(entry: LedgerEntry) -> types.DecisionSummary:
    return types.DecisionSummary(
        entry.id, entry.sequence, entry.at, entry.kind, entry.verdict, entry.subject, entry.body.get("key")
    )
