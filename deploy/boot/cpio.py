# SPDX-License-Identifier: Apache-2.0
"""A cpio archive (newc) whose bytes depend on names, modes and contents alone: no times, no owners, no order of a disk.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

TRAILER = "TRAILER!!!"
ALIGNMENT = 4  # bytes


class Entry(NamedTuple):
    """One file. `mode` has its type too; `device`: (major, minor) of a device node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def regular(name: str, data: bytes, *, executable: bool = False) -> Entry:
    return Entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)


def link(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def directory(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def node(name: str, major: int, minor: int) -> Entry:
    """A character device; a mere header, so that nobody has to be root."""
    return Entry(name, stat.S_IFCHR | 0o600, b"", (major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of `entries` and of all folders above them, sorted. A name that is there twice: RuntimeError."""
    by_name: dict[str, Entry] = {}
    for entry in entries:
        if by_name.setdefault(entry.name, entry) != entry:
            raise RuntimeError(f"two different files are named {entry.name}")
    for name in list(by_name):
        for parent in PurePosixPath(name).parents:
            if str(parent) != ".":
                by_name.setdefault(str(parent), directory(str(parent)))
    ordered = sorted(by_name.values(), key=lambda entry: PurePosixPath(entry.name).parts)
    return b"".join(_record(number, entry) for number, entry in enumerate(ordered, 1)) + _record(0, Entry(TRAILER, 0))


def _record(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
