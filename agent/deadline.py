# SPDX-License-Identifier: Apache-2.0
"""One deadline for a whole run, so that no sum of patient steps keeps a machine from booting."""

from __future__ import annotations

import time

from keys.errors import Unavailable


class Deadline:
    """`seconds` from now on the monotonic clock."""

    __slots__ = ("_end", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds until the end; negative after it."""
        return self._end - time.monotonic()

    def left(self, waiting_for: str) -> float:
        """Seconds until the end, more than 0. Raises Unavailable, naming what was waited for."""
        remaining = self.remaining()
        if remaining <= 0:
            raise Unavailable(
                f"no time left, waiting for {waiting_for}",
                expected=f"all done within {self._seconds:g} s",
                mend="see whether it is up and reachable, or raise the timeout",
            )
        return remaining

    def share(self, parts: int) -> Deadline:
        """A deadline at an equal part of what remains."""
        return Deadline(self.remaining() / parts)

    def pause(self, seconds: float, waiting_for: str) -> None:
        """Sleep, but not past the end."""
        time.sleep(min(seconds, self.left(waiting_for)))
