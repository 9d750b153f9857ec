# SPDX-License-Identifier: Apache-2.0
"""What the SQLite store promises beyond every store's contract: files, crashes, other processes, tampering."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker.store import sqlite_engine
from broker.store.chain import canonical
from broker.store.protocols import Consumption, KeyState, Record, RecordKind, StoredTicket
from broker.store.sqlite import SqliteStore
from keys import strictjson
from keys.custody.local import LocalCustody
from keys.errors import ConfigError, NotFound, RoomkeyError, Unavailable, VerificationError
from tests.fakes.store_process import FOREVER, KEK, NOW, SECRET, sealed_key, start, store_process


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "roomkey.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(path)
    yield opened
    opened.close()


def everything(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.iterdir())


# --- crashes ---


@pytest.mark.parametrize("round_", range(4))
def test_killed_process_loses_nothing_acknowledged(path: Path, round_: int) -> None:
    """After kill -9 amid three threads of writes, all that was acknowledged is there, whole, and the chain unbroken."""
    acknowledged: list[list[str]] = []
    with store_process("write", path, f"r{round_}") as process:
        start(process)
        assert process.stdout is not None
        enough = random.Random(round_).randint(30, 300)
        for text in process.stdout:
            acknowledged.append(text.split())
            if len(acknowledged) >= enough and {what for what, *_ in acknowledged} == {"key", "used", "line"}:
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    store = SqliteStore(path)
    custody = LocalCustody(KEK)
    for what, name, *version in acknowledged:
        if what == "key":
            found = store.key("acme", "disk", name, int(version[0]))
            assert found.sealed is not None
        elif what == "used":
            assert store.consume_session(name, NOW)[0] is Consumption.USED
        else:
            assert store.entry("acme", name).id == name
    assert store.verify_chain() >= sum(line[0] == "line" for line in acknowledged)
    kept = store.sealed_keys(None, 10_000)
    assert len(kept) == len(store.keys("acme"))
    for key in kept:
        assert key.sealed is not None
        assert custody.open(key.owner, key.type, key.tag, key.version, key.sealed) == SECRET
    active = [key.tag for key in kept if key.state is KeyState.ACTIVE]
    assert sorted(active) == sorted({key.tag for key in kept})
    store.close()


# --- other processes ---


def test_fifty_callers_in_five_processes_one_judge(path: Path, store: SqliteStore) -> None:
    """Of fifty callers in five processes with one challenge exactly one judges."""
    store.put_session("s", {}, FOREVER)
    with (
        store_process("consume", path, "s", 10) as a, store_process("consume", path, "s", 10) as b,
        store_process("consume", path, "s", 10) as c, store_process("consume", path, "s", 10) as d,
        store_process("consume", path, "s", 10) as e,
    ):  # fmt: skip
        start(a, b, c, d, e)
        verdicts = [line for process in (a, b, c, d, e) for line in process.communicate(timeout=60)[0].split()]
    assert sorted(verdicts) == ["judge"] + ["used"] * 49


def _raced(command: str, path: Path, round_: int) -> list[list[str]]:
    """What 15 callers in three processes were told."""
    with (
        store_process(command, path, f"a{round_}", 5) as a, store_process(command, path, f"b{round_}", 5) as b,
        store_process(command, path, f"c{round_}", 5) as c,
    ):  # fmt: skip
        start(a, b, c)
        said = [process.communicate(timeout=60)[0] for process in (a, b, c)]
    return [line.split() for text in said for line in text.splitlines()]


@pytest.mark.parametrize("round_", range(3))
def test_of_guests_in_processes_with_one_ticket_one_is_enrolled(path: Path, store: SqliteStore, round_: int) -> None:
    """Exactly one is told so, and it is that one whose ids are in the record."""
    store.put_ticket(StoredTicket("ticket", "acme", "web-1", "acme/disk/root", "debian", NOW, "test", FOREVER))
    told = _raced("redeem", path, round_)
    [winner] = [id_ for won, id_ in told if won == "True"]
    assert len(told) == 15
    used = store.ticket("ticket")
    assert used is not None
    assert used.used_by == winner
    assert (store.record(RecordKind.INSTANCE, "acme", "web-1").body or {})["ids"] == [winner]
    assert [record.name for record in store.by_alias(RecordKind.INSTANCE, winner)] == ["web-1"]


@pytest.mark.parametrize("round_", range(3))
def test_of_sessions_in_processes_one_holds_the_lease(path: Path, store: SqliteStore, round_: int) -> None:
    """Exactly one is told so, and it is that one whom the store names."""
    told = _raced("lease", path, round_)
    [winner] = [holder for won, holder in told if won == "True"]
    assert len(told) == 15
    held = store.lease("acme/web-1 acme/disk/root")
    assert held is not None
    assert held.holder == winner


def test_two_processes_keep_one_chain(path: Path, store: SqliteStore) -> None:
    """Two processes that append at once, from a file that neither had opened before, write one unbroken chain."""
    with store_process("append", path, "a", 200) as a, store_process("append", path, "b", 200) as b:
        start(a, b)
        outputs = [process.communicate(timeout=60)[0].split("\n") for process in (a, b)]
    assert [len(lines) for lines in outputs] == [201, 201]
    assert store.verify_chain() == 400


def test_processes_that_make_the_file_at_once_agree(path: Path) -> None:
    """Processes that all find no file yet end up with one schema and all work."""
    with store_process("append", path, "a", 1) as a, store_process("append", path, "b", 1) as b:
        start(a, b)
        for process in (a, b):
            process.communicate(timeout=60)
            assert process.returncode == 0
    store = SqliteStore(path)
    assert store.verify_chain() == 2
    store.close()


def test_fork_does_not_inherit_the_store(store: SqliteStore) -> None:
    """A child process that uses its parent's store is stopped before it can corrupt the file."""
    child = os.fork()
    if child == 0:
        try:
            store.put_session("s", {}, FOREVER)
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_another_process_that_holds_on_is_waited_for_and_then_reported(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that another process blocks for too long is Unavailable, and is not done later either."""
    monkeypatch.setattr(sqlite_engine, "BUSY_TIMEOUT_S", 0.05)
    impatient = SqliteStore(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        impatient.put_key(sealed_key("web"))
    with pytest.raises(Unavailable, match="locked"):
        impatient.ready()
    other.execute("ROLLBACK")
    other.close()
    with pytest.raises(NotFound):
        store.key("acme", "disk", "web")
    impatient.ready()
    impatient.close()


def test_thread_that_holds_on_is_reported(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that another thread of this process blocks for too long is Unavailable; reading goes on meanwhile."""
    monkeypatch.setattr(sqlite_engine, "BUSY_TIMEOUT_S", 0.05)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store._transaction(store._durable):
            inside.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(30)
    with pytest.raises(Unavailable, match="busy"):
        store.put_session("s", {}, FOREVER)
    assert store.session("s") is None
    leave.set()
    holder.join()


# --- files ---


def test_files_are_private(path: Path, store: SqliteStore) -> None:
    """The file and its log are its user's alone, whatever the umask."""
    store.put_session("s", {}, FOREVER)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"roomkey.db": 0o600, "roomkey.db-wal": 0o600, "roomkey.db-shm": 0o600}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o700, 0o622])
def test_file_open_to_others_is_refused(path: Path, mode: int) -> None:
    """A file that others can use is refused with the command that mends it."""
    path.touch()
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        SqliteStore(path)
    assert caught.value.mend == f"chmod 0600 {path}"


def test_file_behind_a_link_or_no_file_is_refused(path: Path, tmp_path: Path) -> None:
    """A symbolic link, a dangling one, or a folder in the file's place is refused."""
    target = tmp_path / "elsewhere"
    path.symlink_to(target)
    with pytest.raises(ConfigError, match="not a regular file"):
        SqliteStore(path)
    assert not target.exists()
    folder = tmp_path / "folder"
    folder.mkdir(0o700)
    with pytest.raises(ConfigError, match="not a regular file"):
        SqliteStore(folder)


def test_file_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    """A store in a folder that does not exist is a config error with the system's reason."""
    with pytest.raises(ConfigError, match="No such file"):
        SqliteStore(tmp_path / "missing" / "roomkey.db")


def test_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another user owns is refused."""
    SqliteStore(path).close()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="another user"):
        SqliteStore(path)


def test_file_that_is_no_database_is_unavailable(path: Path) -> None:
    """Something else in the file's place is reported, and not written over."""
    path.write_bytes(b"something else entirely" * 100)
    path.chmod(0o600)
    with pytest.raises(Unavailable, match="not a database"):
        SqliteStore(path)
    assert path.read_bytes() == b"something else entirely" * 100


def test_file_of_a_newer_roomkey_is_refused(path: Path) -> None:
    """A schema from the future is not touched."""
    SqliteStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(ConfigError, match="newer Roomkey"):
        SqliteStore(path)


def test_store_is_there_again_after_reopening(path: Path) -> None:
    """What was written is found by the next process on the file, and its schema is migrated only once."""
    for number in (1, 2):
        store = SqliteStore(path)
        store.put_record(Record(RecordKind.OWNER, "", "acme", number, {}, NOW, "test"))
        store.close()
    assert not path.with_name("roomkey.db-wal").exists()
    store = SqliteStore(path)
    assert store.newest_version(RecordKind.OWNER, "", "acme") == 2
    store.close()


def test_connections_keep_their_promises(store: SqliteStore) -> None:
    """Decisions are synchronised to the disk, erased content is overwritten, temporary tables stay in memory."""
    store.session("s")
    connections = [store._durable, store._quick, *store._engine._readers]
    for pragma, values in (
        ("synchronous", [2, 1, 1]), ("secure_delete", [1, 1, 1]), ("temp_store", [2, 2, 2]), ("foreign_keys", [1, 1, 1])
    ):  # fmt: skip
        assert [connection.execute(f"PRAGMA {pragma}").fetchall()[0][0] for connection in connections] == values
    assert store._durable.execute("PRAGMA journal_mode").fetchall() == [("wal",)]


# --- the disk ---


def in_a_child(code: str, path: Path) -> str:
    """Run `code` in a process of its own, with the store's path as its argument; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


FULL = """
import itertools, resource, sys
from broker.store.sqlite import SqliteStore
from keys.errors import Unavailable
from tests.fakes.store_process import sealed_key
store = SqliteStore(sys.argv[1])
store.put_key(sealed_key("before"))
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
def until_refused(call):
    for number in itertools.count():
        try:
            call(str(number))
        except Unavailable:
            return number
line = dict(owner="", at=0, kind="", verdict="", subject="", body={"x": "y" * 3000})
written = until_refused(lambda number: store.append(id_=number, **line))
until_refused(lambda _: store.ready())
print(written, until_refused(lambda number: store.put_key(sealed_key(number))), store.key("acme", "disk", "before").tag)
"""


def test_full_disk_is_unavailable_and_loses_nothing(path: Path) -> None:
    """When the disk is full, writing and readiness are Unavailable, reading goes on, and the chain stays whole."""
    lines, keys, tag = in_a_child(FULL, path).split()
    assert (keys, tag) == ("0", "before")
    store = SqliteStore(path)
    assert store.verify_chain() == int(lines) > 0
    assert [key.tag for key in store.keys("acme")] == ["before"]
    store.close()


READ_ONLY = """
import ctypes, sys
from broker.store.sqlite import SqliteStore
from keys.errors import Unavailable
# Without its capabilities root, too, minds a file's mode (capset(2), version 3, all sets empty).
header, empty = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(header, empty) == 0
try:
    SqliteStore(sys.argv[1])
except Unavailable as error:
    print(error)
"""


def test_read_only_file_is_unavailable(path: Path) -> None:
    """A store whose file cannot be written is Unavailable, and says why."""
    SqliteStore(path).close()
    path.chmod(0o400)
    assert "readonly" in in_a_child(READ_ONLY, path)


# --- erasure ---


def without_waiting_for_the_disk(store: SqliteStore) -> None:
    store._durable.execute("PRAGMA synchronous = OFF")


def test_destroyed_keys_are_nowhere_in_the_files(path: Path, store: SqliteStore) -> None:
    """After destruction no piece of a key's sealed bytes is in the file or its log, and all other keys still open."""
    chance = random.Random(7)
    without_waiting_for_the_disk(store)
    names = [f"{chance.getrandbits(64):x}" for _ in range(300)]
    kept = {}
    for name in names:
        key = sealed_key(name)
        assert key.sealed is not None
        kept[name] = key.sealed
        store.put_key(key)
    for name in chance.sample(names, 20):
        sealed = kept.pop(name)
        store.destroy_key("acme", "disk", name)
        left = everything(path)
        assert sealed[11:27] not in left
        assert sealed[-16:] not in left
        assert sum(other in left for other in kept.values()) == len(kept)
    for name, sealed in kept.items():
        assert store.key("acme", "disk", name).sealed == sealed


def test_destroyed_keys_leave_nothing_where_pages_were_split(path: Path, store: SqliteStore) -> None:
    """Copies that SQLite left behind when cells moved between pages go with the key, and so do its older sealings.

    Erasing the rows alone leaves one such copy in this very order of writes.
    """
    chance = random.Random(0)
    without_waiting_for_the_disk(store)
    for number in range(120):
        store.put_key(replace(sealed_key(str(number)), sealed=chance.randbytes(71)))
    keys = sorted(store.sealed_keys(None, 120), key=lambda key: int(key.tag))
    chance.shuffle(keys)
    gone = [key.sealed for key in keys]
    for number, key in enumerate(keys):
        sealed = chance.randbytes(300)
        store.replace_sealed(key, sealed)
        gone += [sealed] if number < 60 else []
    for key in keys[:60]:
        store.destroy_key("acme", "disk", key.tag)
    left = everything(path)
    assert not [sealed for sealed in gone if sealed is None or sealed[11:27] in left or sealed[-16:] in left]


def test_destruction_that_cannot_finish_says_so(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a reader keeps the log in use destruction is Unavailable; called again it finishes the work."""
    monkeypatch.setattr(sqlite_engine, "BUSY_TIMEOUT_S", 0.05)
    impatient = SqliteStore(path)
    key = sealed_key("web")
    assert key.sealed is not None
    impatient.put_key(key)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM key").fetchall()
    with pytest.raises(Unavailable, match="log still holds"):
        impatient.destroy_key("acme", "disk", "web")
    assert key.sealed in everything(path)
    reader.execute("COMMIT")
    reader.close()
    assert impatient.destroy_key("acme", "disk", "web") == 0
    assert key.sealed not in everything(path)
    impatient.close()


# --- tampering ---


def tampered(path: Path, *statements: str) -> SqliteStore:
    store = SqliteStore(path)
    for number in range(4):
        store.append(id_=f"d-{number}", owner="acme", at=NOW, kind="k", verdict="v", subject="s", body={"n": number})
    store.close()
    connection = sqlite3.connect(path)
    connection.executescript("DROP TRIGGER ledger_no_update; DROP TRIGGER ledger_no_delete;" + ";".join(statements))
    connection.close()
    return SqliteStore(path)


@pytest.mark.parametrize(
    "change",
    [
        "id = 'd-x'",
        "owner = 'ecma'",
        "at = at + 1",
        "kind = 'x'",
        "verdict = 'x'",
        "subject = 'x'",
        """body = '{"n":7}'""",
        "hash = replace(hash, substr(hash, 1, 1), substr(hash, 2, 1))",
    ],
)
def test_changed_line_is_found(path: Path, change: str) -> None:
    """Any changed field of a line breaks the chain at that line."""
    store = tampered(path, f"UPDATE ledger SET {change} WHERE sequence = 2")  # noqa: S608
    with pytest.raises(VerificationError, match="line 2"):
        store.verify_chain()
    store.close()


MOVE = "UPDATE ledger SET sequence = {} WHERE sequence = {}"
DELETE = "DELETE FROM ledger WHERE sequence = {}"


@pytest.mark.parametrize(
    ("statements", "line"),
    [
        ([DELETE.format(1)], "line 1"),
        ([DELETE.format(3)], "line 3"),
        ([DELETE.format(3), MOVE.format(3, 4)], "line 3"),
        ([MOVE.format(9, 2), MOVE.format(2, 3), MOVE.format(3, 9)], "line 2"),
    ],
)
def test_missing_or_moved_line_is_found(path: Path, statements: list[str], line: str) -> None:
    """A line taken out, closed up, or swapped with its neighbour breaks the chain there."""
    store = tampered(path, *statements)
    with pytest.raises(VerificationError, match=line):
        store.verify_chain()
    store.close()


@pytest.mark.parametrize("statement", ["UPDATE ledger SET verdict = 'x'", "DELETE FROM ledger"])
def test_ledger_table_is_append_only(path: Path, store: SqliteStore, statement: str) -> None:
    """Not even by hand does a line change or go while the schema is as it was made."""
    store.append(id_="d-1", owner="", at=0, kind="", verdict="", subject="", body={})
    with sqlite3.connect(path) as connection, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()


def test_stored_json_is_the_canonical_one() -> None:
    """The faster encoder gives the bytes that the canonical one gives, on what makes them differ elsewhere."""
    value = {"ü": '\x00\x1f\x7f\u2028\b\f\n\r\t"\\/', "a": [None, True, -1, 2**70], "B": {"b": "😀", "a": ()}}
    assert canonical(value) == strictjson.canonical(value)


def test_foreign_errors_do_not_escape(path: Path, store: SqliteStore) -> None:
    """A table that is gone is Unavailable, for reading and for writing."""
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE session")
    connection.close()
    for call in (lambda: store.session("s"), lambda: store.put_session("s", {}, 0), lambda: store.purge(NOW)):
        with pytest.raises(Unavailable) as caught:
            call()
        assert isinstance(caught.value, RoomkeyError)
