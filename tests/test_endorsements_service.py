# SPDX-License-Identifier: Apache-2.0
"""Looking endorsements up: stored if genuine, fetched seldom, never in the way of guests that need nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from broker.claims import EndorsementRequest
from broker.endorsements import service as module
from broker.endorsements.service import (
    ABSENT_MS,
    CLIENTS_FETCHES_PER_MINUTE,
    FETCHES_PER_MINUTE,
    FIRST_PAUSE_MS,
    LONGEST_PAUSE_MS,
    MINUTE_MS,
    REFRESH_MS,
    STALE_REFRESH_MS,
    STRANGERS_FETCHES_PER_MINUTE,
    EndorsementService,
)
from broker.endorsements.source import FetchFailed, Source, WouldWait
from broker.store.protocols import FetchPause, Record, RecordKind
from broker.store.sqlite import SqliteStore
from broker.verifiers.endorsement import Genuine
from keys.errors import EndorsementError, ProtocolError, Unavailable

NOW = 1_800_000_000_000
DAY = timedelta(days=1)


class Vendor:
    """A vendor "x/" whose things are the bytes "good", or "list N D": a list with the number N, good for D days.

    "x/list" is about many machines, every other name about one. `gives` is what a fetch answers, by name.
    """

    def __init__(self, store: SqliteStore) -> None:
        self.now = NOW
        self.asked: list[str] = []
        self.gives: dict[str, bytes | Exception | None] = {}
        self.gate: threading.Event | None = None
        self.begun = threading.Event()
        self.store = store
        self.source = Source("x/", self.check, lambda name: None if name == "x/list" else f"chip:{name}", self.fetch)
        self.service = EndorsementService(store, [self.source], clock=lambda: self.now)

    def fetch(self, name: str) -> bytes | None:
        self.asked.append(name)
        self.begun.set()
        if self.gate is not None:
            assert self.gate.wait(20)
        given = self.gives.get(name)
        if isinstance(given, Exception):
            raise given
        return given

    def check(self, name: str, data: bytes, *, at: datetime) -> Genuine:
        word, *numbers = data.split()
        if name.endswith("odd"):
            raise ProtocolError("no name")
        if word == b"list":
            return Genuine(data, int(numbers[0]), at + int(numbers[1]) * DAY)
        if word != b"good":
            raise EndorsementError("garbage")
        return Genuine(data)

    def look_up(
        self, *required: str, helpful: tuple[str, ...] = (), may_wait: bool = True, client: str | None = None
    ) -> dict[str, bytes]:
        request = EndorsementRequest(required=required, helpful=helpful)
        return self.service.look_up(request, self.now, may_wait=may_wait, client=client)

    def let_go(self) -> None:
        """Open the gate, and wait until nobody fetches any more."""
        assert self.gate is not None
        self.gate.set()
        for thread in threading.enumerate():
            if thread.name == "roomkey-fetch":
                thread.join(20)

    def stored(self) -> dict[str, bytes]:
        return {one.name: one.data for one in self.store.all_endorsements()}


@pytest.fixture
def vendor(tmp_path: Path) -> Iterator[Vendor]:
    store = SqliteStore(tmp_path / "roomkey.db")
    yield Vendor(store)
    store.close()


def failed(*, whole: bool, pause_ms: int = 0) -> FetchFailed:
    return FetchFailed("the vendor is out", found="nothing", whole=whole, pause_ms=pause_ms)


# --- what is at hand, and what is fetched ---


def test_what_was_fetched_once_is_kept(vendor: Vendor) -> None:
    """The first request fetches and stores, all others, of other processes too, find it stored."""
    vendor.gives["x/a"] = b"good"
    assert vendor.look_up("x/a") == {"x/a": b"good"}
    assert vendor.look_up("x/a", may_wait=False) == {"x/a": b"good"}
    other = EndorsementService(vendor.store, [vendor.source], clock=lambda: NOW)
    assert other.look_up(EndorsementRequest(required=("x/a",)), NOW, may_wait=False) == {"x/a": b"good"}
    assert vendor.asked == ["x/a"]


def test_who_needs_nothing_costs_nothing(vendor: Vendor) -> None:
    """A request without names is answered without a look at store or vendor."""
    vendor.store.close()
    assert vendor.look_up(may_wait=False) == {}


def test_who_may_not_wait_is_told_to_come_where_he_may(vendor: Vendor) -> None:
    """In the event loop nothing is fetched: the caller is sent to a thread, for what is only helpful too."""
    for request in (EndorsementRequest(required=("x/a",)), EndorsementRequest(helpful=("x/list",))):
        with pytest.raises(WouldWait):
            vendor.service.look_up(request, NOW, may_wait=False)
    assert vendor.asked == []


def test_only_sources_are_asked(vendor: Vendor) -> None:
    """Names of nobody, and of a source that is off, are merely absent; what was imported is still found."""
    off = EndorsementService(vendor.store, [Source("x/", vendor.check, lambda _: None)])
    assert off.keep([("x/a", b"good")], NOW) == {"x/a": True}
    assert off.look_up(EndorsementRequest(required=("x/a", "x/b", "y/c")), NOW, may_wait=False) == {"x/a": b"good"}
    assert vendor.look_up("y/c", may_wait=False) == {}


def test_no_such_thing_is_absent_for_a_while(vendor: Vendor) -> None:
    """Where the vendor says that there is nothing, the verifier decides; the vendor is asked again later."""
    assert vendor.look_up("x/a") == {}
    vendor.now += ABSENT_MS - 1
    assert vendor.look_up("x/a", may_wait=False) == {}
    vendor.now += 1
    vendor.gives["x/a"] = b"good"
    assert vendor.look_up("x/a") == {"x/a": b"good"}
    assert vendor.asked == ["x/a", "x/a"]


# --- what is not genuine ---


@pytest.mark.parametrize(("name", "data"), [("x/a", b"bad"), ("x/odd", b"good")])
def test_garbage_is_an_outage(vendor: Vendor, name: str, data: bytes) -> None:
    """What is not genuine is not stored, not handed out, and not asked for again at once."""
    vendor.gives[name] = data
    for _ in range(2):
        with pytest.raises(Unavailable):
            vendor.look_up(name)
    assert vendor.asked == [name]
    assert vendor.stored() == {}


def test_all_or_nothing_is_imported(vendor: Vendor) -> None:
    """One bad entry keeps the others of an import out; a name of nobody is refused."""
    with pytest.raises(EndorsementError, match="x/b"):
        vendor.service.keep([("x/a", b"good"), ("x/b", b"bad")], NOW)
    with pytest.raises(ProtocolError):
        vendor.service.keep([("x/a", b"good"), ("y/b", b"good")], NOW)
    assert vendor.stored() == {}


def test_what_was_imported_is_never_dropped(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched things make room for newer ones, imported ones do not."""
    monkeypatch.setattr(module, "MOST_FETCHED", 2)
    vendor.service.keep([(f"x/imported-{number}", b"good") for number in range(3)], NOW - 1)
    for number in range(3):
        vendor.now += 1
        vendor.gives[f"x/{number}"] = b"good"
        vendor.look_up(f"x/{number}")
    assert list(vendor.stored()) == ["x/1", "x/2", "x/imported-0", "x/imported-1", "x/imported-2"]


# --- revocation lists: helpful, and growing old ---


def test_list_is_fetched_once_a_day(vendor: Vendor) -> None:
    """A list that promises weeks is fetched anew after a day, and not before."""
    vendor.gives["x/list"] = b"list 1 40"
    assert vendor.look_up(helpful=("x/list",)) == {"x/list": b"list 1 40"}
    vendor.gives["x/list"] = b"list 2 40"
    vendor.now += REFRESH_MS - 1
    assert vendor.look_up(helpful=("x/list",), may_wait=False) == {"x/list": b"list 1 40"}
    vendor.now += 1
    assert vendor.look_up(helpful=("x/list",)) == {"x/list": b"list 2 40"}


def test_list_of_a_vendor_that_is_late(vendor: Vendor) -> None:
    """A list that is past its time when it is fetched is handed out, and fetched anew after an hour."""
    vendor.gives["x/list"] = b"list 1 -3"
    assert vendor.look_up(helpful=("x/list",)) == {"x/list": b"list 1 -3"}
    vendor.now += STALE_REFRESH_MS - 1
    assert vendor.look_up(helpful=("x/list",), may_wait=False) == {"x/list": b"list 1 -3"}
    vendor.now += 1
    with pytest.raises(WouldWait):
        vendor.look_up(helpful=("x/list",), may_wait=False)


def test_imported_list_is_good_until_its_time(vendor: Vendor) -> None:
    """A list that was imported when it was past its time is fetched anew with the next guest."""
    vendor.service.keep([("x/list", b"list 1 -3")], NOW)
    vendor.gives["x/list"] = b"list 2 40"
    assert vendor.look_up(helpful=("x/list",)) == {"x/list": b"list 2 40"}


def test_old_list_is_better_than_none(vendor: Vendor) -> None:
    """While the vendor is out the stored list is handed out, whatever its age, and nobody is stopped."""
    vendor.service.keep([("x/list", b"list 1 40"), ("x/a", b"good")], NOW)
    vendor.now += 100 * REFRESH_MS
    vendor.gives["x/list"] = failed(whole=False)
    for _ in range(2):
        assert vendor.look_up("x/a", helpful=("x/list",)) == {"x/list": b"list 1 40", "x/a": b"good"}
    assert vendor.look_up("x/a", helpful=("x/list",), may_wait=False) == {"x/list": b"list 1 40", "x/a": b"good"}
    assert vendor.asked == ["x/list"]


def test_list_number_never_goes_back(vendor: Vendor) -> None:
    """An older list than the stored one is neither stored nor handed out, fetched or imported."""
    vendor.service.keep([("x/list", b"list 9 1")], NOW)
    vendor.gives["x/list"] = b"list 8 40"
    vendor.now += REFRESH_MS
    for _ in range(2):
        assert vendor.look_up(helpful=("x/list",)) == {"x/list": b"list 9 1"}
    assert vendor.asked == ["x/list"]
    assert vendor.service.keep([("x/list", b"list 8 40")], vendor.now) == {"x/list": False}
    assert vendor.service.keep([("x/list", b"list 10 40")], vendor.now) == {"x/list": True}
    assert vendor.stored() == {"x/list": b"list 10 40"}


# --- outages ---


def test_pauses_grow_and_end_with_success(vendor: Vendor) -> None:
    """After each failure in a row the next try comes twice as late, up to a limit; a success forgets them."""
    delays = []
    vendor.gives["x/a"] = failed(whole=False)
    for _ in range(20):
        with pytest.raises(Unavailable):
            vendor.look_up("x/a")
        until = vendor.store.pauses(["x/a"])["x/a"].until
        delays.append(until - vendor.now)
        with pytest.raises(Unavailable) as caught:
            vendor.look_up("x/a", may_wait=False)
        assert not isinstance(caught.value, WouldWait)
        vendor.now = until
    assert delays[:4] == [FIRST_PAUSE_MS, 2 * FIRST_PAUSE_MS, 4 * FIRST_PAUSE_MS, 8 * FIRST_PAUSE_MS]
    assert delays[-1] == max(delays) == LONGEST_PAUSE_MS
    assert len(vendor.asked) == 20
    vendor.gives["x/a"] = b"good"
    assert vendor.look_up("x/a") == {"x/a": b"good"}
    assert vendor.store.pauses(["x/a", "x/"]) == {}


def test_failure_of_one_name_is_its_own(vendor: Vendor) -> None:
    """What a stranger's odd name does to the vendor does not keep others from asking."""
    vendor.gives |= {"x/a": failed(whole=False), "x/b": b"good"}
    with pytest.raises(Unavailable):
        vendor.look_up("x/a")
    assert vendor.look_up("x/b") == {"x/b": b"good"}


def test_too_many_requests_holds_for_the_whole_source(vendor: Vendor) -> None:
    """When the vendor wants to be left alone, nothing is asked of it for as long as it said."""
    vendor.gives |= {"x/a": failed(whole=True, pause_ms=77_000), "x/b": b"good"}
    with pytest.raises(Unavailable):
        vendor.look_up("x/a")
    vendor.now += 76_999
    for name in ("x/a", "x/b"):
        with pytest.raises(Unavailable):
            vendor.look_up(name)
    vendor.now += 1
    assert vendor.look_up("x/b") == {"x/b": b"good"}
    assert vendor.asked == ["x/a", "x/b"]
    assert vendor.store.pauses(["x/"]) == {}


def test_fetches_that_fail_together_are_one_failure(vendor: Vendor) -> None:
    """Whoever makes many fetches run into one outage at once does not make its pause longer."""
    vendor.gate = threading.Event()
    vendor.gives = {f"x/{number}": failed(whole=True) for number in range(4)}
    with ThreadPoolExecutor(4) as pool:
        fetches = [pool.submit(vendor.look_up, name) for name in vendor.gives]
        while len(vendor.asked) < len(fetches):
            assert vendor.begun.wait(20)
        vendor.gate.set()
        for fetch in fetches:
            with pytest.raises(FetchFailed):
                fetch.result(20)
    assert vendor.store.pauses(["x/"])["x/"].until == vendor.now + FIRST_PAUSE_MS


def test_failure_after_somebody_else_found_nothing(vendor: Vendor) -> None:
    """A fetch that fails while another process has just learned that there is no such thing is one failure."""
    vendor.gate, vendor.gives["x/a"] = threading.Event(), failed(whole=False)
    with ThreadPoolExecutor(1) as pool:
        fetch = pool.submit(vendor.look_up, "x/a")
        assert vendor.begun.wait(20)
        vendor.store.pause("x/a", FetchPause(0, True, NOW + ABSENT_MS, NOW + ABSENT_MS))
        vendor.gate.set()
        with pytest.raises(FetchFailed):
            fetch.result(20)
    assert vendor.store.pauses(["x/a"])["x/a"].failures == 1


def test_success_does_not_lift_a_pause_that_came_meanwhile(vendor: Vendor) -> None:
    """A fetch that was under way when the vendor asked to be left alone does not undo that."""
    vendor.gives["x/b"] = b"good"
    real = vendor.fetch

    def fetch(name: str) -> bytes | None:
        vendor.service._pause("x/", 60_000)
        return real(name)

    service = EndorsementService(vendor.store, [Source("x/", vendor.check, lambda _: None, fetch)], clock=lambda: NOW)
    vendor.service = service
    assert vendor.look_up("x/b") == {"x/b": b"good"}
    assert vendor.store.pauses(["x/"])["x/"].until == NOW + 60_000


def test_foreign_failure_reaches_the_caller(vendor: Vendor) -> None:
    """A fault of our own is not taken for an outage: it comes out, and the name can be asked for again."""
    vendor.gives["x/a"] = RuntimeError("a bug")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a bug"):
            vendor.look_up("x/a")
    assert len(vendor.asked) == 2


def test_store_that_fails_stops_a_required_thing(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be stored is not handed out."""
    vendor.gives["x/a"] = b"good"

    def put_endorsement(*_: object, **__: object) -> bool:
        raise Unavailable("the disk is full")

    monkeypatch.setattr(vendor.store, "put_endorsement", put_endorsement)
    with pytest.raises(Unavailable, match="disk"):
        vendor.look_up("x/a")


# --- many at once ---


def test_one_fetch_for_all_who_want_it(vendor: Vendor) -> None:
    """Of many who want one name at once, one fetches it and all get it."""
    vendor.gate, vendor.gives["x/a"] = threading.Event(), b"good"
    together, real = threading.Barrier(6), vendor.store.pauses

    def pauses(names: Iterable[str]) -> dict[str, FetchPause]:
        if threading.current_thread().name != "roomkey-fetch":
            together.wait(20)  # nobody goes on before all have seen that it must be fetched
        return real(names)

    vendor.store.pauses = pauses  # type: ignore[method-assign]
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(vendor.look_up, "x/a") for _ in range(6)]
        assert vendor.begun.wait(20)
        vendor.gate.set()
        assert [answer.result(20) for answer in answers] == [{"x/a": b"good"}] * 6
    assert vendor.asked == ["x/a"]


def test_fetch_that_somebody_else_made_meanwhile(vendor: Vendor) -> None:
    """What another process stored between the look and the fetch is taken."""
    store = vendor.store
    real = store.by_alias

    def by_alias(kind: RecordKind, alias: str) -> list[Record]:
        vendor.service.keep([("x/a", b"good")], NOW)
        return real(kind, alias)

    store.by_alias = by_alias  # type: ignore[method-assign]
    assert vendor.look_up("x/a", client="192.0.2.1") == {"x/a": b"good"}
    assert vendor.asked == []


def test_nobody_waits_for_ever(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that does not come back is left behind: the source is paused, then asked anew; late fruit is stored."""
    monkeypatch.setattr(module, "WAIT_S", 0.02)
    vendor.gate, vendor.gives["x/a"] = threading.Event(), b"good"
    with pytest.raises(Unavailable, match="in time"):
        vendor.look_up("x/a")
    with pytest.raises(Unavailable, match="now"):
        vendor.look_up("x/b")
    assert vendor.begun.wait(20)
    assert vendor.asked == ["x/a"]
    vendor.now += FIRST_PAUSE_MS
    vendor.begun.clear()
    with pytest.raises(Unavailable, match="in time"):
        vendor.look_up("x/a")
    assert vendor.begun.wait(20)
    assert vendor.asked == ["x/a", "x/a"]
    vendor.let_go()
    assert vendor.look_up("x/a", may_wait=False) == {"x/a": b"good"}


def test_who_joined_a_fetch_that_does_not_come_back(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others who waited for it are let go too, and do not make the pause longer."""
    monkeypatch.setattr(module, "WAIT_S", 0.05)
    vendor.gate = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(vendor.look_up, "x/a") for _ in range(3)]
        for answer in answers:
            with pytest.raises(Unavailable):
                answer.result(20)
    assert vendor.store.pauses(["x/"])["x/"].failures == 1
    vendor.let_go()


def test_only_so_many_fetches_at_once(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all fetchers busy the next is told to come again, and is served when one is free."""
    monkeypatch.setattr(module, "FETCHERS", 1)
    vendor.service = EndorsementService(vendor.store, [vendor.source], clock=lambda: vendor.now)
    vendor.gate = threading.Event()
    vendor.gives |= {"x/a": b"good", "x/b": b"good"}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(vendor.look_up, "x/a")
        assert vendor.begun.wait(20)
        with pytest.raises(Unavailable, match="being fetched"):
            vendor.look_up("x/b")
        vendor.gate.set()
        first.result(20)
    assert vendor.look_up("x/b") == {"x/b": b"good"}


def test_fetch_that_cannot_begin_holds_nothing(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be made the caller hears it at once, and the next one fetches as if nothing had been."""
    monkeypatch.setattr(module, "FETCHERS", 1)
    vendor.service = EndorsementService(vendor.store, [vendor.source], clock=lambda: vendor.now)
    vendor.gives["x/a"] = b"good"

    def full(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", full)
        with pytest.raises(Unavailable, match="threads"):
            vendor.look_up("x/a")
    assert vendor.look_up("x/a") == {"x/a": b"good"}


# --- budgets ---


def spend(vendor: Vendor, name: str, count: int, client: Callable[[int], str | None]) -> list[bool]:
    """Of `count` requests for new things, which were fetched."""
    before = len(vendor.asked)
    fetched = []
    for number in range(count):
        with suppress(Unavailable):
            vendor.look_up(f"x/{name}-{number}", client=client(number))
        fetched.append(len(vendor.asked) > before)
        before = len(vendor.asked)
    return fetched


def test_one_client_has_a_share(vendor: Vendor) -> None:
    """One client's inventions use up its own share of a minute, and others still fetch."""
    made = spend(vendor, "a", CLIENTS_FETCHES_PER_MINUTE + 5, lambda _: "192.0.2.1")
    assert made == [True] * CLIENTS_FETCHES_PER_MINUTE + [False] * 5
    assert spend(vendor, "b", 1, lambda _: "192.0.2.2") == [True]
    vendor.now += MINUTE_MS
    assert spend(vendor, "c", 1, lambda _: "192.0.2.1") == [True]


def test_strangers_leave_something_for_enrolled_machines(vendor: Vendor) -> None:
    """Many clients with machines that nobody enrolled use up their share, and what was enrolled is still fetched."""
    vendor.store.put_record(Record(RecordKind.INSTANCE, "acme", "web", 1, {}, NOW, "test"), ["chip:x/enrolled-0"])
    made = spend(vendor, "a", STRANGERS_FETCHES_PER_MINUTE + 5, str)
    assert made == [True] * STRANGERS_FETCHES_PER_MINUTE + [False] * 5
    assert spend(vendor, "b", 1, lambda _: "fresh") == [False]
    assert spend(vendor, "enrolled", 1, lambda _: "fresh") == [True]
    vendor.gives["x/list"] = b"list 1 1"
    assert vendor.look_up(helpful=("x/list",), client="fresh") == {"x/list": b"list 1 1"}


def test_a_minute_has_so_many_fetches(vendor: Vendor) -> None:
    """Whoever asks, the operator too, the vendor is not asked more often than that; the rest costs nothing more."""
    made = spend(vendor, "a", FETCHES_PER_MINUTE + 5, lambda _: None)
    assert made == [True] * FETCHES_PER_MINUTE + [False] * 5
    assert vendor.look_up(helpful=("x/list",)) == {}
    assert "x/list" not in vendor.asked


@pytest.mark.parametrize("problem", [failed(whole=True), failed(whole=True, pause_ms=MINUTE_MS)])
def test_after_an_outage_enrolled_machines_come_first(vendor: Vendor, problem: FetchFailed) -> None:
    """Strangers wait twice as long, so that nobody's inventions keep the vendor from answering for enrolled ones."""
    vendor.store.put_record(Record(RecordKind.INSTANCE, "acme", "web", 1, {}, NOW, "test"), ["chip:x/enrolled"])
    vendor.gives |= {"x/invented": problem, "x/enrolled": b"good", "x/list": b"list 1 1"}
    assert spend_one(vendor, "x/invented")
    pause = vendor.store.pauses(["x/"])["x/"].until - vendor.now
    vendor.now += pause
    assert not spend_one(vendor, "x/stranger")
    assert vendor.look_up(helpful=("x/list",), client="guest") == {"x/list": b"list 1 1"}
    assert vendor.look_up("x/enrolled", client="guest") == {"x/enrolled": b"good"}
    assert not spend_one(vendor, "x/stranger")
    vendor.now += pause
    assert spend_one(vendor, "x/stranger")


def spend_one(vendor: Vendor, name: str) -> bool:
    """Whether a guest whose machine is `name` made the vendor be asked."""
    before = len(vendor.asked)
    with suppress(Unavailable):
        vendor.look_up(name, client="guest")
    return len(vendor.asked) > before
