# SPDX-License-Identifier: Apache-2.0
"""Appraisal: what was not approved is denied, and the owner is told exactly what differs."""

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.appraisal.clock import clock_mark, clock_not_behind
from broker.appraisal.difference import Difference, first_difference
from broker.appraisal.images import Image
from broker.appraisal.judge import judge as judge_case
from broker.appraisal.registers import ExpectedEvent, Register
from broker.claims import Claims, LoggedEvent
from broker.trace import Check, Stage, Trace, Verdict
from keys.tee import Tee
from tests.fakes.cases import case_of

AK = "tpm-ak:000b01"
EK = "tpm-ek:02"
VALUES = {f"sha256:{index}": f"{index:02x}" * 32 for index in range(24)}
CLAIMS = Claims(Tee.TPM, (EK, AK), "ek-certificate", VALUES)
NAMED = (0, 4, 7, 9)
IMAGE = Image(Tee.TPM, "", {f"sha256:{index}": Register((VALUES[f"sha256:{index}"],)) for index in NAMED})
OTHER = "ff" * 32


# What is said about every case, whatever its claims, rule and images are.
ALWAYS = {
    "session asks for the key that it announced",
    "key exists",
    "key has a release rule",
    "nothing of it is distrusted by the key's owner",
    "no other release to the same guest is live",
    "TPM's clock goes on from where it was last seen",
}


class Outcome(NamedTuple):
    allowed: bool
    image: str | None
    instances: tuple[str, ...]


def judge(
    claims: Claims = CLAIMS,
    images: dict[str, Image] | None = None,
    enrolled: dict[str, tuple[str, ...]] | None = None,
    **rule: Any,
) -> tuple[Outcome, list[Check]]:
    """The outcome, and the checks that depend on claims, rule and images."""
    trace = Trace()
    case = case_of(claims, images={"debian@1": IMAGE} if images is None else images, enrolled=enrolled, rule=rule)
    judged = judge_case(case, trace)
    checks = [check for check in trace.checks if check.name not in ALWAYS]
    return Outcome(judged.allowed, judged.image, judged.names), checks


def failed(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.verdict is Verdict.FAILED]


def mentioned(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.verdict is Verdict.NOT_JUDGED]


def measured(**pcrs: str) -> Claims:
    return replace(CLAIMS, measurements=VALUES | {f"sha256:{name[3:]}": value for name, value in pcrs.items()})


def image_with(registers: dict[str, Register]) -> Image:
    return replace(IMAGE, registers={**IMAGE.registers, **registers})


def test_an_approved_guest_is_allowed() -> None:
    """Platform, instance and every register as approved: allowed, by that image, and nothing failed."""
    outcome, checks = judge()
    assert outcome == Outcome(allowed=True, image="debian@1", instances=())
    assert not failed(checks)
    assert {check.stage for check in checks} == {Stage.TRUST, Stage.IDENTITY, Stage.MEASUREMENT}
    assert sum(check.verdict is Verdict.PASSED for check in checks) == 3 + len(NAMED)


def test_registers_outside_the_image_are_said_to_be_not_required() -> None:
    """Nothing passes in silence: what the image leaves out is listed, in order."""
    [line] = [check for check in judge()[1] if check.verdict is Verdict.NOT_REQUIRED]
    assert line.name == "registers that image debian@1 does not name"
    assert line.found.split() == [f"sha256:{index}" for index in range(24) if index not in NAMED]


def test_another_platform_is_denied() -> None:
    """A platform that the rule does not name gets nothing, whatever else fits."""
    claims, image = replace(CLAIMS, tee=Tee.TDX), replace(IMAGE, platform=Tee.TDX)
    outcome, checks = judge(claims, {"debian@1": image}, {"web-1": (EK,)}, instances=["web-1"])
    assert not outcome.allowed
    [check] = failed(checks)
    assert (check.name, check.expected, check.found) == ("release rule names the platform", "tpm", "tdx")
    assert "--platform tdx" in check.mend


def test_an_image_of_another_platform_does_not_count() -> None:
    """Images are compared with evidence of their own platform only."""
    outcome, checks = judge(images={"debian@1": replace(IMAGE, platform=Tee.SNP)})
    assert not outcome.allowed
    assert failed(checks)[0].name == "an image of the release rule exists for this platform"


def test_without_an_image_nobody_is_allowed() -> None:
    """A rule whose images do not exist allows nothing, and says how to enrol one."""
    outcome, checks = judge(images={})
    assert outcome == Outcome(allowed=False, image=None, instances=())
    [check] = failed(checks)
    assert (check.expected, check.found) == ("debian", "none")
    assert "roomkey image enrol debian" in check.mend


def test_any_needs_a_vendor() -> None:
    """ "any" means any guest whose hardware a vendor vouches for, never a key that only somebody enrolled."""
    outcome, checks = judge(replace(CLAIMS, trust="enrolled"), enrolled={"web-1": (AK,)})
    assert not outcome.allowed
    [check] = failed(checks)
    assert (check.stage, check.expected, check.found) == (Stage.IDENTITY, "ek-certificate", "enrolled")
    assert "--instance" in check.mend


def test_with_any_the_line_still_says_who_it_was() -> None:
    """A guest that the owner happens to know is named also where the rule does not ask for it."""
    outcome, _ = judge(enrolled={"web-1": (EK,)})
    assert outcome == Outcome(allowed=True, image="debian@1", instances=("web-1",))


@pytest.mark.parametrize("trust", ["enrolled", "ek-certificate"])
@pytest.mark.parametrize("ids", [(AK,), (EK,), (EK, AK), ("tpm-ek:ff", AK)])
def test_a_named_instance_is_allowed(trust: str, ids: tuple[str, ...]) -> None:
    """A guest that the owner enrolled under a name in the rule is allowed, by whichever of its ids he knows it."""
    enrolled = {"web-1": ids, "db-1": ("tpm-ak:ff",), "web-2": ids}
    outcome, _ = judge(replace(CLAIMS, trust=trust), None, enrolled, instances=["web-1"])
    assert outcome == Outcome(allowed=True, image="debian@1", instances=("web-1",))


@pytest.mark.parametrize(
    ("enrolled", "found", "mend"),
    [
        ({}, f"not enrolled by the key's owner: {EK}", "roomkey instance add"),
        ({"web-1": ("tpm-ak:ff",)}, f"not enrolled by the key's owner: {EK}", "roomkey instance add"),
        ({"db-1": (AK,)}, "db-1", "--instance db-1"),
    ],
)
def test_a_stranger_is_denied(enrolled: dict[str, tuple[str, ...]], found: str, mend: str) -> None:
    """Approved measurements on a machine that the rule does not name are denied, and the machine is named."""
    outcome, checks = judge(CLAIMS, None, enrolled, instances=["web-1"])
    assert outcome == Outcome(allowed=False, image="debian@1", instances=())
    [check] = failed(checks)
    assert (check.stage, check.expected, check.found) == (Stage.IDENTITY, "web-1", found)
    assert mend in check.mend


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(NAMED), st.binary(min_size=32, max_size=32))
def test_any_single_changed_register_is_denied_and_named(index: int, value: bytes) -> None:
    """Whichever named register has whichever other value: denied, and exactly that register is in the trace."""
    if value.hex() == VALUES[f"sha256:{index}"]:
        return
    outcome, checks = judge(measured(**{f"pcr{index}": value.hex()}))
    assert outcome == Outcome(allowed=False, image=None, instances=())
    [check] = failed(checks)
    assert check.name.startswith(f"PCR {index} (")
    assert (check.expected, check.found) == (VALUES[f"sha256:{index}"], value.hex())
    assert "roomkey image enrol debian" in check.mend


def test_a_register_that_is_not_in_the_evidence_is_denied() -> None:
    """What the quote leaves out is not assumed to be right."""
    measurements = {name: value for name, value in VALUES.items() if name != "sha256:7"}
    outcome, checks = judge(replace(CLAIMS, measurements=measurements))
    assert not outcome.allowed
    assert [(check.name[:5], check.found) for check in failed(checks)] == [("PCR 7", "not in the evidence")]


def test_another_bank_is_another_register() -> None:
    """The same index in another bank proves nothing about the one in the image, and its title says which bank."""
    image = Image(Tee.TPM, "", {"sha384:4": Register(("ab" * 48,))})
    outcome, checks = judge(images={"debian@1": image})
    assert not outcome.allowed
    assert failed(checks)[0].name == "PCR 4 (boot applications, sha384) is as in image debian@1"


def test_all_differences_are_told_at_once() -> None:
    """Two wrong registers, a wrong instance and a wrong platform are four failed checks of one decision."""
    claims = replace(measured(pcr4=OTHER, pcr9=OTHER), tee=Tee.TDX, trust="enrolled")
    _, checks = judge(claims, {"debian@1": replace(IMAGE, platform=Tee.TDX)})
    assert len(failed(checks)) == 4


def test_one_of_several_values_is_enough() -> None:
    """A register with a list of values accepts each of them and shows all where none fits."""
    image = image_with({"sha256:7": Register((OTHER, VALUES["sha256:7"]))})
    assert judge(images={"debian@1": image})[0].allowed
    _, checks = judge(measured(pcr7="ee" * 32), {"debian@1": image})
    assert failed(checks)[0].expected == f"{OTHER} or {VALUES['sha256:7']}"


def test_any_image_of_the_rule_is_enough() -> None:
    """The first image that fits in all registers approves; the others are mentioned, not failed."""
    old = image_with({"sha256:4": Register((OTHER,)), "sha256:9": Register((OTHER,))})
    outcome, checks = judge(images={"debian@1": old, "debian@2": IMAGE})
    assert outcome == Outcome(allowed=True, image="debian@2", instances=())
    assert not failed(checks)
    assert mentioned(checks) == ["image debian@1: 2 of 4 registers differ"]


def test_registers_of_two_images_do_not_add_up() -> None:
    """A guest with one half of one image and the other half of another fits neither."""
    one = image_with({"sha256:4": Register((OTHER,))})
    two = image_with({"sha256:9": Register((OTHER,))})
    claims = measured(pcr4=OTHER, pcr9=OTHER)
    assert not judge(claims, {"debian@1": one, "debian@2": two})[0].allowed


def test_the_nearest_image_is_taken_apart() -> None:
    """Where none fits, the trace explains the image with the fewest differences."""
    far = image_with({f"sha256:{index}": Register((OTHER,)) for index in NAMED})
    _, checks = judge(measured(pcr9="ee" * 32), {"far@1": far, "near@1": IMAGE})
    assert [check.name for check in failed(checks)] == [
        "PCR 9 (files read by the boot loader, initrd) is as in image near@1"
    ]
    assert "roomkey image enrol near" in failed(checks)[0].mend
    assert mentioned(checks) == ["image far@1: 4 of 4 registers differ"]


def test_of_two_images_that_fit_the_first_is_named() -> None:
    """Two images that both fit are no contradiction, and neither is said to differ."""
    outcome, checks = judge(images={"debian@1": IMAGE, "debian@2": IMAGE})
    assert outcome.image == "debian@1"
    assert mentioned(checks) == []


# --- reports instead of registers ---

CHIP = "ab" * 64
REPORT = {
    "measurement": "aa" * 48, "host_data": "00" * 32, "id_key_digest": "bb" * 48, "author_key_digest": "00" * 48,
    "family_id": "00" * 16, "image_id": "00" * 16,
}  # fmt: skip
SNP = Claims(
    Tee.SNP,
    (f"snp-chip:{CHIP}",),
    "vcek",
    REPORT,
    facts={"product": "Genoa", "guest_svn": 3, "vmpl": 0, "signing_key": "vcek", "chip_id": CHIP},
)
SNP_IMAGE = Image(Tee.SNP, "", {"measurement": Register(("aa" * 48,))})
LAUNCHED = Claims(
    Tee.SEV,
    ("sev-cek:01",),
    "sev-cek",
    {"launch_digest": "cc" * 32},
    facts={"policy": "0x3f", "api_major": 1, "api_minor": 49, "build_id": 6},
)
SEV_IMAGE = Image(Tee.SEV, "", {"launch_digest": Register(("cc" * 32,))}, {"es": True, "policy": 0x05})


def judge_snp(claims: Claims = SNP, image: Image = SNP_IMAGE, **rule: Any) -> tuple[Outcome, list[Check]]:
    return judge(claims, {"debian@1": image}, platforms=[str(claims.tee)], **rule)


@pytest.mark.parametrize("tee", [Tee.SNP, Tee.AZ_SNP_VTPM])
@pytest.mark.parametrize("trust", ["vcek", "vlek"])
def test_any_takes_amds_word(tee: Tee, trust: str) -> None:
    """A report under a chip's or a provider's key counts as "any", and every line of the trace has a readable name."""
    outcome, checks = judge_snp(replace(SNP, tee=tee, trust=trust), replace(SNP_IMAGE, platform=tee))
    assert outcome == Outcome(allowed=True, image="debian@1", instances=())
    assert "MEASUREMENT (launch digest) is as in image debian@1" in [check.name for check in checks]
    unnamed = [check.found for check in checks if check.name == "registers that image debian@1 does not name"]
    assert unnamed == ["id_key_digest author_key_digest host_data family_id image_id"]


@pytest.mark.parametrize(
    ("claims", "trust"),
    [(SNP, "vcek-named"), (SNP, "vlek-named"), (SNP, "ek-certificate"), (SNP, "enrolled"), (CLAIMS, "vcek"),
     (LAUNCHED, "sev-cek"), (LAUNCHED, "vcek"), (replace(SNP, tee=Tee.AZ_SNP_VTPM), "vcek-named")],
)  # fmt: skip
def test_any_never_takes_a_word_that_counts_by_name_only(claims: Claims, trust: str) -> None:
    """Lines that others can forge, launches before SNP, and another platform's kind of trust are nobody's "any"."""
    images = {Tee.SEV: SEV_IMAGE, Tee.TPM: IMAGE}
    image = images.get(claims.tee, replace(SNP_IMAGE, platform=claims.tee))
    outcome, checks = judge_snp(replace(claims, trust=trust), image)
    assert not outcome.allowed
    [check] = failed(checks)
    assert check.name == "a configured vendor vouches for the hardware"


def test_a_machine_that_counts_by_name_only_is_told_so() -> None:
    """The denial says that it is genuine, why that is not enough, and how to name this very chip."""
    milan = replace(SNP, trust="vcek-named", facts={**SNP.facts, "product": "Milan"})
    [check] = failed(judge_snp(milan)[1])
    assert check.expected == "vcek or vlek"
    assert check.found.startswith("vcek-named: genuine, but others may hold keys of Milan machines")
    assert f"roomkey instance add NAME --chip-id {CHIP}" in check.mend
    assert "snp.named_only" in check.mend
    [check] = failed(judge(milan, {"debian@1": SNP_IMAGE}, {"rack-1": (f"snp-chip:{CHIP}",)}, platforms=["snp"])[1])
    assert "instance add" not in check.mend
    assert "--instance rack-1" in check.mend


@pytest.mark.parametrize(
    ("claims", "image"), [(replace(SNP, trust="vcek-named"), SNP_IMAGE), (LAUNCHED, SEV_IMAGE)], ids=["snp", "sev"]
)
def test_it_counts_where_a_rule_names_it(claims: Claims, image: Image) -> None:
    """The same machine, enrolled and named, is let in."""
    enrolled = {"rack-1": claims.instance_ids}
    outcome, checks = judge(
        claims, {"debian@1": image}, enrolled, platforms=[str(claims.tee)], instances=["rack-1"]
    )  # fmt: skip
    assert outcome == Outcome(allowed=True, image="debian@1", instances=("rack-1",))
    assert not failed(checks)


@pytest.mark.parametrize(
    ("instance_id", "option"),
    [("snp-chip:0f", "--chip-id 0f"), ("snp-csp:CN=x:y", "--csp-id CN=x:y"), ("snp-csp:x; y", "--csp-id 'x; y'"),
     ("sev-cek:0f", "--sev-cek FILE"),
     ("az-ak:0f", "--from EVIDENCE"), (AK, "--from EVIDENCE")],
)  # fmt: skip
def test_a_stranger_is_told_how_to_be_enrolled(instance_id: str, option: str) -> None:
    """The mend names the option that fits what the machine is known by."""
    _, checks = judge_snp(replace(SNP, instance_ids=(instance_id,)), instances=["web-1"])
    assert f"roomkey instance add NAME {option}, then" in failed(checks)[0].mend


@pytest.mark.parametrize("tee", [Tee.SNP, Tee.AZ_SNP_VTPM])
def test_an_images_floors_must_be_met_too(tee: Tee) -> None:
    """The right launch digest below a floor of the image is denied, with the floor; at the floor it is allowed."""
    image, claims = replace(SNP_IMAGE, platform=tee, floors={"min_guest_svn": 4}), replace(SNP, tee=tee)
    outcome, checks = judge_snp(claims, image)
    assert outcome == Outcome(allowed=False, image=None, instances=())
    [check] = failed(checks)
    assert (check.name, check.expected, check.found) == ("GUEST_SVN is new enough", "at least 4", "3")
    assert judge_snp(claims, replace(image, floors={"min_guest_svn": 3}))[0].allowed


def test_a_missing_fact_meets_no_floor() -> None:
    """Claims that do not say what a floor asks for are denied."""
    image = replace(SNP_IMAGE, floors={"min_guest_svn": 1})
    assert not judge_snp(replace(SNP, facts={}), image)[0].allowed


@pytest.mark.parametrize(("floors", "said"), [({}, True), ({"min_guest_svn": 3}, False)])
def test_a_version_that_is_not_asked_for_is_said_to_be_not_required(floors: dict[str, Any], said: bool) -> None:
    """Without a floor for GUEST_SVN the trace shows the value and that nothing was asked of it."""
    lines = [check for check in judge_snp(SNP, replace(SNP_IMAGE, floors=floors))[1]
             if check.name == "GUEST_SVN, of image debian@1"]  # fmt: skip
    assert [(line.verdict, line.found) for line in lines] == ([(Verdict.NOT_REQUIRED, "3")] if said else [])


def test_the_nearest_image_counts_registers_and_floors() -> None:
    """Of two images, one with a wrong register and one with two unmet floors, the first is taken apart."""
    floors = replace(SNP_IMAGE, floors={"min_guest_svn": 9, "products": ["Turin"]})
    register = replace(SNP_IMAGE, registers={"measurement": Register(("ff" * 48,))})
    outcome, checks = judge(SNP, {"floors@1": floors, "register@1": register}, platforms=["snp"])
    assert outcome.image is None
    assert [check.name for check in failed(checks)] == ["MEASUREMENT (launch digest) is as in image register@1"]
    assert mentioned(checks) == ["image floors@1: 0 of 1 registers differ, 2 of its floors are not met"]


def test_an_image_whose_floors_are_met_is_taken_before_one_whose_are_not() -> None:
    """Any image of the rule is enough, with its own floors."""
    high, low = (replace(SNP_IMAGE, floors={"min_guest_svn": svn}) for svn in (9, 1))
    outcome, checks = judge(SNP, {"high@1": high, "low@1": low}, platforms=["snp"])
    assert outcome == Outcome(allowed=True, image="low@1", instances=())
    assert not failed(checks)


def test_a_launch_before_snp_is_measured_not_enrolled() -> None:
    """Another launch digest is denied, and the mend is to compute it: such a guest has no evidence to enrol from."""
    claims = replace(LAUNCHED, measurements={"launch_digest": "dd" * 32})
    outcome, checks = judge(claims, {"debian@1": SEV_IMAGE}, {"a": ("sev-cek:01",)}, platforms=["sev"], instances=["a"])
    assert not outcome.allowed
    [check] = failed(checks)
    assert check.name == "launch digest is as in image debian@1"
    assert "roomkey image measure sev" in check.mend


# --- events ---


def expected_events(*digests: str) -> tuple[ExpectedEvent, ...]:
    return tuple(ExpectedEvent(digest, "EV_IPL", f"enrolled {digest}") for digest in digests)


def logged_events(*digests: str, register: str = "sha256:9") -> tuple[LoggedEvent, ...]:
    return tuple(LoggedEvent(register, "EV_IPL", digest, f"found {digest}") for digest in digests)


def explained(claims: Claims, enrolled: tuple[ExpectedEvent, ...]) -> list[Check]:
    image = image_with({"sha256:9": Register((VALUES["sha256:9"],), enrolled)})
    return failed(judge(claims, {"debian@1": image})[1])


def test_a_changed_register_names_the_event() -> None:
    """With both logs at hand the trace has, beside the values, the event that differs, in words and with a mend."""
    claims = replace(
        measured(pcr9=OTHER), events=logged_events("a", "x", register="sha256:8") + logged_events("a", "c")
    )
    register, event = explained(claims, expected_events("a", "b"))
    assert register.found == OTHER
    assert event.name == "PCR 9 (files read by the boot loader, initrd): event 2 was changed"
    assert event.expected == "EV_IPL enrolled b digest b…"
    assert event.found == "EV_IPL found c digest c…"
    assert "roomkey image enrol debian" in event.mend


def test_all_events_that_differ_are_explained() -> None:
    """A new kernel and its initrd in one register: a failed check for each, at its place in the guest's log."""
    claims = replace(measured(pcr9=OTHER), events=logged_events("a", "x", "c", "y"))
    names = [check.name for check in explained(claims, expected_events("a", "b", "c", "d"))]
    assert [name.partition("): ")[2] for name in names] == ["", "event 2 was changed", "event 4 was changed"]


def test_a_right_register_is_not_explained() -> None:
    """The log explains, the value decides: with the right value another log changes nothing."""
    image = image_with({"sha256:9": Register((VALUES["sha256:9"],), expected_events("a", "b"))})
    outcome, checks = judge(replace(CLAIMS, events=logged_events("x")), {"debian@1": image})
    assert outcome.allowed
    assert not failed(checks)


def test_a_right_log_does_not_save_a_wrong_register() -> None:
    """A guest that shows the enrolled log beside another value is denied all the same."""
    claims = replace(measured(pcr9=OTHER), events=logged_events("a", "b"))
    assert len(explained(claims, expected_events("a", "b"))) == 1


@pytest.mark.parametrize("without", ["image", "guest"])
def test_without_a_log_on_both_sides_only_the_values_are_told(without: str) -> None:
    """An image without events, or a guest without a log: one failed check with the two values."""
    claims = replace(measured(pcr9=OTHER), events=() if without == "guest" else logged_events("c"))
    assert len(explained(claims, () if without == "image" else expected_events("a"))) == 1


UNIQUE = st.lists(st.integers(0, 10**6).map(str), min_size=1, max_size=12, unique=True)


@settings(max_examples=200, deadline=None)
@given(UNIQUE, st.data())
def test_a_replaced_event_is_the_one_named(digests: list[str], data: st.DataObject) -> None:
    """One event with another digest: "changed", at its position, with both descriptions."""
    at = data.draw(st.integers(0, len(digests) - 1))
    found = [*digests[:at], "new", *digests[at + 1 :]]
    difference = first_difference(expected_events(*digests), logged_events(*found))
    assert difference is not None
    assert (difference.position, difference.kind) == (at + 1, "changed")
    assert f"enrolled {digests[at]} " in difference.expected
    assert "found new " in difference.found


@settings(max_examples=200, deadline=None)
@given(UNIQUE, st.data())
def test_an_inserted_event_is_the_one_named(digests: list[str], data: st.DataObject) -> None:
    """One event more, wherever: "added", at its position."""
    at = data.draw(st.integers(0, len(digests)))
    found = [*digests[:at], "new", *digests[at:]]
    assert first_difference(expected_events(*digests), logged_events(*found)) == Difference(
        at + 1, "added", "no event here", "EV_IPL found new digest new…"
    )


@settings(max_examples=200, deadline=None)
@given(UNIQUE, st.data())
def test_a_removed_event_is_the_one_named(digests: list[str], data: st.DataObject) -> None:
    """One event less, wherever: "removed", at its position."""
    at = data.draw(st.integers(0, len(digests) - 1))
    found = digests[:at] + digests[at + 1 :]
    gone = digests[at]
    assert first_difference(expected_events(*digests), logged_events(*found)) == Difference(
        at + 1, "removed", f"EV_IPL enrolled {gone} digest {gone[:16]}…", "no such event"
    )


@settings(max_examples=200, deadline=None)
@given(UNIQUE.filter(lambda digests: len(digests) > 1), st.data())
def test_a_swap_is_named_where_it_begins(digests: list[str], data: st.DataObject) -> None:
    """Two events in each other's place: "moved", at the first of them."""
    one, two = sorted(data.draw(st.lists(st.integers(0, len(digests) - 1), min_size=2, max_size=2, unique=True)))
    found = list(digests)
    found[one], found[two] = found[two], found[one]
    difference = first_difference(expected_events(*digests), logged_events(*found))
    assert difference is not None
    assert (difference.position, difference.kind) == (one + 1, "moved")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_a_difference_is_found_exactly_where_there_is_one(expected: list[str], found: list[str]) -> None:
    """For any two sequences, repeated digests included: none if equal, else the first position that differs."""
    difference = first_difference(expected_events(*expected), logged_events(*found))
    if expected == found:
        assert difference is None
    else:
        assert difference is not None
        at = difference.position - 1
        assert expected[:at] == found[:at]
        assert expected[at : at + 1] != found[at : at + 1]


# --- clock ---


def clocked(reset: int, restart: int, clock: int) -> Claims:
    return replace(CLAIMS, facts={"reset_count": reset, "restart_count": restart, "clock": clock})


MARK = {"reset_count": 5, "restart_count": 2, "clock": 1000, "attested_at": 70}


@pytest.mark.parametrize(
    ("counts", "good"),
    [
        ((5, 2, 1000), True),
        ((5, 2, 1001), True),
        ((5, 3, 900), True),
        ((6, 0, 0), True),
        ((5, 2, 999), False),
        ((5, 1, 2000), False),
        ((4, 9, 9000), False),
    ],
)
def test_a_clock_that_went_back_is_refused(counts: tuple[int, int, int], good: bool) -> None:
    """A lower reset count, a lower restart count or, at the same counts, a lower clock is a machine put back."""
    trace = Trace()
    assert clock_not_behind(MARK, clocked(*counts), 70, trace) is good
    [check] = trace.checks
    assert check.verdict is (Verdict.PASSED if good else Verdict.FAILED)
    if not good:
        assert "roomkey guest readmit NAME" in check.mend
        assert EK in check.mend
        assert check.expected == "at least reset_count 5, restart_count 2, clock 1000"


def test_evidence_of_two_sessions_at_once_is_not_a_rollback() -> None:
    """Of two quotes whose challenges overlapped nobody knows which is older, so a lower clock says nothing."""
    trace = Trace()
    assert clock_not_behind(MARK, clocked(5, 2, 999), 69, trace)
    assert trace.checks[0].verdict is Verdict.NOT_JUDGED


@pytest.mark.parametrize("counts", [(4, 9, 9000), (5, 1, 9000)])
def test_an_earlier_boot_is_a_rollback_whenever_it_was_challenged(counts: tuple[int, int, int]) -> None:
    """A challenge that was fetched in advance does not excuse evidence from before the machine's last reset."""
    trace = Trace()
    assert not clock_not_behind(MARK, clocked(*counts), 69, trace)
    assert trace.checks[0].verdict is Verdict.FAILED


def test_a_first_time_and_a_platform_without_clock_are_not_judged() -> None:
    """Where there is nothing to compare, the trace says so and nothing is refused."""
    for previous, claims in ((None, clocked(1, 0, 1)), (MARK, CLAIMS)):
        trace = Trace()
        assert clock_not_behind(previous, claims, 100, trace)
        assert trace.checks[0].verdict is Verdict.NOT_JUDGED


def test_the_mark_never_goes_back() -> None:
    """What is kept for the next time is the later of both, with the time at which it was shown."""
    assert clock_mark(None, CLAIMS, 80) is None
    assert clock_mark(None, clocked(1, 2, 3), 80) == {
        "reset_count": 1, "restart_count": 2, "clock": 3, "attested_at": 80
    }  # fmt: skip
    assert clock_mark(MARK, clocked(5, 2, 999), 80) == MARK
    assert clock_mark(MARK, clocked(5, 2, 1000), 80) == MARK | {"attested_at": 80}
    assert clock_mark(MARK, clocked(6, 0, 0), 80) == {
        "reset_count": 6, "restart_count": 0, "clock": 0, "attested_at": 80
    }  # fmt: skip
