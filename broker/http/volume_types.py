# SPDX-License-Identifier: Apache-2.0
"""Messages of `/v1/volumes`."""

from __future__ import annotations

from msgspec import Struct


class PinVolume(Struct):
    """`pin`: of the volume, as `roomkey-agent luks check` prints it."""

    pin: str
    why: str = ""


class Volume(Struct):
    """`path`: the key that opens it."""

    path: str
    pin: str
    version: int
    created_at: int
    created_by: str


class Volumes(Struct):
    volumes: list[Volume]
