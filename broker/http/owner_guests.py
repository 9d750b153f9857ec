# SPDX-License-Identifier: Apache-2.0
"""`/v1/guests` and `/v1/tickets`: which machines may come, one by one. Each change is a new version with its line.

approve    pending, denied                              -> enrolled
deny       pending                                      -> denied
revoke     enrolled, failed, quarantined, pending       -> revoked
readmit    revoked, failed, quarantined, enrolled       -> enrolled; its clock and its leases are forgotten
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from broker import ledger
from broker.appraisal.instances import Instance, Standing
from broker.appraisal.rules import check_instance_name, check_name
from broker.changes import put_record, recorded
from broker.gather import guest_leases
from broker.http import guest_types as types
from broker.http.call import Call
from broker.http.types import Change, Deleted
from broker.session import ticket_name
from broker.store.protocols import Record, RecordKind, StoredTicket
from keys import b64
from keys.errors import Conflict, NotFound, ProtocolError
from keys.messages import ResourcePath

TICKET_BYTES = 32  # random

_IN_QUEUE = frozenset((Standing.PENDING, Standing.DENIED))
_KNOWN = frozenset((Standing.ENROLLED, Standing.FAILED, Standing.QUARANTINED))


def list_guests(call: Call, _: None) -> types.Guests:
    return types.Guests([_guest(record) for record in call.services.store.records(RecordKind.INSTANCE, call.who.owner)])


def approve_guest(call: Call, request: types.Approve) -> types.Guest:
    record, instance = _current(call, _IN_QUEUE, "approved")
    name = call.name if request.name is None else check_instance_name(request.name)
    approved = replace(instance, standing=Standing.ENROLLED, why=request.why)
    if name == call.name:
        return _put(call, name, approved, request.why)
    version = _next_version(call, name)  # read first: a name that is given in between is a conflict
    if _exists(call, name):
        raise Conflict("there is a guest of that name already", found=name, mend="choose another name")
    # Under its old name first, so that at no moment it has two: between the two it is nobody.
    _put(call, record.name, None, f"approved as {name}")
    return _put(call, name, approved, request.why, version)


def deny_guest(call: Call, request: Change) -> types.Guest:
    return _move(call, frozenset((Standing.PENDING,)), Standing.DENIED, request.why, "denied")


def revoke_guest(call: Call, request: Change) -> types.Guest:
    return _move(call, _KNOWN | {Standing.PENDING}, Standing.REVOKED, request.why, "revoked")


def readmit_guest(call: Call, request: Change) -> types.Guest:
    store, owner = call.services.store, call.who.owner
    _, instance = _current(call, _KNOWN | {Standing.REVOKED}, "readmitted")
    ledger.readmit(call.services, owner=owner, ids=instance.ids, who=call.who.kid, why=request.why, now=call.now)
    store.end_leases(guest_leases(owner, call.name))
    return _put(call, call.name, replace(instance, standing=Standing.ENROLLED, why=request.why), request.why)


def list_tickets(call: Call, _: None) -> types.Tickets:
    return types.Tickets([types.Ticket(**_ticket(ticket)) for ticket in call.services.store.tickets(call.who.owner)])


def issue_ticket(call: Call, request: types.IssueTicket) -> types.IssuedTicket:
    guest, path = check_instance_name(request.guest), ResourcePath.parse(request.key)
    image, _, version = request.image.partition("@")
    check_name(image, what="an image")
    if "@" in request.image and not (version.isascii() and version.isdecimal()):
        raise ProtocolError("that is no image", expected="NAME or NAME@VERSION", found=request.image[:128])
    if path.owner != call.who.owner:
        raise NotFound("no such key")
    if _exists(call, guest):
        raise Conflict("there is a guest of that name already", found=guest, mend="choose another name")
    text = b64.url(call.services.random(TICKET_BYTES))
    ticket = StoredTicket(
        name=ticket_name(text),
        owner=call.who.owner,
        guest=guest,
        key=str(path),
        image=request.image,
        issued_at=call.now,
        issued_by=call.who.kid,
        expires_at=call.now + request.lifetime_s * 1000,
    )
    with recorded(call.services, call.who, "issued", f"ticket/{guest}", why=request.why, now=call.now):
        call.services.store.put_ticket(ticket)
    return types.IssuedTicket(**_ticket(ticket), ticket=text)


def delete_ticket(call: Call, request: Change) -> Deleted:
    with recorded(call.services, call.who, "deleted", f"ticket/{call.name[:64]}", why=request.why, now=call.now):
        call.services.store.delete_ticket(call.who.owner, call.name)
    return Deleted(call.name)


def _exists(call: Call, name: str) -> bool:
    try:
        call.services.store.record(RecordKind.INSTANCE, call.who.owner, name)
    except NotFound:
        return False
    return True


def _current(call: Call, standings: Collection[Standing], what: str) -> tuple[Record, Instance]:
    """Raises NotFound, or Conflict where the guest stands otherwise than one of `standings`."""
    record = call.services.store.record(RecordKind.INSTANCE, call.who.owner, call.name)
    instance = Instance.from_body(record.body or {})
    if instance.standing not in standings:
        expected = ", ".join(sorted(standings))
        raise Conflict(f"this guest cannot be {what}", expected=expected, found=instance.standing)
    return record, instance


def _move(call: Call, standings: Collection[Standing], to: Standing, why: str, what: str) -> types.Guest:
    _, instance = _current(call, standings, what)
    return _put(call, call.name, replace(instance, standing=to, why=why), why)


def _next_version(call: Call, name: str) -> int:
    return call.services.store.newest_version(RecordKind.INSTANCE, call.who.owner, name) + 1


def _put(call: Call, name: str, instance: Instance | None, why: str, version: int | None = None) -> types.Guest:
    body = None if instance is None else instance.to_body()
    version = _next_version(call, name) if version is None else version
    record = Record(RecordKind.INSTANCE, call.who.owner, name, version, body, call.now, call.who.kid)
    put_record(call.services, call.who, record, why=why, aliases=() if instance is None else instance.ids)
    return _guest(record)


def _guest(record: Record) -> types.Guest:
    instance = Instance((), None) if record.body is None else Instance.from_body(record.body)
    return types.Guest(
        name=record.name,
        version=record.version,
        standing=str(instance.standing),
        ids=list(instance.ids),
        key=None if instance.bound is None else instance.bound.key,
        image=None if instance.bound is None else instance.bound.image,
        since=record.created_at,
        by=record.created_by,
        why=instance.why,
        decision=instance.decision,
    )


def _ticket(ticket: StoredTicket) -> dict[str, Any]:
    return {name: getattr(ticket, name) for name in types.Ticket.__struct_fields__}
