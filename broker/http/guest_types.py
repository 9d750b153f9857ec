# SPDX-License-Identifier: Apache-2.0
"""What owners send and get under `/v1/guests`, `/v1/tickets` and `/v1/distrust`. Times are milliseconds."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from broker.http.types import Change, Days

DEFAULT_LIFETIME_S = 24 * 3600


class Guest(Struct):
    """A machine and where it stands: pending, enrolled, denied, revoked, quarantined or failed. `key` and `image` are
    what a ticket or an approval enrolled it for, null where its owner enrolled it for all. `since`, `by` and `why` tell
    of its last change; `decision` is the ledger's line that led to it, "" where there is none.
    """

    name: str
    version: int
    standing: str
    ids: list[str]
    key: str | None
    image: str | None
    since: int
    by: str
    why: str
    decision: str


class Guests(Struct):
    guests: list[Guest]


class Approve(Change, kw_only=True):
    """`name`: what the guest is called from now on; null keeps its name."""

    name: str | None = None


class IssueTicket(Change, kw_only=True):
    """To enrol one guest, once, as `guest`: for the key at the path `key` and the `image`, NAME or NAME@VERSION."""

    guest: str
    key: str
    image: str
    lifetime_s: Annotated[int, Meta(ge=60, le=30 * 24 * 3600)] = DEFAULT_LIFETIME_S


class Ticket(Struct):
    """`name`: the ticket's SHA-256, by which it can be withdrawn. `used_by`: the guest's instance id, or null."""

    name: str
    guest: str
    key: str
    image: str
    issued_at: int
    issued_by: str
    expires_at: int
    used_at: int | None
    used_by: str | None


class IssuedTicket(Ticket):
    """`ticket`: its text. It is shown this once and kept nowhere."""

    ticket: str

    def __repr__(self) -> str:
        return f"IssuedTicket(guest={self.guest!r})"


class Tickets(Struct):
    tickets: list[Ticket]


class PutDistrust(Change, kw_only=True):
    """`kind`: platform, product, chip, tcb-below or image; `value`: which."""

    kind: str
    value: str


class PreviewDistrust(Struct, forbid_unknown_fields=True, kw_only=True):
    kind: str
    value: str
    days: Days = 30


class Distrusted(Struct):
    """`name`: KIND:VALUE, by which it is undone."""

    name: str
    kind: str
    value: str
    why: str
    since: int
    by: str


class AllDistrusted(Struct):
    distrusted: list[Distrusted]


class Affected(Struct):
    """A guest that got `key` and would not get it again: its instance id, `names` under which its owner knows it."""

    guest: str
    names: list[str]
    key: str
    image: str
    at: int
    found: str


class Preview(Struct):
    """`name`: KIND:VALUE as it is kept. `truncated`: there were more releases, which were not looked at."""

    name: str
    affected: list[Affected]
    truncated: bool
