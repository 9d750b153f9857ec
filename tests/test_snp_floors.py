# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.snp_floors and snp_floor_settings: each floor holds, leaves its line, and can be written."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.claims import Fact
from broker.trace import Check, Stage, Trace, Verdict
from broker.verifiers.snp_floor_settings import MAX_ENTRIES, MAX_ENTRY_CHARS, READERS
from broker.verifiers.snp_floors import NAMES, NOTHING, OPERATOR_ONLY, Floors, check_floors, parse_floors
from broker.verifiers.snp_report import PLATFORM_BITS, POLICY_BITS, TCB_LAYOUT, Line
from keys.errors import ProtocolError
from tests.fakes import json_values

CHIP = "7b" * 64
OTHER_CHIP = "a3" * 64
TURIN_CHIP = "3b42092f69c656d3"
CSP = "CN=cc-us-east-2.amazonaws.com"
ID_KEY, AUTHOR_KEY, HOST_DATA = "1d" * 48, "a0" * 48, "0d" * 32
MEASUREMENTS = {"measurement": "3e" * 48, "host_data": HOST_DATA, "id_key_digest": ID_KEY,
                "author_key_digest": AUTHOR_KEY, "family_id": "00" * 16, "image_id": "00" * 16}  # fmt: skip
TCB = (("bootloader", 10), ("tee", 1), ("snp", 25), ("microcode", 84))
FACTS: dict[str, Fact] = {
    "product": "Genoa",
    "report_version": 5,
    "cpuid": "0x19/0x11/0x1",
    "signing_key": "vcek",
    "chip_id": CHIP,
    "csp_id": None,
    "vmpl": 0,
    "guest_svn": 7,
    "author_key_en": True,
    "policy": "0x13001f",
    "policy_abi_major": 1,
    "policy_abi_minor": 51,
    **{f"policy_{name}": name in {"smt_allowed", "single_socket"} for name in POLICY_BITS},
    "platform_info": "0x25",
    **{f"platform_{name}": name in {"smt_enabled", "ecc_enabled", "alias_check_complete"} for name in PLATFORM_BITS},
    **{f"{which}_tcb_{part}": svn for which in ("reported", "current", "committed", "launch") for part, svn in TCB},
    "current_version": "1.55.43",
    "committed_version": "1.55.43",
    "launch_mit_vector": "0xb",
    "current_mit_vector": "0x3f",
    "crl": "current",
}
DEBUG, VERSION, PRODUCT = "debugging is off", "report's version is new enough", "product line is trusted"
VMPL = "privilege level (VMPL) that asked is trusted"
POLICY_NOT, POLICY = "POLICY has no forbidden bit", "POLICY has the required bits"
ABI = "POLICY asks for a firmware ABI that is new enough"
PLATFORM_NOT, PLATFORM = "PLATFORM_INFO has no forbidden bit", "PLATFORM_INFO has the required bits"
REPORTED, CURRENT = "REPORTED_TCB is new enough", "CURRENT_TCB is new enough"
COMMITTED, LAUNCH = "COMMITTED_TCB is new enough", "LAUNCH_TCB is new enough"
ROLLBACK, FIRMWARE = "firmware cannot be rolled back below what runs", "SEV firmware is new enough"
LAUNCH_MIT = "LAUNCH_MIT_VECTOR has the required mitigations"
CURRENT_MIT = "CURRENT_MIT_VECTOR has the required mitigations"
CHIPS, DENIED = "chip is one of chip_ids", "chip is not one of denied_chip_ids"
CSPS = "provider that loaded the VLEK is one of csp_ids"
ID, AUTHOR = "ID key that signed the launch is trusted", "author key that certified the ID key is trusted"
SVN, HOST = "GUEST_SVN is new enough", "HOST_DATA is allowed"
LINES = {  # by setting, in the order of the trace
    "unsafe_debug": DEBUG,
    "min_report_version": VERSION,
    "products": PRODUCT,
    "max_vmpl": VMPL,
    "policy_forbidden": POLICY_NOT,
    "policy_required": POLICY,
    "min_abi": ABI,
    "platform_forbidden": PLATFORM_NOT,
    "platform_required": PLATFORM,
    "min_reported_tcb": REPORTED,
    "min_current_tcb": CURRENT,
    "min_committed_tcb": COMMITTED,
    "min_launch_tcb": LAUNCH,
    "committed_is_current": ROLLBACK,
    "min_firmware": FIRMWARE,
    "launch_mitigations": LAUNCH_MIT,
    "current_mitigations": CURRENT_MIT,
    "chip_ids": CHIPS,
    "denied_chip_ids": DENIED,
    "csp_ids": CSPS,
    "id_key_digests": ID,
    "author_key_digests": AUTHOR,
    "min_guest_svn": SVN,
    "host_data": HOST,
}
# What `FACTS` and `MEASUREMENTS` meet, every floor but that of the provider, who has no VCEK
ALL = Floors(
    policy_required=("single_socket",),
    min_abi="1.51",
    min_reported_tcb=("Genoa bootloader=10 tee=1 snp=25 microcode=84",),
    min_current_tcb=("Genoa snp=25",),
    min_committed_tcb=("Genoa snp=25",),
    committed_is_current=True,
    min_firmware=("Genoa 1.55.43",),
    launch_mitigations=0x3,
    current_mitigations=0x21,
    chip_ids=(CHIP, OTHER_CHIP),
    denied_chip_ids=(OTHER_CHIP,),
    id_key_digests=("00" * 47 + "01", ID_KEY),
    author_key_digests=(AUTHOR_KEY,),
    min_guest_svn=7,
    host_data=(HOST_DATA,),
)


def judged(
    floors: Floors, facts: dict[str, Any] | None = None, *, quiet: bool = False
) -> tuple[bool, dict[str, Check]]:
    """The verdict on the good claims with some of them changed (... takes one out), and the lines by name."""
    trace = Trace()
    shown = {name: value for name, value in (FACTS | (facts or {})).items() if value is not ...}
    passed = check_floors(shown, MEASUREMENTS, floors, trace, quiet=quiet)
    lines = {check.name: check for check in trace.checks}
    assert len(lines) == len(trace.checks)
    assert passed == (not trace.failed)
    return passed, lines


def only(**changes: Any) -> Floors:
    """Nothing but the floors given."""
    return dataclasses.replace(NOTHING, **changes)


def test_every_floor_leaves_its_line() -> None:
    """Each floor that claims can show leaves one line, in the order of the settings, whether required or not."""
    assert set(NAMES) - set(LINES) == {"named_only", "masked_chip_id", "require_crl"}
    for floors in (Floors(), NOTHING, ALL):
        assert list(judged(floors)[1]) == list(LINES.values())


def test_strict_default() -> None:
    """The default lets a good machine in, and requires exactly what its settings name."""
    passed, lines = judged(Floors())
    assert passed
    required = {name for name, line in LINES.items() if lines[line].verdict is Verdict.PASSED}
    assert required == {"unsafe_debug", "min_report_version", "products", "max_vmpl", "policy_forbidden",
                        "platform_forbidden", "platform_required", "min_reported_tcb", "min_launch_tcb"}  # fmt: skip


def test_nothing_is_required() -> None:
    """`NOTHING` passes whatever is shown, says what was found, and leaves no line where it is quiet."""
    passed, lines = judged(NOTHING)
    assert passed
    assert {line.verdict for line in lines.values()} == {Verdict.NOT_REQUIRED}
    assert all(line.found and not line.expected for line in lines.values())
    assert judged(NOTHING, quiet=True) == (True, {})
    assert check_floors({}, {}, NOTHING, Trace())


def test_everything_is_required() -> None:
    """Claims that meet each floor exactly pass each; without any facts each of them fails."""
    passed, lines = judged(ALL)
    assert passed
    assert {name for name, line in lines.items() if line.verdict is not Verdict.PASSED} == {CSPS}
    trace = Trace()
    assert not check_floors({}, {}, dataclasses.replace(ALL, csp_ids=(CSP,)), trace)
    assert [check.name for check in trace.failed] == list(LINES.values())
    assert all(check.found for check in trace.failed if check.stage is Stage.TRUST)
    assert all(check.expected and check.mend for check in trace.failed)


def test_what_was_found() -> None:
    """A line says what was found, whether it is required or not, and also where that is nothing."""
    words = "bootloader=10 tee=1 snp=25 microcode=84"
    good = {
        DEBUG: "off", VERSION: "5", PRODUCT: "Genoa", VMPL: "0", POLICY_NOT: "0x13001f", POLICY: "0x13001f",
        ABI: "1.51", PLATFORM_NOT: "0x25", PLATFORM: "0x25", REPORTED: words, CURRENT: words, COMMITTED: words,
        LAUNCH: words, ROLLBACK: f"{words}, 1.55.43", FIRMWARE: "1.55.43", LAUNCH_MIT: "0xb", CURRENT_MIT: "0x3f",
        CHIPS: CHIP, DENIED: CHIP, CSPS: "no provider: the chip's own key (VCEK)", ID: ID_KEY, AUTHOR: AUTHOR_KEY,
        SVN: "7", HOST: HOST_DATA,
    }  # fmt: skip
    assert {name: check.found for name, check in judged(ALL)[1].items()} == good
    of_lines = {REPORTED, CURRENT, COMMITTED, LAUNCH, FIRMWARE}
    assert {name: check.found.removesuffix(" has nothing for Genoa") for name, check in judged(NOTHING)[1].items()} == {
        name: f"{found}; {setting}" if name in of_lines else found
        for (name, found), setting in zip(good.items(), LINES, strict=True)
    }
    assert judged(ALL, {"signing_key": "vlek", "csp_id": CSP, "policy_debug_allowed": True})[1][CSPS].found == CSP
    assert judged(ALL, {"policy_debug_allowed": True})[1][DEBUG].found == "on"
    assert judged(NOTHING, {"policy": ...})[1][POLICY].found == "nothing"
    trace = Trace()
    check_floors({}, {}, ALL, trace)
    nothing = {
        POLICY_NOT: "migrate_ma, cxl_allowed", POLICY: "lacks single_socket", PLATFORM_NOT: "tio_enabled",
        PLATFORM: "lacks alias_check_complete", ROLLBACK: "nothing, nothing", CHIPS: "masked by the host",
        DENIED: "masked by the host", LAUNCH_MIT: "none: the report is older than version 5",
        CURRENT_MIT: "none: the report is older than version 5", CSPS: good[CSPS], AUTHOR: "none was used",
    }  # fmt: skip
    assert {check.name: check.found for check in trace.checks} == dict.fromkeys(good, "nothing") | nothing


def test_what_was_expected() -> None:
    """A line says what its floor asks for."""
    lines = judged(dataclasses.replace(ALL, csp_ids=(CSP, "CN=b"), products=("Genoa", "Turin"), max_vmpl=2))[1]
    assert {name: check.expected for name, check in lines.items()} == {
        DEBUG: "DEBUG clear in the guest's POLICY", VERSION: "at least 3", PRODUCT: "Genoa, Turin",
        VMPL: "VMPL 0 to 2", POLICY_NOT: "without migrate_ma, cxl_allowed", POLICY: "single_socket",
        ABI: "at least 1.51", PLATFORM_NOT: "without tio_enabled", PLATFORM: "alias_check_complete",
        REPORTED: "Genoa at least bootloader=10 tee=1 snp=25 microcode=84", CURRENT: "Genoa at least snp=25",
        COMMITTED: "Genoa at least snp=25", LAUNCH: "Genoa at least snp=23",
        ROLLBACK: "COMMITTED as CURRENT: bootloader=10 tee=1 snp=25 microcode=84, 1.55.43",
        FIRMWARE: "Genoa at least 1.55.43", LAUNCH_MIT: "all of 0x3", CURRENT_MIT: "all of 0x21",
        CHIPS: "one of 2 chips", DENIED: "none of 1 chips", CSPS: f"{CSP}, CN=b",
        ID: f"{'00' * 47}01 or {ID_KEY}", AUTHOR: AUTHOR_KEY, SVN: "at least 7", HOST: HOST_DATA,
    }  # fmt: skip
    assert judged(Floors())[1][VMPL].expected == "VMPL 0"
    unknown = judged(ALL, {"current_version": ...})[1][ROLLBACK].expected
    assert unknown == "COMMITTED as CURRENT: bootloader=10 tee=1 snp=25 microcode=84, nothing"
    mends = [judged(only(chip_ids=(OTHER_CHIP,)), {"chip_id": chip})[1][CHIPS].mend for chip in (CHIP, None)]
    assert [mend.partition("or add ")[2] for mend in mends] == [f"{CHIP} to chip_ids", "its chip to chip_ids"]


USED = sorted({
    "policy_debug_allowed", "report_version", "product", "vmpl", "policy_migrate_ma", "policy_cxl_allowed",
    "policy_single_socket", "policy_abi_major", "policy_abi_minor", "platform_tio_enabled",
    "platform_alias_check_complete", "current_version", "committed_version", "launch_mit_vector", "current_mit_vector",
    "chip_id", "author_key_en", "guest_svn", *(f"reported_tcb_{part}" for part, _ in TCB), "launch_tcb_snp",
    *(f"{which}_tcb_{part}" for which in ("current", "committed") for part, _ in TCB),
})  # fmt: skip


@pytest.mark.parametrize("fact", USED)
@pytest.mark.parametrize("value", [..., None, [], "", "1", -1])
def test_missing_facts_meet_no_floor(fact: str, value: Any) -> None:
    """Take one fact away that a floor speaks of, or put nonsense in its place, and the claims are refused."""
    assert not judged(ALL, {fact: value})[0]


@pytest.mark.parametrize("name", ["id_key_digest", "author_key_digest", "host_data"])
def test_missing_measurements_meet_no_floor(name: str) -> None:
    """The same for the digests that floors speak of."""
    trace = Trace()
    assert not check_floors(FACTS, {key: value for key, value in MEASUREMENTS.items() if key != name}, ALL, trace)
    assert len(trace.failed) == 1


@pytest.mark.parametrize(
    ("floors", "facts", "line"),
    [
        (only(unsafe_debug=False), {"policy_debug_allowed": True}, DEBUG),
        (only(min_report_version=3), {"report_version": 2}, VERSION),
        (only(min_report_version=5), {"report_version": 4}, VERSION),
        (only(products=("Milan", "Turin")), {}, PRODUCT),
        (only(max_vmpl=0), {"vmpl": 1}, VMPL),
        (only(max_vmpl=2), {"vmpl": 3}, VMPL),
        (only(max_vmpl=3), {"vmpl": 4}, VMPL),
        (only(max_vmpl=3), {"vmpl": 0xFFFFFFFF}, VMPL),
        (only(max_vmpl=None), {"vmpl": 0xFFFFFFFF}, VMPL),
        (only(policy_forbidden=("cxl_allowed", "migrate_ma")), {"policy_migrate_ma": True}, POLICY_NOT),
        (only(policy_forbidden=("smt_allowed",)), {}, POLICY_NOT),
        (only(policy_required=("single_socket", "rapl_dis")), {}, POLICY),
        (only(min_abi="1.52"), {}, ABI),
        (only(min_abi="2.0"), {}, ABI),
        (only(min_abi="1.0"), {"policy_abi_major": 0, "policy_abi_minor": 255}, ABI),
        (only(platform_forbidden=("tio_enabled",)), {"platform_tio_enabled": True}, PLATFORM_NOT),
        (only(platform_required=("ecc_enabled", "tsme_enabled")), {}, PLATFORM),
        (only(platform_required=("alias_check_complete",)), {"platform_alias_check_complete": False}, PLATFORM),
        (only(platform_required=("alias_check_complete",)), {"report_version": 2}, PLATFORM),
        (only(min_reported_tcb=("Genoa snp=26",)), {}, REPORTED),
        (only(min_reported_tcb=("Milan snp=1", "Genoa microcode=85")), {}, REPORTED),
        (only(min_reported_tcb=("Genoa snp=1 microcode=85",)), {}, REPORTED),
        (only(min_current_tcb=("Genoa tee=2",)), {}, CURRENT),
        (only(min_committed_tcb=("Genoa bootloader=11",)), {}, COMMITTED),
        (only(min_launch_tcb=("Genoa snp=26",)), {}, LAUNCH),
        (only(committed_is_current=True), {"committed_tcb_microcode": 83}, ROLLBACK),
        (only(committed_is_current=True), {"committed_version": "1.55.42"}, ROLLBACK),
        (only(committed_is_current=True), {"current_tcb_tee": ..., "committed_tcb_tee": ...}, ROLLBACK),
        (only(committed_is_current=True), {"current_version": ..., "committed_version": ...}, ROLLBACK),
        (only(min_abi="1.51"), {"policy_abi_major": 2, "policy_abi_minor": ...}, ABI),
        (only(min_firmware=("Genoa 1.55.44",)), {}, FIRMWARE),
        (only(min_firmware=("Genoa 1.56.0",)), {}, FIRMWARE),
        (only(min_firmware=("Genoa 1.55.10",)), {"current_version": "1.55.9"}, FIRMWARE),
        (only(launch_mitigations=0x4), {}, LAUNCH_MIT),
        (only(launch_mitigations=0x1), {"launch_mit_vector": None}, LAUNCH_MIT),
        (only(current_mitigations=0x41), {}, CURRENT_MIT),
        (only(current_mitigations=0x1), {"current_mit_vector": None}, CURRENT_MIT),
        (only(chip_ids=(OTHER_CHIP,)), {}, CHIPS),
        (only(chip_ids=(CHIP,)), {"chip_id": None}, CHIPS),
        (only(chip_ids=(CHIP,)), {"chip_id": None, "signing_key": "vlek", "csp_id": CSP}, CHIPS),
        (only(denied_chip_ids=(OTHER_CHIP, CHIP)), {}, DENIED),
        (only(denied_chip_ids=(OTHER_CHIP,)), {"chip_id": None}, DENIED),
        (only(denied_chip_ids=(OTHER_CHIP,)), {"chip_id": None, "signing_key": ...}, DENIED),
        (only(denied_chip_ids=(CHIP,)), {"signing_key": "vlek", "csp_id": CSP}, DENIED),
        (only(csp_ids=(CSP,)), {}, CSPS),
        (only(csp_ids=(CSP,)), {"signing_key": "vlek", "csp_id": "CN=else"}, CSPS),
        (only(id_key_digests=("1e" * 48,)), {}, ID),
        (only(author_key_digests=("1e" * 48,)), {}, AUTHOR),
        (only(author_key_digests=(AUTHOR_KEY,)), {"author_key_en": False}, AUTHOR),
        (only(min_guest_svn=8), {}, SVN),
        (only(host_data=("0e" * 32,)), {}, HOST),
    ],
)
def test_floors_that_are_not_met(floors: Floors, facts: dict[str, Any], line: str) -> None:
    """A floor that is not met fails the claims, and its line says what was expected, found, and mends it."""
    passed, lines = judged(floors, facts)
    assert not passed
    assert [name for name, check in lines.items() if check.verdict is Verdict.FAILED] == [line]
    assert lines[line].expected
    assert lines[line].found
    assert lines[line].mend
    assert [check.name for check in judged(floors, facts, quiet=True)[1].values()] == [line]


@pytest.mark.parametrize(
    ("floors", "facts", "line"),
    [
        (only(products=("Genoa",)), {}, PRODUCT),
        (only(max_vmpl=3), {"vmpl": 3}, VMPL),
        (only(max_vmpl=1), {"vmpl": 1}, VMPL),
        (only(min_abi="1.51"), {}, ABI),
        (only(min_abi="0.99"), {}, ABI),
        (only(min_report_version=2), {"report_version": 2}, VERSION),
        (only(min_abi="1.0"), {"policy_abi_minor": 0}, ABI),
        (only(platform_required=("ecc_enabled",)), {"report_version": 2}, PLATFORM),
        (only(platform_required=("alias_check_complete",)), {"report_version": 3}, PLATFORM),
        (
            only(platform_forbidden=("alias_check_complete",)),
            {"report_version": 2, "platform_alias_check_complete": False},
            PLATFORM_NOT,
        ),
        (only(committed_is_current=True), {"current_tcb_tee": 0, "committed_tcb_tee": 0}, ROLLBACK),
        (only(min_firmware=("Genoa 1.55.9",)), {}, FIRMWARE),
        (only(min_firmware=("Genoa 1.55.9",)), {"current_version": "2.0.0"}, FIRMWARE),
        (only(launch_mitigations=0xB), {}, LAUNCH_MIT),
        (only(csp_ids=(CSP,)), {"signing_key": "vlek", "csp_id": CSP}, CSPS),
        (only(denied_chip_ids=(OTHER_CHIP,)), {"signing_key": "vlek"}, DENIED),
    ],
)
def test_floors_that_are_met(floors: Floors, facts: dict[str, Any], line: str) -> None:
    """What is exactly the floor, or better, passes."""
    passed, lines = judged(floors, facts)
    assert passed
    assert lines[line].verdict is Verdict.PASSED
    assert lines[line].mend == ""


def test_bits_are_named() -> None:
    """The line names the bits that are wrong, and shows the whole value where none is."""
    floors = only(policy_forbidden=("smt_allowed", "migrate_ma", "single_socket"), policy_required=("rapl_dis",))
    _, lines = judged(floors)
    assert lines[POLICY_NOT].found == "smt_allowed, single_socket"
    assert lines[POLICY].found == "lacks rapl_dis"
    assert lines[PLATFORM].found == "0x25"


def test_tcb_components_stand_by_themselves() -> None:
    """A higher component does not make up for a lower one, as it would in one number."""
    floors = only(min_reported_tcb=("Genoa bootloader=9 snp=25",))
    assert not judged(floors, {"reported_tcb_microcode": 255, "reported_tcb_snp": 24})[0]
    assert not judged(floors, {"reported_tcb_microcode": 255, "reported_tcb_bootloader": 8})[0]
    assert judged(floors, {"reported_tcb_microcode": 0, "reported_tcb_tee": 0})[0]


def test_turin_has_a_component_more() -> None:
    """On Turin the FMC counts too."""
    facts = {"product": "Turin", "reported_tcb_fmc": 1}
    assert judged(only(min_reported_tcb=("Turin fmc=1 snp=25",)), facts)[0]
    passed, lines = judged(only(min_reported_tcb=("Turin fmc=2 snp=25",)), facts)
    assert not passed
    assert lines[REPORTED].expected == "Turin at least fmc=2 snp=25"
    assert lines[REPORTED].found == "fmc=1 bootloader=10 tee=1 snp=25 microcode=84"


@pytest.mark.parametrize(
    ("floors", "line"),
    [(only(min_launch_tcb=("Milan snp=24",)), LAUNCH), (only(min_firmware=("Milan 1.55.29",)), FIRMWARE)],
)
def test_floors_of_another_line(floors: Floors, line: str) -> None:
    """A floor that names only other product lines requires nothing, and says so even where it is quiet."""
    for quiet in (False, True):
        passed, lines = judged(floors, quiet=quiet)
        assert passed
        assert lines[line].verdict is Verdict.NOT_REQUIRED
        assert lines[line].found.endswith("has nothing for Genoa")


@pytest.mark.parametrize("product", [..., None, "Venice", "genoa"])
def test_floors_by_line_need_a_line(product: Any) -> None:
    """Where the product line is not known, no floor by line is met."""
    for floors in (only(min_launch_tcb=("Milan snp=1",)), only(min_firmware=("Milan 1.0.0",))):
        assert not judged(floors, {"product": product})[0]


def test_versions_before_3_have_no_alias_check() -> None:
    """What version 2 has in the place of ALIAS_CHECK_COMPLETE is not believed, and the line says that it lacks."""
    _, lines = judged(only(platform_required=("alias_check_complete", "ecc_enabled")), {"report_version": 2})
    assert lines[PLATFORM].found == "lacks alias_check_complete"


def test_chips_that_a_vlek_does_not_name() -> None:
    """Where a VLEK signed and the chip is masked, a list of denied chips cannot be judged; the trace says so always."""
    vlek = {"chip_id": None, "signing_key": "vlek", "csp_id": CSP}
    for quiet in (False, True):
        passed, lines = judged(only(denied_chip_ids=(CHIP,)), vlek, quiet=quiet)
        assert passed
        (line,) = (check for name, check in lines.items() if name.startswith(DENIED))
        assert line.verdict is Verdict.NOT_JUDGED
    assert judged(NOTHING, vlek)[1][DENIED].found == "a VLEK, which names no chip"
    assert judged(NOTHING, {"chip_id": None})[1][DENIED].found == "masked by the host"


def test_turin_chips_in_either_length() -> None:
    """A Turin chip is the same one with its 8 bytes, or with the zeros that fill CHIP_ID behind them."""
    long = TURIN_CHIP.ljust(128, "0")
    for listed in (TURIN_CHIP, long):
        for shown in (TURIN_CHIP, long):
            assert judged(only(chip_ids=(listed,)), {"chip_id": shown})[0]
            assert not judged(only(denied_chip_ids=(listed,)), {"chip_id": shown})[0]
    other = {"chip_id": TURIN_CHIP + "1".rjust(112, "0")}
    assert not judged(only(chip_ids=(TURIN_CHIP, long)), other)[0]


# --- how floors are written ---


def test_a_floor_of_one_line_leaves_the_others() -> None:
    """Who sets Genoa's floor keeps Milan's default, in any order; an empty list drops all of them."""
    floors = parse_floors({"min_reported_tcb": ["Turin snp=2", "Genoa snp=30"]}, Floors())
    assert floors.min_reported_tcb == ("Milan snp=24", "Turin snp=2", "Genoa snp=30")
    assert floors.min_launch_tcb == Floors().min_launch_tcb
    assert parse_floors({"min_reported_tcb": ["Milan snp=1"]}, Floors()).min_reported_tcb == (
        "Genoa snp=23",
        "Milan snp=1",
    )
    assert parse_floors({"min_reported_tcb": []}, Floors()).min_reported_tcb == ()
    older = dataclasses.replace(Floors(), min_firmware=("Milan 1.55",))
    assert parse_floors({"min_firmware": ["Genoa 1.55.40"]}, older).min_firmware == ("Milan 1.55", "Genoa 1.55.40")


def test_every_floor_can_be_written() -> None:
    """Every floor has a reader; what the defaults are can be written down and read again."""
    assert set(READERS) == set(NAMES)
    assert OPERATOR_ONLY.issubset(NAMES)
    for floors in (Floors(), NOTHING, ALL):
        table = {name: getattr(floors, name) for name in NAMES}
        assert parse_floors(table, NOTHING) == floors
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in table.items()}
        assert parse_floors(lists, NOTHING) == floors


def test_only_what_is_named_changes() -> None:
    """What the table does not name stays as in the base."""
    assert parse_floors({}, ALL) == ALL
    assert parse_floors({"max_vmpl": 2}, ALL) == dataclasses.replace(ALL, max_vmpl=2)
    assert parse_floors({"min_guest_svn": 3}, NOTHING) == only(min_guest_svn=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_vmpl", 3),
        ("max_vmpl", None),
        ("min_report_version", 2),
        ("min_report_version", 5),
        ("min_guest_svn", 0xFFFFFFFF),
        ("launch_mitigations", 1),
        ("min_abi", ""),
        ("min_abi", "1.58"),
        ("min_reported_tcb", ("Turin fmc=0 bootloader=1 tee=2 snp=3 microcode=255", "Milan  snp=24")),
        ("min_firmware", ("Milan 1.55.29", "Genoa 1.55.40")),
        ("chip_ids", (CHIP, TURIN_CHIP)),
        ("host_data", ("00" * 32,)),
        ("csp_ids", (CSP,)),
        ("csp_ids", ("x" * MAX_ENTRY_CHARS,) * MAX_ENTRIES),
        ("policy_required", tuple(POLICY_BITS)[2:]),
        ("products", ("Milan", "Genoa", "Turin")),
    ],
)
def test_values_that_are_fine(name: str, value: Any) -> None:
    """Each kind of value up to its limits."""
    assert getattr(parse_floors({name: value}, NOTHING), name) == value


@pytest.mark.parametrize(
    ("name", "value", "message", "mend"),
    [
        ("min_gest_svn", 1, "no such floor", "did you mean min_guest_svn?"),
        ("x" * 500, 1, "no such floor", None),
        ("unsafe_debug", 1, "unsafe_debug has a wrong value", None),
        ("require_crl", "true", "require_crl has a wrong value", None),
        ("min_report_version", 1, "min_report_version has a wrong value", None),
        ("min_report_version", 6, "min_report_version has a wrong value", None),
        ("min_report_version", True, "min_report_version has a wrong value", None),
        ("min_report_version", "3", "min_report_version has a wrong value", None),
        ("max_vmpl", 4, "max_vmpl has a wrong value", None),
        ("max_vmpl", -1, "max_vmpl has a wrong value", None),
        ("max_vmpl", False, "max_vmpl has a wrong value", None),
        ("min_guest_svn", 1 << 32, "min_guest_svn has a wrong value", None),
        ("launch_mitigations", -1, "launch_mitigations has a wrong value", None),
        ("current_mitigations", "0x1", "current_mitigations has a wrong value", None),
        ("products", "Genoa", "products must be a list", None),
        ("products", [1], "products must be a list", None),
        ("products", {"Genoa": 1}, "products must be a list", None),
        ("products", ["genoa"], "products has an unknown name", "did you mean Genoa?"),
        ("products", ["Siena"], "products has an unknown name", "did you mean Genoa?"),
        ("named_only", ["Turim"], "named_only has an unknown name", "did you mean Turin?"),
        ("policy_forbidden", ["debug_alowed"], "policy_forbidden has an unknown name", "did you mean debug_allowed?"),
        ("policy_required", ["rapl_disabled"], "policy_required has an unknown name", "did you mean rapl_dis?"),
        ("platform_forbidden", ["smt"], "platform_forbidden has an unknown name", None),
        ("platform_required", ["alias_check"], "platform_required has", "did you mean alias_check_complete?"),
        ("min_abi", "1.55.3", "min_abi has a wrong value", None),
        ("min_abi", 1, "min_abi has a wrong value", None),
        ("min_abi", "1.5\n", "min_abi has a wrong value", None),
        ("min_reported_tcb", ["snp=24"], "min_reported_tcb has an unknown name", None),
        ("min_reported_tcb", [" "], "min_reported_tcb has an unknown name", None),
        ("min_reported_tcb", ["Milan"], "min_reported_tcb has a wrong value", None),
        ("min_reported_tcb", ["Milan snp"], "min_reported_tcb has a wrong value", None),
        ("min_reported_tcb", ["Milan snp=256"], "min_reported_tcb has a wrong value", None),
        ("min_reported_tcb", ["Milan snp=0x18"], "min_reported_tcb has a wrong value", None),
        ("min_reported_tcb", ["Milan snp=24 snp=25"], "min_reported_tcb has a wrong value", None),
        ("min_reported_tcb", ["Milan snp=24", "Milan tee=0"], "min_reported_tcb has a wrong value", None),
        ("min_current_tcb", ["Milan ucode=1"], "min_current_tcb has an unknown name", None),
        ("min_current_tcb", ["Milan microcod=1"], "min_current_tcb has an unknown", "did you mean microcode?"),
        ("min_committed_tcb", ["Milan fmc=1"], "min_committed_tcb has an unknown name", None),
        ("min_launch_tcb", ["Milam snp=1"], "min_launch_tcb has an unknown name", "did you mean Milan?"),
        ("min_firmware", ["Milan"], "min_firmware has a wrong value", None),
        ("min_firmware", ["Milan 1.55"], "min_firmware has a wrong value", None),
        ("min_firmware", ["Milan 1.55.29 1.55.30"], "min_firmware has a wrong value", None),
        ("min_firmware", ["Milan 1.55.29", "Milan 1.55.30"], "min_firmware has a wrong value", None),
        ("min_firmware", ["1.55.29"], "min_firmware has an unknown name", None),
        ("chip_ids", [CHIP[:-1]], "chip_ids has a wrong value", None),
        ("chip_ids", [CHIP.upper()], "chip_ids has a wrong value", None),
        ("chip_ids", ["0" * 128], "chip_ids has an entry of zeros", None),
        ("denied_chip_ids", ["0" * 16], "denied_chip_ids has an entry of zeros", None),
        ("denied_chip_ids", ["zz" * 64], "denied_chip_ids has a wrong value", None),
        ("id_key_digests", ["1d" * 32], "id_key_digests has a wrong value", None),
        ("id_key_digests", ["0" * 96], "id_key_digests has an entry of zeros", None),
        ("author_key_digests", ["0" * 96], "author_key_digests has an entry of zeros", None),
        ("host_data", ["0d" * 48], "host_data has a wrong value", None),
        ("csp_ids", [""], "csp_ids has a wrong value", None),
        ("csp_ids", ["x" * 257], "csp_ids has a wrong value", None),
        ("csp_ids", ["a\nb"], "csp_ids has a wrong value", None),
        ("csp_ids", ["x"] * (MAX_ENTRIES + 1), "csp_ids has a wrong value", None),
    ],
)
def test_values_that_are_wrong(name: str, value: Any, message: str, mend: str | None) -> None:
    """A wrong name, type, length or word is refused in words that name the setting and, where one is near, the word."""
    with pytest.raises(ProtocolError, match=message) as refused:
        parse_floors({name: value}, NOTHING)
    assert refused.value.mend == mend
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("kind", ["policy", "platform"])
def test_bits_that_are_required_and_forbidden(kind: str) -> None:
    """A bit that is required cannot be forbidden too, also where the one comes from the base."""
    (bit,) = {"policy": ["cxl_allowed"], "platform": ["tio_enabled"]}[kind]
    with pytest.raises(ProtocolError, match=f"{kind}_required and {kind}_forbidden") as refused:
        parse_floors({f"{kind}_required": [bit]}, Floors())
    assert refused.value.found == bit
    assert refused.value.mend
    both = parse_floors({f"{kind}_required": [bit], f"{kind}_forbidden": []}, Floors())
    assert getattr(both, f"{kind}_required") == (bit,)


# --- whatever comes ---

WORDS = st.sampled_from([*Line, *POLICY_BITS, "Milan snp=24", "Turin fmc=1", "Genoa 1.55.40", "1.55", CHIP, ID_KEY, ""])


@given(
    table=st.dictionaries(
        st.sampled_from([*NAMES, "other"]),
        st.one_of(json_values.values, st.integers(-1, 300), WORDS, st.lists(WORDS, max_size=3)),
        max_size=4,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_table_raises_only_our_error(table: dict[str, Any]) -> None:
    """Whatever somebody writes, it is a set of floors that can be judged, or refused as ours."""
    with suppress(ProtocolError):
        check_floors(FACTS, MEASUREMENTS, parse_floors(table, NOTHING), Trace())


PARTS = sorted(TCB_LAYOUT[Line.GENOA])


@given(
    least=st.lists(st.integers(0, 255), min_size=4, max_size=4),
    shown=st.lists(st.integers(0, 255), min_size=4, max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_tcb_floor_is_component_wise(least: list[int], shown: list[int]) -> None:
    """A TCB passes exactly where each component is at least the floor's."""
    text = "Genoa " + " ".join(f"{part}={svn}" for part, svn in zip(PARTS, least, strict=True))
    facts = {f"current_tcb_{part}": svn for part, svn in zip(PARTS, shown, strict=True)}
    passed, _ = judged(only(min_current_tcb=(text,)), facts)
    assert passed == all(a >= b for a, b in zip(shown, least, strict=True))
