# SPDX-License-Identifier: Apache-2.0
"""A decision in words: the reason in the head, what differs, what mends it. Whole outputs are in tests/golden."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import broker
from broker import decision_words as words
from broker.appraisal.identity import Act
from broker.decision_reason import _TOPICS, MAX_SUBJECTS, below, reason
from broker.trace import Stage, Trace

AT = "2026-06-01 12:00:00Z"
ID = "tpm-ak:000b" + "62" * 32


def failed(*checks: tuple[str, str, str]) -> list[dict[str, str]]:
    """Failed checks: name, expected, found."""
    trace = Trace()
    for name, expected, found in checks:
        trace.check(Stage.MEASUREMENT, name, False, expected=expected, found=found)
    return trace.to_json()


def why(*checks: tuple[str, str, str]) -> str:
    return reason(failed(*checks)).words


def changed(register: str, was: str, now: str) -> tuple[str, str, str]:
    return f"{register}: event 3 was changed", was, now


def shown(kind: str, verdict: str, trace: list[dict[str, str]] | None = None, **body: Any) -> dict[str, Any]:
    return {
        "kind": kind, "verdict": verdict, "key": "acme/disk/root", "subject": ID,
        "body": {"trace": trace or []} | body,
    }  # fmt: skip


def said_names() -> Iterator[str]:
    """Every text in the broker's code that could be a check's name, with X or 1 for what is filled in."""
    for file in Path(broker.__file__).parent.rglob("*.py"):
        if file.name == "decision_reason.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                for filled in ("X", "1"):
                    yield "".join(str(p.value) if isinstance(p, ast.Constant) else filled for p in node.values)


# --- reasons ---


def test_every_reason_is_of_a_check_that_there_is() -> None:
    """No topic is left behind when a check gets another name."""
    names = set(said_names())
    assert [p.pattern for p, _ in _TOPICS if not any(p.fullmatch(name) for name in names)] == []


@pytest.mark.parametrize(
    ("was", "now", "subject"),
    [
        ("EV_IPL kernel_cmdline: /vmlinuz quiet digest aa…", "EV_IPL kernel_cmdline: /vmlinuz", "kernel command line"),
        ("EV_IPL grub_cmd: linux /vmlinuz quiet", "EV_IPL grub_cmd: linux /vmlinuz", "kernel command line"),
        ("EV_IPL grub_cmd: insmod part_gpt", "EV_IPL grub_cmd: insmod lvm", "boot loader's commands"),
        ("EV_IPL (hd0,gpt2)/initrd.img-6.1", "EV_IPL (hd0,gpt2)/initrd.img-6.2", "initrd"),
        ("EV_IPL (hd0,gpt2)/vmlinuz-6.1", "EV_IPL (hd0,gpt2)/vmlinuz-6.2", "kernel"),
        ("EV_EFI_BOOT_SERVICES_APPLICATION \\EFI\\Linux\\a.efi", "no such event", "unified kernel image"),
        ("no event here", "EV_EFI_BOOT_SERVICES_APPLICATION \\EFI\\debian\\shimx64.efi", "shim"),
        ("EV_EFI_BOOT_SERVICES_APPLICATION \\EFI\\debian\\grubx64.efi", "no such event", "boot loader (GRUB)"),
        ("EV_EFI_VARIABLE_DRIVER_CONFIG db (allowed to boot): 2 entries", "", "set of Secure Boot keys and switches"),
        ("EV_EFI_GPT_EVENT partition table of the boot disk", "", "boot disk's partition table"),
    ],
)
def test_a_changed_event_is_named_by_what_was_measured(was: str, now: str, subject: str) -> None:
    """Kernel, initrd, command line and so on, by the words of the event."""
    assert why(changed("PCR 9 (files)", was, now)) == f"its {subject} is not the approved one"


def test_the_images_words_count_before_the_guests() -> None:
    """A guest cannot have its changed initrd called a kernel."""
    event = changed("PCR 9 (files)", "EV_IPL /initrd.img", "EV_IPL /vmlinuz")
    assert why(event) == "its initrd is not the approved one"


def test_an_event_without_a_known_subject_is_named_by_its_register() -> None:
    """What the log says means nothing to us: the register is named, and no guess is made."""
    register = "PCR 5 (partition table, boot configuration)"
    event = changed(register, "EV_EFI_VARIABLE_BOOT BootOrder = 0001", "EV_EFI_VARIABLE_BOOT BootOrder = 0002")
    assert why(event) == f"its {register} is not the approved one"
    assert why(("MEASUREMENT (launch digest) is as in image debian@3", "aa", "bb")) == (
        "its MEASUREMENT (launch digest) is not the approved one"
    )


def test_what_an_update_changes_is_told_together() -> None:
    """Registers and their events are one reason; the parts of a unified kernel image say more than the whole."""
    checks = (
        ("PCR 4 (boot applications) is as in image debian@1", "aa", "bb"),
        changed("PCR 4 (boot applications)", "EV \\EFI\\Linux\\a.efi", "EV \\EFI\\Linux\\b.efi"),
        ("PCR 11 (unified kernel image, boot phases) is as in image debian@1", "aa", "bb"),
        changed(
            "PCR 11 (unified kernel image, boot phases)",
            ".linux of the unified kernel image",
            ".linux of the unified kernel image",
        ),
        changed(
            "PCR 11 (unified kernel image, boot phases)",
            ".initrd of the unified kernel image",
            ".initrd of the unified kernel image",
        ),
    )
    found = reason(failed(*checks))
    assert found.told == len(checks)
    assert "kernel and initrd" in found.words
    assert "unified kernel image and" not in found.words


def test_what_an_owner_updates_is_named_first() -> None:
    """Kernel, initrd and command line come before what changes along with them, in whatever order it was measured."""
    found = why(
        changed("PCR 8 (c)", "EV_IPL grub_cmd: initrd /initrd.img-6.1", "EV_IPL grub_cmd: initrd /initrd.img-6.2"),
        changed("PCR 8 (c)", "EV_IPL kernel_cmdline: /vmlinuz-6.1", "EV_IPL kernel_cmdline: /vmlinuz-6.2"),
        changed("PCR 9 (f)", "EV_IPL /initrd.img-6.1", "EV_IPL /initrd.img-6.2"),
        changed("PCR 9 (f)", "EV_IPL /vmlinuz-6.1", "EV_IPL /vmlinuz-6.2"),
    )
    assert found == ("its kernel, initrd, kernel command line and boot loader's commands are not the approved ones")


def test_a_long_list_is_cut() -> None:
    """Of another machine's boot not everything is in the sentence."""
    found = why(*((f"PCR {number} (p{number}) is as in image debian@1", "aa", "bb") for number in range(6)))
    assert found == "its PCR 0 (p0), PCR 1 (p1), PCR 2 (p2), PCR 3 (p3) and more are not the approved ones"
    assert found.count("PCR") == MAX_SUBJECTS


def test_secure_boot_is_off_only_where_pcr_7_says_so() -> None:
    """The words stand for themselves in PCR 7; in another register a guest could have written them."""
    on, off = "EV_EFI_VARIABLE_DRIVER_CONFIG Secure Boot is on", "EV_EFI_VARIABLE_DRIVER_CONFIG Secure Boot is off"
    kernel = changed("PCR 4 (boot applications)", "EV vmlinuz", "EV vmlinuz")
    assert why(changed("PCR 7 (s)", on, off)) == "Secure Boot is off on it"
    assert why(changed("PCR 7 (s)", on, off), kernel) == (
        "Secure Boot is off on it, and its kernel is not the approved one"
    )
    assert "off" not in why(changed("PCR 8 (s)", "EV_IPL grub_cmd: a", "EV_IPL Secure Boot is off"))


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (("guest web-1 is enrolled", "enrolled", "failed since x"), "it has been failed since x"),
        (("release rule names the instance", "a", "web-1"), "the key's rule does not name it"),
        (("release rule names the platform", "tpm", "snp"), "the key's rule does not let in guests on snp"),
        (("a current revocation list is at hand", "current", "none"), "there is no revocation list of AMD's, and"),
        (
            ("privilege level (VMPL) that asked is trusted", "VMPL 0", "none: the host asked for it"),
            "its report was not asked for by the guest, but by the host",
        ),
        (("chip is not distrusted by the key's owner", "", "snp-chip:ab"), "distrusts this chip: snp-chip:ab"),
        (("REPORTED_TCB is new enough", "a known product line", "nothing"), "in REPORTED_TCB, nothing"),
        (("key exists", "acme/a/b", "destroyed"), "the key cannot be released: destroyed"),
        (("something new", "a", "b"), "this check failed: something new"),
    ],
)
def test_other_reasons_are_in_words_of_the_check(check: tuple[str, str, str], told: str) -> None:
    """Each says what the trace carries; a check that nobody wrote words for is told by its name."""
    assert told in why(check)


def test_braces_in_a_value_stay_braces() -> None:
    """A value is filled in and not read again."""
    assert why(("challenge", "unused", "{found} {0}")) == "its challenge was {found} {0}"


def test_only_components_that_are_too_low_are_told() -> None:
    """By name and number; what is high enough, or has no floor, is left out."""
    found = "bootloader=10 tee=0 snp=20 microcode=84"
    assert below(found, "Genoa at least snp=23 microcode=84") == ["snp is 20, not 23"]
    assert below("nothing", "Genoa at least snp=23") == []


# --- the head ---


def test_the_head_counts_what_it_does_not_tell() -> None:
    """One further failed check, two further ones; none is not mentioned."""
    first, other = ("key exists", "", "destroyed"), ("something new", "", "")
    told = [words.head(shown("release", "denied", failed(first, *more)), AT) for more in ((), (other,), (other, other))]
    assert not told[0].endswith("failed)")
    assert told[1].endswith("(and 1 more check failed)")
    assert told[2].endswith("(and 2 more checks failed)")


@pytest.mark.parametrize(
    ("body", "who"),
    [
        ({"names": ["web-1"]}, "web-1"),
        ({"names": [], "case": {"guests": [["web-2", [], "failed"]]}}, "web-2"),
        ({"trace": failed(("guest web-3 is not revoked by its owner", "", "revoked"))}, "web-3"),
        ({"claims": {}}, "An unknown machine (tpm-ak:000b626262626262…)"),
        ({"claims": None, "case": None}, "A machine that calls itself tpm-ak:000b626262626262…"),
    ],
)
def test_the_guest_is_called_as_its_owner_calls_it(body: dict[str, Any], who: str) -> None:
    """By name; a stranger by its hardware's id; and where that is not proved either, the head says so."""
    assert words.head(shown("attest", "refused", **body), AT).startswith(f"{who} asked for acme/disk/root on {AT}")


def test_somebody_without_an_id_is_somebody() -> None:
    """An attempt without a session names nobody and no key."""
    line = shown("attest", "refused", failed(("challenge", "unused", "unknown"))) | {"key": None, "subject": ""}
    assert words.head(line, AT) == f"Somebody attested on {AT} and was refused: its challenge was unknown"


def test_what_went_well_is_told_as_such() -> None:
    """A release names version and image; genuine evidence is no key yet."""
    released = words.head(shown("release", "released", names=["web-1"], version=3, image="debian@2"), AT)
    assert released == f"web-1 asked for acme/disk/root on {AT} and got version 3: it runs debian@2"
    assert words.head(shown("release", "put off", names=["web-1"]), AT).endswith("and was put off")
    assert "found genuine" in words.head(shown("attest", "genuine", claims={}), AT)


def test_braces_in_a_providers_name_stay_braces() -> None:
    """A machine is called by what its vendor wrote, whatever that is."""
    line = shown("attest", "genuine", claims={}) | {"subject": "snp-csp:CN={image} {0}"}
    assert "(snp-csp:CN={image} {0})" in words.head(line, AT)


@pytest.mark.parametrize("act", list(Act))
def test_what_became_of_the_guest_is_told(act: Act) -> None:
    """Each act names the guest; where there was none, nothing is said, and older lines know of none."""
    assert ("web-1" in words.follows({"act": str(act), "guest": "web-1"})) is (act is not Act.NOTHING)
    assert not words.follows({})


def test_changes_and_readmissions_have_no_guest_that_asks() -> None:
    """They name who did it."""
    change = shown("change", "created", who="alice") | {"subject": "rule/acme/disk/root"}
    assert words.head(change, AT) == f"alice changed rule/acme/disk/root on {AT}: created"
    assert words.head(shown("readmit", "readmitted", who="alice"), AT).startswith("alice readmitted tpm-ak:000b")


# --- what differs ---


def test_the_nearest_image_and_its_distance_are_told() -> None:
    """Which values differ, how many of how many, in which state of an update; and how far the others are."""
    trace = Trace()
    trace.not_judged(Stage.MEASUREMENT, "image fedora@1: 3 of 5 registers differ")
    trace.check(Stage.MEASUREMENT, "PCR 4 (boot applications) is as in image debian@1 (kernel 6.1)", False)
    trace.check(Stage.MEASUREMENT, "PCR 7 (Secure Boot) is as in image debian@1 (kernel 6.1)", True)
    assert words.nearest(trace.to_json()) == [
        "nearest image: debian@1 (kernel 6.1); 1 of its 2 values differs: PCR 4",
        "further away: image fedora@1: 3 of 5 registers differ",
    ]
    assert words.nearest(failed(("key exists", "", ""))) == []


def test_policy_and_platform_bits_are_named() -> None:
    """Beside a failed check of them: the number, and the bits that are set."""
    facts = {"policy": "0x30000", "policy_smt_allowed": True, "policy_debug_allowed": False, "policy_abi_major": 1,
             "platform_info": "0x0", "platform_ecc_enabled": False}  # fmt: skip
    checks = failed(("POLICY has no forbidden bit", "without a", "a"), ("PLATFORM_INFO has the required bits", "a", ""))
    found = words.differences(shown("attest", "refused", checks, claims={"facts": facts}))
    assert [dict(one.rows).get("bits set") for one in found] == ["0x30000: smt_allowed", "0x0: none set"]
    found = words.differences(shown("attest", "refused", checks, claims=None))
    assert [dict(one.rows).get("bits set") for one in found] == [None, None]


@pytest.mark.parametrize(
    ("mend", "steps"),
    [
        ("attest again", [("attest again", "")]),
        ("roomkey key put a/b/c", [("", "roomkey key put a/b/c")]),
        ("if it is yours: roomkey guest approve web-1", [("if it is yours:", "roomkey guest approve web-1")]),
        (
            "roomkey image enrol a --from EVIDENCE, then roomkey rule set a/b/c ...",
            [("", "roomkey image enrol a --from EVIDENCE"), ("then", "roomkey rule set a/b/c ...")],
        ),
        (
            "update it; or let it in: roomkey image retire a@1",
            [("update it", ""), ("or let it in:", "roomkey image retire a@1")],
        ),
    ],
)
def test_a_mend_is_words_and_the_commands_to_paste(mend: str, steps: list[tuple[str, str]]) -> None:
    """Each command stands by itself; prose without one stays a sentence; what was said is not said again."""
    trace = Trace()
    for name in ("a", "b"):
        trace.check(Stage.TRUST, name, False, mend=mend)
    assert words.mends(trace.to_json()) == steps


def test_only_long_hex_is_cut() -> None:
    """Digests and ids to 16 digits; words, decision ids and short values stay."""
    assert words.short(f"found {'ab' * 32} and d-mfrggzdfmztwq2lknnwg, {ID}") == (
        "found abababababababab… and d-mfrggzdfmztwq2lknnwg, tpm-ak:000b626262626262…"
    )
    assert words.short("0x30000 00050072 of the unified kernel image") == "0x30000 00050072 of the unified kernel image"


def test_checks_are_counted_by_stage_and_the_others_named() -> None:
    """What passed and failed is a count; what was not made is named with its verdict."""
    trace = Trace()
    trace.check(Stage.TRUST, "a", True)
    trace.check(Stage.ROOT_OF_TRUST, "b", False)
    trace.not_required(Stage.TRUST, "c")
    trace.not_judged(Stage.TRUST, "d")
    assert words.stages(trace.to_json()) == [
        ("root of trust", "1 failed", ()),
        ("trust", "1 passed", (("not required", "c"), ("not judged", "d"))),
    ]
