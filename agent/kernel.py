# SPDX-License-Identifier: Apache-2.0
"""The few calls that making evidence asks of the kernel, in one place, so that a test can put a model of it there."""

from __future__ import annotations

import os
from typing import Any

from agent.deadline import Deadline


class Kernel:
    """Every method raises OSError as the system call does."""

    def mkdir(self, path: str) -> None:
        os.mkdir(path, 0o700)  # noqa: PTH102  pathlib would cost milliseconds at boot

    def rmdir(self, path: str) -> None:
        os.rmdir(path)  # noqa: PTH106

    def read(self, path: str, limit: int) -> bytes:
        """What the file holds, or its first `limit` bytes and one more, which shows that it holds more."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = b""
            while len(data) <= limit and (piece := os.read(fd, limit + 1 - len(data))):
                data += piece
        finally:
            os.close(fd)
        return data

    def write(self, path: str, data: bytes) -> None:
        """All of `data` in one call: what configfs takes as one value."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.write(fd, data) != len(data):
                raise OSError("a short write")
        finally:
            os.close(fd)

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: Any) -> None:
        """`argument` is a ctypes buffer of at most 1024 bytes; it holds what the kernel wrote, also after an error."""
        import fcntl  # noqa: PLC0415

        fcntl.ioctl(fd, request, argument)

    def pause(self, seconds: float, deadline: Deadline, waiting_for: str) -> None:
        """Wait, but not past the deadline. Raises Unavailable after it."""
        deadline.pause(seconds, waiting_for)
