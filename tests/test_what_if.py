# SPDX-License-Identifier: Apache-2.0
"""What if: recorded decisions judged again under what is not in force yet, exactly as they would be then."""

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from broker import ledger, what_if
from broker.appraisal.images import Image, parse_image
from broker.appraisal.judge import judge
from broker.appraisal.rules import Rule, read_rule
from broker.gather import Attested, gather
from broker.store.protocols import RecordKind
from broker.trace import Trace
from keys.errors import ReleaseDenied
from keys.messages import ResourcePath
from tests.fakes.boot import Boot
from tests.fakes.desk import KEY, Desk, open_desk
from tests.fakes.house import House, draft
from tests.fakes.tpm_guest import FakeTpm, Guest

PATHS = ("acme/disk/root", "acme/disk/other")
DECISIONS = 10_000
MAX_SECONDS = 10.0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path) as house:
        house.owner("acme")
        house.repeatable = False  # some of the decisions are made up
        yield house


def rule(**lists: Any) -> Rule:
    return read_rule({"images": ["debian"], "platforms": ["tpm"], "instances": ["any"]} | lists)


def tried(house: House, *, rules: dict[str, Rule] | None = None, images: dict[str, Image] | None = None) -> Any:
    candidate = what_if.Candidate(rules or {}, images or {})
    return what_if.what_if("acme", candidate, house.store, since=0, now=house.now)


def ask(house: House, tpm: FakeTpm, path: str) -> None:
    with suppress(ReleaseDenied):
        house.flow(Guest(tpm, declare=True), path)


def some_day(house: House) -> list[FakeTpm]:
    """Three machines, two boots, two keys of which the second has a rule for one machine by name."""
    machines = [FakeTpm(house.ca) for _ in range(3)]
    for tpm in machines:
        tpm.boot(Boot())
    for path in PATHS:
        house.key(path, b"secret")
    house.image("acme", "debian", draft(machines[0]))
    house.instance("acme", "web-1", machines[0], by="ek")
    house.rule(PATHS[0], images=["debian"])
    house.rule(PATHS[1], images=["debian"], instances=["web-1"])
    for tpm in machines:
        for path in PATHS:
            ask(house, tpm, path)
    machines[2].power_cycle()
    machines[2].boot(Boot(kernel=b"another"))
    for path in PATHS:
        ask(house, machines[2], path)
    return machines


def test_a_narrower_rule_names_who_would_be_refused(house: House) -> None:
    """By guest, key and decision, with the check that would fail; who is refused anyway is not named."""
    some_day(house)
    report = tried(house, rules={PATHS[0]: rule(instances=["web-1"])})
    assert (report.looked_at, report.judged, report.let_in) == (8, 4, [])
    assert {turned.key for turned in report.refused} == {PATHS[0]}
    assert {turned.reason for turned in report.refused} == {"release rule names the instance"}
    assert len(report.refused) == 2
    assert len({turned.guest for turned in report.refused}) == 2
    recorded = {line.id: line for line in house.lines("acme", ledger.RELEASE)}
    assert all(recorded[turned.decision].verdict == "released" for turned in report.refused)
    assert all(recorded[turned.decision].at == turned.at for turned in report.refused)


def test_a_wider_rule_names_who_would_be_let_in(house: House) -> None:
    """The two machines with the right image would come in; the one with another kernel would not."""
    some_day(house)
    report = tried(house, rules={PATHS[1]: rule()})
    assert (len(report.let_in), report.refused) == (2, [])
    assert {turned.reason for turned in report.let_in} == {""}


def test_an_image_is_tried_as_the_newest_version(house: House) -> None:
    """Guests of the version that is in force would be refused by a bare name, and those of the new one let in."""
    _, _, other = some_day(house)
    report = tried(house, images={"debian": parse_image(draft(other))})
    assert {turned.key for turned in report.refused} == set(PATHS)
    assert [turned.key for turned in report.let_in] == [PATHS[0]]
    assert tried(house, images={"unused": parse_image(draft(other))}).judged == 0


def test_what_changes_nothing_is_not_even_judged(house: House) -> None:
    """The rule that is in force already, tried: nobody turned, nothing judged."""
    some_day(house)
    report = tried(house, rules={PATHS[0]: rule()})
    assert (report.looked_at, report.judged, report.refused, report.let_in) == (8, 0, [], [])


def test_older_decisions_are_left_out(house: House) -> None:
    """Only what was asked since the given time counts."""
    some_day(house)
    candidate = what_if.Candidate({PATHS[0]: rule(instances=["web-1"])}, {})
    assert what_if.what_if("acme", candidate, house.store, since=house.now + 1, now=house.now + 1).looked_at == 0


def test_a_key_without_a_rule_lets_nobody_in_and_a_tried_one_may(house: House) -> None:
    """No rule in force is a denial on that side; with the candidate's the same requests are judged by it."""
    some_day(house)
    house.put(RecordKind.RULE, "acme", "disk/root", None)
    assert len(tried(house, rules={PATHS[0]: rule()}).let_in) == 3


def test_nothing_changes_by_trying(house: House) -> None:
    """No line, no record, no guest: the store is as it was."""
    some_day(house)
    before = [house.lines("acme"), *(house.store.records(kind, "acme") for kind in RecordKind)]
    tried(house, rules={PATHS[0]: rule(instances=["enrolled"], unsafe_first_use=True)})
    assert [house.lines("acme"), *(house.store.records(kind, "acme") for kind in RecordKind)] == before


def fleet(house: House) -> None:
    """Ten thousand recorded requests of 60 machines with boots that differ in one PCR or none."""
    machines = [FakeTpm(house.ca) for _ in range(3)]
    for tpm in machines:
        tpm.boot(Boot())
    for path in PATHS:
        house.key(path, b"secret")
        house.rule(path, images=["debian"])
    house.image("acme", "debian", draft(machines[0]))
    house.instance("acme", "web-1", machines[0], by="ek")
    ask(house, machines[0], PATHS[0])
    [line] = house.lines("acme", ledger.RELEASE)
    chance = random.Random(4)
    good = dict(line.body["claims"]["measurements"])
    for number in range(DECISIONS - 1):
        guest = f"tpm-ek:{chance.randrange(60):064x}"
        claims = line.body["claims"] | {
            "instance_ids": [guest],
            "measurements": good | ({"sha256:9": f"{chance.randrange(3):064x}"} if chance.random() < 0.4 else {}),
            "trust": chance.choice(("ek-certificate", "ek-certificate", "enrolled")),
        }
        body = line.body | {"claims": claims, "key": chance.choice(PATHS), "instances": [guest], "trace": []}
        house.store.append(id_=f"d-{number:020}", owner="acme", at=house.now, kind=ledger.RELEASE,
                           verdict="denied", subject=guest, body=body)  # fmt: skip


def brute_force(house: House) -> dict[str, bool]:
    """Every decision's verdict as the broker would judge it now, looked up one by one."""
    verdicts = {}
    for line in house.store.entries("acme", kinds=[ledger.RELEASE], limit=2 * DECISIONS):
        claims = what_if.recorded_claims(line.body)
        attested = Attested(claims, Trace(), None, "", line.at, line.at, "", line.body["evidence"])
        case, _ = gather(ResourcePath.parse(line.body["key"]), attested, house.services, now=house.now)
        verdicts[line.id] = judge(case, Trace()).allowed
    return verdicts


@pytest.mark.slow
def test_ten_thousand_decisions_are_judged_exactly_and_soon(house: House) -> None:
    """The report says what judging each of them before and after the change says, and it says it within ten seconds."""
    fleet(house)
    text = draft_with(house, "sha256:9", f"{1:064x}")
    began = perf_counter()
    by_image = tried(house, images={"debian": parse_image(text)})
    by_rule = tried(house, rules={PATHS[0]: rule(instances=["web-1"])})
    assert (perf_counter() - began) / 2 < MAX_SECONDS
    assert by_image.looked_at == DECISIONS
    before = brute_force(house)
    house.rule(PATHS[0], images=["debian"], instances=["web-1"])
    compare(by_rule, before, brute_force(house))
    house.rule(PATHS[0], images=["debian"])
    house.image("acme", "debian", text)
    compare(by_image, before, brute_force(house))


def draft_with(house: House, register: str, value: str) -> str:
    """The image that is in force, with another value in one PCR."""
    body = house.store.record(RecordKind.IMAGE, "acme", "debian").body or {}
    index = register.partition(":")[2]
    lines = ['platform = "tpm"', "[tpm]", 'bank = "sha256"', "[tpm.pcrs]"]
    for name, held in body["registers"].items():
        lines.append(
            f'{name.partition(":")[2]} = "{held["values"][0]}"' if name != register else f'{index} = "{value}"'
        )
    return "\n".join(lines) + "\n"


def compare(report: what_if.Report, before: dict[str, bool], after: dict[str, bool]) -> None:
    assert {turned.decision for turned in report.refused} == {one for one in before if before[one] and not after[one]}
    assert {turned.decision for turned in report.let_in} == {one for one in before if after[one] and not before[one]}
    assert report.refused or report.let_in


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


def test_the_commands_tell_who_it_would_touch(desk: Desk, tmp_path: Path) -> None:
    """`rule try` and `image try` name the guest and the check; with nobody touched they say so, and store nothing."""
    tpm = FakeTpm()
    tpm.boot(Boot())
    desk.run("key", "generate", KEY)
    (tmp_path / "ak").write_bytes(tpm.ak_public)
    (tmp_path / "image.toml").write_text(draft(tpm))
    desk.run("instance", "add", "web-1", "--ak-public", tmp_path / "ak")
    desk.run("image", "put", "debian", tmp_path / "image.toml")
    desk.run("rule", "set", KEY, "--image", "debian", "--instance", "web-1")
    desk.ask(tpm)
    shown = desk.run("rule", "try", KEY, "--image", "debian", "--instance", "web-2").stdout
    assert "1 requests in that time, 1 of them" in shown
    assert "Newly refused (1 guest)" in shown
    assert "release rule names the instance" in shown
    assert tpm.ak_name.hex() in shown
    assert "Nobody would newly be let in." in shown
    assert desk.json("rule", "try", KEY, "--image", "debian", "--instance", "web-1")["judged"] == 0
    tpm.power_cycle()
    tpm.boot(Boot(kernel=b"another"))
    (tmp_path / "next.toml").write_text(draft(tpm))
    report = desk.json("image", "try", "debian", tmp_path / "next.toml")
    assert [turned["key"] for turned in report["refused"]] == [KEY]
    assert [image["version"] for image in desk.json("image", "list")] == [1]
