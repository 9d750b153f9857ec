# SPDX-License-Identifier: Apache-2.0
"""An owner's recorded requests for keys, or attempts to attest, of the last days: for reports about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from broker import ledger
from broker.store.protocols import LedgerEntry, Store

DAY_MS = 24 * 3600 * 1000
PAGE = 500  # requests read at once
MAX_REQUESTS = 20_000  # of one report; the newest


class Requests:
    """The lines of `kind` since `since` (milliseconds), with one of `verdicts` if there are any, the newest first, at
    most MAX_REQUESTS. `truncated` says afterwards whether there were more. Reading them raises Unavailable.
    """

    def __init__(
        self, owner: str, store: Store, since: int, verdicts: Sequence[str] = (), *, kind: str = ledger.RELEASE
    ) -> None:
        self._owner, self._store, self._since, self._verdicts, self._kind = owner, store, since, verdicts, kind
        self.truncated = False

    def __iter__(self) -> Iterator[LedgerEntry]:
        before = None
        for _ in range(MAX_REQUESTS // PAGE):
            page = self._page(before, PAGE)
            yield from page
            if len(page) < PAGE:
                return
            before = page[-1].sequence
        self.truncated = bool(self._page(before, 1))

    def _page(self, before: int | None, limit: int) -> list[LedgerEntry]:
        return self._store.entries(
            self._owner,
            kinds=(self._kind,),
            verdicts=self._verdicts,
            since=self._since,
            before=before,
            limit=limit,
        )
