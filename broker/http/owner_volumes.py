# SPDX-License-Identifier: Apache-2.0
"""`/v1/volumes`: which volume a key is for. A guest that gets the key opens no other one with it."""

from __future__ import annotations

import re
from typing import Any

from broker import keyring
from broker.appraisal.rules import rule_name
from broker.appraisal.volume import Volume
from broker.changes import put_record
from broker.http import types, volume_types
from broker.http.call import Call
from broker.store.protocols import Record, RecordKind
from keys.errors import NotFound, ProtocolError
from keys.report import Step

_PIN = re.compile(r"[0-9a-f]{64}\Z")


def list_volumes(call: Call, _: None) -> volume_types.Volumes:
    return volume_types.Volumes(
        [_volume(record) for record in call.services.store.records(RecordKind.VOLUME, call.who.owner)]
    )


def show_volume(call: Call, _: None) -> volume_types.Volume:
    return _volume(call.services.store.record(RecordKind.VOLUME, call.who.owner, rule_name(call.path)))


def pin_volume(call: Call, request: volume_types.PinVolume) -> volume_types.Volume:
    path = call.path  # another owner's looks like none, whatever the rest says
    if not _PIN.match(request.pin):
        raise ProtocolError(
            "no pin of a volume", expected="64 lower-case hex digits, as `roomkey-agent luks check` prints them"
        )
    store, owner = call.services.store, call.who.owner
    if not any(key.path == str(path) for key in store.keys(owner)):
        raise NotFound("no such key", found=str(path), mend=f"roomkey key put {path}")
    return _volume(_put(call, Volume(request.pin).to_body(), why=request.why))


def provision_volume(call: Call, request: volume_types.Provision) -> volume_types.Volume:
    path = call.path
    keyring.provision(path, call.services, call.who, again=request.again, why=request.why, now=call.now)
    return show_volume(call, None)


def unpin_volume(call: Call, request: types.Change) -> types.Deleted:
    name = rule_name(call.path)
    call.services.store.record(RecordKind.VOLUME, call.who.owner, name)  # NotFound
    _put(call, None, why=request.why)
    return types.Deleted(name)


def _put(call: Call, body: dict[str, Any] | None, *, why: str) -> Record:
    name, owner = rule_name(call.path), call.who.owner
    version = call.services.store.newest_version(RecordKind.VOLUME, owner, name) + 1
    record = Record(RecordKind.VOLUME, owner, name, version, body, call.now, call.who.kid)
    put_record(call.services, call.who, record, why=why)
    return record


def _volume(record: Record) -> volume_types.Volume:
    known = Volume.from_body(record.body or {})
    state = "known" if known.grant is None else "begun" if known.granted else "ordered"
    steps = ((Step.ADD, known.next), (Step.REMOVE, known.last), (Step.RECOVERY, known.recovery))
    return volume_types.Volume(
        f"{record.owner}/{record.name}",
        known.pin,
        state,
        [str(step) for step, version in steps if version is not None],
        record.version,
        record.created_at,
        record.created_by,
    )
