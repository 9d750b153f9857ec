# SPDX-License-Identifier: Apache-2.0
"""A shadow of a rule: what it says stands in the line, and nothing else comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import ledger, requests, shadow
from broker.appraisal.image_life import ImageState
from broker.appraisal.rules import read_rule, rule_name
from broker.store.protocols import LedgerEntry, RecordKind
from keys.errors import ReleaseDenied, Unavailable
from keys.messages import ResourcePath
from tests.fakes.boot import Boot
from tests.fakes.desk import KEY, Desk, open_desk
from tests.fakes.evidence_file import booted, write_evidence
from tests.fakes.house import House, draft
from tests.fakes.tpm_guest import FakeTpm, Guest

PATH = "acme/disk/root"
SECRET = b"a disk's key"
KERNELS = (b"old kernel", b"new kernel")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A broker where acme approved the old kernel for web-1, and only proposed the new one."""
    with House(tmp_path) as house:
        house.owner("acme")
        house.key(PATH, SECRET)
        tpm = FakeTpm(house.ca)
        for kernel in KERNELS:
            tpm.boot(Boot(kernel=kernel))
            house.image("acme", "debian", draft(tpm))
        propose(house, "debian@2")
        house.rule(PATH, images=["debian"], instances=["any"])
        yield house


def propose(house: House, name: str) -> None:
    body = {"state": str(ImageState.PROPOSED), "until": None, "why": ""}
    house.put(RecordKind.IMAGE_STATE, "acme", name, body)


def cast(house: House, **rule: Any) -> None:
    """Set a shadow of the rule."""
    given = {"images": ["debian"], "platforms": ["tpm"], "instances": ["any"]} | rule
    house.put(RecordKind.SHADOW, "acme", rule_name(ResourcePath.parse(PATH)), read_rule(given).to_body())


def ask(house: House, kernel: bytes, tpm: FakeTpm | None = None) -> LedgerEntry:
    """The line about a guest with this kernel."""
    tpm = tpm or FakeTpm(house.ca)
    tpm.boot(Boot(kernel=kernel))
    with suppress(ReleaseDenied):
        assert house.flow(Guest(tpm, declare=True), PATH, PATH) == SECRET
    return house.lines("acme", ledger.RELEASE)[0]


def test_without_a_shadow_nothing_is_said(house: House) -> None:
    """Most rules have none."""
    assert ask(house, KERNELS[0]).body["shadow"] is None


@pytest.mark.parametrize(
    ("rule", "kernel", "live", "allowed"),
    [
        ({"images": ["debian"]}, 0, True, True),
        ({"images": ["debian@2"]}, 0, True, False),
        ({"images": ["debian@2"]}, 1, False, True),
        ({"images": ["debian", "debian@2"]}, 1, False, True),
        ({"images": ["debian@3"]}, 0, True, False),
        ({"images": ["none@1"]}, 0, True, False),
        ({"platforms": ["snp"]}, 0, True, False),
        ({"instances": ["enrolled"]}, 0, True, False),
    ],
)
def test_the_line_has_both_verdicts(house: House, rule: dict[str, Any], kernel: int, live: bool, allowed: bool) -> None:
    """A proposed version counts in the shadow that names it, and nowhere else; the guest gets what the rule says."""
    cast(house, **rule)
    line = ask(house, KERNELS[kernel])
    assert line.verdict == ("released" if live else "denied")
    beside = line.body["shadow"]
    assert (beside["version"], beside["live"], beside["allowed"]) == (1, live, allowed)
    assert (beside["failed"] == []) is allowed


def test_a_proposed_version_counts_for_nobody_else(house: House) -> None:
    """The bare name in a shadow passes over what is only proposed, as it does in a rule."""
    cast(house, images=["debian"])
    assert not ask(house, KERNELS[1]).body["shadow"]["allowed"]


def test_a_revoked_version_counts_in_no_shadow(house: House) -> None:
    """Only what waits for approval is tried."""
    house.put(RecordKind.IMAGE_STATE, "acme", "debian@2", {"state": "revoked", "until": None, "why": ""})
    cast(house, images=["debian@2"])
    assert not ask(house, KERNELS[1]).body["shadow"]["allowed"]


def test_a_shadow_meets_leases_that_the_rule_leaves_alone(house: House) -> None:
    """A lease of an earlier rule that is still live counts for a shadow that forbids clones."""
    tpm = FakeTpm(house.ca)
    rule = {"images": ["debian"], "platforms": ["tpm"], "instances": ["any"], "clones": "refuse"}
    house.put(RecordKind.RULE, "acme", "disk/root", read_rule(rule).to_body())
    assert ask(house, KERNELS[0], tpm).verdict == "released"
    house.rule(PATH, images=["debian"], instances=["any"])
    cast(house, clones="refuse")
    line = ask(house, KERNELS[0], tpm)
    assert line.verdict == "released"
    assert line.body["shadow"]["failed"] == ["no other release to the same guest is live"]
    assert ask(house, KERNELS[0]).body["shadow"]["allowed"]


def test_a_fault_in_a_shadow_is_noted_and_nothing_else(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in it, the guest gets its key, and the line says what kind of fault it was."""
    cast(house)

    def broken(*_: object) -> None:
        raise Unavailable("secret words")

    monkeypatch.setattr(shadow, "rule_images", broken)
    line = ask(house, KERNELS[0])
    assert line.verdict == "released"
    assert line.body["shadow"] == {"version": 1, "live": True, "error": "Unavailable"}


def test_a_damaged_shadow_is_a_fault(house: House) -> None:
    """A record that is none does not stop anybody."""
    house.put(RecordKind.SHADOW, "acme", "disk/root", {"images": 5})
    assert "error" in ask(house, KERNELS[0]).body["shadow"]


def _some(*names: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)


_RULES = st.fixed_dictionaries({
    "images": _some("debian", "debian@1", "debian@2", "other"),
    "platforms": _some("tpm", "snp", "sev"),
    "instances": st.sampled_from([["any"], ["enrolled"], ["web-1"], ["web-1", "web-2"]]),
    "clones": st.sampled_from(["allow", "refuse", "quarantine"]),
    "sticky_failure": st.booleans(),
})  # fmt: skip


@pytest.fixture(scope="module")
def open_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("open")) as house:
        house.repeatable = False  # too many to do it all over
        house.owner("acme")
        house.key(PATH, SECRET)
        tpm = FakeTpm(house.ca)
        for kernel in KERNELS:
            tpm.boot(Boot(kernel=kernel))
            house.image("acme", "debian", draft(tpm))
        yield house


@settings(max_examples=60, deadline=None)
@given(live=_RULES, other=_RULES, kernel=st.sampled_from(KERNELS), enrolled=st.booleans())
def test_a_shadow_never_changes_anything(
    open_house: House, live: dict[str, Any], other: dict[str, Any], kernel: bytes, enrolled: bool
) -> None:
    """Whatever rule is in force and whatever shadow beside it: verdict, line, and where the guest stands are the same
    with it and without.
    """
    house, outcomes = open_house, []
    house.put(RecordKind.RULE, "acme", "disk/root", read_rule(live).to_body())
    for shadowed in (False, True):
        house.store.end_leases("acme/")  # of a guest with the same name before
        tpm = FakeTpm(house.ca)
        if enrolled:
            house.instance("acme", "web-1", tpm, by="ek")
        house.put(RecordKind.SHADOW, "acme", "disk/root", read_rule(other).to_body() if shadowed else None)
        line = ask(house, kernel, tpm)
        assert (line.body["shadow"] is not None) is shadowed
        standings = [
            (record.name == "web-1", (record.body or {}).get("standing"))
            for record in house.store.records(RecordKind.INSTANCE, "acme")
            if record.name == "web-1" or set((record.body or {})["ids"]) & set(line.body["instances"])
        ]
        verdicts = [(check["name"], check["verdict"]) for check in line.body["trace"]]
        values = {name: line.body[name] for name in ("image", "names", "act", "version")}
        outcomes.append((line.verdict, values, verdicts, standings))
        for record in house.store.records(RecordKind.INSTANCE, "acme"):
            house.put(RecordKind.INSTANCE, "acme", record.name, None)
    assert outcomes[0] == outcomes[1]


# --- as an owner sees it ---


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


def test_an_owner_tries_a_proposed_image_on_the_guests(desk: Desk, tmp_path: Path) -> None:
    """A shadow that names it says who would be refused by it; the guest has its key meanwhile."""
    tpm = booted()
    old = write_evidence(tmp_path / "old.json", tpm)
    desk.run("key", "generate", KEY)
    desk.run("image", "enrol", "debian-12", "--from", old, "--yes")
    desk.run("instance", "add", "web-1", "--from", old)
    desk.run("rule", "set", KEY, "--image", "debian-12", "--instance", "web-1")
    tpm.boot(Boot(kernel=b"new kernel"))
    draft_ = desk.run("image", "enrol", "debian-12", "--from", write_evidence(tmp_path / "new.json", tpm), "--draft")
    (tmp_path / "new.toml").write_text(draft_.stdout)
    desk.run("image", "put", "debian-12", tmp_path / "new.toml", "--propose")
    told = desk.run("rule", "shadow", "set", KEY, "--image", "debian-12@2", "--instance", "web-1")
    assert f"roomkey rule shadow show {KEY}" in told.stderr
    with pytest.raises(ReleaseDenied):
        desk.ask(tpm)
    tpm.boot(Boot())
    assert desk.ask(tpm)
    shown = desk.run("rule", "shadow", "show", KEY).stdout
    assert "judged beside 2 decisions\n" in shown
    assert "Newly refused (1 guest)" in shown
    assert "Newly let in (1 guest)" in shown
    told = desk.json("rule", "shadow", "show", KEY)
    assert (told["judged"], told["failed"], told["truncated"]) == (2, 0, False)
    assert [(len(told[which]), told[which][0]["key"]) for which in ("refused", "let_in")] == [(1, KEY), (1, KEY)]
    assert told["refused"][0]["reason"]
    assert told["let_in"][0]["reason"] == ""
    desk.run("rule", "shadow", "delete", KEY)
    desk.run("rule", "shadow", "show", KEY, status=15)
    desk.run("rule", "shadow", "delete", KEY, status=15)
    lines = desk.json("decision", "list", "--kind", "change")["decisions"]
    assert [line["verdict"] for line in lines if line["subject"].startswith("shadow/")] == ["deleted", "put"]


def test_a_report_is_of_the_shadow_that_is_set(desk: Desk, tmp_path: Path) -> None:
    """What an earlier shadow said, or could not say, is not counted as this one's; faults are told."""
    tpm = booted()
    evidence = write_evidence(tmp_path / "guest.json", tpm)
    desk.run("key", "generate", KEY)
    desk.run("image", "enrol", "debian-12", "--from", evidence, "--yes")
    desk.run("instance", "add", "web-1", "--from", evidence)
    desk.run("rule", "set", KEY, "--image", "debian-12", "--instance", "web-1")
    desk.run("rule", "shadow", "set", KEY, "--image", "other", "--instance", "web-1")
    assert desk.ask(tpm)
    desk.run("rule", "shadow", "set", KEY, "--image", "debian-12", "--instance", "web-1")
    assert desk.ask(tpm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shadow, "judge", lambda *_: 1 / 0)
        assert desk.ask(tpm)
    shown = desk.run("rule", "shadow", "show", KEY).stdout
    assert "judged beside 1 decisions; at 1 it could not be judged" in shown
    assert "Nobody would newly be refused." in shown


def test_a_long_report_says_that_it_is_cut_off(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More requests than one report looks at are named as such, in every report about them."""
    tpm = booted()
    evidence = write_evidence(tmp_path / "guest.json", tpm)
    desk.run("key", "generate", KEY)
    desk.run("image", "enrol", "debian-12", "--from", evidence, "--yes")
    desk.run("instance", "add", "web-1", "--from", evidence)
    rule = (KEY, "--image", "debian-12", "--instance", "web-1")
    desk.run("rule", "set", *rule)
    desk.run("rule", "shadow", "set", *rule)
    for _ in range(3):
        assert desk.ask(tpm)
    monkeypatch.setattr(requests, "PAGE", 1)
    for most, words in ((3, False), (2, True)):
        monkeypatch.setattr(requests, "MAX_REQUESTS", most)
        for command in (("rule", "shadow", "show", KEY), ("rule", "try", *rule)):
            assert ("more requests than one report looks at" in desk.run(*command).stderr) is words
        told = desk.run("distrust", "platform", "tpm", stdin="n\n", status=1).stderr
        assert ("more requests than one report looks at" in told) is words


def test_requests_are_read_page_by_page(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request once, the newest first, whatever the size of a page."""
    for kernel in (*KERNELS, KERNELS[0]):
        ask(house, kernel)
    everything = [line.id for line in house.lines("acme", ledger.RELEASE)]
    for page in (1, 2, 3, 4):
        monkeypatch.setattr(requests, "PAGE", page)
        monkeypatch.setattr(requests, "MAX_REQUESTS", 12)
        assert [line.id for line in requests.Requests("acme", house.store, 0)] == everything
    released = requests.Requests("acme", house.store, 0, ("released",))
    assert [line.verdict for line in released] == ["released", "released"]
    assert list(requests.Requests("acme", house.store, house.now + 1)) == []
