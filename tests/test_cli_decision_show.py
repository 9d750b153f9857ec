# SPDX-License-Identifier: Apache-2.0
"""`roomkey decision show` at the owner's terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.terminal import WIDTH
from keys.errors import ReleaseDenied
from tests.fakes.boot import Boot
from tests.fakes.desk import KEY, Desk, open_desk
from tests.fakes.evidence_file import booted, write_evidence
from tests.fakes.grub_boot import GrubBoot
from tests.fakes.tpm_guest import FakeTpm

DIGEST = re.compile(r"[0-9a-f]{64}")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as made:
        yield made


def denied(desk: Desk, tmp_path: Path, boot: Boot) -> str:
    """The decision about a machine that was approved with another boot."""
    tpm: FakeTpm = booted(boot=GrubBoot())
    evidence = write_evidence(tmp_path / "guest.json", tpm)
    desk.run("key", "generate", KEY)
    desk.run("image", "enrol", "debian-12", "--from", evidence, "--yes")
    desk.run("instance", "add", "web-1", "--from", evidence)
    desk.run("rule", "set", KEY, "--image", "debian-12", "--instance", "web-1")
    tpm.boot(boot)
    with pytest.raises(ReleaseDenied) as caught:
        desk.ask(tpm)
    return str(caught.value.decision)


def test_values_are_short_unless_asked_for(desk: Desk, tmp_path: Path) -> None:
    """Digests are cut and passed checks counted; `--verbose` has both whole."""
    decision = denied(desk, tmp_path, GrubBoot(initrd=b"another"))
    brief = desk.run("decision", "show", decision).stdout
    whole = desk.run("decision", "show", decision, "--verbose").stdout
    assert not DIGEST.search(brief)
    assert "quote is signed by the attestation key" not in brief
    assert re.search(r"root of trust +[0-9]+ passed", brief)
    assert DIGEST.search(whole)
    assert "quote is signed by the attestation key" in whole
    assert "evidence's SHA-256" in whole


def test_prose_is_wrapped_and_commands_are_not(desk: Desk, tmp_path: Path) -> None:
    """No line of words is wider than a terminal, and each command is on one line, to be pasted."""
    decision = denied(desk, tmp_path, GrubBoot(command_line="/vmlinuz " + "x=1 " * 60))
    lines = desk.run("decision", "show", decision).stdout.splitlines()
    assert all(len(line) <= WIDTH for line in lines if "roomkey" not in line)
    assert "    roomkey image enrol debian-12 --from EVIDENCE" in lines


def test_a_guest_cannot_move_the_owners_cursor(desk: Desk, tmp_path: Path) -> None:
    """Escapes in a measured path are shown as text, wherever they stand."""
    decision = denied(desk, tmp_path, GrubBoot(kernel_path="\\EFI\\\x1b[2Jvmlinuz", kernel=b"another"))
    for option in ((), ("--verbose",)):
        assert "\x1b" not in desk.run("decision", "show", decision, *option).output


def test_json_is_the_whole_record(desk: Desk, tmp_path: Path) -> None:
    """Programs get every check with its values, and the line's hash."""
    decision = denied(desk, tmp_path, GrubBoot(initrd=b"another"))
    record = desk.json("decision", "show", decision)
    assert (record["id"], record["verdict"]) == (decision, "denied")
    assert any(check["verdict"] == "passed" and check["found"] for check in record["body"]["trace"])
    assert DIGEST.fullmatch(record["hash"])


def test_a_change_is_a_sentence_without_checks(desk: Desk) -> None:
    """Who changed what, and why; nothing is said of checks that nobody made."""
    desk.run("key", "generate", KEY, "--why", "first disk")
    [line] = desk.json("decision", "list", "--subject", f"key/{KEY}")["decisions"]
    shown = desk.run("decision", "show", line["id"]).stdout
    assert f" changed key/{KEY} on " in shown.splitlines()[0]
    assert "first disk" in shown
    assert "checks" not in shown
