# SPDX-License-Identifier: Apache-2.0
"""One deadline for a whole run, so that no sum of patient steps keeps a machine from booting."""

from __future__ import annotations

import time

from keys.errors import Unavailable


class Deadline:
    """`seconds` from now on the monotonic clock."""

    __slots__ = ("_end", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self, waiting_for: str) -> float:
        """Seconds that remain, more than 0. Raises Unavailable, naming what was waited for."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise Unavailable(
                f"no time left, waiting for {waiting_for}",
                expected=f"an answer within {self.seconds:g} s in all",
                mend="see whether it is up and reachable, or raise the timeout",
            )
        return left

    def pause(self, seconds: float, waiting_for: str) -> None:
        """Sleep, but not past the end."""
        time.sleep(min(seconds, self.left(waiting_for)))
