# SPDX-License-Identifier: Apache-2.0
"""The record of the volume that a key is for, where a guest's word changes it; and the other key that a guest gets to
change its volume's keyslots with.

A key that waits for its guest is kept under a path that no guest can ask for (`staged`). When the guest has added it:

 (1) the record says so: `next` and `last` are both set
 (2) it is stored as the next version of the key itself, which the guest gets from now on
 (3) `next` is cleared; what was staged is erased

A broker that dies in between goes on from there before it looks at the next request for this key.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from broker.appraisal.rules import rule_name
from broker.appraisal.volume import Volume
from broker.services import Services
from broker.store.protocols import KeyState, Record, RecordKind, Store, StoredKey
from keys.errors import Conflict, NotFound, Unavailable
from keys.messages import ResourcePath
from keys.report import Step

BROKER = "broker"  # who changed a record, where it was no owner
NEXT, RECOVERY = "~next", "~recovery"  # behind a tag; no path that a guest can name has such a character


class Other(NamedTuple):
    """A key that a guest gets beside its own: what to do with it, and the version that it names when that is done."""

    step: Step
    version: int
    secret: bytes

    def __repr__(self) -> str:
        return f"Other(step={self.step!r}, version={self.version})"


def staged(path: ResourcePath, kind: str) -> ResourcePath:
    """Where a key for the volume of `path` waits."""
    return path._replace(tag=path.tag + kind)


def known_volume(path: ResourcePath, store: Store) -> Volume | None:
    """What is known of the volume that the key at `path` is for. Raises Unavailable."""
    try:
        return Volume.from_body(store.record(RecordKind.VOLUME, path.owner, rule_name(path)).body or {})
    except NotFound:
        return None


def put_volume(path: ResourcePath, before: Volume | None, after: Volume, services: Services, now: int) -> None:
    """Raises Conflict, where the record is not `before` any more; Unavailable."""
    store, name = services.store, rule_name(path)
    version = store.newest_version(RecordKind.VOLUME, path.owner, name) + 1
    if known_volume(path, store) != before:
        raise Conflict("the volume's record was changed meanwhile")
    store.put_record(Record(RecordKind.VOLUME, path.owner, name, version, after.to_body(), now, BROKER))


def settle(path: ResourcePath, services: Services, now: int) -> Volume | None:
    """What is known of the volume, once a change of its key that was confirmed is carried out: steps (2) and (3).

    Raises Conflict, VerificationError (custody did not seal what is staged), Unavailable.
    """
    store = services.store
    volume = known_volume(path, store)
    if volume is None or volume.next is None or volume.last is None:
        return volume
    newest = store.key(*path)
    waiting = staged(path, NEXT)
    if newest.version == volume.last:
        key = store.key(*waiting, volume.next)
        plaintext = services.custody.open(*waiting, key.version, key.sealed or b"")
        version = newest.version + 1
        sealed = services.custody.seal(*path, version, plaintext)
        store.put_key(StoredKey(*path, version, KeyState.ACTIVE, now, key.created_by, sealed))
    after = replace(volume, next=None)
    put_volume(path, volume, after, services, now)
    erase(waiting, services)
    return after


def change(path: ResourcePath, before: Volume, after: Volume, services: Services, now: int) -> Volume:
    """Make `after` of the record, and what follows from it: what is known then. Raises as `put_volume` and `settle`."""
    put_volume(path, before, after, services, now)
    if before.recovery is not None and after.recovery is None:
        erase(staged(path, RECOVERY), services)
    return settle(path, services, now) or after


def erase(path: ResourcePath, services: Services) -> None:
    """What is staged at `path`. Where others hold on to the store's log, it stays until the next time: a record that
    does not name it any more makes it no key of anybody's.
    """
    with suppress(NotFound, Unavailable):
        services.store.destroy_key(*path)


def other_key(path: ResourcePath, volume: Volume, services: Services) -> Other | None:
    """What a guest shall do to the keyslots of its volume, one thing at a time: the new key first, then the old one.

    Raises VerificationError, NotFound, Unavailable.
    """
    if volume.next is not None:
        return _other(Step.ADD, staged(path, NEXT), volume.next, services)
    if volume.last is not None:
        return _other(Step.REMOVE, path, volume.last, services)
    if volume.recovery is not None:
        return _other(Step.RECOVERY, staged(path, RECOVERY), volume.recovery, services)
    return None


def _other(step: Step, path: ResourcePath, version: int, services: Services) -> Other:
    key = services.store.key(*path, version)
    return Other(step, version, services.custody.open(*path, version, key.sealed or b""))
