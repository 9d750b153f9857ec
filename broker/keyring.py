# SPDX-License-Identifier: Apache-2.0
"""An owner's keys: put, generated, rotated, destroyed. Their bytes pass through here on their way into custody; none
come back.

Where it is known which volume a key is for, a new version waits until the guest has put it into a keyslot
(`broker.volumes`): nothing stands still for a rotation.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from broker.appraisal.rules import rule_name
from broker.appraisal.volume import Volume
from broker.changes import put_record, recorded
from broker.owners import Identity
from broker.services import Services
from broker.store.protocols import KeyState, Record, RecordKind, StoredKey
from broker.volumes import NEXT, RECOVERY, erase, known_volume, put_volume, settle, staged
from keys import b64
from keys.envelope import MAX_ALSO_BYTES
from keys.errors import Conflict, NotFound, ProtocolError
from keys.messages import ResourcePath

MIN_RECOVERY_BYTES = 32  # of a passphrase; guests derive with few iterations, as for the random keys of the broker


def put(
    path: ResourcePath,
    plaintext: bytes,
    services: Services,
    who: Identity,
    *,
    why: str,
    now: int,
    verdict: str = "put",
) -> StoredKey:
    """The next version of the key at `path`, or its first; what waited for the volume's guest does so no more. Raises
    Conflict, Unavailable.
    """
    volume = known_volume(path, services.store)
    if volume is not None and (volume.next is not None or volume.last is not None):
        put_volume(path, volume, replace(volume, next=None, last=None), services, now)
        erase(staged(path, NEXT), services)
    return _add(path, _next(path, services), plaintext, services, who, verdict, why, now)


def generate(path: ResourcePath, size: int, services: Services, who: Identity, *, why: str, now: int) -> StoredKey:
    """A new key of `size` random bytes. Raises Conflict where there is one, Unavailable."""
    newest = _newest(path, services)
    if newest is not None and newest.state is not KeyState.DESTROYED:
        raise Conflict(f"there is a key at {path} already", mend=f"replace it: roomkey key rotate {path}")
    return _add(path, _next(path, services), services.random(size), services, who, "generated", why, now)


def provision(
    path: ResourcePath, services: Services, who: Identity, *, again: bool, why: str, now: int
) -> tuple[StoredKey, Volume]:
    """Order a new volume: a new passphrase for it, and one guest's leave to make it. `again`: also where there is a
    key or a volume; what it opened, the new one does not. Raises Conflict, Unavailable.
    """
    volume, newest = known_volume(path, services.store), _newest(path, services)
    if not again and (volume is not None or (newest is not None and newest.state is not KeyState.DESTROYED)):
        raise Conflict(
            f"there is a key at {path} already, for a volume that may hold something",
            mend=f"if that is lost, or may be: roomkey volume provision {path} --again",
        )
    key = _add(path, _next(path, services), _passphrase(services), services, who, "generated", why, now)
    ordered = Volume(None, grant=key.version)
    name = rule_name(path)
    version = services.store.newest_version(RecordKind.VOLUME, path.owner, name) + 1
    record = Record(RecordKind.VOLUME, path.owner, name, version, ordered.to_body(), now, who.kid)
    put_record(services, who, record, why=why)
    for kind in (NEXT, RECOVERY):
        erase(staged(path, kind), services)
    return key, ordered


def rotate(
    path: ResourcePath, services: Services, who: Identity, *, at_once: bool = False, why: str, now: int
) -> StoredKey | None:
    """A new version, random and as long as the last. None: it waits for the guest of the volume that the key is for,
    unless it shall count `at_once`. Raises NotFound, Conflict, Unavailable, VerificationError.
    """
    newest = _newest(path, services)
    if newest is None or newest.sealed is None:
        raise NotFound(f"there is no key at {path} to rotate", mend=f"make one: roomkey key generate {path}")
    size = len(services.custody.open(*path, newest.version, newest.sealed))
    volume = settle(path, services, now)
    if at_once or volume is None:
        return put(path, services.random(size), services, who, why=why, now=now, verdict="rotated")
    if volume.pin is None:
        mend = f"boot its guest, or: roomkey volume provision {path} --again"
        raise Conflict("the volume is not made yet", mend=mend)
    if volume.next is not None or volume.last is not None:
        raise Conflict("a rotation waits for its guest already", mend="boot the guest; --now does not wait")
    if size > MAX_ALSO_BYTES:
        raise Conflict(
            "the key is too long to be changed by its guest",
            expected=f"at most {MAX_ALSO_BYTES} bytes",
            found=str(size),
            mend="--now does not wait for it",
        )
    _stage(path, NEXT, _passphrase(services), services, who, "rotated", why, now)
    return None


def put_recovery(
    path: ResourcePath, passphrase: bytes, services: Services, who: Identity, *, why: str, now: int
) -> None:
    """Let the guest put `passphrase` into a keyslot of its own; after that it is erased here. Raises ProtocolError (it
    is short, and such a keyslot is as strong as its passphrase), NotFound (nobody knows a volume of this key),
    Conflict, Unavailable.
    """
    if len(passphrase) < MIN_RECOVERY_BYTES:
        raise ProtocolError("a recovery passphrase must be long and random", expected=f"{MIN_RECOVERY_BYTES} bytes")
    volume = settle(path, services, now)
    if volume is None or volume.pin is None:
        raise NotFound(f"no volume of {path} is known", mend=f"pin it, or: roomkey volume provision {path}")
    _stage(path, RECOVERY, passphrase, services, who, "recovery", why, now)


def destroy(path: ResourcePath, services: Services, who: Identity, *, why: str, now: int) -> int:
    """How many versions were erased, and with them what waited for the volume's guest. Raises NotFound, Unavailable."""
    services.store.key(*path)
    with recorded(services, who, "destroyed", f"key/{path}", why=why, now=now):
        for kind in (NEXT, RECOVERY):
            with suppress(NotFound):
                services.store.destroy_key(*staged(path, kind))
        return services.store.destroy_key(*path)


def _stage(
    path: ResourcePath,
    kind: str,
    plaintext: bytes,
    services: Services,
    who: Identity,
    verdict: str,
    why: str,
    now: int,
) -> None:
    """Keep `plaintext` for the guest, and let the volume's record name it."""
    volume = known_volume(path, services.store)
    assert volume is not None  # narrowing: the callers have looked
    waiting = staged(path, kind)
    version = _next(waiting, services)
    sealed = services.custody.seal(*waiting, version, plaintext)
    after = replace(volume, next=version) if kind == NEXT else replace(volume, recovery=version)
    with recorded(services, who, verdict, f"key/{path}", why=why, now=now):
        services.store.put_key(StoredKey(*waiting, version, KeyState.ACTIVE, now, who.kid, sealed))
        put_volume(path, volume, after, services, now)


def _passphrase(services: Services) -> bytes:
    """32 random bytes as text: what people, scripts and every way into cryptsetup can take."""
    return b64.std(services.random(32)).encode("ascii")


def _next(path: ResourcePath, services: Services) -> int:
    newest = _newest(path, services)
    return 1 if newest is None else newest.version + 1


def _newest(path: ResourcePath, services: Services) -> StoredKey | None:
    try:
        return services.store.key(*path)
    except NotFound:
        return None


def _add(
    path: ResourcePath,
    version: int,
    plaintext: bytes,
    services: Services,
    who: Identity,
    verdict: str,
    why: str,
    now: int,
) -> StoredKey:
    sealed = services.custody.seal(*path, version, plaintext)
    key = StoredKey(*path, version, KeyState.ACTIVE, now, who.kid, sealed)
    with recorded(services, who, verdict, f"key/{path}", why=why, now=now):
        services.store.put_key(key)
    return key
