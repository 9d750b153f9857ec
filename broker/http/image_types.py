# SPDX-License-Identifier: Apache-2.0
"""What owners send and get under `/v1/images`. Times are milliseconds since the Unix epoch."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from broker.http.types import Change

MAX_AFTER_S = 365 * 24 * 3600  # that a retiring version still counts


class PutImage(Change, kw_only=True):
    """`toml`: the image as its owner writes it: platform, values of registers or events that lead to them, floors.
    `propose`: nobody gets a key with it until its owner approves.
    """

    toml: str
    propose: bool = False


class SetImageState(Change, kw_only=True):
    """`after_s`: for how many seconds a retiring version still counts, 0 for not at all; for retiring only."""

    state: Literal["active", "retiring", "revoked"]
    after_s: Annotated[int, Meta(ge=0, le=MAX_AFTER_S)] | None = None


class ImageLife(Struct):
    """`state`: proposed, active, retiring or revoked, since `at`, by the key `who`. A retiring version counts until
    `until`.
    """

    state: str
    at: int
    who: str
    why: str
    until: int | None


class ImageSummary(Struct):
    name: str
    version: int
    platform: str
    description: str
    created_at: int
    created_by: str
    life: ImageLife


class Images(Struct):
    images: list[ImageSummary]


class Image(ImageSummary):
    """`toml`: the text as its owner wrote it."""

    toml: str


class ImagePut(ImageSummary):
    """`replaced`: the versions that the bare name meant before, and does not mean any more."""

    replaced: list[int]


class ImageStanding(Struct):
    """`counting`: the versions that the bare name means now, the newest first."""

    name: str
    version: int
    life: ImageLife
    counting: list[int]


class ImageVersion(ImageSummary):
    """`lives`: where it stood, the newest first."""

    lives: list[ImageLife]


class ImageHistory(Struct):
    """The newest 50 versions, the newest first. `counting`: those that the bare name means now."""

    name: str
    counting: list[int]
    versions: list[ImageVersion]
