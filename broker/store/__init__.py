# SPDX-License-Identifier: Apache-2.0
"""What a broker must remember, behind protocols that every store implements alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keys.errors import ConfigError

if TYPE_CHECKING:
    from broker.store.protocols import Store

SQLITE_SCHEME = "sqlite:"


def open_store(url: str) -> Store:
    """The store at `url`: `sqlite:PATH`. To be opened in the process that uses it, after any fork.

    Raises ConfigError (no such kind of store, or a file that cannot be one) or Unavailable.
    """
    if not url.startswith(SQLITE_SCHEME):
        raise ConfigError("unknown kind of store", expected="sqlite:PATH", found=url.partition(":")[0][:64])
    from broker.store.sqlite import SqliteStore  # noqa: PLC0415  a store's library is loaded where it is used

    return SqliteStore(url.removeprefix(SQLITE_SCHEME))
