# SPDX-License-Identifier: Apache-2.0
"""`/v1/images`: what good guests have booted, and where each version stands. Versioned, nothing overwritten.

A version that is only proposed gets that state before it can be seen, so that it counts at no moment. Whoever else puts
the same version meanwhile wins, or is only proposed too: his version then waits for an approval, and lets nobody in.
"""

from __future__ import annotations

import msgspec

from broker.appraisal.image_life import ImageState, Life, check_change, named_versions
from broker.appraisal.images import parse_image
from broker.appraisal.rules import ImageRef, check_name
from broker.changes import put_record
from broker.gather import image_lives, life_in
from broker.http import image_types as types
from broker.http.call import Call
from broker.http.types import MAX_NUMBER, VersionQuery
from broker.owners import Role
from broker.store.protocols import Record, RecordKind
from keys.errors import Conflict, ProtocolError


def list_images(call: Call, _: None) -> types.Images:
    records = call.services.store.records(RecordKind.IMAGE, call.who.owner)
    return types.Images([_summary(record, _lives(call, record.name)) for record in records])


def show_image(call: Call, query: VersionQuery) -> types.Image:
    record = call.services.store.record(RecordKind.IMAGE, call.who.owner, call.name, query.version)
    summary = _summary(record, _lives(call, call.name))
    return types.Image(**msgspec.structs.asdict(summary), toml=(record.body or {})["toml"])


def put_image(call: Call, request: types.PutImage) -> types.ImagePut:
    name = check_name(call.name, what="an image")
    body = parse_image(request.toml).to_body() | {"toml": request.toml}
    store, owner = call.services.store, call.who.owner
    record = Record(
        RecordKind.IMAGE, owner, name, store.newest_version(RecordKind.IMAGE, owner, name) + 1, body, call.now,
        call.who.kid,
    )  # fmt: skip
    meant = _counting(call, name)
    if request.propose or call.who.role is not Role.OWNER:
        _propose(call, name, record.version, request.why)
        put_record(call.services, call.who, record, why=request.why)
    else:
        put_record(call.services, call.who, record, why=request.why)
        _settle(call, record, request.why)
    counting = _counting(call, name)
    summary = _summary(record, _lives(call, name))
    replaced = [version for version in meant if version not in counting]
    return types.ImagePut(**msgspec.structs.asdict(summary), replaced=replaced)


def set_image_state(call: Call, request: types.SetImageState) -> types.ImageStanding:
    store, owner, version = call.services.store, call.who.owner, _version(call)
    record = store.record(RecordKind.IMAGE, owner, call.name, version)  # NotFound
    reference = f"{record.name}@{version}"
    state = ImageState(request.state)
    if (request.after_s is not None) is not (state is ImageState.RETIRING):
        raise ProtocolError(
            "after_s says for how long a retiring version still counts", expected="with the state retiring, only there"
        )
    # Read before the life is: who changes the state after this takes its next number, and then this change is refused.
    changed = store.newest_version(RecordKind.IMAGE_STATE, owner, reference)
    check_change(reference, _standing(record, _lives(call, record.name)), state, call.now)
    until = None if request.after_s is None else call.now + request.after_s * 1000
    life = Life(state, call.now, call.who.kid, request.why, until)
    _put_state(call, reference, life, after=changed)
    return types.ImageStanding(record.name, version, _shown(life), _counting(call, record.name))


def show_image_history(call: Call, _: None) -> types.ImageHistory:
    store, owner, name = call.services.store, call.who.owner, call.name
    store.record(RecordKind.IMAGE, owner, name)  # NotFound
    lives = _lives(call, name)
    versions = [
        types.ImageVersion(**msgspec.structs.asdict(_summary(record, lives)), lives=_past(call, record))
        for record in store.history(RecordKind.IMAGE, owner, name)
    ]
    return types.ImageHistory(name, _counting(call, name), versions)


def _settle(call: Call, record: Record, why: str) -> None:
    """Let a version that was just put be active, where a proposal that came too late has left its state behind."""
    reference = f"{record.name}@{record.version}"
    changed = call.services.store.newest_version(RecordKind.IMAGE_STATE, call.who.owner, reference)
    if changed:
        _put_state(call, reference, Life(ImageState.ACTIVE, call.now, call.who.kid, why), after=changed)


def _version(call: Call) -> int:
    text = call.params["version"]
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_NUMBER)) and text[0] != "0"):
        raise ProtocolError("that is no version", expected="a number from 1 on", found=text[:64])
    return int(text)


def _propose(call: Call, name: str, version: int, why: str) -> None:
    """Let the version that will be put be a proposal. Raises Conflict where somebody has put it meanwhile."""
    reference = f"{name}@{version}"
    changed = call.services.store.newest_version(RecordKind.IMAGE_STATE, call.who.owner, reference)
    left = _lives(call, name).get(version)  # by a proposal that came too late or was broken off
    if left is not None and left.state is not ImageState.PROPOSED:
        raise Conflict("somebody else has put this version meanwhile", found=reference, mend="do it again")
    _put_state(call, reference, Life(ImageState.PROPOSED, call.now, call.who.kid, why), after=changed)


def _put_state(call: Call, reference: str, life: Life, *, after: int) -> None:
    """`after`: the newest version of the state when this was decided on. Raises Conflict if it is not any more."""
    body = {"state": str(life.state), "why": life.why, "until": life.until}
    record = Record(RecordKind.IMAGE_STATE, call.who.owner, reference, after + 1, body, life.at, life.who)
    put_record(call.services, call.who, record, why=life.why)


def _lives(call: Call, name: str) -> dict[int, Life]:
    return image_lives(call.who.owner, name, call.services.store)


def _counting(call: Call, name: str) -> list[int]:
    newest = call.services.store.newest_version(RecordKind.IMAGE, call.who.owner, name)
    return named_versions(ImageRef(name, None), _lives(call, name), newest, call.now)


def _standing(record: Record, lives: dict[int, Life]) -> Life:
    return lives.get(record.version) or Life(ImageState.ACTIVE, record.created_at, record.created_by)


def _past(call: Call, image: Record) -> list[types.ImageLife]:
    """All lives of one version, the newest first; what was never proposed was active from the beginning."""
    reference = f"{image.name}@{image.version}"
    changes = call.services.store.history(RecordKind.IMAGE_STATE, call.who.owner, reference)
    lives = [_shown(life_in(change)) for change in changes]
    begun = not changes or (changes[-1].version == 1 and lives[-1].state != ImageState.PROPOSED)
    return [*lives, _shown(_standing(image, {}))] if begun else lives


def _shown(life: Life) -> types.ImageLife:
    return types.ImageLife(str(life.state), life.at, life.who, life.why, life.until)


def _summary(record: Record, lives: dict[int, Life]) -> types.ImageSummary:
    body = record.body or {}  # never None: the store hands out no deleted records
    return types.ImageSummary(
        record.name,
        record.version,
        body["platform"],
        body["description"],
        record.created_at,
        record.created_by,
        _shown(_standing(record, lives)),
    )
