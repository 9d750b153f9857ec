# SPDX-License-Identifier: Apache-2.0
"""What changed between two images: every change in words, none where there is none, and which ones allow more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.appraisal.change import Change
from broker.appraisal.components import Combinations, Component
from broker.appraisal.fit import fit
from broker.appraisal.image_changes import changes, unchanged
from broker.appraisal.image_tpm import replay
from broker.appraisal.images import Image
from broker.appraisal.registers import ExpectedEvent, Register
from broker.claims import Claims
from keys.tee import Tee

A, B, C, D, E, F = (digit * 64 for digit in "abcdef")
PCR_4, PCR_8, PCR_14 = "PCR 4 (boot applications)", "sha256:8", "PCR 14 (MOK lists)"
TITLE_8 = "PCR 8 (boot loader commands, kernel command line, init-data)"


def tpm(description: str = "", bank: str = "sha256", **registers: Register | tuple[str, ...]) -> Image:
    """An image; registers as pcr4=(A, B) or with events."""
    found = {
        f"{bank}:{name.removeprefix('pcr')}": value if isinstance(value, Register) else Register(value)
        for name, value in registers.items()
    }
    return Image(Tee.TPM, description, found)


def led(*events: ExpectedEvent, others: tuple[str, ...] = (), locality: int = 0) -> Register:
    value = replay("sha256", [event.digest for event in events], locality)
    return Register((value, *others), events)


def snp(**floors: Any) -> Image:
    return Image(Tee.SNP, "", {"measurement": Register(("ab" * 48,))}, floors)


def sev(**floors: Any) -> Image:
    return Image(Tee.SEV, "", {"launch_digest": Register((A,))}, {"es": False, "policy": 1} | floors)


# --- image and registers ---


def test_an_unchanged_image_has_no_changes() -> None:
    """An image against itself: nothing, and all its registers are named as unchanged."""
    image = tpm("x", pcr4=led(ExpectedEvent(A), ExpectedEvent(B)), pcr7=(A, B))
    assert changes(image, image) == []
    assert unchanged(image, image, []) == ["sha256:4", "sha256:7"]
    assert changes(snp(products=["Genoa"]), snp(products=["Genoa"])) == []
    assert changes(sev(), sev()) == []


def test_the_order_of_values_and_the_words_of_events_are_no_change() -> None:
    """What lets in the same guests: values in another order, and events that are only described anew."""
    assert changes(tpm(pcr4=(A, B)), tpm(pcr4=(B, A))) == []
    assert changes(tpm(pcr4=led(ExpectedEvent(A, "T", "x"))), tpm(pcr4=led(ExpectedEvent(A, "T", "y")))) == []


def test_another_description_is_a_change() -> None:
    """The description is shown before and after."""
    assert changes(tpm("kernel 31", pcr4=(A,)), tpm("kernel 32", pcr4=(A,))) == [
        Change("image", "changed", "description", "kernel 31", "kernel 32")
    ]


def test_between_platforms_nothing_else_is_compared() -> None:
    """Another platform is one change, and no register is called unchanged or dropped."""
    found = changes(tpm(pcr4=(A,)), snp())
    assert found == [Change("image", "changed", "platform, so nothing else can be compared", "tpm", "snp")]
    assert unchanged(tpm(pcr4=(A,)), replace(tpm(pcr4=(A,)), platform=Tee.SNP), found) == []


def test_a_dropped_register_allows_more_and_says_what_that_means() -> None:
    """A register that is compared no longer, or from now on: only the first allows more."""
    with_14, without = tpm(pcr4=(A,), pcr14=(B, C)), tpm(pcr4=(A,))
    dropped = "no longer compared: MOK lists can change without notice"
    assert changes(with_14, without) == [Change(PCR_14, "removed", dropped, f"{B} or {C}", "", True)]
    taken_up = "compared from now on: MOK lists cannot change without notice"
    assert changes(without, with_14) == [Change(PCR_14, "added", taken_up, "", f"{B} or {C}", False)]
    assert "what the manufacturer measures" in changes(tpm(pcr6=(A,)), tpm())[0].what
    fields = {"measurement": Register(("ab" * 48,)), "host_data": Register((A,))}
    [change] = changes(replace(snp(), registers=fields), snp())
    assert change[:3] == (
        "HOST_DATA (given by the host at launch)",
        "removed",
        "no longer compared: what the host gives at the launch can change without notice",
    )
    assert change.weaker


def test_another_bank_is_not_a_dropped_register() -> None:
    """The same PCR in another bank is one change, which does not allow more."""
    found = changes(tpm(pcr4=(A,)), tpm(bank="sha384", pcr4=("ab" * 48,)))
    words = "bank, so the values cannot be compared"
    assert found == [Change("PCR 4 (boot applications, sha384)", "changed", words, "sha256", "sha384")]


def test_registers_come_in_their_order() -> None:
    """Changes follow the order in which registers are listed everywhere, whichever image has them."""
    found = changes(tpm(pcr9=(A,), pcr2=(A,), pcr4=(A,)), tpm(pcr14=(A,), pcr4=(B,), pcr0=(A,)))
    assert [change.where.split(" (")[0] for change in found] == ["PCR 0", "PCR 2", "PCR 4", "PCR 9", "PCR 14"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((A,), (B,), [("changed", A, B, False)]),
        ((A,), (A, B), [("added", "", B, True)]),
        ((A, B), (A,), [("removed", B, "", False)]),
        ((A, B), (B, C), [("changed", A, C, False)]),
        ((A,), (B, C), [("changed", A, B, False), ("added", "", C, True)]),
        ((A, B), (C,), [("changed", A, C, False), ("removed", B, "", False)]),
    ],
)
def test_a_value_beside_the_others_allows_more(old: Any, new: Any, expected: Any) -> None:
    """One value instead of another is a change, one less is stricter, one more allows more."""
    assert [change[1:2] + change[3:] for change in changes(tpm(pcr4=old), tpm(pcr4=new))] == expected


def test_events_explain_the_value_to_which_they_lead() -> None:
    """A new kernel and command line are told event by event, in words, and their value is not told again."""
    calling = ExpectedEvent(A, "EV_EFI_ACTION", "Calling EFI Application")
    old = led(
        calling,
        ExpectedEvent(B, "EV_EFI_BOOT_SERVICES_APPLICATION", "\\EFI\\vmlinuz-6.1.0-31.efi"),
        ExpectedEvent(C, "EV_IPL", "kernel_cmdline: ro quiet"),
    )
    new = led(
        calling,
        ExpectedEvent(D, "EV_EFI_BOOT_SERVICES_APPLICATION", "\\EFI\\vmlinuz-6.1.0-32.efi"),
        ExpectedEvent(E, "EV_IPL", "kernel_cmdline: ro quiet debug"),
        ExpectedEvent(F, "EV_IPL", "grub_cmd: boot"),
    )
    assert changes(tpm(pcr4=old), tpm(pcr4=new)) == [
        Change(PCR_4, "changed", "\\EFI\\vmlinuz-6.1.0-31.efi -> \\EFI\\vmlinuz-6.1.0-32.efi", B, D),
        Change(PCR_4, "changed", 'kernel command line "ro quiet" -> "ro quiet debug"', C, E),
        Change(PCR_4, "added", 'GRUB command "boot"', "", F),
    ]


def test_a_value_that_no_event_explains_is_told() -> None:
    """Beside the events' own value: others come and go, and the one before that stays allowed beside the new one."""
    first, second = led(ExpectedEvent(A), others=(C,)), led(ExpectedEvent(B), others=(D,))
    assert [change[1:] for change in changes(tpm(pcr4=first), tpm(pcr4=second))] == [
        ("changed", "an event", A, B, False),
        ("changed", "value", C, D, False),
    ]
    kept = Register((*second.values, first.values[0]), second.events)
    found = changes(tpm(pcr4=led(ExpectedEvent(A))), tpm(pcr4=kept))
    assert [(change.kind, change.what, change.weaker) for change in found] == [
        ("changed", "an event", False),
        ("added", "value", True),
        ("added", "value", True),
    ]


def test_events_that_start_from_another_locality_explain_their_value() -> None:
    """The value of PCR 0 depends on where the machine starts; that is no second change."""
    old, new = led(ExpectedEvent(A, "T"), locality=3), led(ExpectedEvent(B, "T"), locality=3)
    assert [change.kind for change in changes(tpm(pcr0=old), tpm(pcr0=new))] == ["changed"]
    assert len(changes(tpm(pcr2=old), tpm(pcr2=new))) == 2  # no other PCR starts there


def test_events_that_come_or_go_are_told_without_a_change_of_what_is_allowed() -> None:
    """An image that names the events behind the same value, or no longer does."""
    with_events = led(ExpectedEvent(A))
    bare = Register(with_events.values)
    assert changes(tpm(pcr4=bare), tpm(pcr4=with_events)) == [
        Change(PCR_4, "added", "the events that lead to its value")
    ]
    assert [change.kind for change in changes(tpm(pcr4=with_events), tpm(pcr4=bare))] == ["removed"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (("T", "db, 5 bytes"), ("T", "db, 5 bytes"), "db, 5 bytes"),
        (("T", ""), ("T", ""), "T"),
        (("T", ""), ("U", ""), "T -> U"),
        (("", ""), ("", ""), "an event"),
        (("T", "Secure Boot is on"), ("T", "Secure Boot is off"), "Secure Boot is on -> Secure Boot is off"),
        (("T", "grub_cmd: set a=1"), ("T", "grub_cmd: set a=2"), 'GRUB command "set a=1" -> "set a=2"'),
        (("T", "grub_cmd: boot"), ("T", "kernel_cmdline: ro"), 'GRUB command "boot" -> kernel command line "ro"'),
        (("T", "kernel_cmdline: ro"), ("T", "kernel_cmdline: ro"), 'kernel command line "ro"'),
    ],
)
def test_what_changed_is_said_in_words(old: tuple[str, str], new: tuple[str, str], words: str) -> None:
    """Files, variables and command lines by what the log calls them, else by type; equal words once."""
    found = changes(tpm(pcr8=led(ExpectedEvent(A, *old))), tpm(pcr8=led(ExpectedEvent(B, *new))))
    assert found == [Change(TITLE_8, "changed", words, A, B)]


def test_removed_and_moved_events_are_told() -> None:
    """A removed event with its digest, a moved one with its places."""
    one, two, three = (ExpectedEvent(digest, "T", digest[:2]) for digest in (A, B, C))
    assert changes(tpm(pcr8=led(one, two)), tpm(pcr8=led(one))) == [Change(TITLE_8, "removed", "bb", B, "")]
    assert changes(tpm(pcr8=led(one, two, three)), tpm(pcr8=led(three, one, two))) == [
        Change(TITLE_8, "moved", "cc", "event 3", "event 1")
    ]


VALUES = st.lists(st.sampled_from([A, B, C, D]), min_size=1, max_size=4, unique=True)


@settings(max_examples=200, deadline=None)
@given(VALUES, VALUES)
def test_what_only_adds_allows_more_and_what_only_removes_does_not(old: list[str], new: list[str]) -> None:
    """For any values: none weaker where nothing new is let in; all weaker where the older values all stay."""
    found = changes(tpm(pcr4=tuple(old)), tpm(pcr4=tuple(new)))
    assert (found == []) is (set(old) == set(new))
    if set(new) <= set(old):
        assert not any(change.weaker for change in found)
    elif set(old) <= set(new):
        assert all(change.weaker for change in found)


# --- combinations ---

COMPONENTS = (Component("shim", ("1", "2")), Component("kernel", ("1", "2")))
EVERY = ((0, 0), (1, 0), (0, 1), (1, 1))


def joint(*states: tuple[int, int]) -> Image:
    """PCR 4 is the shim's, PCR 9 the kernel's; only these states come together."""
    values = {"sha256:4": tuple((A, B)[s] for s, _ in states), "sha256:9": tuple((C, D)[k] for _, k in states)}
    combinations = Combinations(COMPONENTS, ((0, 0), (1, 1)), states, {"sha256:4": (), "sha256:9": ()}, values)
    registers = {name: Register(tuple(dict.fromkeys(found))) for name, found in values.items()}
    return Image(Tee.TPM, "", registers, {}, combinations)


def admits(image: Image) -> set[tuple[str, str]]:
    """Which of all pairs of values fit."""
    found = set()
    for four in (A, B):
        for nine in (C, D):
            measured = {"sha256:4": four, "sha256:9": nine}
            if not fit(image, Claims(Tee.TPM, ("tpm-ak:1",), "enrolled", measured)).differing:
                found.add((four, nine))
    return found


STATES = st.lists(st.sampled_from(EVERY), min_size=1, unique=True).map(tuple)


def test_a_mixture_that_comes_or_goes_is_told() -> None:
    """The same values in every register, but another combination of them: the words of the state, and if it is more."""
    strict, loose = joint((0, 0), (1, 1)), joint(*EVERY)
    assert changes(strict, loose) == [
        Change("image", "added", "combination", "", "shim 2, kernel 1", True),
        Change("image", "added", "combination", "", "shim 1, kernel 2", True),
    ]
    assert [(change.kind, change.weaker) for change in changes(loose, strict)] == [("removed", False)] * 2


def test_a_state_with_a_new_value_is_told_by_that_value() -> None:
    """An update that begins adds values, which allow more; its combinations are not listed a second time."""
    found = changes(joint((0, 0)), joint(*EVERY))
    assert [(change.where, change.kind, change.after, change.weaker) for change in found] == [
        (PCR_4, "added", B, True),
        ("PCR 9 (files read by the boot loader, initrd)", "added", D, True),
    ]


def test_values_that_no_longer_go_together_allow_more() -> None:
    """Without combinations a machine may show any of the values; where that is no more than before, nothing is told."""
    free = tpm(pcr4=(A, B), pcr9=(C, D))
    together = "which values go together"
    assert changes(joint((0, 0), (1, 1)), free) == [Change("image", "removed", together, weaker=True)]
    assert changes(free, joint((0, 0), (1, 1))) == [Change("image", "added", together)]
    assert changes(joint(*EVERY), free) == []


@settings(max_examples=200, deadline=None)
@given(STATES, STATES)
def test_combinations_that_let_in_other_machines_are_changes(old: Any, new: Any) -> None:
    """For any two sets of states: no change exactly where the same machines fit; what only grows is weaker throughout,
    what only shrinks nowhere.
    """
    before, after = joint(*old), joint(*new)
    found = changes(before, after)
    assert (found == []) is (admits(before) == admits(after))
    if admits(after) <= admits(before):
        assert not any(change.weaker for change in found)
    elif admits(before) <= admits(after):
        assert all(change.weaker for change in found)
