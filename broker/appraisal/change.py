# SPDX-License-Identifier: Apache-2.0
"""One line of the change log between two images."""

from __future__ import annotations

from typing import Any, NamedTuple

IMAGE = "image"
FLOORS = "floors"


class Change(NamedTuple):
    """`where`: a register's title, IMAGE or FLOORS. `kind`: "added", "removed", "changed", "moved", "raised" or
    "lowered". `what` is in words; `before` and `after` are values as they stand in the images, whole, "" where there is
    none.

    `weaker`: an older image that had this one change alone would let in all guests that it lets in, and others too.
    So a value beside the older ones is weaker, one instead of an older one is not.
    """

    where: str
    kind: str
    what: str
    before: str = ""
    after: str = ""
    weaker: bool = False

    def to_json(self) -> dict[str, Any]:
        return self._asdict()
