# SPDX-License-Identifier: Apache-2.0
"""Who a guest is to the key's owner, and what becomes of it: only enrolled machines get keys, each for what it was
enrolled for.
"""

from dataclasses import replace
from typing import Any

import pytest

from broker.appraisal.case import Case, Lease, Ticket
from broker.appraisal.distrust import Distrust
from broker.appraisal.identity import Act, stranger_name
from broker.appraisal.image_life import ImageState, Life
from broker.appraisal.images import Image
from broker.appraisal.instances import Bound, Standing
from broker.appraisal.judge import Judged, admits, judge, not_judged
from broker.appraisal.registers import Register
from broker.claims import Claims
from broker.trace import Check, Stage, Trace, Verdict
from keys.tee import Tee
from tests.fakes.cases import ACTIVE, NOW, PATH, case_of, guest, known

EK, AK = "tpm-ek:02", "tpm-ak:000b01"
VALUE, OTHER = "aa" * 32, "bb" * 32
CLAIMS = Claims(Tee.TPM, (EK, AK), "ek-certificate", {"sha256:4": VALUE}, init_data="1d" * 24)
IMAGE = Image(Tee.TPM, "", {"sha256:4": Register((VALUE,))})
WEB = {"web-1": (EK,)}
STRANGER = stranger_name(CLAIMS)


def case(**more: Any) -> Case:
    standard: dict[str, Any] = {"images": {"debian@1": IMAGE}, "rule": {"instances": ["enrolled"]}}
    return case_of(CLAIMS, **standard | more)


def judged(case: Case) -> tuple[Judged, list[Check]]:
    """The judgement, and the checks that failed."""
    trace = Trace()
    return judge(case, trace), trace.failed


def test_an_enrolled_machine_is_let_in() -> None:
    """With `enrolled` each machine that the owner knows by one of its ids gets the key, under its name."""
    outcome, failed = judged(case(enrolled=WEB))
    assert outcome == Judged(True, "debian@1", ("web-1",))
    assert not failed


@pytest.mark.parametrize("standing", [standing for standing in Standing if standing is not Standing.ENROLLED])
@pytest.mark.parametrize("instances", [["enrolled"], ["any"], ["web-1"]])
def test_a_machine_that_stands_otherwise_gets_nothing(standing: Standing, instances: list[str]) -> None:
    """Pending, denied, revoked, quarantined, failed: refused under every rule, with who said so, why, and the mend."""
    known_as = (guest("web-1", (EK,), standing, why="stolen"),)
    outcome, failed = judged(case(guests=known_as, rule={"instances": instances}))
    assert not outcome.allowed
    assert outcome.act is Act.NOTHING
    [check] = failed
    assert check.name == "guest web-1 is enrolled"
    assert check.found.startswith(f"{standing} since ")
    assert check.found.endswith("by alice: stolen")
    assert "roomkey guest" in check.mend
    assert "web-1" in check.mend


def test_one_bad_name_among_two_is_enough() -> None:
    """Where two names share the machine, both must be in order: the revoked one counts."""
    both = (guest("web-1", (EK,)), guest("old", (AK,), Standing.REVOKED))
    assert not judged(case(guests=both))[0].allowed


@pytest.mark.parametrize(
    ("bound", "name"),
    [
        (Bound("acme/disk/other", "debian"), "guest web-1 was enrolled for this key"),
        (Bound(str(PATH), "debian", "00" * 24), "guest web-1 came with the init-data that it was enrolled with"),
        (Bound(str(PATH), "fedora"), "guest web-1 runs the image that it was enrolled for"),
        (Bound(str(PATH), "debian@2"), "guest web-1 runs the image that it was enrolled for"),
    ],
)
def test_who_was_enrolled_for_one_thing_gets_no_other(bound: Bound, name: str) -> None:
    """Another key, init-data or image than those of the enrolment: refused, and only for that."""
    outcome, failed = judged(case(guests=(guest("web-1", (EK,), bound=bound),)))
    assert not outcome.allowed
    assert [check.name for check in failed] == [name]


@pytest.mark.parametrize("image", ["debian", "debian@1"])
def test_who_was_enrolled_for_this_gets_it(image: str) -> None:
    """The same key, image by name or by version, and init-data: let in."""
    bound = Bound(str(PATH), image, CLAIMS.init_data)
    assert judged(case(guests=(guest("web-1", (EK,), bound=bound),)))[0].allowed


def test_init_data_that_is_missing_is_other_init_data() -> None:
    """A guest that was enrolled with init-data and comes without is refused."""
    bound = Bound(str(PATH), "debian", "1d" * 24)
    bare = replace(case(guests=(guest("web-1", (EK,), bound=bound),)), claims=replace(CLAIMS, init_data=None))
    [check] = judged(bare)[1]
    assert check.found == "none"


def test_a_stranger_waits_for_its_owner_if_all_else_is_right() -> None:
    """Unknown, with a right image, under `enrolled`: denied, and to be queued under a name that stays the same."""
    outcome, failed = judged(case())
    assert (outcome.allowed, outcome.act, outcome.guest) == (False, Act.QUEUE, STRANGER)
    [check] = failed
    assert f"roomkey guest approve {STRANGER}" in check.mend
    assert stranger_name(replace(CLAIMS, instance_ids=(EK,))) == STRANGER


@pytest.mark.parametrize(
    "more",
    [
        {"rule": {"instances": ["web-1"]}},
        {"images": {"debian@1": replace(IMAGE, registers={"sha256:4": Register((OTHER,))})}},
        {"rule": {"instances": ["enrolled"], "platforms": ["snp"]}},
        {"distrusted": (Distrust("platform", "tpm"),)},
        {"key": None},
    ],
)
def test_a_stranger_who_is_wrong_in_anything_else_does_not_wait(more: dict[str, Any]) -> None:
    """Named guests only, another image, platform, distrust, no key: denied, and nothing is queued."""
    outcome, _ = judged(case(**more))
    assert (outcome.allowed, outcome.act) == (False, Act.NOTHING)


GOOD = Ticket("good", "web-9", str(PATH), "debian")


@pytest.mark.parametrize("instances", [["enrolled"], ["web-9"]])
def test_a_ticket_lets_a_stranger_in_to_be_enrolled(instances: list[str]) -> None:
    """A good ticket for this key and image admits under the name that its owner wrote on it."""
    outcome, failed = judged(case(ticket=GOOD, rule={"instances": instances}))
    assert outcome == Judged(True, "debian@1", ("web-9",), act=Act.REDEEM, guest="web-9")
    assert not failed


@pytest.mark.parametrize(
    ("ticket", "found"),
    [
        (GOOD._replace(state="used"), "used"),
        (GOOD._replace(state="expired"), "expired"),
        (Ticket("unknown"), "unknown"),
        (GOOD._replace(key="acme/disk/other"), "for acme/disk/other"),
    ],
)
def test_a_ticket_that_is_not_good_lets_nobody_in(ticket: Ticket, found: str) -> None:
    """Used, expired, another owner's or for another key: denied, told apart for the owner; nothing is enrolled."""
    outcome, failed = judged(case(ticket=ticket))
    assert (outcome.allowed, outcome.act) == (False, Act.NOTHING)
    assert failed[0].name == "ticket is good, and for this key"
    assert failed[0].found == found


def test_a_ticket_is_for_one_image() -> None:
    """The right key with another image than the ticket's: denied."""
    outcome, failed = judged(case(ticket=GOOD._replace(image="fedora")))
    assert (outcome.allowed, outcome.act) == (False, Act.NOTHING)
    assert [check.name for check in failed] == ["guest web-9 runs the image that it was enrolled for"]


def test_a_ticket_does_not_stand_for_the_rule() -> None:
    """A rule that names other guests lets the ticket's guest not in."""
    outcome, failed = judged(case(ticket=GOOD, rule={"instances": ["web-1"]}))
    assert not outcome.allowed
    assert [check.name for check in failed] == ["release rule names the instance"]


def test_a_known_guests_ticket_changes_nothing() -> None:
    """Who is enrolled already uses up no ticket; who is revoked gets not in by one."""
    assert judged(case(ticket=GOOD, enrolled=WEB))[0].act is Act.NOTHING
    assert not judged(case(ticket=GOOD, guests=(guest("web-1", (EK,), Standing.REVOKED),)))[0].allowed


def test_first_use_only_where_the_rule_says_so() -> None:
    """`unsafe_first_use` enrols a stranger with a right image, and its trace says that this is unsafe."""
    trace = Trace()
    unsafe = {"instances": ["enrolled"], "unsafe_first_use": True}
    outcome = judge(case(rule=unsafe), trace)
    assert outcome == Judged(True, "debian@1", (STRANGER,), act=Act.FIRST_USE, guest=STRANGER)
    assert any(check.name.startswith("UNSAFE") for check in trace.checks)


def lease(holder: str = "another", until: int = NOW + 1) -> Lease:
    return Lease(holder, until)


@pytest.mark.parametrize(
    ("clones", "held", "allowed", "act"),
    [
        ("allow", lease(), True, Act.NOTHING),
        ("refuse", None, True, Act.NOTHING),
        ("refuse", lease(), False, Act.NOTHING),
        ("refuse", lease(holder="5e55"), True, Act.NOTHING),
        ("refuse", lease(until=NOW), True, Act.NOTHING),
        ("quarantine", lease(), False, Act.QUARANTINE),
    ],
)
def test_a_second_live_release_is_treated_as_the_rule_says(
    clones: str, held: Lease | None, allowed: bool, act: Act
) -> None:
    """Another session's lease that is not over refuses or quarantines; one's own, or one that is over, does neither."""
    outcome, failed = judged(case(enrolled=WEB, lease=held, rule={"instances": ["web-1"], "clones": clones}))
    assert (outcome.allowed, outcome.act) == (allowed, act)
    assert outcome.guest == ("web-1" if act is Act.QUARANTINE else "")
    assert [check.name for check in failed] == ([] if allowed else ["no other release to the same guest is live"])


def test_who_is_not_known_by_name_cannot_be_quarantined() -> None:
    """Under `any` a clone of a machine that nobody enrolled is refused."""
    outcome, failed = judged(case(lease=lease(), rule={"instances": ["any"], "clones": "quarantine"}))
    assert (outcome.allowed, outcome.act) == (False, Act.NOTHING)
    assert "readmit NAME" in failed[0].mend


WRONG = {"debian@1": replace(IMAGE, registers={"sha256:4": Register((OTHER,))})}
LATER = {"reset_count": 9, "restart_count": 0, "clock": 1, "attested_at": NOW - 50}


@pytest.mark.parametrize(
    ("more", "act"),
    [
        ({"images": WRONG}, Act.FAIL),
        ({}, Act.NOTHING),
        ({"images": WRONG, "enrolled": {}}, Act.NOTHING),
        ({"key": None}, Act.NOTHING),
    ],
)
def test_a_failure_sticks_where_the_rule_says_so(more: dict[str, Any], act: Act) -> None:
    """What an enrolled guest runs must be wrong for it to stay failed; a missing key or a stranger is no failure."""
    sticky = {"instances": ["enrolled"], "sticky_failure": True}
    outcome, _ = judged(case(**{"rule": sticky, "enrolled": WEB} | more))
    assert outcome.act is act
    lenient, _ = judged(case(**{"enrolled": WEB} | more))
    assert lenient.act is Act.NOTHING


def test_a_clock_that_went_back_is_a_failure_that_sticks() -> None:
    """A machine put back to a snapshot stays failed, too."""
    back = replace(CLAIMS, facts={"reset_count": 1, "restart_count": 0, "clock": 1})
    sticky = {"instances": ["enrolled"], "sticky_failure": True}
    outcome, _ = judged(replace(case(rule=sticky, enrolled=WEB, clock=LATER), claims=back))
    assert (outcome.allowed, outcome.steady, outcome.act) == (False, False, Act.FAIL)


def test_evidence_that_already_failed_leads_to_nothing() -> None:
    """With a failed check of the verifier's before it, nothing is allowed and nothing becomes of the guest."""
    for more in ({"enrolled": WEB}, {}, {"ticket": GOOD}):
        trace = Trace()
        trace.check(Stage.TRUST, "debugging is off", False)
        outcome = judge(case(**more), trace)
        assert (outcome.allowed, outcome.act) == (False, Act.NOTHING)


def test_without_a_rule_nobody_is_judged_further() -> None:
    """No rule: denied, for that."""
    outcome, failed = judged(replace(case(enrolled=WEB), rule=None, rule_version=None))
    assert outcome == Judged(False)
    assert [check.name for check in failed] == ["key has a release rule"]


@pytest.mark.parametrize(
    ("more", "admitted"),
    [
        ({"enrolled": WEB}, True),
        ({}, False),
        ({"ticket": GOOD}, False),
        ({"enrolled": WEB, "distrusted": (Distrust("platform", "tpm"),)}, False),
        ({"enrolled": WEB, "key": None}, False),
        ({"enrolled": WEB, "rule": {"instances": ["enrolled"], "platforms": ["snp"]}}, False),
        ({"enrolled": WEB, "images": WRONG}, True),
    ],
)
def test_before_a_guest_is_measured(more: dict[str, Any], admitted: bool) -> None:
    """Key, platform, guest and distrust decide who may be launched at all; nobody is enrolled by that."""
    assert admits(case(**more), Trace()) is admitted


def test_before_a_guest_is_measured_there_must_be_a_rule() -> None:
    """Without a rule no launch begins."""
    assert not admits(replace(case(enrolled=WEB), rule=None), Trace())


def test_what_was_not_judged_is_said() -> None:
    """Refused evidence leaves three lines that say what nobody could judge."""
    trace = Trace()
    not_judged(trace)
    assert {check.verdict for check in trace.checks} == {Verdict.NOT_JUDGED}
    assert len(trace.checks) == 3


@pytest.mark.parametrize(
    ("life", "words", "mend"),
    [
        (Life(ImageState.REVOKED, NOW, "bob", "a hole"), "which is revoked since", "update the guest"),
        (Life(ImageState.PROPOSED, NOW, "ci"), "which is proposed since", "roomkey image approve debian@1"),
        (Life(ImageState.RETIRING, NOW - 9, "bob", "", NOW - 1), "which is retired since", "roomkey image retire"),
        (ACTIVE, "which the rule does not mean", "roomkey image retire debian@1"),
    ],
)
def test_a_guest_with_an_image_that_does_not_count_is_told_so(life: Life, words: str, mend: str) -> None:
    """What it runs is named, where that stands, and what would mend it."""
    newer = replace(IMAGE, registers={"sha256:4": Register((OTHER,))})
    images = (known("debian@2", newer), known("debian@1", IMAGE, life, counts=False))
    outcome, failed = judged(replace(case(enrolled=WEB), images=images))
    assert (outcome.allowed, outcome.image) == (False, None)
    [check] = failed
    assert check.name == "image debian@1 may still be used"
    assert check.expected == "debian@2"
    assert words in check.found
    assert mend in check.mend


def test_an_image_that_is_retiring_still_counts_and_says_so() -> None:
    """Until its time it lets in, and the trace tells until when."""
    life = Life(ImageState.RETIRING, NOW - 9, "bob", "kernel 32 is out", NOW + 1000)
    trace = Trace()
    outcome = judge(replace(case(enrolled=WEB), images=(known("debian@1", IMAGE, life),)), trace)
    assert outcome.allowed
    assert any("is retiring since" in check.name and "until" in check.name for check in trace.checks)


def test_where_only_one_that_does_not_count_is_left() -> None:
    """No image that counts, and the guest runs one that did: that is said, and no update can be named."""
    gone = known("debian@1", IMAGE, Life(ImageState.REVOKED, NOW, "bob"), counts=False)
    [check] = judged(replace(case(enrolled=WEB), images=(gone,)))[1]
    assert (check.expected, check.mend) == ("debian", "update the guest")


def test_floors_of_the_one_that_counts_come_before_one_that_does_not() -> None:
    """Where all registers of the image that counts fit, its unmet floors are what is told, not an older version."""
    sev = Claims(Tee.SEV, ("sev-cek:01",), "sev-cek", {"launch_digest": VALUE}, {"policy": "0x1"})
    strict = Image(Tee.SEV, "", {"launch_digest": Register((VALUE,))}, {"es": False, "policy": 5})
    lax = replace(strict, floors={"es": False, "policy": 1})
    images = (known("web@2", strict), known("web@1", lax, counts=False))
    rule = {"images": ["web"], "platforms": ["sev"], "instances": ["rack"]}
    stated = case_of(sev, images={}, rule=rule, enrolled={"rack": ("sev-cek:01",)})
    outcome, failed = judged(replace(stated, images=images))
    assert not outcome.allowed
    assert [check.stage for check in failed] == [Stage.TRUST]


def test_a_case_survives_json() -> None:
    """What is written down whole is read back the same, with and without its optional parts."""
    full = case(
        guests=(guest("web-1", (EK,), bound=Bound(str(PATH), "debian")), guest("old", (AK,))),
        distrusted=(Distrust("product", "Milan", "BadFuse"),),
        clock=LATER,
        lease=lease(),
        ticket=GOOD,
    )
    bare = replace(case(), rule=None, rule_version=None, key=None, images=())
    for one in (full, bare):
        assert Case.from_json(one.to_json(whole=True), one.claims) == one
        assert "rule" not in one.to_json(whole=False)
