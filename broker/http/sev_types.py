# SPDX-License-Identifier: Apache-2.0
"""The messages about launches of SEV guests, as the API document describes them. `broker.http.sev` reads them."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from broker.http.types import Base64

Byte = Annotated[int, Meta(ge=0, le=255)]


class SevChain(Struct, forbid_unknown_fields=True):
    """The platform's certificates in AMD's format, 2084 bytes each; `cek` as AMD signed it, not as it is exported.
    `ask` and `ark` may come along and are not read: the broker has AMD's own.
    """

    pdh: Base64
    pek: Base64
    oca: Base64
    cek: Base64
    ask: Base64 | UnsetType = UNSET
    ark: Base64 | UnsetType = UNSET


class SevLaunchRequest(Struct, forbid_unknown_fields=True):
    """`resource`: OWNER/TYPE/TAG of the key that the guest shall get."""

    resource: str
    chain: SevChain


class SevLaunch(Struct, forbid_unknown_fields=True):
    """`godh` (2084 bytes), `session` (128 bytes) and `policy` are LAUNCH_START's; `launch` names the launch."""

    launch: str
    godh: Base64
    session: Base64
    policy: int


class SevMeasurement(Struct, forbid_unknown_fields=True):
    """`measurement`: what LAUNCH_MEASURE gave, 48 bytes. The others are of the same platform's firmware."""

    measurement: Base64
    api_major: Byte
    api_minor: Byte
    build_id: Byte


class SevPacket(Struct, forbid_unknown_fields=True):
    """`packet_header` (52 bytes) and `packet` are LAUNCH_SECRET's; the guest finds the key under `guid`."""

    packet_header: Base64
    packet: Base64
    guid: str
