# SPDX-License-Identifier: Apache-2.0
"""What every store promises. One conformance test runs against all of them.

Times are integers: milliseconds since the Unix epoch. Bodies are JSON values. No store ever sees a plaintext key:
`sealed` is what `keys.custody` made. Every method raises Unavailable if the store cannot answer; nothing then counts as
done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class Consumption(StrEnum):
    """What became of an attempt to use a challenge."""

    JUDGE = "judge"
    USED = "used"
    EXPIRED = "expired"
    UNKNOWN = "unknown"


class SessionStore(Protocol):
    """Challenges and what came of them: short-lived."""

    def put_session(self, session: str, body: dict[str, Any], expires_at: int) -> None:
        """Remember a challenge under the hash of its session id."""
        ...

    def session(self, session: str) -> dict[str, Any] | None:
        """The body of a challenge that is still remembered, used or not. Nothing changes."""
        ...

    def consume_session(self, session: str, now: int) -> tuple[Consumption, dict[str, Any] | None]:
        """Take the challenge, once: of any number of callers exactly one gets JUDGE.

        The body comes back for USED and EXPIRED too while it is still remembered, to say whose attempt it was.
        """
        ...

    def put_attestation(self, attestation: str, session: str, body: dict[str, Any], expires_at: int) -> None:
        """Remember a verified attestation by its id, and that `session` holds it."""
        ...

    def attestation(self, attestation: str, now: int) -> dict[str, Any] | None:
        """The body of an attestation that has not expired."""
        ...

    def session_attestation(self, session: str, now: int) -> tuple[str, dict[str, Any]] | None:
        """Id and body of the unexpired attestation that `session` holds."""
        ...

    def first_use(self, token: str, expires_at: int) -> bool:
        """Whether this one-time id is seen for the first time. It is remembered until it expires."""
        ...

    def hit(self, counter: str, window_ms: int, now: int) -> int:
        """Count one more in the current window of `counter`, and say how many that makes."""
        ...

    def purge(self, now: int) -> None:
        """Forget what has expired (challenges a while after, so that a late replay is still told from a stranger)."""
        ...


class KeyState(StrEnum):
    ACTIVE = "active"
    RETIRED = "retired"
    DESTROYED = "destroyed"


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One version of an owner's key. `sealed` is None once destroyed."""

    owner: str
    type: str
    tag: str
    version: int
    state: KeyState
    created_at: int
    created_by: str
    sealed: bytes | None = field(repr=False, default=None)

    @property
    def path(self) -> str:
        return f"{self.owner}/{self.type}/{self.tag}"


class KeyStore(Protocol):
    """Keys, sealed and versioned. Versions count from 1 and are never given out twice, not even after destruction."""

    def put_key(self, key: StoredKey) -> None:
        """Store a new version; the older active one becomes retired. Raises Conflict unless it is the next version."""
        ...

    def key(self, owner: str, type_: str, tag: str, version: int | None = None) -> StoredKey:
        """That version, or the newest. Raises NotFound."""
        ...

    def keys(self, owner: str) -> list[StoredKey]:
        """Every version of all keys of one owner, by path and version, without `sealed`."""
        ...

    def destroy_key(self, owner: str, type_: str, tag: str) -> int:
        """Erase the sealed bytes of all versions; how many were erased. Raises NotFound."""
        ...

    def sealed_keys(self, after: tuple[str, str, str, int] | None, limit: int) -> list[StoredKey]:
        """The next keys in order of owner, type, tag, version, with `sealed`: for rewrapping under a new KEK."""
        ...

    def replace_sealed(self, key: StoredKey, sealed: bytes) -> None:
        """Swap the sealed bytes of `key`, if they are still what `key` says. Raises Conflict otherwise."""
        ...


class RecordKind(StrEnum):
    OWNER = "owner"
    IMAGE = "image"
    RULE = "rule"
    INSTANCE = "instance"
    IMAGE_STATE = "image-state"  # of one version, called NAME@VERSION
    DISTRUST = "distrust"
    VOLUME = "volume"  # what is known of the volume that a key opens, called as the key's rule is
    SHADOW = "shadow"  # a rule that is evaluated beside the live one, called as that is


@dataclass(frozen=True, slots=True)
class Record:
    """One immutable version of a named document. A deleted record is a last version with `body` None."""

    kind: RecordKind
    owner: str
    name: str
    version: int
    body: dict[str, Any] | None
    created_at: int
    created_by: str


class RecordStore(Protocol):
    """Images, rules, instances, owners: versioned documents. Owners themselves live under owner ""."""

    def put_record(self, record: Record, aliases: Sequence[str] = ()) -> None:
        """Store the next version; `aliases` replace the record's older ones. Raises Conflict unless it is the next."""
        ...

    def record(self, kind: RecordKind, owner: str, name: str, version: int | None = None) -> Record:
        """That version, or the newest. Raises NotFound; also where the newest is a deletion."""
        ...

    def newest_version(self, kind: RecordKind, owner: str, name: str) -> int:
        """The newest version, a deletion included; 0 where there never was one."""
        ...

    def records(self, kind: RecordKind, owner: str, prefix: str = "") -> list[Record]:
        """The newest version of every record that is not deleted and whose name begins with `prefix`, by name."""
        ...

    def history(self, kind: RecordKind, owner: str, name: str, *, limit: int = 50) -> list[Record]:
        """Its versions, the newest first; deletions too, with `body` None, and what was deleted."""
        ...

    def by_alias(self, kind: RecordKind, alias: str) -> list[Record]:
        """The newest version of every record, of any owner, that has this alias and is not deleted."""
        ...


@dataclass(frozen=True, slots=True)
class StoredTicket:
    """`name`: SHA-256 of the ticket in hex. It enrols one guest, once, as `guest`, for the key at the path `key` and
    the `image` (NAME or NAME@VERSION). `used_by` is the guest's first instance id, once it is used.
    """

    name: str
    owner: str
    guest: str
    key: str
    image: str
    issued_at: int
    issued_by: str
    expires_at: int
    used_at: int | None = None
    used_by: str | None = None


@dataclass(frozen=True, slots=True)
class StoredLease:
    """A release that counts as live until `until`. `holder` is the session that got it."""

    holder: str
    until: int


class GuestStore(Protocol):
    """Tickets and leases: what only one guest may have, whoever asks at the same time."""

    def put_ticket(self, ticket: StoredTicket) -> None: ...

    def ticket(self, name: str) -> StoredTicket | None: ...

    def tickets(self, owner: str) -> list[StoredTicket]:
        """Used and unused ones, the newest first."""
        ...

    def delete_ticket(self, owner: str, name: str) -> None:
        """Raises NotFound; also for another owner's."""
        ...

    def redeem_ticket(self, name: str, used_by: str, now: int, record: Record, aliases: Sequence[str]) -> bool:
        """Use the ticket up and store `record`, both or neither: True for exactly one of any number of callers.

        False where the ticket is used, expired or gone, or `record` is not the next version.
        """
        ...

    def lease(self, name: str) -> StoredLease | None:
        """The newest lease of that name, whether over or not."""
        ...

    def take_lease(self, name: str, holder: str, now: int, until: int) -> bool:
        """Hold the lease until `until`, unless another holder has one that is not over: exactly one of any number of
        callers with different holders gets True.
        """
        ...

    def end_leases(self, prefix: str) -> None:
        """End all leases whose name begins with `prefix`."""
        ...


class DossierStore(Protocol):
    """The evidence behind decisions and what vouched for it, as bytes that the store does not look into."""

    def put_dossier(self, decision: str, data: bytes, now: int) -> None:
        """Keep `data` under this name, in place of what was there."""
        ...

    def dossier(self, decision: str) -> bytes | None: ...

    def purge_dossiers(self, before: int) -> None:
        """Forget some of those that are older; call again for the rest."""
        ...


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One line of the append-only record. `owner` is "" where an attempt could not be laid to anybody's door.

    `subject` is what the line is about (an instance id, a key's path). `hash` chains the lines: SHA-256 over the hash
    before and the canonical JSON of this one's content.
    """

    sequence: int
    id: str
    owner: str
    at: int
    kind: str
    verdict: str
    subject: str
    body: dict[str, Any]
    hash: str


class LedgerStore(Protocol):
    """Decisions and changes, in the order in which they became durable."""

    def append(
        self, *, id_: str, owner: str, at: int, kind: str, verdict: str, subject: str, body: dict[str, Any]
    ) -> LedgerEntry:
        """Write one line, durably before this returns."""
        ...

    def entry(self, owner: str, id_: str) -> LedgerEntry:
        """Raises NotFound; also for another owner's line."""
        ...

    def entries(
        self,
        owner: str,
        *,
        kinds: Sequence[str] = (),
        subject: str | None = None,
        verdicts: Sequence[str] = (),
        since: int | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int = 50,
    ) -> list[LedgerEntry]:
        """The newest lines first; `before` is a sequence number to go on from. With `after`, a sequence number too, the
        oldest lines after that one come first instead. `since` leaves out what is older (milliseconds).
        """
        ...

    def verify_chain(self) -> int:
        """How many lines there are, all chained. Raises VerificationError with the first line that is not."""
        ...


@dataclass(frozen=True, slots=True)
class StoredEndorsement:
    """Something that a vendor vouches for, under its name (see `broker.endorsements`).

    `edition` grows from one issue of a thing to the next (a revocation list's number, filled up with zeros); "" where
    issues are all alike. `kept`: an operator imported it. `fresh_until` is when it should be fetched anew, None: never.
    """

    name: str
    data: bytes
    edition: str
    kept: bool
    stored_at: int
    fresh_until: int | None = None


@dataclass(frozen=True, slots=True)
class FetchPause:
    """Something is not fetched again before `until`, after so many `failures` in a row. `absent`: its source answered
    that there is no such thing. All this is forgotten at `expires_at`.
    """

    failures: int
    absent: bool
    until: int
    expires_at: int


class EndorsementStore(Protocol):
    """What vendors vouch for, and when they may be asked again: shared by all processes of a broker."""

    def put_endorsement(self, endorsement: StoredEndorsement, *, most: int) -> bool:
        """Store it in place of an edition that is not newer; False, and nothing changed, where the stored one is.

        What was kept stays kept. What is fetched anew stays too: its edition must not go back. Of all others the oldest
        go until at most `most` are left.
        """
        ...

    def endorsements(self, names: Iterable[str]) -> dict[str, StoredEndorsement]:
        """Those of `names` that there are."""
        ...

    def all_endorsements(self) -> list[StoredEndorsement]:
        """By name."""
        ...

    def pause(self, name: str, pause: FetchPause | None) -> None:
        """Remember when `name` may be fetched again; None: at once."""
        ...

    def pauses(self, names: Iterable[str]) -> dict[str, FetchPause]:
        """Those of `names` that are remembered, whether over or not."""
        ...


class Store(SessionStore, KeyStore, RecordStore, GuestStore, DossierStore, LedgerStore, EndorsementStore, Protocol):
    """All of it, and the end of it."""

    def ready(self) -> None:
        """Raises Unavailable unless the store can be read and written."""
        ...

    def close(self) -> None: ...
