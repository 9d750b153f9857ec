# SPDX-License-Identifier: Apache-2.0
"""What changed between the floors of two images, and whether the newer demands less: compared with the real judge."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.appraisal.change import Change
from broker.appraisal.floor_changes import CHOICES, DEMANDS, floor_changes
from broker.trace import Trace
from broker.verifiers.snp_floors import NAMES, NOTHING, OPERATOR_ONLY, check_floors, parse_floors
from keys.tee import Tee

A, B = "aa" * 32, "bb" * 32


def sev_between(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    plain = {"es": False, "policy": 1}
    return floor_changes(Tee.SEV, plain | old, plain | new)


def floors_between(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, str, str, str, bool]]:
    found = floor_changes(Tee.SNP, old, new)
    assert all(change.where == "floors" for change in found)
    return [change[1:] for change in found]


def test_every_floor_of_an_image_can_be_compared() -> None:
    """Each setting that an image may demand is either a list of choices or taken apart into demands."""
    assert CHOICES | DEMANDS.keys() == set(NAMES) - OPERATOR_ONLY
    assert not CHOICES & DEMANDS.keys()


CHIP, OTHER = "11" * 64, "22" * 64


@pytest.mark.parametrize(
    ("name", "strict", "loose", "tightened", "loosened"),
    [
        ("min_guest_svn", 3, 2, ("raised", "2", "3"), ("lowered", "3", "2")),
        ("min_report_version", 5, 3, ("raised", "3", "5"), ("lowered", "5", "3")),
        ("max_vmpl", 0, 2, ("lowered", "2", "0"), ("raised", "0", "2")),
        ("min_abi", "1.55", "1.5", ("raised", "1.5", "1.55"), ("lowered", "1.55", "1.5")),
        ("launch_mitigations", 6, 2, ("added", "", "bit 2"), ("removed", "bit 2", "")),
        ("current_mitigations", 3, 2, ("added", "", "bit 0"), ("removed", "bit 0", "")),
        ("policy_required", ["single_socket"], [], ("added", "", "single_socket"), ("removed", "single_socket", "")),
        ("policy_forbidden", ["smt_allowed"], [], ("added", "", "smt_allowed"), ("removed", "smt_allowed", "")),
        ("platform_required", ["ecc_enabled"], [], ("added", "", "ecc_enabled"), ("removed", "ecc_enabled", "")),
        ("platform_forbidden", ["smt_enabled"], [], ("added", "", "smt_enabled"), ("removed", "smt_enabled", "")),
        ("denied_chip_ids", [CHIP, OTHER], [CHIP], ("added", "", OTHER), ("removed", OTHER, "")),
        ("products", ["Genoa"], ["Genoa", "Turin"], ("removed", "Turin", ""), ("added", "", "Turin")),
        ("chip_ids", [CHIP], [CHIP, OTHER], ("removed", OTHER, ""), ("added", "", OTHER)),
        ("host_data", [A], [A, B], ("removed", B, ""), ("added", "", B)),
    ],
)
def test_a_floor_that_demands_less_allows_more(
    name: str, strict: Any, loose: Any, tightened: tuple[str, str, str], loosened: tuple[str, str, str]
) -> None:
    """Each floor lowered or without an item is weaker, raised or with one more it is not; a list of choices the other
    way round. A floor that goes allows more, one that comes does not.
    """
    kind, before, after = loosened
    assert floors_between({name: strict}, {name: loose}) == [(kind, name, before, after, True)]
    kind, before, after = tightened
    assert floors_between({name: loose}, {name: strict}) == [(kind, name, before, after, False)]
    assert all(change[0] == "removed" and change[4] for change in floors_between({name: strict}, {}))
    assert all(change[0] == "added" and not change[4] for change in floors_between({}, {name: strict}))


def test_tcb_floors_are_compared_by_line_and_component() -> None:
    """Each component by itself, with its name; one line leaves the others alone."""
    assert floors_between(
        {"min_reported_tcb": ["Milan snp=24 microcode=219", "Genoa snp=23"]},
        {"min_reported_tcb": ["Milan snp=25", "Genoa snp=22 tee=1"]},
    ) == [
        ("raised", "min_reported_tcb Milan", "snp=24", "snp=25", False),
        ("removed", "min_reported_tcb Milan", "microcode=219", "", True),
        ("lowered", "min_reported_tcb Genoa", "snp=23", "snp=22", True),
        ("added", "min_reported_tcb Genoa", "", "tee=1", False),
    ]
    assert floors_between({"min_launch_tcb": ["Milan snp=0"]}, {}) == [
        ("removed", "min_launch_tcb Milan", "snp=0", "", False)
    ]
    assert floors_between({"min_firmware": ["Milan 1.55.29"]}, {"min_firmware": ["Milan 1.56.1", "Genoa 1.55.29"]}) == [
        ("raised", "min_firmware Milan", "1.55.29", "1.56.1", False),
        ("added", "min_firmware Genoa", "", "1.55.29", False),
    ]


def test_what_every_report_meets_is_no_demand() -> None:
    """A ceiling at the highest level, the oldest version of a report, the same version written otherwise: no weaker."""
    assert floors_between({"max_vmpl": 3}, {}) == [("removed", "max_vmpl", "3", "", False)]
    assert floors_between({"max_vmpl": 0}, {}) == [("removed", "max_vmpl", "0", "", True)]
    assert floors_between({"min_report_version": 2}, {}) == [("removed", "min_report_version", "2", "", False)]
    assert floors_between({"min_abi": "1.05"}, {"min_abi": "1.5"}) == [("changed", "min_abi", "1.05", "1.5", False)]


def test_a_list_of_choices_that_goes_allows_everything() -> None:
    """Without the list any value is let in, which is more; a new list is stricter. Both are told whole."""
    assert floors_between({"products": ["Genoa", "Turin"]}, {}) == [("removed", "products", "Genoa, Turin", "", True)]
    assert floors_between({}, {"csp_ids": ["a", "b"]}) == [("added", "csp_ids", "", "a, b", False)]
    assert floors_between({"committed_is_current": True}, {}) == [("removed", "committed_is_current", "true", "", True)]


def test_floors_of_sev_are_compared() -> None:
    """Policy bits by name, firmware by version and build; the kind of guest is another one, not a weaker one."""
    assert sev_between({"es": True, "policy": 0b101}, {"policy": 0b1011}) == [
        Change("floors", "changed", "es", "true", "false"),
        Change("floors", "added", "policy", "", "noks"),
        Change("floors", "added", "policy", "", "nosend"),
    ]
    assert sev_between({"policy": 0b11}, {}) == [Change("floors", "removed", "policy", "noks", "", True)]
    assert sev_between({"min_api": "1.49", "min_build": 6}, {"min_api": "1.49"}) == [
        Change("floors", "lowered", "min_api", "1.49 build 6", "1.49", True)
    ]
    assert sev_between({"min_api": "1.9"}, {"min_api": "1.10"}) == [
        Change("floors", "raised", "min_api", "1.9", "1.10", False)
    ]


FACTS = st.fixed_dictionaries({
    "product": st.sampled_from(["Milan", "Genoa", "Turin"]),
    "vmpl": st.integers(0, 3),
    "guest_svn": st.integers(0, 3),
    "report_version": st.integers(2, 5),
    "policy_debug_allowed": st.just(False),
})  # fmt: skip
FLOORS = st.fixed_dictionaries({}, optional={
    "products": st.lists(st.sampled_from(["Milan", "Genoa", "Turin"]), min_size=1, unique=True),
    "max_vmpl": st.integers(0, 3),
    "min_guest_svn": st.integers(1, 3),
    "min_report_version": st.integers(2, 5),
})  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(FLOORS, FLOORS, FACTS)
def test_a_guest_is_let_in_anew_only_where_a_change_allows_more(old: Any, new: Any, facts: Any) -> None:
    """Whatever the floors: a machine that only the newer ones let in means a change that allows more, and one that they
    shut out means one that does not.
    """
    before, after = (check_floors(facts, {}, parse_floors(table, NOTHING), Trace()) for table in (old, new))
    found = floor_changes(Tee.SNP, old, new)
    if after and not before:
        assert any(change.weaker for change in found)
    if before and not after:
        assert any(not change.weaker for change in found)
