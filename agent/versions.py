# SPDX-License-Identifier: Apache-2.0
"""The newest version of each key that this machine has got, so that nobody hands it an older one later.

    {"acme/disk/web-root": 3}

A missing file knows nothing; a damaged one is an error, for somebody may want it forgotten. It is worth as much as the
place where it lies: who can replace or remove it takes the memory back. So it belongs on a volume that was opened
before, not on a disk that the host can write.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from agent.files import read
from keys import strictjson
from keys.errors import ConfigError, ProtocolError
from keys.messages import ResourcePath

if TYPE_CHECKING:
    from agent.deadline import Deadline

MAX_FILE_BYTES = 64 * 1024
MAX_VERSION = (1 << 53) - 1
LOCK_PAUSE = 0.01  # seconds between two tries
WHAT = "the file of versions"


def known(file: str, path: ResourcePath) -> int:
    """The newest version that this machine has got of the key at `path`; 0 if none. Raises ConfigError."""
    return _read(file).get(str(path), 0)


def remember(file: str, path: ResourcePath, version: int, deadline: Deadline) -> None:
    """Write down that this machine got `version`, unless a newer one is known. Another agent that writes at the same
    time is waited for. Raises ConfigError, Unavailable.
    """
    folder, name = os.path.split(file)
    try:
        fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _lock(fd, deadline)
            versions = _read(file)
            if versions.get(str(path), 0) < version:
                _replace(fd, name, versions | {str(path): version})
        finally:
            os.close(fd)  # and with it the lock
    except OSError as error:
        raise ConfigError(
            f"{WHAT} {file} cannot be written",
            found=error.strerror,
            mend='let versions name a file in a folder that can be written, or "" to remember nothing',
        ) from None


def _lock(folder: int, deadline: Deadline) -> None:
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            deadline.pause(LOCK_PAUSE, "another agent, which remembers a version")
        else:
            return


def _read(file: str) -> dict[str, int]:
    data = read(file, what=WHAT, max_bytes=MAX_FILE_BYTES)
    if data is None:
        return {}
    try:
        versions = strictjson.loads(data, name="it", max_bytes=MAX_FILE_BYTES)
        if not isinstance(versions, dict):
            raise ProtocolError("it must be a JSON object")
        for path, version in versions.items():
            ResourcePath.parse(path)
            if type(version) is not int or not 0 < version <= MAX_VERSION:
                raise ProtocolError("a version is no positive whole number")
    except ProtocolError as error:
        raise ConfigError(
            f"{WHAT} {file} is damaged",
            found=str(error),
            mend="if nobody meddled with it, delete it: the versions known so far are forgotten with it",
        ) from None
    return versions


def _replace(folder: int, name: str, versions: dict[str, int]) -> None:
    """The file anew, whole or not at all, and durable. Raises OSError or ConfigError."""
    data = strictjson.canonical(versions) + b"\n"
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{WHAT} is full", mend="take the keys off it that this machine does not use any more")
    draft = f".{name}.new"  # the lock is ours: nobody else writes it
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(draft, flags, 0o600, dir_fd=folder), "wb") as written:  # noqa: PTH123  a descriptor
        os.fchmod(written.fileno(), 0o600)
        written.write(data)
        written.flush()
        os.fsync(written.fileno())
    os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)
