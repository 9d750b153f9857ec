# SPDX-License-Identifier: Apache-2.0
"""Where one vendor's endorsements come from, and what makes one genuine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from broker.verifiers.endorsement import Genuine
from keys.errors import Unavailable


class Check(Protocol):
    """See `Source`."""

    def __call__(self, name: str, data: bytes, *, at: datetime) -> Genuine: ...


@dataclass(frozen=True, slots=True)
class Source:
    """One vendor. Its names begin with `prefix`.

    `check(name, data, at=at)` raises EndorsementError unless `data` is genuine at that time and is what `name` says,
    and ProtocolError for what is no name. `fetch(name)` answers the bytes, or None where there is no such thing, and
    raises FetchFailed; it may take some seconds. Where `fetch` is None nothing may be fetched. `instance_id(name)` is
    the id under which an owner would have enrolled the machine that the thing is about, None where it is about many.
    """

    prefix: str
    check: Check
    instance_id: Callable[[str], str | None]
    fetch: Callable[[str], bytes | None] | None = None


class FetchFailed(Unavailable):
    """The source did not give what it was asked for, and may do so later.

    `whole`: it is not about the thing that was asked for, but about the source. `pause_ms` is how long the source said
    that it wants to be left alone, 0 where it said nothing.
    """

    def __init__(self, message: str, *, found: str, whole: bool, pause_ms: int = 0) -> None:
        super().__init__(message, found=found)
        self.whole = whole
        self.pause_ms = pause_ms


class WouldWait(Unavailable):
    """Something must be fetched, and the caller may not wait. Nothing has changed: ask again where waiting is right."""
