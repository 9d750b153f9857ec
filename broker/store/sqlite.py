# SPDX-License-Identifier: Apache-2.0
"""The store in one SQLite file, for a broker on one machine: any number of threads and processes.

Keys, records and the ledger are on the disk before the call returns: write-ahead log with synchronous=FULL. Challenges,
attestations, one-time ids, counters and endorsements are written with synchronous=NORMAL: a killed process loses none
of them, a power failure may lose the last ones, and the guest asks again. Every method is one transaction.

Why that is enough for a consumed challenge: both kinds go into one log, in order. The line in the ledger that follows
every consumption takes it to the disk, before anything that was judged leaves the broker. If the power fails between
the two, the challenge is good again, and nothing has come of its first use.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from broker.store.chain import GENESIS, ChainCheck, canonical, chained
from broker.store.protocols import (
    Consumption,
    FetchPause,
    KeyState,
    LedgerEntry,
    Record,
    RecordKind,
    StoredEndorsement,
    StoredKey,
    StoredLease,
    StoredTicket,
)
from broker.store.sqlite_engine import Engine, Row, answering
from keys.errors import Conflict, NotFound, Unavailable

SESSION_MEMORY_MS = 15 * 60_000  # how long a dead challenge is still recognised
PURGE_ROWS = 1000  # of each table, in one call of `purge`
PAGE_ROWS = 200  # read at once while the chain is verified

_KEY = (
    "SELECT owner, type, tag, version, state, created_at, created_by, {} FROM key LEFT JOIN key_material ON key = id "
)
_KEY_OPEN, _KEY_LISTED = _KEY.format("sealed"), _KEY.format("NULL")
_RECORD = "SELECT kind, owner, name, version, body, created_at, created_by FROM record AS r "
_NEWEST = (
    "r.version = (SELECT max(version) FROM record WHERE kind = r.kind AND owner = r.owner AND name = r.name) "
    "AND r.body IS NOT NULL "
)
_ENDORSEMENT = "SELECT name, data, edition, kept, stored_at, fresh_until FROM endorsement "
_TICKET = "SELECT name, owner, guest, key, image, issued_at, issued_by, expires_at, used_at, used_by FROM ticket "
_AFTER_ALL = "\U0010ffff"  # after every character that a name can have
_LINE = "SELECT sequence, id, owner, at, kind, verdict, subject, body, hash FROM ledger "


class SqliteStore:
    """`path`: the file, made with mode 0600 if it is not there. Raises ConfigError or Unavailable.

    To be opened in the process that uses it, after any fork.
    """

    def __init__(self, path: str | Path) -> None:
        self._engine = Engine(Path(path))
        self._read, self._write, self._transaction = self._engine.read, self._engine.write, self._engine.transaction
        self._durable, self._quick = self._engine.durable, self._engine.quick

    # --- sessions ---

    def put_session(self, session: str, body: dict[str, Any], expires_at: int) -> None:
        self._write(
            self._quick, "INSERT INTO session (id, body, expires_at) VALUES (?, ?, ?)", session, _text(body), expires_at
        )

    def session(self, session: str) -> dict[str, Any] | None:
        rows = self._read("SELECT body FROM session WHERE id = ?", session)
        return _body(rows[0][0]) if rows else None

    def consume_session(self, session: str, now: int) -> tuple[Consumption, dict[str, Any] | None]:
        # Checking and marking are one statement: no second caller can come between.
        taken = self._write(
            self._quick,
            "UPDATE session SET used = 1 WHERE id = ? AND used = 0 AND expires_at > ? RETURNING body",
            session,
            now,
        )
        if taken:
            return Consumption.JUDGE, _body(taken[0][0])
        left = self._read("SELECT used, body FROM session WHERE id = ?", session)
        if not left:
            return Consumption.UNKNOWN, None
        used, body = left[0]
        return Consumption.USED if used else Consumption.EXPIRED, _body(body)

    def put_attestation(self, attestation: str, session: str, body: dict[str, Any], expires_at: int) -> None:
        self._write(
            self._quick,
            "INSERT INTO attestation (id, session, body, expires_at) VALUES (?, ?, ?, ?)",
            attestation,
            session,
            _text(body),
            expires_at,
        )

    def attestation(self, attestation: str, now: int) -> dict[str, Any] | None:
        rows = self._read("SELECT body FROM attestation WHERE id = ? AND expires_at > ?", attestation, now)
        return _body(rows[0][0]) if rows else None

    def session_attestation(self, session: str, now: int) -> tuple[str, dict[str, Any]] | None:
        rows = self._read("SELECT id, body FROM attestation WHERE session = ? AND expires_at > ?", session, now)
        return (rows[0][0], _body(rows[0][1])) if rows else None

    def first_use(self, token: str, expires_at: int) -> bool:
        return bool(
            self._write(
                self._quick,
                "INSERT INTO used_once (token, expires_at) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING 1",
                token,
                expires_at,
            )
        )

    def hit(self, counter: str, window_ms: int, now: int) -> int:
        opened_at = now - now % window_ms
        rows = self._write(
            self._quick,
            "INSERT INTO counter (name, opened_at, hits, expires_at) VALUES (?, ?, 1, ?) ON CONFLICT (name) DO UPDATE "
            "SET hits = CASE opened_at WHEN excluded.opened_at THEN hits + 1 ELSE 1 END, "
            "opened_at = excluded.opened_at, expires_at = excluded.expires_at RETURNING hits",
            counter,
            opened_at,
            opened_at + window_ms,
        )
        return int(rows[0][0])

    def purge(self, now: int) -> None:
        """At most PURGE_ROWS of each kind in one call, so that nobody waits long; the rest goes with the next."""
        with self._transaction(self._quick) as connection:
            for table, before in (
                ("session", now - SESSION_MEMORY_MS), ("attestation", now), ("used_once", now), ("counter", now),
                ("fetch_pause", now), ("lease", now),
            ):  # fmt: skip
                connection.execute(
                    f"DELETE FROM {table} WHERE rowid IN "  # noqa: S608  our own table names
                    f"(SELECT rowid FROM {table} WHERE expires_at <= ? LIMIT {PURGE_ROWS})",
                    (before,),
                )

    # --- keys ---

    def put_key(self, key: StoredKey) -> None:
        if key.sealed is None or key.state is not KeyState.ACTIVE:
            raise RuntimeError("a new version is sealed and active")
        path = (key.owner, key.type, key.tag)
        with self._transaction(self._durable) as connection:
            [(newest,)] = connection.execute(
                "SELECT coalesce(max(version), 0) FROM key WHERE owner = ? AND type = ? AND tag = ?", path
            ).fetchall()
            _require_next(key.path, key.version, newest)
            connection.execute(
                "UPDATE key SET state = 'retired' WHERE owner = ? AND type = ? AND tag = ? AND state = 'active'", path
            )
            added = connection.execute(
                "INSERT INTO key (owner, type, tag, version, state, created_at, created_by) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*path, key.version, key.state, key.created_at, key.created_by),
            )
            connection.execute("INSERT INTO key_material (key, sealed) VALUES (?, ?)", (added.lastrowid, key.sealed))

    def key(self, owner: str, type_: str, tag: str, version: int | None = None) -> StoredKey:
        rows = self._read(
            _KEY_OPEN + "WHERE owner = ? AND type = ? AND tag = ? AND version = coalesce(?, version) "
            "ORDER BY version DESC LIMIT 1",
            owner,
            type_,
            tag,
            version,
        )
        if not rows:
            raise NotFound("no such key")
        return _key(rows[0])

    def keys(self, owner: str) -> list[StoredKey]:
        return [_key(row) for row in self._read(_KEY_LISTED + "WHERE owner = ? ORDER BY type, tag, version", owner)]

    def destroy_key(self, owner: str, type_: str, tag: str) -> int:
        """Afterwards the bytes are in none of the store's files. Where that could not be reached because others held
        on to the log it is Unavailable; to call it again is safe and finishes the work.
        """
        path = (owner, type_, tag)
        with self._transaction(self._durable) as connection:
            if not connection.execute("SELECT 1 FROM key WHERE owner = ? AND type = ? AND tag = ?", path).fetchall():
                raise NotFound("no such key")
            erased = connection.execute(
                "UPDATE key SET state = 'destroyed' WHERE owner = ? AND type = ? AND tag = ? AND state <> 'destroyed'",
                path,
            ).rowcount
            # The table is written anew (see its migration): DELETE without WHERE overwrites all its pages.
            kept = connection.execute(
                "SELECT key, sealed FROM key_material JOIN key AS k ON k.id = key "
                "WHERE state <> 'destroyed' ORDER BY key"
            ).fetchall()
            connection.execute("DELETE FROM key_material")
            connection.executemany("INSERT INTO key_material (key, sealed) VALUES (?, ?)", kept)
        if not self._engine.empty_log():
            raise Unavailable("erased, but the log still holds the bytes because it is in use", mend="destroy it again")
        return erased

    def sealed_keys(self, after: tuple[str, str, str, int] | None, limit: int) -> list[StoredKey]:
        rows = self._read(
            _KEY_OPEN + "WHERE sealed IS NOT NULL AND (owner, type, tag, version) > (?, ?, ?, ?) "
            "ORDER BY owner, type, tag, version LIMIT ?",
            *(after or ("", "", "", 0)),
            limit,
        )
        return [_key(row) for row in rows]

    def replace_sealed(self, key: StoredKey, sealed: bytes) -> None:
        replaced = self._write(
            self._durable,
            "UPDATE key_material SET sealed = ? WHERE sealed = ? AND "
            "key = (SELECT id FROM key WHERE owner = ? AND type = ? AND tag = ? AND version = ?) RETURNING key",
            sealed,
            key.sealed,
            key.owner,
            key.type,
            key.tag,
            key.version,
        )
        if not replaced:
            raise Conflict(f"{key.path} version {key.version} was changed meanwhile")

    # --- records ---

    def put_record(self, record: Record, aliases: Sequence[str] = ()) -> None:
        with self._transaction(self._durable) as connection:
            _insert_record(connection, record, aliases)

    def record(self, kind: RecordKind, owner: str, name: str, version: int | None = None) -> Record:
        # With the newest a deletion, older versions are out of reach too: what was deleted approves nothing.
        rows = self._read(
            _RECORD
            + "WHERE kind = ? AND owner = ? AND name = ? AND version = coalesce(?, version) AND body IS NOT NULL "
            f"AND EXISTS ({_RECORD}WHERE kind = ? AND owner = ? AND name = ? AND {_NEWEST}) "
            "ORDER BY version DESC LIMIT 1",
            *(kind, owner, name, version),
            *(kind, owner, name),
        )
        if not rows:
            raise NotFound(f"no such {kind}")
        return _record(rows[0])

    def newest_version(self, kind: RecordKind, owner: str, name: str) -> int:
        rows = self._read(
            "SELECT coalesce(max(version), 0) FROM record WHERE kind = ? AND owner = ? AND name = ?", kind, owner, name
        )
        return int(rows[0][0])

    def records(self, kind: RecordKind, owner: str, prefix: str = "") -> list[Record]:
        rows = self._read(
            _RECORD + f"WHERE kind = ? AND owner = ? AND name >= ? AND name < ? AND {_NEWEST}ORDER BY name",
            *(kind, owner, prefix, prefix + _AFTER_ALL),
        )
        return [_record(row) for row in rows]

    def history(self, kind: RecordKind, owner: str, name: str, *, limit: int = 50) -> list[Record]:
        rows = self._read(
            _RECORD + "WHERE kind = ? AND owner = ? AND name = ? ORDER BY version DESC LIMIT ?",
            kind,
            owner,
            name,
            limit,
        )
        return [_record(row) for row in rows]

    def by_alias(self, kind: RecordKind, alias: str) -> list[Record]:
        rows = self._read(
            _RECORD + "JOIN alias AS a USING (kind, owner, name) "
            f"WHERE kind = ? AND a.alias = ? AND {_NEWEST}ORDER BY owner, name",
            kind,
            alias,
        )
        return [_record(row) for row in rows]

    # --- guests ---

    def put_ticket(self, ticket: StoredTicket) -> None:
        self._write(
            self._durable,
            "INSERT INTO ticket (name, owner, guest, key, image, issued_at, issued_by, expires_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            *(ticket.name, ticket.owner, ticket.guest, ticket.key, ticket.image),
            *(ticket.issued_at, ticket.issued_by, ticket.expires_at),
        )

    def ticket(self, name: str) -> StoredTicket | None:
        rows = self._read(_TICKET + "WHERE name = ?", name)
        return StoredTicket(*rows[0]) if rows else None

    def tickets(self, owner: str) -> list[StoredTicket]:
        rows = self._read(_TICKET + "WHERE owner = ? ORDER BY issued_at DESC, name", owner)
        return [StoredTicket(*row) for row in rows]

    def delete_ticket(self, owner: str, name: str) -> None:
        if not self._write(self._durable, "DELETE FROM ticket WHERE owner = ? AND name = ? RETURNING 1", owner, name):
            raise NotFound("no such ticket")

    def redeem_ticket(self, name: str, used_by: str, now: int, record: Record, aliases: Sequence[str]) -> bool:
        try:
            with self._transaction(self._durable) as connection:
                # Checking and marking are one statement: no second caller can come between.
                taken = connection.execute(
                    "UPDATE ticket SET used_at = ?, used_by = ? "
                    "WHERE name = ? AND used_at IS NULL AND expires_at > ? RETURNING 1",
                    (now, used_by, name, now),
                ).fetchall()
                if taken:
                    _insert_record(connection, record, aliases)
        except Conflict:  # the transaction is undone: the ticket is as it was
            return False
        return bool(taken)

    def lease(self, name: str) -> StoredLease | None:
        rows = self._read("SELECT holder, expires_at FROM lease WHERE name = ?", name)
        return StoredLease(*rows[0]) if rows else None

    def take_lease(self, name: str, holder: str, now: int, until: int) -> bool:
        return bool(
            self._write(
                self._durable,
                "INSERT INTO lease (name, holder, expires_at) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
                "holder = excluded.holder, expires_at = excluded.expires_at "
                "WHERE lease.holder = excluded.holder OR lease.expires_at <= ? RETURNING 1",
                *(name, holder, until, now),
            )
        )

    def end_leases(self, prefix: str) -> None:
        self._write(self._durable, "DELETE FROM lease WHERE name >= ? AND name < ?", prefix, prefix + _AFTER_ALL)

    # --- dossiers ---

    def put_dossier(self, decision: str, data: bytes, now: int) -> None:
        self._write(
            self._quick,
            "INSERT OR REPLACE INTO dossier (decision, data, stored_at) VALUES (?, ?, ?)",
            *(decision, data, now),
        )

    def dossier(self, decision: str) -> bytes | None:
        rows = self._read("SELECT data FROM dossier WHERE decision = ?", decision)
        return rows[0][0] if rows else None

    def purge_dossiers(self, before: int) -> None:
        self._write(
            self._quick,
            "DELETE FROM dossier WHERE rowid IN (SELECT rowid FROM dossier WHERE stored_at < ? LIMIT ?)",
            *(before, PURGE_ROWS),
        )

    # --- ledger ---

    def append(
        self, *, id_: str, owner: str, at: int, kind: str, verdict: str, subject: str, body: dict[str, Any]
    ) -> LedgerEntry:
        text = _text(body)
        with self._transaction(self._durable) as connection:
            last = connection.execute("SELECT sequence, hash FROM ledger ORDER BY sequence DESC LIMIT 1").fetchall()
            sequence, previous = last[0] if last else (0, GENESIS)
            entry = LedgerEntry(sequence + 1, id_, owner, at, kind, verdict, subject, body, hash="")
            entry = replace(entry, hash=chained(entry, previous, text.encode()))
            connection.execute(
                "INSERT INTO ledger (sequence, id, owner, at, kind, verdict, subject, body, hash) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (entry.sequence, id_, owner, at, kind, verdict, subject, text, entry.hash),
            )
        return entry

    def entry(self, owner: str, id_: str) -> LedgerEntry:
        rows = self._read(_LINE + "WHERE id = ? AND owner = ?", id_, owner)
        if not rows:
            raise NotFound("no such entry")
        return _line(rows[0])

    def entries(
        self,
        owner: str,
        *,
        kinds: Sequence[str] = (),
        subject: str | None = None,
        verdicts: Sequence[str] = (),
        since: int | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int = 50,
    ) -> list[LedgerEntry]:
        # Only the conditions that are asked for: "OR IS NULL" would keep SQLite from using the index on the subject.
        where: list[tuple[str, object]] = [("owner = ?", owner)]
        if kinds:
            where.append(("kind IN (SELECT value FROM json_each(?))", _text(list(kinds))))
        if subject is not None:
            where.append(("subject = ?", subject))
        if verdicts:
            where.append(("verdict IN (SELECT value FROM json_each(?))", _text(list(verdicts))))
        if since is not None:
            where.append(("at >= ?", since))
        if before is not None:
            where.append(("sequence < ?", before))
        if after is not None:
            where.append(("sequence > ?", after))
        conditions = " AND ".join(condition for condition, _ in where)
        order = "DESC" if after is None else "ASC"
        rows = self._read(
            _LINE + f"WHERE {conditions} ORDER BY sequence {order} LIMIT ?", *(value for _, value in where), limit
        )
        return [_line(row) for row in rows]

    def verify_chain(self) -> int:
        chain = ChainCheck()
        # Page by page, so that a long ledger holds up no checkpoint. Lines are only ever added at its end.
        while rows := self._read(_LINE + "WHERE sequence > ? ORDER BY sequence LIMIT ?", chain.lines, PAGE_ROWS):
            for row in rows:
                chain.follow(_line(row))
        return chain.lines

    # --- endorsements ---

    def put_endorsement(self, endorsement: StoredEndorsement, *, most: int) -> bool:
        # One statement compares and writes: an older list never gets in behind a newer one.
        with self._transaction(self._quick) as connection:
            stored = connection.execute(
                "INSERT INTO endorsement (name, data, edition, kept, stored_at, fresh_until) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET data = excluded.data, edition = excluded.edition, "
                "kept = max(kept, excluded.kept), stored_at = excluded.stored_at, fresh_until = excluded.fresh_until "
                "WHERE excluded.edition >= edition RETURNING 1",
                (
                    endorsement.name,
                    endorsement.data,
                    endorsement.edition,
                    endorsement.kept,
                    endorsement.stored_at,
                    endorsement.fresh_until,
                ),
            ).fetchall()
            connection.execute(
                "DELETE FROM endorsement WHERE rowid IN (SELECT rowid FROM endorsement WHERE kept = 0 "
                "AND fresh_until IS NULL ORDER BY stored_at DESC, name LIMIT -1 OFFSET ?)",
                (most,),
            )
        return bool(stored)

    def endorsements(self, names: Iterable[str]) -> dict[str, StoredEndorsement]:
        rows = self._read(
            _ENDORSEMENT + "WHERE name IN (SELECT value FROM json_each(?))",  # noqa: S608  our own text
            _text([*names]),
        )
        return {row[0]: _endorsement(row) for row in rows}

    def all_endorsements(self) -> list[StoredEndorsement]:
        return [_endorsement(row) for row in self._read(_ENDORSEMENT + "ORDER BY name")]

    def pause(self, name: str, pause: FetchPause | None) -> None:
        if pause is None:
            self._write(self._quick, "DELETE FROM fetch_pause WHERE name = ?", name)
            return
        self._write(
            self._quick,
            "INSERT OR REPLACE INTO fetch_pause (name, failures, absent, until, expires_at) VALUES (?, ?, ?, ?, ?)",
            name,
            pause.failures,
            pause.absent,
            pause.until,
            pause.expires_at,
        )

    def pauses(self, names: Iterable[str]) -> dict[str, FetchPause]:
        rows = self._read(
            "SELECT name, failures, absent, until, expires_at FROM fetch_pause "
            "WHERE name IN (SELECT value FROM json_each(?))",
            _text([*names]),
        )
        return {
            name: FetchPause(failures, bool(absent), until, expires) for name, failures, absent, until, expires in rows
        }

    # --- the whole ---

    def ready(self) -> None:
        # Really writes: a full disk or a read-only mount shows nowhere else.
        self.hit("store ready", window_ms=1, now=0)

    def close(self) -> None:
        self._engine.close()


def _insert_record(connection: sqlite3.Connection, record: Record, aliases: Sequence[str]) -> None:
    """In the caller's transaction. Raises Conflict."""
    name = (record.kind, record.owner, record.name)
    [(newest,)] = connection.execute(
        "SELECT coalesce(max(version), 0) FROM record WHERE kind = ? AND owner = ? AND name = ?", name
    ).fetchall()
    _require_next(f"{record.kind} {record.name}", record.version, newest)
    connection.execute(
        "INSERT INTO record (kind, owner, name, version, body, created_at, created_by) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            *name,
            record.version,
            None if record.body is None else _text(record.body),
            record.created_at,
            record.created_by,
        ),
    )
    connection.execute("DELETE FROM alias WHERE kind = ? AND owner = ? AND name = ?", name)
    connection.executemany(
        "INSERT INTO alias (kind, owner, name, alias) VALUES (?, ?, ?, ?)",
        [(*name, alias) for alias in dict.fromkeys(aliases)],
    )


def _require_next(what: str, version: int, newest: int) -> None:
    if version != newest + 1:
        raise Conflict(f"{what} was changed meanwhile", expected=f"version {newest + 1}", found=f"version {version}")


def _text(body: object) -> str:
    with answering():
        return canonical(body).decode()


def _body(text: str) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(text)
    return body


def _key(row: Row) -> StoredKey:
    owner, type_, tag, version, state, created_at, created_by, sealed = row
    return StoredKey(owner, type_, tag, version, KeyState(state), created_at, created_by, sealed)


def _record(row: Row) -> Record:
    kind, owner, name, version, body, created_at, created_by = row
    return Record(RecordKind(kind), owner, name, version, _body(body), created_at, created_by)


def _line(row: Row) -> LedgerEntry:
    sequence, id_, owner, at, kind, verdict, subject, body, hash_ = row
    return LedgerEntry(sequence, id_, owner, at, kind, verdict, subject, _body(body), hash_)


def _endorsement(row: Row) -> StoredEndorsement:
    name, data, edition, kept, stored_at, fresh_until = row
    return StoredEndorsement(name, data, edition, bool(kept), stored_at, fresh_until)
