# SPDX-License-Identifier: Apache-2.0
"""Messages of `/v1/volumes`."""

from __future__ import annotations

from msgspec import Struct

from broker.http.types import Change


class PinVolume(Change, kw_only=True):
    """`pin`: of the volume, as `roomkey-agent luks check` prints it."""

    pin: str


class Provision(Change, kw_only=True):
    """`again`: also where the key or its volume exists."""

    again: bool = False


class Volume(Struct):
    """`path`: the key that opens it. `pin`: None until it is made. `state`: "ordered", "begun" (a guest has the key to
    make it with) or "known". `waits`: what its guest will do to its keyslots at its next boot: "add", "remove" (the
    new key, the old one), "recovery".
    """

    path: str
    pin: str | None
    state: str
    waits: list[str]
    version: int
    created_at: int
    created_by: str


class Volumes(Struct):
    volumes: list[Volume]
