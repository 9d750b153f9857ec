# SPDX-License-Identifier: Apache-2.0
"""Keeps what attempts to attest were judged by, for as long as the operator wants, and finds it again.

Of refused evidence only so much an hour is kept for one owner: anybody can send some.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from broker import dossier
from broker.claims import Trusted
from broker.dossier import MAX_DOSSIER_BYTES, Dossier
from broker.evidence import Submission
from broker.store.protocols import Store
from keys import strictjson
from keys.errors import NotFound
from keys.tee import Tee

DAY_MS = 24 * 3600 * 1000
HOUR_MS = 3600 * 1000
REFUSED_PER_HOUR = 200  # dossiers of refused evidence, for one owner
RENEW_MS = HOUR_MS  # how old what is trusted may be in the store before it is written anew
MARGIN_MS = DAY_MS  # for which it outlives the dossiers that name it

KEPT = "the evidence behind it is not kept (any more)"


@dataclass(slots=True)
class _Document:
    """What is trusted on one platform, its name and kept form, and when it was last written (milliseconds)."""

    trusted: Trusted
    name: str
    data: bytes
    written: int = -RENEW_MS


class Dossiers:
    """Of one process. `days` 0 keeps nothing."""

    def __init__(self, store: Store, days: int) -> None:
        self._store, self._keep_ms = store, days * DAY_MS
        self._documents: dict[Tee, _Document] = {}

    def keep(self, decision: str, owner: str, kept: Dossier, evidence: bytes, *, refused: bool, now: int) -> None:
        """Keep `kept` under the decision's id. `evidence` is canonical. Raises Unavailable."""
        if not self._keep_ms or (refused and not self._may_keep_refused(owner, now)):
            return
        trusted = self._document(kept.submission)
        if now - trusted.written >= RENEW_MS:
            self._store.put_dossier(trusted.name, trusted.data, now + MARGIN_MS)
            trusted.written = now
        self._store.put_dossier(decision, dossier.pack(kept, trusted.name, evidence), now)

    def purge(self, now: int) -> None:
        """Forget some of what is too old. Raises Unavailable."""
        self._store.purge_dossiers(now - self._keep_ms)

    def _document(self, submission: Submission) -> _Document:
        """What is trusted on this platform, written down once."""
        tee, trusted = submission.verifier.tee, submission.endorsements.trusted
        known = self._documents.get(tee)
        if known is None or known.trusted is not trusted:
            text = strictjson.canonical(dossier.trusted_json(trusted))
            known = self._documents[tee] = _Document(trusted, dossier.trusted_name(text), zlib.compress(text))
        return known

    def _may_keep_refused(self, owner: str, now: int) -> bool:
        return bool(owner) and self._store.hit(f"dossiers {owner}", HOUR_MS, now) <= REFUSED_PER_HOUR


def find(store: Store, decision: str) -> dict[str, Any]:
    """What `keep` kept, as JSON: members of `broker.dossier.to_json`, `evidence`, `trusted`.

    Raises NotFound, ProtocolError, Unavailable.
    """
    data = store.dossier(decision)
    if data is None:
        raise NotFound(KEPT)
    head, name, evidence = dossier.unpack(data)
    document = store.dossier(name)
    if document is None:
        raise NotFound(KEPT)
    text = zlib.decompressobj().decompress(document, MAX_DOSSIER_BYTES)
    trusted = strictjson.loads(text, name="what was trusted", max_bytes=MAX_DOSSIER_BYTES)
    return {**head, "evidence": evidence, "trusted": trusted}
