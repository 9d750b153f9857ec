# SPDX-License-Identifier: Apache-2.0
"""One authenticated request of an owner, as its handler sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.owners import Identity
from broker.services import Services
from keys.errors import NotFound
from keys.messages import ResourcePath


@dataclass(frozen=True, slots=True)
class Call:
    """`now` in milliseconds. `params` are the variable parts of the request's path."""

    services: Services
    who: Identity
    now: int
    params: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.params["name"]

    @property
    def path(self) -> ResourcePath:
        """The key's path in the caller's own namespace.

        Raises ProtocolError (no path) or NotFound: what belongs to another owner looks like what is not there.
        """
        path = ResourcePath.parse("/".join(self.params[part] for part in ("owner", "type", "tag")))
        if path.owner != self.who.owner:
            raise NotFound("no such key")
        return path
