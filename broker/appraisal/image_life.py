# SPDX-License-Identifier: Apache-2.0
"""The life of an image's version: proposed, active, retiring, revoked. What it says never changes, only this does.

proposed    somebody who may only propose put it there; nobody gets a key with it until its owner approves
active      the newest version is what a bare name means, if it is active; older ones count where a rule names them
retiring    it still counts until a time, so that a fleet can be updated; afterwards it is retired and counts no more
revoked     it counts nowhere
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from broker.appraisal.images import Image
from broker.appraisal.rules import ImageRef
from keys.errors import Conflict


class ImageState(StrEnum):
    PROPOSED = "proposed"
    ACTIVE = "active"
    RETIRING = "retiring"
    REVOKED = "revoked"


NEXT: dict[ImageState, tuple[ImageState, ...]] = {
    ImageState.PROPOSED: (ImageState.ACTIVE, ImageState.REVOKED),
    ImageState.ACTIVE: (ImageState.RETIRING, ImageState.REVOKED),
    ImageState.RETIRING: (ImageState.ACTIVE, ImageState.RETIRING, ImageState.REVOKED),
    ImageState.REVOKED: (),
}


class Life(NamedTuple):
    """Where a version stands since `at`, by whom (key id) and why. `until` ends a retirement. Times in milliseconds."""

    state: ImageState
    at: int
    who: str
    why: str = ""
    until: int | None = None

    def usable(self, now: int) -> bool:
        """Whether a guest may get a key with it now."""
        if self.state is ImageState.RETIRING:
            return self.until is not None and now < self.until
        return self.state is ImageState.ACTIVE

    def words(self, now: int) -> str:
        """ "retired since 2026-11-24 09:00:00Z, by 0Bx7: kernel has a hole"."""
        over = self.state is ImageState.RETIRING and not self.usable(now)
        since = self.until if over and self.until is not None else self.at
        text = f"{'retired' if over else self.state} since {when(since)}, by {self.who}"
        if self.state is ImageState.RETIRING and not over and self.until is not None:
            text += f", until {when(self.until)}"
        return f"{text}: {self.why}" if self.why else text

    def to_json(self) -> list[Any]:
        return [str(self.state), *self[1:]]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Life:
        """What `to_json` wrote. Raises TypeError or ValueError on anything else."""
        state, *rest = value
        return cls(ImageState(state), *rest)


class KnownImage(NamedTuple):
    """One version of an owner's image. `counts`: the rule lets it in; others are only there to explain."""

    name: str
    version: int
    life: Life
    image: Image
    counts: bool = True

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


def named_versions(reference: ImageRef, lives: dict[int, Life], newest: int, now: int) -> list[int]:
    """Which versions of an image `reference` lets in, the newest first: where it names one, that one; else the newest,
    leaving out what is only proposed, if it is active, and all that are retiring. Where the newest was revoked or has
    retired, no older one takes its place by itself: its owner may have forgotten what that lets in. `lives` are those
    that were ever changed; all others are active. Versions count from 1 to `newest`.
    """
    if reference.version is not None:
        life = lives.get(reference.version)
        there = 1 <= reference.version <= newest
        return [reference.version] if there and (life is None or life.usable(now)) else []
    states = {version: life.state for version, life in lives.items()}
    given = next((v for v in range(newest, 0, -1) if states.get(v) is not ImageState.PROPOSED), None)
    active = [given] if given is not None and states.get(given, ImageState.ACTIVE) is ImageState.ACTIVE else []
    retiring = [v for v, life in lives.items() if life.state is ImageState.RETIRING and life.usable(now)]
    return sorted({*retiring, *active}, reverse=True)


def check_change(reference: str, life: Life, state: ImageState, now: int) -> None:
    """Raises Conflict unless a version (NAME@VERSION) with this life may be brought into `state`."""
    if state not in NEXT[life.state]:
        before = [str(other) for other, following in NEXT.items() if state in following]
        raise Conflict(
            f"image {reference} cannot become {state}",
            expected=f"one that is {' or '.join(before)}",
            found=f"it is {life.words(now)}",
            mend="roomkey image put: what was revoked comes back as a new version"
            if life.state is ImageState.REVOKED
            else f"roomkey image history {reference.partition('@')[0]}",
        )


def when(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
