# SPDX-License-Identifier: Apache-2.0
"""`roomkey image diff`: two versions, a version and a draft, or two files, as a change log and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.cli import main
from tests.fakes.desk import Desk, open_desk

A, B, C, D = ("aa" * 32, "bb" * 32, "cc" * 32, "dd" * 32)


def diff(*args: object) -> str:
    """What the command prints, of somebody who has no identity."""
    result = CliRunner().invoke(main, ["image", "diff", *map(str, args)], env={"ROOMKEY_IDENTITY": "/nowhere"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as made:
        yield made


def text(kernel: str, command_line: str, digests: tuple[str, str], extra: str = "") -> str:
    return f"""platform = "tpm"
description = "kernel {kernel}"
[tpm]
bank = "sha256"
[tpm.pcrs]
0 = "{A}"
7 = "{B}"
{extra}
[[tpm.events]]
pcr = 4
digests = [
  {{ digest = "{A}", type = "EV_EFI_ACTION", what = "Calling EFI Application from Boot Option" }},
  {{ digest = "{digests[0]}", type = "EV_EFI_BOOT_SERVICES_APPLICATION", what = "\\\\EFI\\\\vmlinuz-{kernel}.efi" }},
]
[[tpm.events]]
pcr = 8
digests = [ {{ digest = "{digests[1]}", type = "EV_IPL", what = "kernel_cmdline: {command_line}" }} ]
"""


OLD = text("6.1.0-31", "ro quiet", (C, D), f'14 = "{A}"')
NEW = text("6.1.0-32", "ro quiet debug", (D, B))


def test_two_versions_are_compared_like_a_change_log(desk: Desk, tmp_path: Path) -> None:
    """Both versions by name, who stored the newer one and when, the changes by register, what allows more, the rest."""
    for number, toml in enumerate((OLD, NEW)):
        (tmp_path / f"{number}.toml").write_text(toml)
        desk.run("image", "put", "debian-12", tmp_path / f"{number}.toml")
    stored = desk.json("image", "show", "debian-12")
    lines = desk.run("image", "diff", "debian-12@1", "debian-12").stdout.splitlines()
    assert lines[0].startswith("debian-12@1 -> debian-12@2   (20")
    assert lines[0].endswith(f'Z by {stored["created_by"]}, "kernel 6.1.0-32")')
    assert lines[1:] == [
        "image",
        '  changed  description "kernel 6.1.0-31" -> "kernel 6.1.0-32"',
        "PCR 4 (boot applications)",
        f"  changed  \\EFI\\vmlinuz-6.1.0-31.efi -> \\EFI\\vmlinuz-6.1.0-32.efi     digest {C[:16]}… -> {D[:16]}…",
        "PCR 8 (boot loader commands, kernel command line, init-data)",
        f'  changed  kernel command line "ro quiet" -> "ro quiet debug"     digest {D[:16]}… -> {B[:16]}…',
        "PCR 14 (MOK lists)",
        f"  removed  no longer compared: MOK lists can change without notice     {A[:16]}…   (allows more)",
        "not changed: PCR 0, 7",
    ]


def test_files_are_compared_without_a_broker(tmp_path: Path) -> None:
    """Two drafts need neither identity nor network; an image that is the same has no difference."""
    older = tmp_path / "old.toml"
    older.write_text('platform = "snp"\n[snp]\nmeasurement = "' + "ab" * 48 + '"\n[snp.floors]\nmin_guest_svn = 3\n')
    newer = tmp_path / "new.toml"
    newer.write_text(older.read_text().replace("= 3", "= 2"))
    assert diff(older, newer).splitlines() == [
        f"{older} -> {newer}",
        "floors",
        "  lowered  min_guest_svn 3 -> 2   (allows more)",
        "not changed: MEASUREMENT",
    ]
    assert diff(newer, newer).splitlines()[1:] == ["no difference", "not changed: MEASUREMENT"]


def test_programs_get_whole_values(tmp_path: Path) -> None:
    """With --json every change has its values uncut, and whether it allows more."""
    for name, values in (("old", f'"{A}"'), ("new", f'["{A}", "{B}"]')):
        (tmp_path / f"{name}.toml").write_text(f'platform = "tpm"\n[tpm]\nbank = "sha256"\n[tpm.pcrs]\n4 = {values}\n')
    found = json.loads(diff(tmp_path / "old.toml", tmp_path / "new.toml", "--json"))
    assert found["changes"] == [
        {
            "where": "PCR 4 (boot applications)",
            "kind": "added",
            "what": "value",
            "before": "",
            "after": B,
            "weaker": True,
        }
    ]
    assert found["unchanged"] == []
    assert found["to"] == str(tmp_path / "new.toml")


def test_what_is_no_image_is_refused(desk: Desk, tmp_path: Path) -> None:
    """A bad version, an image that is not there, a file that is none: an error and no comparison."""
    desk.run("image", "diff", "debian@x", "debian", status=2)
    desk.run("image", "diff", "debian@9", "debian", status=15)
    desk.run("image", "diff", tmp_path / "none.toml", tmp_path / "none.toml", status=17)


def test_words_of_a_guest_do_not_redraw_the_terminal(tmp_path: Path) -> None:
    """Control characters in an event's words are shown as escapes."""
    for name, digest in (("old", A), ("new", B)):
        (tmp_path / f"{name}.toml").write_text(
            'platform = "tpm"\n[tpm]\nbank = "sha256"\n[[tpm.events]]\npcr = 4\n'
            f'digests = [{{ digest = "{digest}", what = "\\u001b[2J{name}" }}]\n'
        )
    shown = diff(tmp_path / "old.toml", tmp_path / "new.toml")
    assert "\x1b" not in shown
    assert "\\x1b[2Jold -> \\x1b[2Jnew" in shown
