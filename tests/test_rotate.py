# SPDX-License-Identifier: Apache-2.0
"""Rewrapping: every key ends up under the new KEK, whatever happens on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.rotate import PAGE_KEYS, Progress, rewrap_all
from broker.store.sqlite import SqliteStore
from keys.custody.local import LocalCustody
from keys.errors import Unavailable
from tests.fakes.store_process import KEK, SECRET, sealed_key

NEW = bytes(range(64, 96))
KEYS = PAGE_KEYS + 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "roomkey.db")
    for number in range(KEYS):
        opened.put_key(sealed_key(f"{number // 2}", number % 2 + 1))
    yield opened
    opened.close()


def assert_all_open_under(store: SqliteStore, kek: bytes, count: int = KEYS) -> None:
    custody = LocalCustody(kek)
    keys = store.sealed_keys(None, 10_000)
    assert len(keys) == count
    for key in keys:
        assert key.sealed is not None
        assert custody.open(key.owner, key.type, key.tag, key.version, key.sealed) == SECRET


def test_all_keys_are_rewrapped(store: SqliteStore) -> None:
    """Every version of every key opens with the new KEK alone, and progress was told page by page."""
    heard: list[Progress] = []
    assert rewrap_all(store, LocalCustody(NEW, [KEK]), heard.append) == Progress(KEYS, KEYS, 0)
    assert heard == [Progress(PAGE_KEYS, PAGE_KEYS, 0), Progress(KEYS, KEYS, 0)]
    assert_all_open_under(store, NEW)


def test_second_run_has_nothing_to_do(store: SqliteStore) -> None:
    """What is under the new KEK is looked at and left as it is."""
    custody = LocalCustody(NEW, [KEK])
    rewrap_all(store, custody)
    before = store.sealed_keys(None, KEYS)
    assert rewrap_all(store, custody) == Progress(KEYS, 0, 0)
    assert store.sealed_keys(None, KEYS) == before


def test_interrupted_run_is_resumed(store: SqliteStore) -> None:
    """After a run that died half-way all keys still open, and the next run does only the rest."""
    custody = LocalCustody(NEW, [KEK])

    def die(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrap_all(store, custody, die)
    for key in store.sealed_keys(None, KEYS):
        assert key.sealed is not None
        assert custody.open(key.owner, key.type, key.tag, key.version, key.sealed) == SECRET
    assert rewrap_all(store, custody) == Progress(KEYS, KEYS - PAGE_KEYS, 0)
    assert_all_open_under(store, NEW)


def test_key_changed_meanwhile_is_left_alone(store: SqliteStore) -> None:
    """A key destroyed between reading and writing stays destroyed, and is counted as changed."""

    class Meddler(LocalCustody):
        def seal(self, owner: str, type_: str, tag: str, version: int, plaintext: bytes) -> bytes:
            if tag == "7":
                store.destroy_key(owner, type_, tag)
            return super().seal(owner, type_, tag, version, plaintext)

    assert rewrap_all(store, Meddler(NEW, [KEK])) == Progress(KEYS, KEYS - 2, 2)
    assert store.key("acme", "disk", "7").sealed is None
    assert_all_open_under(store, NEW, KEYS - 2)


def test_key_under_an_unlisted_kek_stops_the_run(store: SqliteStore) -> None:
    """Where a key does not open the run stops with the reason, and no key is lost."""
    before = store.sealed_keys(None, KEYS)
    with pytest.raises(Unavailable, match="not listed"):
        rewrap_all(store, LocalCustody(NEW))
    assert store.sealed_keys(None, KEYS) == before


def test_empty_store_is_done_at_once(tmp_path: Path) -> None:
    """Without keys there is nothing to do and nothing to report on."""
    store = SqliteStore(tmp_path / "empty.db")
    heard: list[Progress] = []
    assert rewrap_all(store, LocalCustody(NEW), heard.append) == Progress()
    assert heard == []
    store.close()


def test_destroyed_versions_are_skipped(store: SqliteStore) -> None:
    """Destroyed versions have nothing to rewrap and are not even seen."""
    store.destroy_key("acme", "disk", "3")
    assert rewrap_all(store, LocalCustody(NEW, [KEK])).seen == KEYS - 2
