# SPDX-License-Identifier: Apache-2.0
"""Messages of `/v1/rules/.../lint`."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class WeakValue(Struct):
    """A value of a made-up guest that is let in, beside that of a good one."""

    what: str
    good: str
    bad: str


class Weakness(Struct):
    """`what` such a guest could do, `changes` by which it differs from a good one, `claims` all that it shows, `mend`
    what would keep it out.
    """

    kind: str
    what: str
    image: str
    platform: str
    changes: list[WeakValue]
    mend: str
    claims: dict[str, Any]


class Lint(Struct):
    """`examined`: images with their platforms for which a good guest is let in; of others nothing can be said."""

    examined: list[str]
    weaknesses: list[Weakness]
