# SPDX-License-Identifier: Apache-2.0
"""What every store promises, run against each of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.store import open_store
from broker.store.protocols import (
    Consumption,
    FetchPause,
    KeyState,
    LedgerEntry,
    Record,
    RecordKind,
    Store,
    StoredEndorsement,
    StoredKey,
)
from keys.errors import ConfigError, Conflict, NotFound, ProtocolError, Unavailable
from tests.fakes.store_process import FOREVER, NOW, sealed_key

BODY = {"nonce": "AAEC", "tpm": None, "list": [1, "zwei", {"drei": True}], "große Zahl": 2**63}


@pytest.fixture(params=["sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store({"sqlite": f"sqlite:{tmp_path / 'roomkey.db'}"}[request.param])
    yield opened
    opened.close()


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    barrier = threading.Barrier(count)

    def run(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def record(name: str, version: int = 1, body: dict[str, Any] | None = BODY, owner: str = "acme") -> Record:
    return Record(RecordKind.IMAGE, owner, name, version, body, NOW, "test")


def line(store: Store, id_: str, owner: str = "acme", kind: str = "attest", subject: str = "") -> LedgerEntry:
    return store.append(id_=id_, owner=owner, at=NOW, kind=kind, verdict="genuine", subject=subject, body=BODY)


# --- sessions ---


def test_challenge_is_judged_once_and_then_known_as_used(store: Store) -> None:
    """A challenge comes back whole for its one use; later attempts are told from strangers and from late ones."""
    store.put_session("s", BODY, NOW + 1000)
    assert store.session("s") == BODY
    assert store.consume_session("s", NOW) == (Consumption.JUDGE, BODY)
    assert store.consume_session("s", NOW) == (Consumption.USED, BODY)
    assert store.consume_session("s", NOW + 1000) == (Consumption.USED, BODY)
    assert store.session("s") == BODY


def test_challenge_dies_on_time(store: Store) -> None:
    """A challenge is good until the millisecond before its end, and expired from then on."""
    store.put_session("first", BODY, NOW)
    store.put_session("second", BODY, NOW + 1)
    assert store.consume_session("first", NOW) == (Consumption.EXPIRED, BODY)
    assert store.consume_session("second", NOW) == (Consumption.JUDGE, BODY)


def test_unknown_challenge_is_unknown(store: Store) -> None:
    """A session that was never given out is unknown, and reading it gives nothing."""
    assert store.consume_session("nobody", NOW) == (Consumption.UNKNOWN, None)
    assert store.session("nobody") is None


def test_challenge_is_never_given_out_again(store: Store) -> None:
    """Putting a session a second time fails and does not make a used challenge fresh."""
    store.put_session("s", BODY, FOREVER)
    store.consume_session("s", NOW)
    with pytest.raises(Unavailable):
        store.put_session("s", BODY, FOREVER)
    assert store.consume_session("s", NOW)[0] is Consumption.USED


def test_fifty_threads_one_judge(store: Store) -> None:
    """Of fifty threads with one challenge exactly one judges; all others learn that it was used."""
    store.put_session("s", BODY, FOREVER)
    verdicts = [verdict for verdict, _ in at_once(50, lambda _: store.consume_session("s", NOW))]
    assert sorted(verdicts) == sorted([Consumption.JUDGE] + [Consumption.USED] * 49)


def test_attestation_is_found_by_id_and_by_session(store: Store) -> None:
    """A verified attestation is there under its id and its session's until it expires, and under no other name."""
    store.put_attestation("d-1", "s", BODY, NOW + 1)
    assert store.attestation("d-1", NOW) == BODY
    assert store.session_attestation("s", NOW) == ("d-1", BODY)
    assert store.attestation("d-1", NOW + 1) is None
    assert store.session_attestation("s", NOW + 1) is None
    assert store.attestation("s", NOW) is None
    assert store.session_attestation("d-1", NOW) is None


@pytest.mark.parametrize(("attestation", "session"), [("d-1", "other"), ("d-2", "s")])
def test_attestation_is_never_replaced(store: Store, attestation: str, session: str) -> None:
    """Neither an id nor a session gets a second attestation in the first one's place."""
    store.put_attestation("d-1", "s", BODY, FOREVER)
    with pytest.raises(Unavailable):
        store.put_attestation(attestation, session, {}, FOREVER)
    assert store.session_attestation("s", NOW) == ("d-1", BODY)


def test_one_time_id_is_new_once(store: Store) -> None:
    """Of many who show one token at once, one is the first; another token is not touched by that."""
    assert sorted(at_once(16, lambda _: store.first_use("jti", FOREVER))) == [False] * 15 + [True]
    assert store.first_use("jtj", FOREVER)


def test_hits_are_counted_within_their_window(store: Store) -> None:
    """Hits of one counter add up within a window, however many come at once, and start again with the next."""
    assert sorted(at_once(16, lambda _: store.hit("192.0.2.1", 60_000, NOW))) == list(range(1, 17))
    window = NOW - NOW % 60_000 + 60_000
    assert store.hit("192.0.2.1", 60_000, window - 1) == 17
    assert store.hit("192.0.2.2", 60_000, window - 1) == 1
    assert store.hit("192.0.2.1", 60_000, window) == 1
    assert store.hit("192.0.2.1", 60_000, window) == 2


def test_purge_forgets_what_is_over_and_nothing_else(store: Store) -> None:
    """Purging drops what has expired; a dead challenge is recognised for a quarter of an hour more."""
    store.put_session("dead", BODY, NOW)
    store.put_attestation("d-1", "dead", BODY, NOW)
    store.first_use("dead", NOW)
    store.hit("dead", 1000, NOW - 1000)
    store.put_session("alive", BODY, NOW + 1)
    store.put_attestation("d-2", "alive", BODY, NOW + 1)
    store.first_use("alive", NOW + 1)
    store.hit("alive", 1000, NOW)
    store.purge(NOW)
    assert store.attestation("d-1", 0) is None
    assert store.first_use("dead", NOW)
    assert store.consume_session("dead", NOW) == (Consumption.EXPIRED, BODY)
    assert store.attestation("d-2", 0) == BODY
    assert not store.first_use("alive", NOW)
    assert store.hit("alive", 1000, NOW) == 2
    store.purge(NOW + 15 * 60_000)
    assert store.consume_session("dead", NOW) == (Consumption.UNKNOWN, None)
    assert store.consume_session("alive", NOW) == (Consumption.JUDGE, BODY)


def test_purge_takes_a_bounded_bite(store: Store) -> None:
    """However much has expired, one purge stays short, and enough of them get everything."""
    for number in range(1200):
        store.first_use(str(number), NOW)
    store.purge(NOW)
    assert not store.first_use("1199", NOW)
    store.purge(NOW)
    assert store.first_use("1199", NOW)


# --- keys ---


def test_key_versions_follow_each_other(store: Store) -> None:
    """The newest version is active and found first, the one before is retired and still there."""
    first, second = sealed_key("web", 1), sealed_key("web", 2)
    store.put_key(first)
    assert store.key("acme", "disk", "web") == first
    store.put_key(second)
    assert store.key("acme", "disk", "web") == second
    assert store.key("acme", "disk", "web", 1) == replace(first, state=KeyState.RETIRED)
    assert first.path == "acme/disk/web"


@pytest.mark.parametrize("version", [1, 3, 0, -1])
def test_key_version_must_be_the_next(store: Store, version: int) -> None:
    """Whoever puts a version that is not the next one conflicts with somebody, and changes nothing."""
    store.put_key(sealed_key("web", 1))
    with pytest.raises(Conflict):
        store.put_key(replace(sealed_key("web", 1), version=version))
    assert [(key.version, key.state) for key in store.keys("acme")] == [(1, KeyState.ACTIVE)]


def test_one_of_many_puts_the_next_version(store: Store) -> None:
    """Of many who put the same version at once, one succeeds and the others conflict."""

    def put(_: int) -> bool:
        try:
            store.put_key(sealed_key("web", 1))
        except Conflict:
            return False
        return True

    assert sum(at_once(8, put)) == 1


@pytest.mark.parametrize("change", [{"sealed": None}, {"state": KeyState.RETIRED}, {"state": KeyState.DESTROYED}])
def test_new_version_without_material_is_misuse(store: Store, change: dict[str, Any]) -> None:
    """A new version that is not sealed and active is a programming error."""
    with pytest.raises(RuntimeError):
        store.put_key(replace(sealed_key("web"), **change))


def test_unknown_keys_are_not_found(store: Store) -> None:
    """A key of another owner, type, tag or version is not found, nor destroyed."""
    store.put_key(sealed_key("web"))
    for path in (("ecma", "disk", "web"), ("acme", "disc", "web"), ("acme", "disk", "bew")):
        with pytest.raises(NotFound):
            store.key(*path)
        with pytest.raises(NotFound):
            store.destroy_key(*path)
    with pytest.raises(NotFound):
        store.key("acme", "disk", "web", 2)
    assert store.key("acme", "disk", "web").state is KeyState.ACTIVE


def test_listing_shows_one_owner_without_material(store: Store) -> None:
    """An owner's list holds all versions of his keys in order, nobody else's, and no sealed bytes."""
    for key in (sealed_key("b"), sealed_key("a"), sealed_key("a", 2), sealed_key("a", owner="ecma")):
        store.put_key(key)
    assert [(key.path, key.version) for key in store.keys("acme")] == [
        ("acme/disk/a", 1), ("acme/disk/a", 2), ("acme/disk/b", 1)
    ]  # fmt: skip
    assert all(key.sealed is None for key in store.keys("acme"))
    assert store.keys("nobody") == []


def test_sealed_bytes_do_not_show(store: Store) -> None:
    """A stored key's text does not hold its sealed bytes."""
    key = sealed_key("web")
    assert key.sealed is not None
    assert repr(key.sealed) not in repr(key)


def test_destroyed_key_is_known_and_empty(store: Store) -> None:
    """Destruction takes all versions' bytes, leaves others', is counted, and may be repeated."""
    other = sealed_key("other")
    for key in (sealed_key("web", 1), sealed_key("web", 2), other):
        store.put_key(key)
    assert store.destroy_key("acme", "disk", "web") == 2
    assert store.destroy_key("acme", "disk", "web") == 0
    for version in (1, 2):
        key = store.key("acme", "disk", "web", version)
        assert (key.state, key.sealed) == (KeyState.DESTROYED, None)
    assert store.key("acme", "disk", "other") == other
    assert store.sealed_keys(None, 10) == [other]


def test_version_numbers_survive_destruction(store: Store) -> None:
    """A key put again after its destruction counts on, and its old versions stay destroyed."""
    store.put_key(sealed_key("web"))
    store.destroy_key("acme", "disk", "web")
    with pytest.raises(Conflict):
        store.put_key(sealed_key("web"))
    store.put_key(sealed_key("web", 2))
    assert [key.state for key in store.keys("acme")] == [KeyState.DESTROYED, KeyState.ACTIVE]


def test_sealed_keys_come_page_by_page(store: Store) -> None:
    """Paging gives every sealed version of every owner once, in order."""
    put = [sealed_key(tag, version, owner) for owner in "ab" for tag in "xy" for version in (1, 2)]
    for key in reversed([put[i : i + 2] for i in range(0, 8, 2)]):
        store.put_key(key[0])
        store.put_key(key[1])
    seen: list[StoredKey] = []
    while page := store.sealed_keys(position(seen[-1]) if seen else None, 3):
        assert len(page) <= 3
        seen += page
    assert [(position(key), key.sealed) for key in seen] == [(position(key), key.sealed) for key in put]


def position(key: StoredKey) -> tuple[str, str, str, int]:
    return key.owner, key.type, key.tag, key.version


def test_sealed_bytes_are_replaced_only_if_unchanged(store: Store) -> None:
    """Rewrapping swaps exactly the version it read; after any change in between it conflicts and changes nothing."""
    store.put_key(sealed_key("web", 1))
    store.put_key(sealed_key("web", 2))
    read = store.key("acme", "disk", "web", 1)
    store.replace_sealed(read, b"new")
    assert store.key("acme", "disk", "web", 1) == replace(read, sealed=b"new")
    assert store.key("acme", "disk", "web", 2).sealed != b"new"
    with pytest.raises(Conflict):
        store.replace_sealed(read, b"newer")
    assert store.key("acme", "disk", "web", 1).sealed == b"new"
    store.destroy_key("acme", "disk", "web")
    with pytest.raises(Conflict):
        store.replace_sealed(replace(read, sealed=b"new"), b"undead")
    assert store.key("acme", "disk", "web", 1).sealed is None


# --- records ---


def test_record_versions_follow_each_other(store: Store) -> None:
    """The newest version is found first, older ones by number, and only the next number can be put."""
    first, second = record("debian", 1, {"a": 1}), record("debian", 2, {"a": 2})
    assert store.newest_version(RecordKind.IMAGE, "acme", "debian") == 0
    store.put_record(first)
    store.put_record(second)
    assert store.record(RecordKind.IMAGE, "acme", "debian") == second
    assert store.record(RecordKind.IMAGE, "acme", "debian", 1) == first
    assert store.newest_version(RecordKind.IMAGE, "acme", "debian") == 2
    for version in (1, 2, 4, 0):
        with pytest.raises(Conflict):
            store.put_record(record("debian", version))
    assert store.newest_version(RecordKind.IMAGE, "acme", "debian") == 2


def test_unknown_records_are_not_found(store: Store) -> None:
    """A record of another kind, owner, name or version is not found."""
    store.put_record(record("debian"))
    for kind, owner, name, version in (
        (RecordKind.RULE, "acme", "debian", None),
        (RecordKind.IMAGE, "ecma", "debian", None),
        (RecordKind.IMAGE, "acme", "fedora", None),
        (RecordKind.IMAGE, "acme", "debian", 2),
    ):
        with pytest.raises(NotFound):
            store.record(kind, owner, name, version)


def test_deleted_record_is_out_of_reach(store: Store) -> None:
    """After a deletion no version is found, listed or aliased, but the numbers go on."""
    store.put_record(record("debian", 1), ["alias"])
    store.put_record(record("debian", 2, None), ["alias"])
    for version in (None, 1, 2):
        with pytest.raises(NotFound):
            store.record(RecordKind.IMAGE, "acme", "debian", version)
    assert store.records(RecordKind.IMAGE, "acme") == []
    assert store.by_alias(RecordKind.IMAGE, "alias") == []
    assert store.newest_version(RecordKind.IMAGE, "acme", "debian") == 2
    again = record("debian", 3)
    store.put_record(again)
    assert store.record(RecordKind.IMAGE, "acme", "debian") == again
    with pytest.raises(NotFound):
        store.record(RecordKind.IMAGE, "acme", "debian", 2)


def test_listing_records_shows_the_newest_of_one_owner(store: Store) -> None:
    """A list holds the newest version of each of an owner's records of that kind, by name."""
    for item in (record("b", 1), record("a", 1), record("b", 2), record("c", owner="ecma")):
        store.put_record(item)
    store.put_record(replace(record("d"), kind=RecordKind.RULE))
    assert store.records(RecordKind.IMAGE, "acme") == [record("a"), record("b", 2)]


def test_aliases_lead_to_the_newest_version_only(store: Store) -> None:
    """An alias finds records of any owner by their newest version; the next version's aliases replace it."""
    store.put_record(record("a", 1), ["tpm-ak:1", "tpm-ak:2", "tpm-ak:1"])
    store.put_record(record("b", owner="ecma"), ["tpm-ak:1"])
    store.put_record(replace(record("r"), kind=RecordKind.RULE), ["tpm-ak:1"])
    assert store.by_alias(RecordKind.IMAGE, "tpm-ak:1") == [record("a"), record("b", owner="ecma")]
    store.put_record(record("a", 2), ["tpm-ak:2", "tpm-ak:3"])
    assert store.by_alias(RecordKind.IMAGE, "tpm-ak:1") == [record("b", owner="ecma")]
    assert store.by_alias(RecordKind.IMAGE, "tpm-ak:2") == [record("a", 2)]
    assert store.by_alias(RecordKind.IMAGE, "tpm-ak:3") == [record("a", 2)]
    assert store.by_alias(RecordKind.IMAGE, "tpm-ak:4") == []


# --- ledger ---


def test_ledger_lines_are_chained_in_order(store: Store) -> None:
    """Lines count from one, come back as they were written, and each carries another hash."""
    written = [line(store, f"d-{number}") for number in range(3)]
    assert [entry.sequence for entry in written] == [1, 2, 3]
    assert len({entry.hash for entry in written}) == 3
    assert written[1].body == BODY
    assert store.entry("acme", "d-1") == written[1]
    assert store.entries("acme") == written[::-1]
    assert store.verify_chain() == 3


def test_empty_ledger_is_whole(store: Store) -> None:
    """A ledger without lines has an unbroken chain of none."""
    assert store.verify_chain() == 0


def test_long_ledger_is_followed_to_its_end(store: Store) -> None:
    """The chain is checked to its last line, however many pages that takes."""
    for number in range(401):
        store.append(id_=str(number), owner="", at=NOW, kind="", verdict="", subject="", body={})
    assert store.verify_chain() == 401


def test_ledger_lines_belong_to_one_owner(store: Store) -> None:
    """Another owner's line is not found, by id or in a list; nor is nobody's."""
    line(store, "d-1", "acme")
    line(store, "d-2", "ecma")
    line(store, "d-3", "")
    for id_ in ("d-2", "d-3", "d-4"):
        with pytest.raises(NotFound):
            store.entry("acme", id_)
    assert [entry.id for entry in store.entries("acme")] == ["d-1"]


def test_ledger_is_filtered_and_paged(store: Store) -> None:
    """Kinds, a subject, a limit and a place to go on from narrow the list, newest first."""
    for number in range(6):
        line(store, f"d-{number}", kind=("attest", "release", "change")[number % 3], subject=f"s{number % 2}")

    def ids(**filters: Any) -> list[str]:
        return [entry.id for entry in store.entries("acme", **filters)]

    assert ids(kinds=["attest"]) == ["d-3", "d-0"]
    assert ids(kinds=["attest", "change"]) == ["d-5", "d-3", "d-2", "d-0"]
    assert ids(subject="s1") == ["d-5", "d-3", "d-1"]
    assert ids(subject="s1", kinds=["release"]) == ["d-1"]
    assert ids(limit=2) == ["d-5", "d-4"]
    assert ids(limit=2, before=5) == ["d-3", "d-2"]
    assert ids(subject="") == []


def test_ledger_id_is_used_once(store: Store) -> None:
    """A second line under an id that is taken is not written."""
    line(store, "d-1")
    with pytest.raises(Unavailable):
        line(store, "d-1")
    assert store.verify_chain() == 1


def test_many_threads_keep_one_chain(store: Store) -> None:
    """Lines appended at once by many threads stand one after the other in an unbroken chain."""
    at_once(16, lambda number: [line(store, f"d-{number}-{again}") for again in range(5)])
    assert store.verify_chain() == 80


# --- endorsements ---


def endorsement(name: str, edition: str = "", *, data: bytes = b"\x30", kept: bool = False, at: int = NOW) -> Any:
    return StoredEndorsement(name, data, edition, kept, at, None if edition == "" else at + 1)


def test_endorsements_are_found_by_name(store: Store) -> None:
    """What was stored comes back whole under its name, alone, among others, and in the list of all."""
    first, second = endorsement("amd/b"), endorsement("amd/a", "02", kept=True)
    for one in (first, second):
        assert store.put_endorsement(one, most=9)
    assert store.endorsements(["amd/a", "amd/b", "amd/c"]) == {"amd/a": second, "amd/b": first}
    assert store.endorsements([]) == {}
    assert store.all_endorsements() == [second, first]


def test_older_edition_never_replaces_a_newer_one(store: Store) -> None:
    """Of one name the newest edition stays; the same edition may be stored again, and then counts as fresh."""
    for edition, at, stored in (("02", NOW, True), ("01", NOW + 1, False), ("02", NOW + 2, True), ("03", NOW, True)):
        new = endorsement("amd/crl", edition, data=edition.encode(), at=at)
        assert store.put_endorsement(new, most=9) is stored
        assert (store.endorsements(["amd/crl"])["amd/crl"] == new) is stored
    assert store.endorsements(["amd/crl"])["amd/crl"].data == b"03"


def test_what_was_kept_stays_kept(store: Store) -> None:
    """A fetched issue of an imported thing replaces its bytes, and it is still never dropped."""
    store.put_endorsement(endorsement("amd/a", kept=True), most=9)
    store.put_endorsement(endorsement("amd/a", data=b"new"), most=0)
    assert store.endorsements(["amd/a"])["amd/a"] == endorsement("amd/a", data=b"new", kept=True)


def test_only_the_oldest_of_what_was_not_kept_goes(store: Store) -> None:
    """Beyond the limit the oldest fetched ones are dropped, and no imported one, however many there are."""
    for number in range(3):
        store.put_endorsement(endorsement(f"kept-{number}", kept=True, at=NOW - 9), most=2)
    for number in (2, 0, 1):
        store.put_endorsement(endorsement(f"fetched-{number}", at=NOW + number), most=2)
    names = [one.name for one in store.all_endorsements()]
    assert names == ["fetched-1", "fetched-2", "kept-0", "kept-1", "kept-2"]


def test_what_is_fetched_anew_makes_no_room(store: Store) -> None:
    """Revocation lists are few and their editions must not go back: however much else is fetched, they stay."""
    store.put_endorsement(replace(endorsement("amd/crl", "02"), fresh_until=NOW + 1), most=1)
    for number in range(3):
        store.put_endorsement(endorsement(f"amd/{number}", at=NOW + 1 + number), most=1)
    assert [one.name for one in store.all_endorsements()] == ["amd/2", "amd/crl"]
    assert not store.put_endorsement(endorsement("amd/crl", "01"), most=1)


def test_pauses_are_remembered_until_they_expire(store: Store) -> None:
    """A pause is found by its name until it is lifted, replaced or purged."""
    pause, other = FetchPause(3, True, NOW + 1, NOW + 2), FetchPause(1, False, NOW, NOW + 3)
    store.pause("amd/", pause)
    store.pause("amd/a", other)
    assert store.pauses(["amd/", "amd/a", "amd/b"]) == {"amd/": pause, "amd/a": other}
    store.pause("amd/", other)
    assert store.pauses(["amd/"]) == {"amd/": other}
    store.pause("amd/", None)
    assert store.pauses(["amd/"]) == {}
    store.purge(NOW + 2)
    assert store.pauses(["amd/a"]) == {"amd/a": other}
    store.purge(NOW + 3)
    assert store.pauses(["amd/a"]) == {}


# --- the whole ---


def test_store_is_ready(store: Store) -> None:
    """A store that can be written is ready, as often as it is asked."""
    store.ready()
    store.ready()


def test_text_without_utf8_form_is_refused(store: Store) -> None:
    """A lone surrogate, in a body or beside it, is a protocol error and writes nothing."""
    with pytest.raises(ProtocolError):
        store.append(id_="d-1", owner="", at=0, kind="", verdict="", subject="", body={"a": "\ud800"})
    with pytest.raises(ProtocolError):
        store.append(id_="d-1", owner="", at=0, kind="", verdict="", subject="\ud800", body={})
    with pytest.raises(ProtocolError):
        store.key("\ud800", "disk", "web")
    assert store.verify_chain() == 0


def test_closed_store_is_misuse(store: Store) -> None:
    """Nothing is read from or written to a closed store; closing it again does no harm."""
    store.close()
    store.close()
    with pytest.raises(RuntimeError):
        store.session("s")
    with pytest.raises(RuntimeError):
        store.put_session("s", BODY, FOREVER)


def test_unknown_kind_of_store_is_refused() -> None:
    """A URL of a store that does not exist is a config error, and shows no password that it may hold."""
    with pytest.raises(ConfigError) as caught:
        open_store("mysql://user:password@host/db")
    assert caught.value.found == "mysql"
