# SPDX-License-Identifier: Apache-2.0
"""Where two boots differ: which event answers to which, and in what words an owner is told."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.appraisal.difference import MAX_DIFFERENCES, Difference, apart, differences, first_difference
from broker.appraisal.event_steps import Step, steps
from broker.appraisal.registers import ExpectedEvent
from broker.claims import LoggedEvent
from broker.verifiers.eventlog import MAX_EVENTS

IPL = "EV_IPL"
DIGESTS = st.lists(st.sampled_from("abcdef"), max_size=16)


def wanted(*digests: str) -> list[ExpectedEvent]:
    return [ExpectedEvent(digest) for digest in digests]


def got(*events: tuple[str, str]) -> list[LoggedEvent]:
    """Events of GRUB's type: digest and words."""
    return [LoggedEvent("sha256:8", IPL, digest, what) for digest, what in events]


def expected(*events: tuple[str, str]) -> list[ExpectedEvent]:
    return [ExpectedEvent(digest, IPL, what) for digest, what in events]


def kinds(old: str, new: str) -> list[tuple[str, int | None, int | None]]:
    """The steps between two boots, each letter a digest."""
    return [(step.kind, step.before, step.after) for step in steps(wanted(*old), wanted(*new))]


def test_each_kind_of_difference_is_told_with_its_places() -> None:
    """One event changed, added, removed, moved to the front or to the end, and several of these at once."""
    assert kinds("abcd", "abcd") == []
    assert kinds("abcd", "axcd") == [("changed", 1, 1)]
    assert kinds("abcd", "abxcd") == [("added", None, 2)]
    assert kinds("abcd", "abd") == [("removed", 2, None)]
    assert kinds("abcde", "eabcd") == [("moved", 4, 0)]
    assert kinds("abcde", "bcdea") == [("moved", 0, 4)]
    assert kinds("abcdefg", "xbcdfyg") == [("changed", 0, 0), ("removed", 4, None), ("added", None, 5)]
    assert kinds("", "ab") == [("added", None, 0), ("added", None, 1)]
    assert kinds("ab", "") == [("removed", 0, None), ("removed", 1, None)]


def test_repeated_digests_keep_their_neighbours() -> None:
    """GRUB measures the same test many times; one more of them at the front shifts none of those behind it."""
    assert kinds("pxapxbpxc", "ppxapxbpxc") == [("added", None, 1)]
    assert kinds("ababab", "babab") == [("removed", 0, None)]


@settings(max_examples=300, deadline=None)
@given(DIGESTS, DIGESTS)
def test_the_steps_turn_one_log_into_the_other(old: list[str], new: list[str]) -> None:
    """Whatever two logs hold: what no step names is the same in both and in the same order, and nothing is named twice;
    the order is that of the new log, and it begins at the first place in which they differ.
    """
    found = steps(wanted(*old), wanted(*new))
    assert (found == []) is (old == new)
    before = [step.before for step in found if step.before is not None]
    after = [step.after for step in found if step.after is not None]
    assert len(before) == len(set(before))
    assert len(after) == len(set(after))
    assert [d for i, d in enumerate(old) if i not in before] == [d for i, d in enumerate(new) if i not in after]
    assert all((step.before is None) is (step.kind == "added") for step in found)
    assert all((step.after is None) is (step.kind == "removed") for step in found)
    assert all(old[s.before] == new[s.after] for s in found if s.kind == "moved" and None not in (s.before, s.after))  # type: ignore[index]
    assert [step.at for step in found] == sorted(step.at for step in found)
    if found:
        at = found[0].at
        assert old[:at] == new[:at]
        assert old[at : at + 1] != new[at : at + 1]


def test_no_log_makes_the_broker_wait() -> None:
    """The longest logs, made to look alike in as many places as can be, are compared in well under a second."""
    n = MAX_EVENTS
    hostile: Sequence[tuple[list[str], list[str]]] = (
        (["a"] * n, ["a"] * (n - 1) + ["b"]),
        (["a", "b"] * (n // 2), ["b", "b", "a"] * (n // 3)),
        ([str(i) for i in range(n)], [str(i) for i in reversed(range(n))]),
        ([str(i) for i in range(n)], [str(i // 2) if i % 2 else f"x{i}" for i in range(n)]),
        ([str(i % 7) for i in range(n)], [str(i % 11) for i in range(n)]),
    )
    for old, new in hostile:
        began = perf_counter()
        differences(wanted(*old), got(*((digest, "1" * 100) for digest in new)))
        assert perf_counter() - began < 20  # quadratic work would take far longer


def test_what_is_described_alike_answers_to_each_other() -> None:
    """Between equal events: the same words first, then those of another version, the same subject, the same type."""
    old = expected(
        ("a0", "start"),
        ("a1", "/vmlinuz-6.1.0-31"),
        ("a2", "/boot/grub.cfg"),
        ("a3", "grub_cmd: set x=old"),
        ("a4", "grub_cmd: linux /vmlinuz-6.1.0-31 ro"),
        ("a5", "last of all"),
        ("b0", "end"),
    )
    new = got(
        ("a0", "start"),
        ("c9", "/microcode"),
        ("c1", "/vmlinuz-6.1.0-32"),
        ("c2", "/boot/grub.cfg"),
        ("c4", "grub_cmd: linux /vmlinuz-6.1.0-32 ro quiet"),
        ("c5", "something else"),
        ("c6", "and more"),
        ("b0", "end"),
    )
    assert [(step.kind, step.before, step.after) for step in steps(old, new)] == [
        ("added", None, 1),
        ("changed", 1, 2),
        ("changed", 2, 3),
        ("removed", 3, None),
        ("changed", 4, 4),
        ("changed", 5, 5),
        ("added", None, 6),
    ]


def test_events_of_other_types_answer_to_each_other_only_one_to_one() -> None:
    """In the place of one event another one: it was changed. Two in the place of one of another type: no pair."""
    old = [ExpectedEvent("a", "EV_ACTION", "go")]
    assert steps(old, got(("b", "file"))) == [Step("changed", 0, 0, 0)]
    assert [step.kind for step in steps(old, got(("b", "file"), ("c", "file")))] == ["removed", "added", "added"]


def test_a_denial_names_all_that_a_new_kernel_changes() -> None:
    """Kernel, initrd and command line each have their line, with path and digest, at their place in the found log."""
    old = expected(("11" * 32, "/vmlinuz-6.1"), ("22" * 32, "/initrd.img-6.1"), ("33" * 32, "kernel_cmdline: ro"))
    new = got(("44" * 32, "/vmlinuz-6.2"), ("55" * 32, "/initrd.img-6.2"), ("66" * 32, "kernel_cmdline: ro debug"))
    one, two, three = differences(old, new)
    assert one == Difference(
        1, "changed", f"EV_IPL /vmlinuz-6.1 digest {'11' * 8}…", f"EV_IPL /vmlinuz-6.2 digest {'44' * 8}…"
    )
    assert (two.position, three.position) == (2, 3)
    assert three.expected.startswith("EV_IPL kernel_cmdline: ro digest 33")
    assert three.found.startswith("EV_IPL kernel_cmdline: ro debug digest 66")


def test_what_was_moved_is_told_where_it_is_missed_or_met() -> None:
    """An event that comes too late is named with its new place, one that comes too early as one that was due later."""
    late = differences(wanted(*"abcde"), got(*((digest, "") for digest in "bcdea")))
    assert late == [Difference(1, "moved", "digest a…", "the same as event 5")]
    early = differences(wanted(*"abcde"), got(*((digest, "") for digest in "eabcd")))
    assert early == [Difference(1, "moved", "this event later", "EV_IPL digest e…")]


def test_only_so_many_differences_are_told_and_the_rest_counted() -> None:
    """As many as the limit are all told; one more, and the last line says how many were left out and from where."""
    names = [str(number) for number in range(40)]
    for count in (MAX_DIFFERENCES, MAX_DIFFERENCES + 1, 40):
        found = differences(wanted(*names[:count]), got(*((f"x{name}", "") for name in names[:count])))
        assert len(found) == MAX_DIFFERENCES
        if count == MAX_DIFFERENCES:
            assert found[-1].kind == "changed"
        else:
            left = count - MAX_DIFFERENCES
            assert found[-1] == Difference(MAX_DIFFERENCES, "left out", "", f"this and {left} more events differ")


def test_long_command_lines_show_what_differs() -> None:
    """Of long texts the words that both have at either end are left out, but for the first and the next ones; short
    texts and equal ones stay as they are.
    """
    common = " ".join(f"option{number}=value" for number in range(20))
    assert apart(f"kernel_cmdline: {common} ro", f"kernel_cmdline: {common} ro debug") == (
        "kernel_cmdline: … ro",
        "kernel_cmdline: … ro debug",
    )
    assert apart(f"kernel_cmdline: quiet {common}", f"kernel_cmdline: {common}") == (
        "kernel_cmdline: quiet option0=value …",
        "kernel_cmdline: option0=value …",
    )
    assert apart(f"a b {common} x c", f"a b {common} y c") == ("a … option19=value x c", "a … option19=value y c")
    assert apart(f"{common} x", f"{common} x") == (f"{common} x", f"{common} x")
    assert apart("ro", "ro quiet") == ("ro", "ro quiet")
    long = expected(("1", f"kernel_cmdline: {common} ro"))
    assert differences(long, got(("2", f"kernel_cmdline: {common} ro debug"))) == [
        Difference(1, "changed", "EV_IPL kernel_cmdline: … ro digest 1…", "EV_IPL kernel_cmdline: … ro debug digest 2…")
    ]


@settings(max_examples=200, deadline=None)
@given(st.text("ab ", max_size=200), st.text("ab ", max_size=200))
def test_texts_stay_apart(one: str, other: str) -> None:
    """Whatever is left out of two different texts, they are shown differently."""
    assert (apart(one, other)[0] == apart(one, other)[1]) is (one == other)


def test_what_is_only_in_one_of_the_logs_is_told() -> None:
    """An event that was not enrolled, and one that is missing; the first of all differences is also there alone."""
    assert differences(expected(("a", "x")), got(("a", "x"), ("b", "y"))) == [
        Difference(2, "added", "no event here", "EV_IPL y digest b…")
    ]
    missing = Difference(2, "removed", "EV_IPL y digest b…", "no such event")
    assert differences(expected(("a", "x"), ("b", "y")), got(("a", "x"))) == [missing]
    assert first_difference(expected(("a", "x"), ("b", "y"), ("c", "z")), got(("a", "x"))) == missing
    assert first_difference(wanted("a"), got(("a", ""))) is None
