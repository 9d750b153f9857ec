# SPDX-License-Identifier: Apache-2.0
"""`/v1/images`, `/v1/rules`, `/v1/instances`: what owners say about good guests. Versioned, nothing overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from broker import ledger
from broker.appraisal.images import parse_image
from broker.appraisal.instances import parse_instance
from broker.appraisal.rules import check_instance_name, check_name, read_rule, rule_name
from broker.changes import recorded
from broker.http import types
from broker.http.call import Call
from broker.store.protocols import Record, RecordKind
from keys.errors import Conflict


def list_images(call: Call, _: None) -> types.Images:
    return types.Images([_image_summary(record) for record in _records(call, RecordKind.IMAGE)])


def show_image(call: Call, query: types.VersionQuery) -> types.Image:
    return _image(call.services.store.record(RecordKind.IMAGE, call.who.owner, call.name, query.version))


def put_image(call: Call, request: types.PutImage) -> types.ImageSummary:
    name = check_name(call.name, what="an image")
    body = parse_image(request.toml).to_body() | {"toml": request.toml}
    return _image_summary(_put(call, RecordKind.IMAGE, name, body, why=request.why))


def list_rules(call: Call, _: None) -> types.Rules:
    return types.Rules([_rule(record) for record in _records(call, RecordKind.RULE)])


def show_rule(call: Call, _: None) -> types.Rule:
    return _rule(call.services.store.record(RecordKind.RULE, call.who.owner, rule_name(call.path)))


def put_rule(call: Call, request: types.PutRule) -> types.Rule:
    name = rule_name(call.path)
    rule = read_rule({
        "images": request.images, "platforms": request.platforms, "instances": request.instances
    })  # fmt: skip
    return _rule(_put(call, RecordKind.RULE, name, rule.to_body(), why=request.why))


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


def delete_instance(call: Call, request: types.Change) -> types.Deleted:
    return _delete(call, RecordKind.INSTANCE, call.name, why=request.why)


def readmit_instance(call: Call, request: types.Change) -> types.Readmitted:
    ids: list[str] = _body(call.services.store.record(RecordKind.INSTANCE, call.who.owner, call.name))["ids"]
    ledger.readmit(call.services, owner=call.who.owner, ids=ids, who=call.who.kid, why=request.why, now=call.now)
    return types.Readmitted(call.name, ids)


def _records(call: Call, kind: RecordKind) -> list[Record]:
    return call.services.store.records(kind, call.who.owner)


def _put(
    call: Call, kind: RecordKind, name: str, body: dict[str, Any] | None, *, why: str, aliases: Sequence[str] = ()
) -> Record:
    store, owner = call.services.store, call.who.owner
    record = Record(kind, owner, name, store.newest_version(kind, owner, name) + 1, body, call.now, call.who.kid)
    verdict = "deleted" if body is None else "put"
    with recorded(call.services, call.who, verdict, f"{kind}/{name}@{record.version}", why=why, now=call.now):
        store.put_record(record, aliases)
    return record


def _delete(call: Call, kind: RecordKind, name: str, *, why: str) -> types.Deleted:
    call.services.store.record(kind, call.who.owner, name)  # NotFound
    _put(call, kind, name, None, why=why)
    return types.Deleted(name)


def _body(record: Record) -> dict[str, Any]:
    return record.body or {}  # never None: the store hands out no deleted records


def _image_summary(record: Record) -> types.ImageSummary:
    body = _body(record)
    return types.ImageSummary(
        record.name, record.version, body["platform"], body["description"], record.created_at, record.created_by
    )


def _image(record: Record) -> types.Image:
    return types.Image(**msgspec.structs.asdict(_image_summary(record)), toml=_body(record)["toml"])


def _rule(record: Record) -> types.Rule:
    body = _body(record)
    return types.Rule(
        f"{record.owner}/{record.name}",
        record.version,
        body["images"],
        body["platforms"],
        body["instances"],
        record.created_at,
        record.created_by,
    )


def _instance(record: Record) -> types.Instance:
    body = _body(record)
    return types.Instance(
        record.name, record.version, body["description"], body["ids"], record.created_at, record.created_by
    )
