# SPDX-License-Identifier: Apache-2.0
"""Rewrapping: all sealed keys under the current KEK, so that the old ones can be taken off the list.

Runs beside a working broker. It can be stopped at any point and started again: what is done is not done twice, because
what is sealed says itself under which KEK.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker.store.protocols import KeyStore
from keys.custody import Custody, rewrap
from keys.errors import Conflict

PAGE_KEYS = 100  # sealed keys read at once


@dataclass(frozen=True, slots=True)
class Progress:
    """How many key versions were seen, rewrapped, and left to whoever changed them meanwhile."""

    seen: int = 0
    rewrapped: int = 0
    changed_meanwhile: int = 0


def rewrap_all(store: KeyStore, custody: Custody, progress: Callable[[Progress], None] = lambda _: None) -> Progress:
    """Rewrap every key that is not yet under the current KEK; `progress` hears of every page.

    A key that changes in the same moment was destroyed, or rewrapped by somebody else, and is left alone. Brokers on
    this store must have been restarted with the new KEK before, or they go on sealing under the old one. Raises
    VerificationError or Unavailable at the first key that does not open: the old KEK must then stay.
    """
    total = Progress()
    after: tuple[str, str, str, int] | None = None
    while page := store.sealed_keys(after, PAGE_KEYS):
        rewrapped = changed = 0
        for key in page:
            assert key.sealed is not None  # `sealed_keys` gives no others
            if custody.needs_rewrap(key.sealed):
                sealed = rewrap(custody, key.owner, key.type, key.tag, key.version, key.sealed)
                try:
                    store.replace_sealed(key, sealed)
                    rewrapped += 1
                except Conflict:
                    changed += 1
        total = Progress(total.seen + len(page), total.rewrapped + rewrapped, total.changed_meanwhile + changed)
        progress(total)
        after = (page[-1].owner, page[-1].type, page[-1].tag, page[-1].version)
    return total
