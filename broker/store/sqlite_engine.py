# SPDX-License-Identifier: Apache-2.0
"""The SQLite file under the store: its mode, its schema, its connections, and what a transaction is."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from keys.errors import ConfigError, ProtocolError, Unavailable

BUSY_TIMEOUT_S = 2.0  # how long one call waits for others; a guest's call keeps its worker waiting with it
BUSY_POLL_S = 0.0001  # between two attempts; a write without a sync takes about as long
FILE_MODE = 0o600

Row = tuple[Any, ...]


@contextmanager
def answering() -> Iterator[None]:
    """The one place where SQLite's errors become ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise Unavailable("the store does not answer", found=str(error)) from error
    except UnicodeEncodeError:
        raise ProtocolError("a text holds a lone surrogate, and has no UTF-8 form") from None


class Engine:
    """`path`: the file, made with mode 0600 if it is not there. Raises ConfigError or Unavailable.

    `durable` and `quick` are for writing, with synchronous=FULL and NORMAL: one of each, because SQLite lets only one
    write at a time anyway. To be opened after a fork, never before: two processes on one connection corrupt the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._pid = os.getpid()
        # Threads queue here, where the next one is woken; only processes have to poll for each other.
        self._writers = threading.Lock()
        self._readers: deque[sqlite3.Connection] = deque()
        self._closed = False
        _make_private(self._path)
        with answering():
            self.durable = self._connect("FULL")
            _migrate(self.durable)
            self.quick = self._connect("NORMAL")

    def read(self, sql: str, *values: object) -> list[Row]:
        """All rows of one query. Readers never wait for writers."""
        self._usable()
        with answering():
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = self._connect("NORMAL")
            try:
                return _patiently(connection, sql, values)
            finally:
                self._readers.append(connection)

    def write(self, connection: sqlite3.Connection, sql: str, *values: object) -> list[Row]:
        """One statement that is a transaction of its own. It is done when its last row is fetched, not before."""
        with self._writing():
            return _patiently(connection, sql, values)

    @contextmanager
    def transaction(self, connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
        """All of the block, or nothing of it."""
        with self._writing():
            _patiently(connection, "BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                connection.rollback()
                raise

    def empty_log(self) -> bool:
        """Move the write-ahead log into the file and cut it to nothing. False if others held on to it too long."""
        with self._writing():
            # Here SQLite waits itself: it keeps the locks that it has got while it waits for the rest.
            self.durable.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000:.0f}").fetchall()
            [(busy, _, _)] = self.durable.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self.durable.execute("PRAGMA busy_timeout = 0").fetchall()
        return not busy

    def close(self) -> None:
        with self._writers:
            self._closed = True
            self.quick.close()
            self.durable.close()
            while self._readers:
                self._readers.pop().close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if not self._writers.acquire(timeout=BUSY_TIMEOUT_S):
            raise Unavailable("the store is busy")
        try:
            self._usable()
            with answering():
                yield
        finally:
            self._writers.release()

    def _usable(self) -> None:
        if self._closed or os.getpid() != self._pid:
            raise RuntimeError("a store is used while it is open, and in the process that opened it")

    def _connect(self, synchronous: str) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        # Temporary tables, too, may hold sealed keys: in memory, never in a file.
        for pragma in (
            "secure_delete = ON",
            f"synchronous = {synchronous}",
            "foreign_keys = ON",
            "temp_store = MEMORY",
        ):
            _patiently(connection, f"PRAGMA {pragma}")
        return connection


def _patiently(connection: sqlite3.Connection, sql: str, values: Sequence[object] = ()) -> list[Row]:
    """All rows of one statement, tried again while another process has the file.

    SQLite's own waiting sleeps longer with every turn, up to 100 ms, so that whoever waited longest waits longer still.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            return connection.execute(sql, values).fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(BUSY_POLL_S)


def _make_private(path: Path) -> None:
    """Make the file if it is not there; refuse one that others own or can open. SQLite gives its log the same mode."""
    try:
        # Never opened where it exists: closing it again would drop the locks that this process has on it (fcntl(2)).
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, FILE_MODE))
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(f"the store's file {path} cannot be made", found=str(error.strerror)) from None
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        raise ConfigError(f"the store's file {path} is not a regular file")
    if info.st_uid != os.geteuid():
        raise ConfigError(
            f"the store's file {path} belongs to another user",
            expected=f"uid {os.geteuid()}",
            found=f"uid {info.st_uid}",
        )
    if stat.S_IMODE(info.st_mode) & ~FILE_MODE:
        raise ConfigError(
            f"the store's file {path} is open to others",
            expected=f"{FILE_MODE:04o}",
            found=f"{stat.S_IMODE(info.st_mode):04o}",
            mend=f"chmod {FILE_MODE:04o} {path}",
        )


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to the newest schema: migrations/NNNN_*.sql in order, counted in `user_version`."""
    _patiently(connection, "PRAGMA journal_mode = WAL")
    folder = resources.files("broker.store").joinpath("migrations")
    steps = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    _patiently(connection, "BEGIN IMMEDIATE")
    try:
        [(version,)] = connection.execute("PRAGMA user_version").fetchall()
        if version > len(steps):
            raise ConfigError(
                "the store was written by a newer Roomkey", expected=f"schema {len(steps)}", found=f"schema {version}"
            )
        for step in steps[version:]:
            for statement in _statements(step.read_text("utf-8")):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(steps)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def _statements(script: str) -> Iterator[str]:
    # `executescript` would commit on its own, and two processes could run the same migration.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
