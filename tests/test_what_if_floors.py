# SPDX-License-Identifier: Apache-2.0
"""Other floors, tried on the recorded attempts: exactly those whose verdict the floors would change are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker import ledger, requests
from broker.cli import floors as command
from broker.cli import main
from broker.trace import Trace
from broker.verifiers.snp_floors import NOTHING, Floors, check_floors
from broker.what_if import recorded_claims
from broker.what_if_floors import try_floors
from keys.errors import VerificationError
from keys.tee import Tee
from tests.fakes.amd import AT, Chip, FakeAmd
from tests.fakes.house import House
from tests.fakes.snp_guest import SnpGuest

PATH = "acme/disk/root"
POLICIES = (0x30000, 0x30000 | 1 << 19, 0x30000 | 1 << 18)  # as it should be, debug, migration agent
CANDIDATES = [
    Floors(), NOTHING, Floors(unsafe_debug=True), Floors(policy_forbidden=()), Floors(products=("Turin",)),
    Floors(min_reported_tcb=("Genoa snp=255",)), Floors(unsafe_debug=True, policy_forbidden=()),
]  # fmt: skip


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A broker where guests of each policy asked, for keys of two owners and for none, and one without certificates."""
    with House(tmp_path) as house:
        house.now = int(AT.timestamp() * 1000)
        house.services = replace(house.services, trusted={Tee.SNP: FakeAmd().trusted()})
        house.owner("acme")
        house.owner("globex")
        for policy in POLICIES:
            for key in (PATH, "globex/disk/root", None):
                with suppress(VerificationError):
                    house.attest(SnpGuest(Chip(FakeAmd()), policy=policy), key)
        with suppress(VerificationError):
            house.attest(SnpGuest(Chip(FakeAmd()), certificates={}), PATH)
        yield house


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("live", CANDIDATES)
def test_the_report_is_that_of_brute_force(house: House, live: Floors, candidate: Floors) -> None:
    """Every genuine attempt judged by hand under both: the same decisions turn, and no other."""
    refused, let_in, judged = set(), set(), 0
    for owner in ("", "acme", "globex"):
        for line in house.lines(owner, ledger.ATTEST):
            if line.body["claims"] is not None:
                judged += 1
                claims = recorded_claims(line.body)
                before, after = (
                    check_floors(claims.facts, claims.measurements, floors, Trace()) for floors in (live, candidate)
                )
                if before and not after:
                    refused.add((owner, line.id))
                if after and not before:
                    let_in.add((owner, line.id))
    report = try_floors(live, candidate, house.store, since=0)
    assert report.judged == judged > 3
    assert {(one.owner, one.decision) for one in report.refused} == refused
    assert {(one.owner, one.decision) for one in report.let_in} == let_in
    assert all(one.reason for one in report.refused)
    assert not any(one.reason for one in report.let_in)


def test_only_the_time_that_is_asked_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older attempts are left out; more than one report looks at are said to be."""
    assert try_floors(Floors(), NOTHING, house.store, since=house.now + 1).judged == 0
    assert not try_floors(Floors(), NOTHING, house.store, since=0).truncated
    monkeypatch.setattr(requests, "PAGE", 1)
    monkeypatch.setattr(requests, "MAX_REQUESTS", 1)
    assert try_floors(Floors(), NOTHING, house.store, since=0).truncated


def run(house: House, settings: str, *options: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`floors try` with these settings, at a broker with that store and the strict floors."""
    CliRunner().invoke(main, ["init", str(house.directory / "broker")])
    config = house.directory / "broker" / "broker.toml"
    config.write_text(config.read_text().replace('"sqlite:roomkey.db"', f'"sqlite:{house.directory}/roomkey.db"'))
    (house.directory / "new.toml").write_text(settings)
    monkeypatch.setattr(command, "now_ms", lambda: house.now)
    words = ["floors", "try", str(house.directory / "new.toml"), "--config", str(config), *options]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    return result.output


def test_an_operator_tries_stricter_and_looser_floors(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who, of which owner, for which key and why; and what puts the floors in force."""
    said = run(house, 'products = ["Turin"]', monkeypatch=monkeypatch)
    assert "Newly refused" in said
    assert "globex/disk/root" in said
    assert "product line is trusted" in said
    assert "Nobody would newly be taken." in said
    assert "[snp] of the config" in said
    said = run(house, "policy_forbidden = []", monkeypatch=monkeypatch)
    assert "Newly taken" in said
    assert "Nobody would newly be refused." in said
    told = json.loads(run(house, "policy_forbidden = []", "--json", monkeypatch=monkeypatch))
    assert {one["owner"] for one in told["let_in"]} == {"", "acme", "globex"}
    assert told["refused"] == []
