# SPDX-License-Identifier: Apache-2.0
"""An owner's keys: put, generated, rotated, destroyed. Their bytes pass through here on their way into custody; none
come back.
"""

from __future__ import annotations

from broker.changes import recorded
from broker.owners import Identity
from broker.services import Services
from broker.store.protocols import KeyState, StoredKey
from keys.errors import Conflict, NotFound
from keys.messages import ResourcePath


def put(path: ResourcePath, plaintext: bytes, services: Services, who: Identity, *, why: str, now: int) -> StoredKey:
    """The next version of the key at `path`, or its first. Raises Conflict, Unavailable."""
    newest = _newest(path, services)
    return _add(path, 1 if newest is None else newest.version + 1, plaintext, services, who, "put", why, now)


def generate(path: ResourcePath, size: int, services: Services, who: Identity, *, why: str, now: int) -> StoredKey:
    """A new key of `size` random bytes. Raises Conflict where there is one, Unavailable."""
    newest = _newest(path, services)
    if newest is not None and newest.state is not KeyState.DESTROYED:
        raise Conflict(f"there is a key at {path} already", mend=f"replace it: roomkey key rotate {path}")
    version = 1 if newest is None else newest.version + 1
    return _add(path, version, services.random(size), services, who, "generated", why, now)


def rotate(path: ResourcePath, services: Services, who: Identity, *, why: str, now: int) -> StoredKey:
    """A new version, random and as long as the last. Raises NotFound, Conflict, Unavailable, VerificationError."""
    newest = _newest(path, services)
    if newest is None or newest.sealed is None:
        raise NotFound(f"there is no key at {path} to rotate", mend=f"make one: roomkey key generate {path}")
    size = len(services.custody.open(*path, newest.version, newest.sealed))
    return _add(path, newest.version + 1, services.random(size), services, who, "rotated", why, now)


def destroy(path: ResourcePath, services: Services, who: Identity, *, why: str, now: int) -> int:
    """How many versions were erased. Raises NotFound, Unavailable."""
    services.store.key(*path)
    with recorded(services, who, "destroyed", f"key/{path}", why=why, now=now):
        return services.store.destroy_key(*path)


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
