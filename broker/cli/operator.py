# SPDX-License-Identifier: Apache-2.0
"""What an operator's commands share: they work on the broker's own files, on its machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker import config
from broker.changes import FAILED
from broker.ledger import CHANGE, new_id
from broker.services import now_ms
from broker.store import open_store
from broker.store.protocols import Store
from keys.errors import ConfigError

OPERATOR = "operator"  # who the ledger names for a change that was made on the broker's machine


def load_config(path: Path) -> config.Config:
    """The config in `path` and the environment. Raises ConfigError."""
    if not path.exists():
        raise ConfigError(
            "there is no config file", found=str(path), mend="name it with --config, or make one: roomkey init DIR"
        )
    return config.load(path, os.environ)


@contextmanager
def opened(path: Path) -> Iterator[tuple[config.Config, Store]]:
    """The config in `path` and its store. Raises ConfigError, Unavailable."""
    settings = load_config(path)
    store = open_store(settings.store.url)
    try:
        yield settings, store
    finally:
        store.close()


@contextmanager
def recorded(store: Store, *, owner: str, subject: str, verdict: str, why: str) -> Iterator[None]:
    """Around one change by the operator: its line in the owner's ledger is durable first, as with an owner's own
    changes (`broker.changes`). Raises Unavailable, and then nothing is changed.
    """
    _line(store, owner, subject, verdict, why)
    try:
        yield
    except Exception:
        _line(store, owner, subject, FAILED, f"{verdict}: {why}")
        raise


def _line(store: Store, owner: str, subject: str, verdict: str, why: str) -> None:
    store.append(
        id_=new_id(os.urandom),
        owner=owner,
        at=now_ms(),
        kind=CHANGE,
        verdict=verdict,
        subject=subject,
        body={"who": OPERATOR, "why": why},
    )
