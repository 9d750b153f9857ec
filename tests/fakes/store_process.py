# SPDX-License-Identifier: Apache-2.0
"""Another process on the same store: `python -m tests.fakes.store_process COMMAND PATH ARGUMENT...`.

It opens the store, says "open", waits for a line on standard input so that several start at once, and then prints one
line for each thing that the store has acknowledged.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

from broker.store.protocols import KeyState, Record, RecordKind, StoredKey
from broker.store.sqlite import SqliteStore
from keys.custody.local import LocalCustody

KEK = bytes(range(32))
SECRET = bytes(range(100, 132))
NOW = 1_700_000_000_000
FOREVER = NOW + 10**12


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def sealed_key(tag: str, version: int = 1, owner: str = "acme") -> StoredKey:
    sealed = LocalCustody(KEK).seal(owner, "disk", tag, version, SECRET)
    return StoredKey(owner, "disk", tag, version, KeyState.ACTIVE, NOW, "test", sealed)


def write(store: SqliteStore, round_: str) -> None:
    """Put keys in one thread, consume challenges in a second, append in a third, until killed."""

    def keys() -> None:
        for number in itertools.count():
            version = number % 3 + 1
            store.put_key(sealed_key(f"{round_}-{number // 3}", version))
            say("key", f"{round_}-{number // 3}", version)

    def sessions() -> None:
        for number in itertools.count():
            store.put_session(f"{round_}-{number}", {"n": number}, FOREVER)
            store.consume_session(f"{round_}-{number}", NOW)
            say("used", f"{round_}-{number}")

    def lines() -> None:
        append(store, f"{round_}-line", "1000000")

    for work in (keys, sessions, lines):
        threading.Thread(target=work).start()


def append(store: SqliteStore, prefix: str, count: str) -> None:
    for number in range(int(count)):
        id_ = f"{prefix}-{number}"
        store.append(id_=id_, owner="acme", at=NOW, kind="test", verdict="", subject=prefix, body={"n": number})
        say("line", id_)


def consume(store: SqliteStore, session: str, threads: str) -> None:
    """Take one challenge from many threads at once."""
    barrier = threading.Barrier(int(threads))

    def take() -> None:
        barrier.wait()
        say(store.consume_session(session, NOW)[0])

    for _ in range(int(threads)):
        threading.Thread(target=take).start()


def redeem(store: SqliteStore, process: str, threads: str) -> None:
    """Use one ticket from many threads at once, each for a machine of its own."""
    barrier = threading.Barrier(int(threads))

    def take(number: int) -> None:
        id_ = f"tpm-ek:{process}-{number}"
        record = Record(RecordKind.INSTANCE, "acme", "web-1", 1, {"ids": [id_]}, NOW, "test")
        barrier.wait()
        say(store.redeem_ticket("ticket", id_, NOW, record, [id_]), id_)

    for number in range(int(threads)):
        threading.Thread(target=take, args=(number,)).start()


def lease(store: SqliteStore, process: str, threads: str) -> None:
    """Take one lease from many threads at once, each for a session of its own."""
    barrier = threading.Barrier(int(threads))

    def take(number: int) -> None:
        barrier.wait()
        holder = f"{process}-{number}"
        say(store.take_lease("acme/web-1 acme/disk/root", holder, NOW, FOREVER), holder)

    for number in range(int(threads)):
        threading.Thread(target=take, args=(number,)).start()


@contextmanager
def store_process(command: str, path: Path, *arguments: object) -> Iterator[Popen[str]]:
    """The process, with the store open and nothing done yet; `start` lets it go. Killed in the end."""
    words = [sys.executable, "-m", "tests.fakes.store_process", command, str(path), *map(str, arguments)]
    with Popen(words, stdin=PIPE, stdout=PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        try:
            yield process
        finally:
            process.kill()


def start(*processes: Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


COMMANDS = {"write": write, "append": append, "consume": consume, "redeem": redeem, "lease": lease}

if __name__ == "__main__":
    opened = SqliteStore(sys.argv[2])
    say("open")
    sys.stdin.readline()
    COMMANDS[sys.argv[1]](opened, *sys.argv[3:])
