# SPDX-License-Identifier: Apache-2.0
"""`/v1/rules/.../shadow`: a rule that is judged beside the one in force, and what it would have said."""

from __future__ import annotations

import msgspec

from broker import ledger
from broker.appraisal.rules import Rule, read_rule, rule_name
from broker.changes import put_record
from broker.http import shadow_types, types
from broker.http.call import Call
from broker.http.owner_records import rule_answer
from broker.requests import DAY_MS, Requests
from broker.store.protocols import LedgerEntry, Record, RecordKind


def show_shadow(call: Call, query: shadow_types.ShadowQuery) -> shadow_types.Shadow:
    store, path = call.services.store, call.path
    record = store.record(RecordKind.SHADOW, call.who.owner, rule_name(path))
    since = max(call.now - query.days * DAY_MS, record.created_at)
    requests = Requests(call.who.owner, store, since)
    shown = shadow_types.Shadow(rule_answer(record), 0, 0, [], [], truncated=False)
    for entry in requests:
        beside = entry.body.get("shadow")
        if beside is None or entry.body["key"] != str(path) or beside["version"] != record.version:
            continue
        if "error" in beside:
            shown.failed += 1
            continue
        shown.judged += 1
        if beside["allowed"] is not beside["live"]:
            (shown.let_in if beside["allowed"] else shown.refused).append(_turned(entry))
    shown.truncated = requests.truncated
    return shown


def put_shadow(call: Call, request: types.PutRule) -> types.Rule:
    rule = read_rule({key: value for key, value in msgspec.to_builtins(request).items() if key != "why"})
    return rule_answer(_put(call, rule, why=request.why))


def delete_shadow(call: Call, request: types.Change) -> types.Deleted:
    call.services.store.record(RecordKind.SHADOW, call.who.owner, rule_name(call.path))  # NotFound
    return types.Deleted(_put(call, None, why=request.why).name)


def _put(call: Call, rule: Rule | None, *, why: str) -> Record:
    name, owner = rule_name(call.path), call.who.owner
    version = call.services.store.newest_version(RecordKind.SHADOW, owner, name) + 1
    body = None if rule is None else rule.to_body()
    record = Record(RecordKind.SHADOW, owner, name, version, body, call.now, call.who.kid)
    put_record(call.services, call.who, record, why=why)
    return record


def _turned(entry: LedgerEntry) -> types.Turned:
    assert entry.kind == ledger.RELEASE  # narrowing: no other line has a shadow
    failed = entry.body["shadow"]["failed"]
    return types.Turned(entry.id, entry.at, entry.body["key"], entry.subject, failed[0] if failed else "")
