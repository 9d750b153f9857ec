# SPDX-License-Identifier: Apache-2.0
"""Lists of decisions: which, in what order, with which reason; and each new one as it is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.cli import decision_list
from broker.cli.decision_list import decisions
from broker.http import owner_decisions
from broker.owner_client import OwnerClient
from broker.owner_identity import load
from keys.errors import AppraisalDenied, ReleaseDenied, Unavailable
from tests.fakes.boot import Boot
from tests.fakes.desk import KEY, Desk, open_desk
from tests.fakes.evidence_file import booted, write_evidence
from tests.fakes.tpm_guest import FakeTpm

OTHER = "acme/disk/other"


@pytest.fixture
def tpm() -> FakeTpm:
    return booted()


@pytest.fixture
def desk(tmp_path: Path, tpm: FakeTpm) -> Iterator[Desk]:
    """A broker where web-1 may have both keys."""
    with open_desk(tmp_path) as desk:
        evidence = write_evidence(tmp_path / "guest.json", tpm)
        desk.run("image", "enrol", "debian-12", "--from", evidence, "--yes")
        desk.run("instance", "add", "web-1", "--from", evidence)
        for key in (KEY, OTHER):
            desk.run("key", "generate", key)
            desk.run("rule", "set", key, "--image", "debian-12", "--instance", "web-1")
        yield desk


@pytest.fixture
def client(desk: Desk) -> Iterator[OwnerClient]:
    client = OwnerClient(load(desk.folder / "acme" / "identity.toml"))
    yield client
    client.close()


def denied(desk: Desk, tpm: FakeTpm, key: str = KEY) -> str:
    """The id of a denial: the guest runs another kernel."""
    tpm.boot(Boot(kernel=b"another kernel"))
    with pytest.raises(AppraisalDenied) as caught:
        desk.ask(tpm, key)
    tpm.boot(Boot())
    return str(caught.value.decision)


def listed(desk: Desk, *options: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = desk.json("decision", "list", *options)["decisions"]
    return found


def test_a_denial_is_listed_with_its_reason(desk: Desk, tpm: FakeTpm) -> None:
    """In plain words, with how many failed checks they do not tell of, and how to see all of them."""
    id_ = denied(desk, tpm)
    result = desk.run("decision", "list", "--denied")
    assert "kernel" in result.stdout
    assert "web-1" in result.stdout
    assert "roomkey decision show ID" in result.stderr
    [line] = listed(desk, "--denied")
    assert (line["id"], line["verdict"], line["guests"]) == (id_, "denied", ["web-1"])
    assert line["failed"] > line["more"] >= 0
    shown = desk.json("decision", "show", id_)
    assert line["failed"] == sum(check["verdict"] == "failed" for check in shown["body"]["trace"])


def test_nothing_is_said_of_reasons_where_there_are_none(desk: Desk, tpm: FakeTpm) -> None:
    """What was released has none, and a change has what its owner said."""
    desk.ask(tpm)
    [line] = listed(desk, "--kind", "release")
    assert (line["failed"], line["why"], line["more"]) == (0, "", 0)
    desk.run("key", "rotate", KEY, "--why", "yearly")
    [change] = listed(desk, "--kind", "change", "--limit", 1)
    assert change["why"] == "yearly"
    assert "decision show" not in desk.run("decision", "list", "--kind", "release").stderr


def test_filters_go_together(desk: Desk, tpm: FakeTpm) -> None:
    """By verdict, by key, by a guest under any of its names, by time."""
    desk.ask(tpm)
    first, second = denied(desk, tpm), denied(desk, tpm, OTHER)
    assert [line["id"] for line in listed(desk, "--denied")] == [second, first]
    assert [line["id"] for line in listed(desk, "--denied", "--key", KEY)] == [first]
    about = listed(desk, "--guest", "web-1")
    assert {line["kind"] for line in about} == {"attest", "release"}
    assert len(about) == 6
    instance = about[0]["subject"]
    assert listed(desk, "--guest", instance) == about
    assert listed(desk, "--guest", "tpm-ek:0000") == []
    assert len(listed(desk, "--guest", "web-1", "--key", KEY, "--kind", "release", "--denied")) == 1
    assert listed(desk, "--days", "1", "--denied") == listed(desk, "--denied")
    desk.run("decision", "list", "--guest", "nobody", status=15)


def test_only_the_last_days(desk: Desk, tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is older is left out."""
    desk.ask(tpm)
    now = desk.services.clock()
    monkeypatch.setattr(decision_list, "now_ms", lambda: now + 3 * 24 * 3600 * 1000)
    assert listed(desk, "--days", "2") == []
    assert listed(desk, "--days", "4")


@pytest.mark.parametrize("looked_at", [1, 3, 5000])
@pytest.mark.parametrize("page", [1, 2, 200])
def test_a_page_is_full_however_much_is_looked_at_in_one_call(
    desk: Desk, tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch, page: int, looked_at: int
) -> None:
    """Decisions that do not fit in between neither shorten a page nor end the list; every one comes once."""
    for key in (KEY, OTHER, KEY, OTHER, KEY):
        desk.ask(tpm, key)
    everything = [line["id"] for line in listed(desk, "--key", KEY, "--kind", "release")]
    monkeypatch.setattr(owner_decisions, "PAGE", page)
    monkeypatch.setattr(owner_decisions, "MAX_LOOKED_AT", looked_at)
    assert [line["id"] for line in listed(desk, "--key", KEY, "--kind", "release")] == everything
    first = desk.json("decision", "list", "--key", KEY, "--kind", "release", "--limit", 2)
    rest = listed(desk, "--key", KEY, "--kind", "release", "--before", first["next"])
    assert [line["id"] for line in (*first["decisions"], *rest)] == everything
    assert "--before" in desk.run("decision", "list", "--key", KEY, "--limit", 1).stderr


def test_before_and_after_exclude_each_other(client: OwnerClient) -> None:
    """An order must be chosen."""
    with pytest.raises(Exception, match="exclude each other"):
        client.call("GET", "/v1/decisions?before=3&after=1")


# --- as they are made ---


def followed(
    client: OwnerClient, steps: list[Callable[[], object]], query: dict[str, Any] | None = None, last: int = 0
) -> list[dict[str, Any]]:
    """What `follow` yields while one step after the other is done in its pauses."""
    left = list(steps)

    def pause(seconds: float) -> None:
        assert seconds > 0
        if left:
            left.pop(0)()
        else:
            left.append(lambda: None)
            ends.append(True)

    ends: list[bool] = []
    return list(decisions(client, query or {}, last, pause, lambda: not ends))


def test_each_new_decision_comes_once_in_its_order(
    desk: Desk, tpm: FakeTpm, client: OwnerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of those before, all of those after, also where they come faster than they are read."""
    monkeypatch.setattr(owner_decisions, "PAGE", 2)
    monkeypatch.setattr(owner_decisions, "MAX_LOOKED_AT", 2)
    desk.ask(tpm)
    before = len(listed(desk))

    def several() -> None:
        for _ in range(4):
            desk.ask(tpm)

    found = followed(client, [lambda: desk.ask(tpm), lambda: None, several])
    monkeypatch.undo()
    assert [line["id"] for line in found] == [line["id"] for line in reversed(listed(desk)[: -before or None])]
    assert len(found) == 10


def test_only_what_is_wanted_is_followed(desk: Desk, tpm: FakeTpm, client: OwnerClient) -> None:
    """The filters of the list are those here."""
    ids: list[str] = []
    steps = [lambda: desk.ask(tpm), lambda: ids.append(denied(desk, tpm)), lambda: ids.append(denied(desk, tpm, OTHER))]
    assert [line["id"] for line in followed(client, steps, {"denied": "true", "key": KEY})] == ids[:1]


def test_the_last_ones_come_first(desk: Desk, tpm: FakeTpm, client: OwnerClient) -> None:
    """The oldest of them first, then what is new."""
    for _ in range(3):
        desk.ask(tpm)
    found = followed(client, [lambda: desk.ask(tpm)], {"kind": "release"}, last=2)
    assert [line["id"] for line in found] == [line["id"] for line in reversed(listed(desk, "--kind", "release")[:3])]


def test_a_broker_that_is_away_is_told_once(
    desk: Desk, tpm: FakeTpm, client: OwnerClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked again, and nothing is missed; bad credentials end it."""
    real, away = client.call, [False]

    def call(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        if away[0]:
            raise Unavailable("the broker does not answer")
        return real(method, path, body)

    monkeypatch.setattr(client, "call", call)

    def leave() -> None:
        away[0] = True

    def come_back() -> None:
        away[0] = False

    found = followed(client, [leave, lambda: desk.ask(tpm), lambda: None, come_back])
    assert [line["kind"] for line in found] == ["attest", "release"]
    assert capsys.readouterr().err.count("does not answer") == 1


def test_lines_for_people_and_for_programs(desk: Desk, tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line a decision; with --json an object each. Ctrl-C ends it without a word."""

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("broker.cli.decision_list.time.sleep", interrupt)
    denied(desk, tpm)
    result = desk.run("decision", "follow", "--last", "2")
    assert len(result.stdout.splitlines()) == 2
    assert "denied" in result.stdout.splitlines()[1]
    assert "kernel" in result.stdout
    assert result.stderr == ""
    objects = [json.loads(line) for line in desk.run("decision", "follow", "--last", "2", "--json").stdout.splitlines()]
    assert [one["kind"] for one in objects] == ["attest", "release"]


def test_it_ends_after_its_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """--for SECONDS is for scripts: exit status 0."""
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr("broker.cli.decision_list.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("broker.cli.decision_list.time.sleep", lambda _seconds: None)
    assert desk.run("decision", "follow", "--for", "20").stdout == ""


def test_a_ledger_without_a_line_can_be_followed(client: OwnerClient, desk: Desk, tpm: FakeTpm) -> None:
    """From the very first decision on."""
    desk.new_owner("globex")
    other = OwnerClient(load(desk.folder / "globex" / "identity.toml"))
    steps = [lambda: desk.run("key", "generate", "globex/disk/root", owner="globex")]
    assert [line["subject"] for line in followed(other, steps)] == ["key/globex/disk/root"]
    other.close()


def test_who_may_not_ask_is_told_at_once(desk: Desk, tpm: FakeTpm) -> None:
    """A key that the operator does not know ends it with the error's status."""
    desk.run("identity", "new", "eve", "--broker", desk.url, "--audience", desk.services.audience,
             "--identity", desk.folder / "eve" / "identity.toml")  # fmt: skip
    desk.run("decision", "follow", status=20, owner="eve")
    with pytest.raises(ReleaseDenied):
        desk.ask(tpm, "eve/disk/root")
