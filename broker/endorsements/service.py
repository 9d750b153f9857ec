# SPDX-License-Identifier: Apache-2.0
"""Looking endorsements up: in the store, else at the vendor, who is asked as seldom as possible.

    (1) What the store has and is not due for a new issue is the answer. Nobody waits.
    (2) What is due is fetched, unless the source is off, or it or this name is paused: after a failure for a delay that
        grows, after "too many requests" for as long as the source said, after "no such thing" for a while.
    (3) One fetch a name at a time in a process; whoever else wants it waits for that one.
    (4) A minute has a budget of fetches: in all, for machines that no owner enrolled, and for one client. Where the
        whole source is paused, machines that no owner enrolled wait twice as long. So a stranger with invented chip ids
        can keep enrolled machines from nothing for long, even where he has used up the vendor's patience.
    (5) What came is stored only if it is genuine and is what its name says; everything else counts as an outage. An
        older issue never replaces a newer one, and the number of fetched things is bounded.

`required` that cannot be had now is Unavailable, before anything was decided about the guest; where the source says
that there is no such thing, or is off, it is merely absent, and the verifier will say so. What is `helpful` never stops
anybody: an old copy, or none, is the answer then.

Pauses and budgets are in the store, so all processes of a broker keep them together.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime

from broker.claims import EndorsementRequest
from broker.endorsements.source import FetchFailed, Source, WouldWait
from broker.services import now_ms
from broker.store.protocols import FetchPause, RecordKind, Store, StoredEndorsement
from broker.verifiers.endorsement import Genuine
from keys.errors import EndorsementError, ProtocolError, Unavailable

WAIT_S = 8.0  # seconds that one caller waits for one fetch
FETCHERS = 8  # fetches under way in one process
MOST_FETCHED = 4096  # entries of the store that nobody imported, beside revocation lists, of which a line has one
REFRESH_MS = 24 * 3600_000  # after which a revocation list is fetched anew
STALE_REFRESH_MS = 3600_000  # the same where the source itself has only one that is past its time
FIRST_PAUSE_MS = 5_000  # after a failure; doubles with each further one
LONGEST_PAUSE_MS = 15 * 60_000
ABSENT_MS = 10 * 60_000  # until a thing that there is not is asked for again
FAILURE_MEMORY_MS = 3600_000  # how long after its end a pause still counts for the next one
MINUTE_MS = 60_000
FETCHES_PER_MINUTE = 60
STRANGERS_FETCHES_PER_MINUTE = 30  # of these, for machines that no owner enrolled
CLIENTS_FETCHES_PER_MINUTE = 10  # of these, for one client's requests
EDITION_DIGITS = 40  # hex; a revocation list's number has at most 20 bytes (RFC 5280, section 5.2.3)

_log = logging.getLogger("roomkey.endorsements")

Flight = Future[bytes | None]


class EndorsementService:
    """`clock` is read after a fetch, which takes time; milliseconds since the Unix epoch."""

    def __init__(self, store: Store, sources: Iterable[Source] = (), *, clock: Callable[[], int] = now_ms) -> None:
        self._store = store
        self._sources = tuple(sources)
        self._clock = clock
        self._lock = threading.Lock()
        self._flights: dict[str, Flight] = {}
        self._free = threading.BoundedSemaphore(FETCHERS)

    def look_up(
        self, request: EndorsementRequest, now: int, *, may_wait: bool, client: str | None = None
    ) -> dict[str, bytes]:
        """What there is under the request's names (DER). `now` in milliseconds; `client` is the address of the guest
        that asks, None for the operator.

        Raises WouldWait where a fetch is due and the caller may not wait; Unavailable where something required cannot
        be had now.
        """
        names = tuple(dict.fromkeys((*request.required, *request.helpful)))
        held = self._store.endorsements(names) if names else {}
        found = {name: one.data for name, one in held.items()}
        due = {
            name: source
            for name in names
            if _is_due(held.get(name), now) and (source := self._source(name)) is not None and source.fetch is not None
        }
        sources = {name for source in due.values() for name in (source.prefix, _strangers(source))}
        pauses = self._store.pauses({*due, *sources}) if due else {}
        for name, source in due.items():  # what is required comes first
            required = name in request.required
            try:
                if _is_absent(name, source, pauses, now):
                    continue
                if _is_paused(_strangers(source), pauses, now) and self._is_strangers(name, source, client):
                    raise Unavailable("an endorsement cannot be fetched now for a machine that is not enrolled")
                if not may_wait:
                    raise WouldWait("an endorsement must be fetched", found=name)
                data = self._fetch(name, source, now, client)
            except WouldWait:
                raise
            except Unavailable:
                if required and name not in held:
                    raise
                continue
            if data is not None:
                found[name] = data
        return found

    def keep(self, entries: Iterable[tuple[str, bytes]], now: int) -> dict[str, bool]:
        """Store what an operator imports, for good: name -> False where the store has a newer issue of it.

        Raises EndorsementError unless all are genuine and what their names say, ProtocolError for what is no name, and
        then nothing is stored.
        """
        genuine = [(name, self._checked(name, data, now)) for name, data in entries]
        return {name: self._put(name, one, now, kept=True) for name, one in genuine}

    def _checked(self, name: str, data: bytes, now: int) -> Genuine:
        source = self._source(name)
        if source is None:
            raise ProtocolError("no source has endorsements of this name", found=name[:64])
        try:
            return source.check(name, data, at=_time(now))
        except EndorsementError as error:
            raise EndorsementError(f"not to be trusted: {name}", found=str(error)) from error

    def _source(self, name: str) -> Source | None:
        return next((source for source in self._sources if name.startswith(source.prefix)), None)

    def _spend(self, name: str, source: Source, now: int, client: str | None) -> None:
        """Count one fetch, the narrowest budget first: a refused one costs the wider ones nothing. Raises Unavailable.

        What is about no one machine is the same for all guests, and counts for none of them.
        """
        budgets: dict[str, int] = {}
        if client is not None and source.instance_id(name) is not None:
            budgets[f"{source.prefix} for {client}"] = CLIENTS_FETCHES_PER_MINUTE
            if self._is_strangers(name, source, client):
                budgets[_strangers(source)] = STRANGERS_FETCHES_PER_MINUTE
        for counter, limit in (budgets | {f"{source.prefix} in all": FETCHES_PER_MINUTE}).items():
            if self._store.hit(counter, MINUTE_MS, now) > limit:
                raise Unavailable("too many endorsements were fetched in this minute", found=counter)

    def _is_strangers(self, name: str, source: Source, client: str | None) -> bool:
        """Whether a guest wants it for a machine that no owner enrolled."""
        instance_id = source.instance_id(name)
        return (
            client is not None
            and instance_id is not None
            and not self._store.by_alias(RecordKind.INSTANCE, instance_id)
        )

    def _fetch(self, name: str, source: Source, now: int, client: str | None) -> bytes | None:
        """What the source has under `name`, genuine and stored; None where it has nothing. Raises Unavailable."""
        with self._lock:
            flight = self._flights.get(name)
            first = flight is None
            if flight is None:
                flight = self._flights[name] = Flight()
        if first:
            self._start(name, source, now, client, flight)
        try:
            return flight.result(WAIT_S)
        except TimeoutError:
            if first:  # the thread is left behind; nobody joins it any more
                self._land(name, flight)
                self._pause_all(source)
            raise Unavailable("an endorsement did not come in time", found=name) from None

    def _start(self, name: str, source: Source, now: int, client: str | None, flight: Flight) -> None:
        try:
            self._spend(name, source, now, client)
            if not self._free.acquire(blocking=False):
                raise Unavailable("too many endorsements are being fetched")
            # A daemon: a source that does not answer must not keep the broker from stopping.
            thread = threading.Thread(target=self._fly, args=(name, source, flight), name="roomkey-fetch", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                self._free.release()
                raise Unavailable("no endorsements are being fetched: there are no more threads") from None
        except Exception as error:  # noqa: BLE001  raised again by whoever waits for it
            self._land(name, flight)
            flight.set_exception(error)

    def _fly(self, name: str, source: Source, flight: Flight) -> None:
        try:
            data = self._fetched(name, source)
        except Exception as error:  # noqa: BLE001  raised again by whoever waits for it
            self._free.release()
            self._land(name, flight)
            flight.set_exception(error)
        else:
            self._free.release()
            self._land(name, flight)
            flight.set_result(data)

    def _land(self, name: str, flight: Flight) -> None:
        with self._lock:
            if self._flights.get(name) is flight:
                del self._flights[name]

    def _fetched(self, name: str, source: Source) -> bytes | None:
        assert source.fetch is not None  # narrowing: `look_up` asks only sources that may be asked
        held = self._store.endorsements((name,)).get(name)
        if held is not None and not _is_due(held, self._clock()):
            return held.data  # somebody else, perhaps in another process, was quicker
        try:
            data = source.fetch(name)
            genuine = None if data is None else source.check(name, data, at=_time(self._clock()))
        except FetchFailed as error:
            _log.warning("not fetched %s: %s", name, error)
            if error.whole:
                self._pause_all(source, error.pause_ms)
            else:
                self._pause(name, error.pause_ms)
            raise
        except (EndorsementError, ProtocolError) as error:
            _log.warning("not genuine, and so not kept: %s: %s", name, error)
            self._pause(name)
            raise Unavailable("what was fetched is not genuine", found=name) from error
        now = self._clock()
        if genuine is None:
            _log.info("there is no %s", name)
            until = now + ABSENT_MS
            self._store.pause(name, FetchPause(0, True, until, until))
            return None
        if not self._put(name, genuine, now, kept=False):
            _log.warning("an older issue than the stored one, and so not kept: %s", name)
            self._pause(name)
            raise Unavailable("what was fetched is older than what is stored", found=name)
        _log.info("fetched %s", name)
        pauses = self._store.pauses((name, source.prefix))
        for paused, pause in pauses.items():
            if pause.until <= now:  # one that was made meanwhile still holds
                self._store.pause(paused, None)
        return genuine.data

    def _put(self, name: str, genuine: Genuine, now: int, *, kept: bool) -> bool:
        edition = f"{genuine.number:0{EDITION_DIGITS}x}"
        fresh_until = None
        if genuine.next_update is not None:
            promised = int(genuine.next_update.timestamp() * 1000)
            fresh_until = min(promised, now + REFRESH_MS)
            if not kept:
                fresh_until = max(fresh_until, now + STALE_REFRESH_MS)
        new = StoredEndorsement(name, genuine.data, edition, kept, now, fresh_until)
        return self._store.put_endorsement(new, most=MOST_FETCHED)

    def _pause_all(self, source: Source, at_least_ms: int = 0) -> None:
        delay = self._pause(source.prefix, at_least_ms)
        until = self._clock() + 2 * delay
        self._store.pause(_strangers(source), FetchPause(0, False, until, until))

    def _pause(self, name: str, at_least_ms: int = 0) -> int:
        """How long, in milliseconds."""
        before, now = self._store.pauses((name,)).get(name), self._clock()
        failures = 1 if before is None else before.failures + 1
        if before is not None and now < before.until:  # begun before that pause: the same outage, seen once more
            failures = max(before.failures, 1)
        delay = max(at_least_ms, min(FIRST_PAUSE_MS << min(failures - 1, 16), LONGEST_PAUSE_MS))
        until = now + delay
        self._store.pause(name, FetchPause(failures, False, until, until + FAILURE_MEMORY_MS))
        return delay


def _is_due(held: StoredEndorsement | None, now: int) -> bool:
    return held is None or (held.fresh_until is not None and held.fresh_until <= now)


def _is_absent(name: str, source: Source, pauses: Mapping[str, FetchPause], now: int) -> bool:
    """Whether the source has said a while ago that it has no such thing. Raises Unavailable where it is paused."""
    own = pauses.get(name)
    if own is not None and own.absent and now < own.until:
        return True
    if _is_paused(name, pauses, now) or _is_paused(source.prefix, pauses, now):
        raise Unavailable("an endorsement cannot be fetched now", found=name)
    return False


def _is_paused(name: str, pauses: Mapping[str, FetchPause], now: int) -> bool:
    return name in pauses and now < pauses[name].until


def _strangers(source: Source) -> str:
    """Under what name the fetches for machines that no owner enrolled are counted and paused."""
    return f"{source.prefix} for strangers"


def _time(now: int) -> datetime:
    return datetime.fromtimestamp(now / 1000, UTC)
