# SPDX-License-Identifier: Apache-2.0
"""Guests are enrolled, not assumed: tickets, the queue, revocation, clones, failures that stick, and distrust."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from broker import attestation, ledger, release, session
from broker.appraisal.distrust import Distrust, check_distrust, hit, parse_distrust
from broker.appraisal.instances import Instance, Standing
from broker.claims import Claims
from broker.store.protocols import Record, RecordKind, StoredTicket
from broker.trace import Trace
from keys.errors import Conflict, NotFound, ProtocolError, ReleaseDenied
from keys.messages import Request, ResourcePath
from keys.tee import Tee
from tests.fakes.boot import Boot
from tests.fakes.desk import KEY, Desk, open_desk
from tests.fakes.ek_ca import EkCa
from tests.fakes.house import House, draft
from tests.fakes.tpm_guest import FakeTpm, Guest

TICKET = "a-ticket-of-32-random-bytes"
SECRET = b"the secret"


class Visitor(Guest):
    """A guest that shows a ticket."""

    ticket: str | None = None

    def request(self, resource: ResourcePath | None = None) -> Request:
        return super().request(resource)._replace(ticket=self.ticket)


def machine(house: House, boot: Boot | None = None) -> FakeTpm:
    tpm = FakeTpm(house.ca)
    tpm.boot(boot or Boot())
    return tpm


def visitor(tpm: FakeTpm, ticket: str | None = None) -> Visitor:
    guest = Visitor(tpm, declare=True)
    guest.ticket = ticket
    return guest


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """acme gives its key to whoever is enrolled and runs debian."""
    with House(tmp_path) as house:
        house.owner("acme")
        house.key(KEY, SECRET)
        house.image("acme", "debian", draft(machine(house)))
        house.put(RecordKind.RULE, "acme", "disk/root", rule())
        yield house


def rule(**options: object) -> dict[str, object]:
    return {"images": ["debian"], "platforms": ["tpm"], "instances": ["enrolled"]} | options


def ticket(house: House, text: str = TICKET, **changes: object) -> None:
    stored = StoredTicket(
        session.ticket_name(text), "acme", "web-1", KEY, "debian", house.now, "alice", house.now + 60_000
    )
    house.store.put_ticket(replace(stored, **changes))  # type: ignore[arg-type]


def denied(house: House, guest: Guest, path: str = KEY) -> list[str]:
    """The names of the checks that failed."""
    with pytest.raises(ReleaseDenied) as caught:
        house.flow(guest, path)
    assert str(caught.value) == "the key is not released to this guest"
    line = house.store.entry("acme", str(caught.value.decision))
    return [check["name"] for check in line.body["trace"] if check["verdict"] == "failed"]


def instance(house: House, name: str) -> Instance:
    return Instance.from_body(house.store.record(RecordKind.INSTANCE, "acme", name).body or {})


def test_a_ticket_enrols_one_guest_once(house: House) -> None:
    """The first guest with the ticket gets the key and is enrolled for it; it needs no ticket again, others cannot use
    it.
    """
    ticket(house)
    first, second = machine(house), machine(house)
    assert house.flow(visitor(first, TICKET), KEY) == SECRET
    assert instance(house, "web-1").bound == (KEY, "debian", None)
    stored = house.store.ticket(session.ticket_name(TICKET))
    assert stored is not None
    assert stored.used_by is not None
    assert house.flow(visitor(first), KEY) == SECRET
    assert denied(house, visitor(second, TICKET)) == ["ticket is good, and for this key"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"expires_at": 1}, "ticket is good, and for this key"),
        ({"owner": "globex"}, "ticket is good, and for this key"),
        ({"key": "acme/disk/other"}, "ticket is good, and for this key"),
        ({"image": "fedora"}, "guest web-1 runs the image that it was enrolled for"),
    ],
)
def test_a_ticket_that_does_not_fit_is_worth_nothing(house: House, changes: dict[str, object], name: str) -> None:
    """Expired, another owner's, another key's or image's: denied, nobody enrolled, and the ticket is not used up."""
    ticket(house, **changes)
    assert denied(house, visitor(machine(house), TICKET)) == [name]
    assert house.store.records(RecordKind.INSTANCE, "acme") == []
    stored = house.store.ticket(session.ticket_name(TICKET))
    assert stored is not None
    assert stored.used_at is None


def test_a_ticket_that_was_never_issued_is_worth_nothing(house: House) -> None:
    """An invented text is like none, and the guest does not even wait."""
    assert denied(house, visitor(machine(house), "invented")) == ["ticket is good, and for this key"]
    assert house.store.records(RecordKind.INSTANCE, "acme") == []


def test_a_name_that_is_taken_meanwhile_enrols_nobody(house: House) -> None:
    """The owner gave the ticket's name to another machine: denied, and the ticket is as it was."""
    ticket(house)
    house.instance("acme", "web-1", machine(house), by="ek")
    assert denied(house, visitor(machine(house), TICKET)) == ["the guest is enrolled"]


def race(house: House, guests: list[Visitor]) -> list[bytes | None]:
    """What each of these gets, all asking at the same moment; they have attested before."""
    sessions = []
    for guest in guests:
        issued = session.issue(guest.request(), house.services, now=house.now)
        attestation.attest(issued.session_id, guest.attestation(issued.challenge), house.services, now=house.now)
        sessions.append(issued.session_id)
    got: list[bytes | None] = [None] * len(guests)
    start = threading.Barrier(len(guests))

    def ask(number: int) -> None:
        start.wait()
        with suppress(ReleaseDenied):
            got[number] = guests[number].open(house.release(KEY, sessions[number]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(guests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def test_of_two_guests_with_one_ticket_exactly_one_wins(house: House) -> None:
    """At the same moment, again and again: one gets the key and the name, the other nothing."""
    for number in range(10):
        text = f"ticket-{number}"
        ticket(house, text, guest=f"web-{number}")
        got = race(house, [visitor(machine(house), text) for _ in range(2)])
        assert sorted(one is None for one in got) == [False, True]
        assert instance(house, f"web-{number}").standing is Standing.ENROLLED


def test_of_many_redemptions_in_the_store_exactly_one_is_done(house: House) -> None:
    """Straight on the store, from twenty threads: one True, and one record."""
    ticket(house)
    record = Record(RecordKind.INSTANCE, "acme", "web-1", 1, Instance(("tpm-ek:01",)).to_body(), house.now, "broker")
    won: list[bool] = []

    def redeem() -> None:
        won.append(house.store.redeem_ticket(session.ticket_name(TICKET), "x", house.now, record, ["tpm-ek:01"]))

    threads = [threading.Thread(target=redeem) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 19 + [True]
    assert not house.store.redeem_ticket("gone", "x", house.now, record, [])


def test_a_redemption_whose_record_conflicts_leaves_the_ticket(house: House) -> None:
    """Both or neither: where the record is not the next version the ticket stays unused."""
    ticket(house)
    record = Record(RecordKind.INSTANCE, "acme", "web-1", 7, Instance(("tpm-ek:01",)).to_body(), house.now, "broker")
    assert not house.store.redeem_ticket(session.ticket_name(TICKET), "x", house.now, record, [])
    stored = house.store.ticket(session.ticket_name(TICKET))
    assert stored is not None
    assert stored.used_at is None


def test_who_nobody_knows_waits_and_comes_in_when_approved(house: House) -> None:
    """The first request puts the guest into the queue, the second finds it there; approved it is let in."""
    tpm = machine(house)
    assert denied(house, visitor(tpm)) == ["release rule names the instance"]
    [record] = house.store.records(RecordKind.INSTANCE, "acme")
    assert instance(house, record.name).standing is Standing.PENDING
    assert denied(house, visitor(tpm)) == [f"guest {record.name} is enrolled"]
    assert len(house.store.records(RecordKind.INSTANCE, "acme")) == 1
    body = replace(instance(house, record.name), standing=Standing.ENROLLED).to_body()
    house.put(RecordKind.INSTANCE, "acme", record.name, body)
    assert house.flow(visitor(tpm), KEY) == SECRET


def test_the_queue_has_an_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """When as many wait as may, the next is denied and not kept."""
    monkeypatch.setattr(release, "MAX_PENDING", 1)
    denied(house, visitor(machine(house)))
    denied(house, visitor(machine(house)))
    assert len(house.store.records(RecordKind.INSTANCE, "acme")) == 1


def test_first_use_enrols_only_where_the_rule_says_so(house: House) -> None:
    """`unsafe_first_use`: the first one is let in and enrolled for this key; without it, nobody is."""
    house.put(RecordKind.RULE, "acme", "disk/root", rule(unsafe_first_use=True))
    tpm = machine(house)
    assert house.flow(visitor(tpm), KEY) == SECRET
    [record] = house.store.records(RecordKind.INSTANCE, "acme")
    assert instance(house, record.name).bound == (KEY, "debian", None)
    house.put(RecordKind.RULE, "acme", "disk/root", rule())
    assert house.flow(visitor(tpm), KEY) == SECRET


def test_two_first_uses_at_once_enrol_the_machine_once(house: House) -> None:
    """The same unknown machine in two sessions at one moment: nobody is enrolled twice, whoever is second is denied or
    known by then.
    """
    house.put(RecordKind.RULE, "acme", "disk/root", rule(unsafe_first_use=True))
    tpm = machine(house)
    got = race(house, [visitor(tpm) for _ in range(4)])
    assert SECRET in got
    [record] = house.store.records(RecordKind.INSTANCE, "acme")
    assert record.version == 1


def test_a_failure_sticks_until_the_owner_acts(house: House) -> None:
    """With `sticky_failure` one boot of another kernel keeps the guest out, also when it boots the right one again."""
    house.put(RecordKind.RULE, "acme", "disk/root", rule(sticky_failure=True))
    tpm = machine(house)
    house.instance("acme", "web-1", tpm, by="ek")
    assert house.flow(visitor(tpm), KEY) == SECRET
    tpm.power_cycle()
    tpm.boot(Boot(kernel=b"another"))
    assert "guest web-1 is enrolled" not in denied(house, visitor(tpm))
    tpm.power_cycle()
    tpm.boot(Boot())
    assert denied(house, visitor(tpm)) == ["guest web-1 is enrolled"]
    assert instance(house, "web-1").standing is Standing.FAILED


def test_a_guest_that_was_changed_in_this_moment_is_left_as_its_owner_put_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revoked between the judgement and its consequence: the owner's word stays."""
    house.put(RecordKind.RULE, "acme", "disk/root", rule(sticky_failure=True))
    tpm = machine(house, Boot(kernel=b"another"))
    house.instance("acme", "web-1", tpm, by="ek")
    read = house.store.record

    def and_then_revoke(kind: RecordKind, owner: str, name: str, version: int | None = None) -> Record:
        record = read(kind, owner, name, version)
        if kind is RecordKind.INSTANCE:
            monkeypatch.undo()
            house.put(kind, owner, name, (record.body or {}) | {"standing": "revoked"})
        return record

    monkeypatch.setattr(house.store, "record", and_then_revoke)
    denied(house, visitor(tpm))
    assert instance(house, "web-1").standing is Standing.REVOKED


def test_who_waits_already_under_that_name_is_left_alone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions of one unknown guest, judged at the same moment: the second leaves the record of the first."""
    tpm = machine(house)
    denied(house, visitor(tpm))
    monkeypatch.setattr("broker.gather.known_guests", lambda *_: ())
    denied(house, visitor(tpm))
    [record] = house.store.records(RecordKind.INSTANCE, "acme")
    assert record.version == 1


@pytest.mark.parametrize(("clones", "standing"), [("refuse", "enrolled"), ("quarantine", "quarantined")])
def test_a_clone_is_refused_or_quarantined(house: House, clones: str, standing: str) -> None:
    """One identity in two sessions while the first's lease is live: denied; when it is over, or after a quarantine the
    owner's word, it may come again.
    """
    house.put(RecordKind.RULE, "acme", "disk/root", rule(clones=clones, lease_s=60))
    tpm = machine(house)
    house.instance("acme", "web-1", tpm, by="ek")
    guest = visitor(tpm)
    session_id, _ = house.attest(guest)
    assert guest.open(house.release(KEY, session_id)) == SECRET
    assert guest.open(house.release(KEY, session_id)) == SECRET  # the same session may ask again
    assert denied(house, visitor(tpm)) == ["no other release to the same guest is live"]
    assert instance(house, "web-1").standing == standing
    house.now += 60_001
    if clones == "refuse":
        assert house.flow(visitor(tpm), KEY) == SECRET
    else:
        assert denied(house, visitor(tpm)) == ["guest web-1 is enrolled"]


def test_of_two_clones_at_once_exactly_one_gets_the_key(house: House) -> None:
    """Two sessions of one identity at the same moment: one lease, one key."""
    house.put(RecordKind.RULE, "acme", "disk/root", rule(clones="refuse"))
    tpm = machine(house)
    house.instance("acme", "web-1", tpm, by="ek")
    got = race(house, [visitor(tpm) for _ in range(4)])
    assert sorted(one is None for one in got) == [False, True, True, True]


def test_leases_end_at_their_owners_word(house: House) -> None:
    """A lease is one holder's until its time; ended or over, it is the next one's; others' stay."""
    store, now = house.store, house.now
    assert store.take_lease("acme/web-1 a", "x", now, now + 10)
    assert store.take_lease("acme/web-1 a", "x", now, now + 20)
    assert not store.take_lease("acme/web-1 a", "y", now, now + 10)
    assert store.take_lease("acme/web-10 a", "x", now, now + 10)
    store.end_leases("acme/web-1 ")
    assert store.lease("acme/web-1 a") is None
    assert store.lease("acme/web-10 a") is not None
    assert store.take_lease("acme/web-10 a", "y", now + 10, now + 20)


# --- distrust ---

SNP = Claims(
    Tee.SNP,
    ("snp-chip:" + "ab" * 8,),
    "vcek",
    {},
    {"product": "Genoa", "reported_tcb_snp": 23, "reported_tcb_microcode": 90, "chip_id": "cd" * 8},
)


@pytest.mark.parametrize(
    ("kind", "value", "found"),
    [
        ("platform", "SNP", "snp"),
        ("platform", "tpm", None),
        ("product", "genoa", "Genoa"),
        ("product", "Milan", None),
        ("chip", "AB" * 8, "snp-chip:" + "ab" * 8),
        ("chip", "cd" * 8, "snp-chip:" + "cd" * 8),
        ("chip", "ef" * 8, None),
        ("tcb-below", "genoa snp=24", "Genoa snp=23"),
        ("tcb-below", "Genoa snp=23 microcode=91", "Genoa microcode=90"),
        ("tcb-below", "Genoa snp=23", None),
        ("tcb-below", "Milan snp=99", None),
        ("tcb-below", "Genoa bootloader=1", "Genoa bootloader=None"),
        ("image", "web", "web@2"),
        ("image", "web@2", "web@2"),
        ("image", "web@1", None),
        ("image", "we", None),
    ],
)
def test_each_kind_of_distrust_hits_what_it_names(kind: str, value: str, found: str | None) -> None:
    """Platform, product line, chip, TCB component by component, image by name or version; nothing else."""
    distrust = parse_distrust(kind, value, "why")
    assert hit(distrust, SNP, "web@2") == found
    trace = Trace()
    assert check_distrust([distrust], SNP, "web@2", trace) is (found is None)
    assert bool(trace.failed) is (found is not None)
    if found is not None:
        assert f"roomkey distrust undo '{distrust.name}'" in trace.failed[0].mend


def test_without_an_image_or_a_product_nothing_of_that_kind_is_hit() -> None:
    """A guest that runs none of the images, or a machine without a product line, is not what was meant."""
    assert hit(Distrust("image", "web"), SNP, None) is None
    assert hit(Distrust("product", "Genoa"), replace(SNP, facts={}), None) is None
    trace = Trace()
    check_distrust([Distrust("product", "Genoa")], SNP, None, trace)
    assert trace.failed[0].found == "Genoa"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("moon", "x"),
        (1, "x"),
        ("platform", "moon"),
        ("product", "Zen"),
        ("chip", "xyz"),
        ("chip", "ab" * 9),
        ("tcb-below", ""),
        ("tcb-below", "Genoa"),
        ("tcb-below", "Zen snp=1"),
        ("image", "web@0"),
        ("image", "we b"),
        ("image", 1),
    ],
)
def test_what_cannot_be_distrusted_is_refused(kind: object, value: object) -> None:
    """Unknown kinds and values of the wrong form."""
    with pytest.raises(ProtocolError):
        parse_distrust(kind, value)


# --- at the desk ---


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


def enrolled(desk: Desk, tmp_path: Path) -> FakeTpm:
    tpm = FakeTpm(EkCa())
    tpm.boot(Boot())
    desk.run("key", "generate", KEY)
    (tmp_path / "ak").write_bytes(tpm.ak_public)
    (tmp_path / "image.toml").write_text(draft(tpm))
    desk.run("instance", "add", "web-1", "--ak-public", tmp_path / "ak")
    desk.run("image", "put", "debian", tmp_path / "image.toml")
    desk.run("rule", "set", KEY, "--image", "debian", "--instance", "enrolled")
    return tpm


def refuses(desk: Desk, tpm: FakeTpm) -> None:
    with pytest.raises(ReleaseDenied):
        desk.ask(tpm)


def test_a_guest_is_revoked_and_readmitted(desk: Desk, tmp_path: Path) -> None:
    """From the next request on, a session that has attested included; readmitted it gets its key again."""
    tpm = enrolled(desk, tmp_path)
    guest, now = Guest(tpm), desk.services.clock()
    issued = session.issue(guest.request(ResourcePath.parse(KEY)), desk.services, now=now)
    attestation.attest(issued.session_id, guest.attestation(issued.challenge), desk.services, now=now)
    told = desk.run("guest", "revoke", "web-1", "--why", "stolen", stdin="web-1\n")
    assert KEY in told.stderr
    assert "guest web-1 is revoked" in told.stdout
    with pytest.raises(ReleaseDenied):
        release.release(ResourcePath.parse(KEY), desk.services, session_id=issued.session_id, token=None, now=now)
    assert "stolen" in desk.run("guest", "list").stdout
    desk.run("instance", "add", "web-1", "--ak-public", tmp_path / "ak", status=21)
    desk.run("guest", "revoke", "web-1", "--yes", status=21)
    desk.run("guest", "readmit", "web-1", "--why", "found again")
    assert desk.ask(tpm)
    assert [one["standing"] for one in desk.json("guest", "list")] == ["enrolled"]


def test_tickets_are_issued_listed_and_withdrawn(desk: Desk, tmp_path: Path) -> None:
    """The text is shown once, in a private file if wanted; the list has only its name; withdrawn it is gone."""
    enrolled(desk, tmp_path)
    words = ("--key", KEY, "--image", "debian")
    issued = desk.run("guest", "ticket", "web-2", *words)
    assert "--ticket FILE" in issued.stderr
    desk.run("guest", "ticket", "web-3", *words, "--output", tmp_path / "web-3.ticket")
    assert (tmp_path / "web-3.ticket").stat().st_mode & 0o777 == 0o600
    listed = desk.json("guest", "tickets")
    assert {one["name"] for one in listed} == {
        session.ticket_name(text.strip()) for text in (issued.stdout, (tmp_path / "web-3.ticket").read_text())
    }
    assert issued.stdout.strip() not in desk.run("guest", "tickets").stdout
    desk.run("guest", "withdraw", listed[0]["name"])
    desk.run("guest", "withdraw", listed[0]["name"], status=15)
    assert len(desk.json("guest", "tickets")) == 1
    desk.run("guest", "ticket", "web-1", *words, status=21)
    desk.run("guest", "ticket", "web-4", "--key", "globex/disk/root", "--image", "debian", status=15)
    desk.run("guest", "ticket", "web-4", "--key", KEY, "--image", "debian@x", status=10)
    desk.run("guest", "ticket", "any", *words, status=10)


def test_the_queue_is_seen_and_answered(desk: Desk, tmp_path: Path) -> None:
    """Approve under a new name, deny, and what cannot be done says why."""
    enrolled(desk, tmp_path)
    store, now = desk.services.store, desk.services.clock()
    for number in range(3):
        waiting = Instance((f"tpm-ek:0{number}",), standing=Standing.PENDING)
        store.put_record(
            Record(RecordKind.INSTANCE, "acme", f"g-{number}", 1, waiting.to_body(), now, "broker"), waiting.ids
        )
    assert len(desk.json("guest", "list", "--pending")) == 3
    desk.run("guest", "approve", "g-0", "--as", "web-1", status=21)
    assert "guest web-7 is enrolled" in desk.run("guest", "approve", "g-0", "--as", "web-7").stdout
    assert [record.name for record in store.by_alias(RecordKind.INSTANCE, "tpm-ek:00")] == ["web-7"]
    desk.run("guest", "deny", "g-1", "--why", "not ours")
    desk.run("guest", "deny", "g-1", status=21)
    assert "guest g-1 is enrolled" in desk.run("guest", "approve", "g-1").stdout
    desk.run("guest", "readmit", "g-2", status=21)
    desk.run("guest", "approve", "nobody", status=15)


def test_distrust_is_previewed_put_listed_and_undone(desk: Desk, tmp_path: Path) -> None:
    """The preview names who got a key and would not again; from then on it is refused; undone it is let in."""
    tpm = enrolled(desk, tmp_path)
    assert desk.ask(tpm)
    assert "Nobody" in desk.run("distrust", "product", "milan", stdin="n\n", status=1).stdout
    shown = desk.run("distrust", "platform", "tpm", "--why", "a hole", stdin="y\n")
    assert "web-1" in shown.stdout
    assert "platform:tpm is distrusted" in shown.stdout
    refuses(desk, tpm)
    assert "a hole" in desk.run("distrust", "list").stdout
    desk.run("distrust", "undo", "platform:tpm")
    assert desk.ask(tpm)
    assert desk.json("distrust", "list") == []
    desk.run("distrust", "undo", "platform:tpm", status=15)
    desk.run("distrust", "image", "debian@1", "--yes")
    refuses(desk, tpm)


def test_one_thing_is_distrusted_under_one_name(desk: Desk) -> None:
    """However its components are ordered and spelled; it is undone by what was printed, spaces and all."""
    first = desk.run("distrust", "tcb-below", "genoa microcode=90 snp=024", "--yes").stdout
    desk.run("distrust", "tcb-below", " Genoa  snp=24 microcode=90", "--yes")
    [listed] = desk.json("distrust", "list")
    assert listed["name"] == "tcb-below:Genoa snp=24 microcode=90"
    assert listed["name"] in first
    desk.run("distrust", "undo", listed["name"])
    assert desk.json("distrust", "list") == []


def test_distrust_reaches_who_has_attested_already_and_nobody_elses_guests(house: House) -> None:
    """A guest between attestation and key is refused by the owner who distrusts it; another owner's key it gets."""
    house.owner("globex")
    house.key("globex/disk/root", SECRET)
    tpm = machine(house)
    for owner in ("acme", "globex"):
        house.image(owner, "debian", draft(tpm))
        house.rule(f"{owner}/disk/root", images=["debian"])
    guest = Guest(tpm, declare=True)
    session_id, _ = house.attest(guest)
    house.put(RecordKind.DISTRUST, "acme", "platform:tpm", {"kind": "platform", "value": "tpm", "why": ""})
    with pytest.raises(ReleaseDenied):
        house.release(KEY, session_id)
    assert guest.open(house.release("globex/disk/root", session_id)) == SECRET


def test_what_is_not_there_cannot_be_withdrawn_from_the_store(house: House) -> None:
    """Another owner's ticket is like none, and an unknown one is None."""
    ticket(house)
    with pytest.raises(NotFound):
        house.store.delete_ticket("globex", session.ticket_name(TICKET))
    assert house.store.ticket("none") is None
    assert [one.guest for one in house.store.tickets("acme")] == ["web-1"]


def test_every_consequence_leaves_its_line(house: House) -> None:
    """What became of the guest stands in the decision's line."""
    ticket(house)
    house.flow(visitor(machine(house), TICKET), KEY)
    [line] = house.lines("acme", ledger.RELEASE)
    assert (line.body["act"], line.body["guest"]) == ("redeem", "web-1")


def test_a_first_use_that_comes_second_enrols_nobody(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the record cannot be put because another was quicker, the guest is denied."""
    house.put(RecordKind.RULE, "acme", "disk/root", rule(unsafe_first_use=True))

    def quicker(*_: object) -> None:
        raise Conflict("changed meanwhile")

    monkeypatch.setattr(house.store, "put_record", quicker)
    assert denied(house, visitor(machine(house))) == ["the guest is enrolled"]
