# SPDX-License-Identifier: Apache-2.0
"""`/v1/distrust`: what an owner does not trust any more, from the next request on, and who is touched by that."""

from __future__ import annotations

from broker.appraisal.distrust import hit, parse_distrust
from broker.changes import put_record
from broker.http import guest_types as types
from broker.http.call import Call
from broker.http.types import Change, Deleted
from broker.requests import DAY_MS, Requests
from broker.store.protocols import LedgerEntry, Record, RecordKind
from broker.what_if import recorded_claims


def list_distrusted(call: Call, _: None) -> types.AllDistrusted:
    records = call.services.store.records(RecordKind.DISTRUST, call.who.owner)
    return types.AllDistrusted([_distrusted(record) for record in records])


def put_distrust(call: Call, request: types.PutDistrust) -> types.Distrusted:
    distrust = parse_distrust(request.kind, request.value, request.why)
    record = _record(call, distrust.name, {"kind": distrust.kind, "value": distrust.value, "why": distrust.why})
    put_record(call.services, call.who, record, why=request.why)
    return _distrusted(record)


def undo_distrust(call: Call, request: Change) -> Deleted:
    call.services.store.record(RecordKind.DISTRUST, call.who.owner, call.name)  # NotFound
    put_record(call.services, call.who, _record(call, call.name, None), why=request.why)
    return Deleted(call.name)


def preview_distrust(call: Call, request: types.PreviewDistrust) -> types.Preview:
    """Of each guest and key the newest release of the last days, where it would be refused now."""
    distrust = parse_distrust(request.kind, request.value)
    newest: dict[tuple[str, str], LedgerEntry] = {}
    releases = Requests(call.who.owner, call.services.store, call.now - request.days * DAY_MS, ("released",))
    for entry in releases:
        newest.setdefault((entry.subject, entry.body["key"]), entry)
    affected = []
    for entry in newest.values():
        found = hit(distrust, recorded_claims(entry.body), entry.body["image"])
        if found is not None:
            affected.append(
                types.Affected(
                    guest=entry.subject,
                    names=entry.body["names"],
                    key=entry.body["key"],
                    image=entry.body["image"],
                    at=entry.at,
                    found=found,
                )
            )
    return types.Preview(distrust.name, affected, releases.truncated)


def _record(call: Call, name: str, body: dict[str, str] | None) -> Record:
    owner = call.who.owner
    version = call.services.store.newest_version(RecordKind.DISTRUST, owner, name) + 1
    return Record(RecordKind.DISTRUST, owner, name, version, body, call.now, call.who.kid)


def _distrusted(record: Record) -> types.Distrusted:
    body = record.body or {}
    return types.Distrusted(record.name, body["kind"], body["value"], body["why"], record.created_at, record.created_by)
