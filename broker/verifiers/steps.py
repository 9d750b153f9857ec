# SPDX-License-Identifier: Apache-2.0
"""The steps of a verifier, each of which stands on those before: after a failed one the others mean nothing, and the
trace says that they were not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from broker.trace import Stage, Trace
from keys.errors import RoomkeyError

Step = tuple[Stage, str]


class Next(Protocol):
    """Called when a step begins: those behind it are still to come."""

    def __call__(self) -> None: ...


@contextmanager
def in_steps(trace: Trace, steps: Sequence[Step], *, genuine: type[RoomkeyError] | tuple[()] = ()) -> Iterator[Next]:
    """Around the `steps`, of which the body begins one after the other. Where it ends with an error, those that it has
    not begun stand in `trace` as not judged; but not for an error of the class `genuine`, after which nothing was
    left out.
    """
    begun = 0

    def next_step() -> None:
        nonlocal begun
        begun += 1

    try:
        yield next_step
    except genuine:
        raise
    except Exception:
        for stage, name in steps[begun:]:
            trace.not_judged(stage, name)
        raise
