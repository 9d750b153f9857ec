# SPDX-License-Identifier: Apache-2.0
"""`/v1/rules`, `/v1/instances`: who gets a key. Versioned, nothing overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from broker.appraisal.instances import Instance, Standing, parse_instance
from broker.appraisal.rules import Rule, check_instance_name, read_rule, rule_name
from broker.changes import put_record
from broker.http import types
from broker.http.call import Call
from broker.store.protocols import Record, RecordKind
from keys.errors import Conflict, NotFound


def list_rules(call: Call, _: None) -> types.Rules:
    return types.Rules([rule_answer(record) for record in _records(call, RecordKind.RULE)])


def show_rule(call: Call, _: None) -> types.Rule:
    return rule_answer(call.services.store.record(RecordKind.RULE, call.who.owner, rule_name(call.path)))


def put_rule(call: Call, request: types.PutRule) -> types.Rule:
    name = rule_name(call.path)
    rule = read_rule({key: value for key, value in msgspec.to_builtins(request).items() if key != "why"})
    return rule_answer(_put(call, RecordKind.RULE, name, rule.to_body(), why=request.why))


def delete_rule(call: Call, request: types.Change) -> types.Deleted:
    return _delete(call, RecordKind.RULE, rule_name(call.path), why=request.why)


def list_instances(call: Call, _: None) -> types.Instances:
    return types.Instances([_instance(record) for record in _records(call, RecordKind.INSTANCE)])


def show_instance(call: Call, _: None) -> types.Instance:
    return _instance(call.services.store.record(RecordKind.INSTANCE, call.who.owner, call.name))


def put_instance(call: Call, request: types.PutInstance) -> types.Instance:
    name = check_instance_name(call.name)
    posted = {key: value for key, value in msgspec.to_builtins(request).items() if key != "why" and value is not None}
    instance = parse_instance(posted)
    _check_known_by_one_name(call, name, instance.ids)
    _check_in_order(call, name)
    return _instance(_put(call, RecordKind.INSTANCE, name, instance.to_body(), why=request.why, aliases=instance.ids))


def _check_known_by_one_name(call: Call, name: str, ids: Sequence[str]) -> None:
    """One machine has one name: with two, deleting one would not take a key away from it. Raises Conflict."""
    for instance_id in ids:
        for record in call.services.store.by_alias(RecordKind.INSTANCE, instance_id):
            if record.owner == call.who.owner and record.name != name:
                raise Conflict(
                    "this machine is enrolled under another name",
                    found=f"{record.name}: {instance_id}",
                    mend=f"roomkey instance delete {record.name}, or enrol it under that name again",
                )


def _check_in_order(call: Call, name: str) -> None:
    """Who was revoked, or failed, does not come back by being enrolled again in passing. Raises Conflict."""
    try:
        record = call.services.store.record(RecordKind.INSTANCE, call.who.owner, name)
    except NotFound:
        return
    standing = Instance.from_body(_body(record)).standing
    if standing not in {Standing.ENROLLED, Standing.PENDING}:
        raise Conflict(f"this machine is {standing}", expected=Standing.ENROLLED, found=standing,
                       mend=f"roomkey guest readmit {name}, or roomkey instance delete {name}")  # fmt: skip


def delete_instance(call: Call, request: types.Change) -> types.Deleted:
    return _delete(call, RecordKind.INSTANCE, call.name, why=request.why)


def _records(call: Call, kind: RecordKind) -> list[Record]:
    return call.services.store.records(kind, call.who.owner)


def _put(
    call: Call, kind: RecordKind, name: str, body: dict[str, Any] | None, *, why: str, aliases: Sequence[str] = ()
) -> Record:
    store, owner = call.services.store, call.who.owner
    record = Record(kind, owner, name, store.newest_version(kind, owner, name) + 1, body, call.now, call.who.kid)
    put_record(call.services, call.who, record, why=why, aliases=aliases)
    return record


def _delete(call: Call, kind: RecordKind, name: str, *, why: str) -> types.Deleted:
    call.services.store.record(kind, call.who.owner, name)  # NotFound
    _put(call, kind, name, None, why=why)
    return types.Deleted(name)


def _body(record: Record) -> dict[str, Any]:
    return record.body or {}  # never None: the store hands out no deleted records


def rule_answer(record: Record) -> types.Rule:
    rule = Rule.from_body(_body(record)).to_body()
    return types.Rule(
        path=f"{record.owner}/{record.name}",
        version=record.version,
        created_at=record.created_at,
        created_by=record.created_by,
        **rule,
    )


def _instance(record: Record) -> types.Instance:
    body = _body(record)
    return types.Instance(
        record.name, record.version, body["description"], body["ids"], record.created_at, record.created_by
    )
