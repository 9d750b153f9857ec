# SPDX-License-Identifier: Apache-2.0
"""`roomkey image update`: what it shows before it asks, what it stores, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.appraisal.images import parse_image
from broker.cli.options import identity_at
from broker.owner_client import OwnerClient, path_of
from tests.fakes.boot import Boot
from tests.fakes.desk import Desk, open_desk
from tests.fakes.evidence_file import booted, write_evidence

OLD = Boot(shim=b"shim 1", kernel=b"kernel 1")
NEW = Boot(shim=b"shim 2", kernel=b"kernel 2")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as made:
        made.run("image", "enrol", "debian", "--from", write_evidence(tmp_path / "old.json", booted(OLD)), "--yes")
        yield made


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return write_evidence(tmp_path / "new.json", booted(NEW))


def versions(desk: Desk) -> int:
    shown: dict[str, int] = desk.json("image", "show", "debian")
    return shown["version"]


def test_an_update_shows_components_and_combinations_and_asks(desk: Desk, new: Path) -> None:
    """The owner sees which events belong to which component, which states result and where each was seen; and what was
    checked of the evidence. Nothing is stored before yes.
    """
    asked = desk.run("image", "update", "debian", "--from", new, stdin="n\n", status=1)
    lines = [" ".join(line.split()) for line in asked.stdout.splitlines()]
    assert r"shim (v1, v2) PCR 4 (boot applications) \EFI\debian\shimx64.efi" in lines
    assert r"kernel (v1, v2) PCR 4 (boot applications) \EFI\debian\vmlinuz.efi" in lines
    assert "kernel (v1, v2) PCR 9 (files read by the boot loader, initrd) /vmlinuz" in lines
    assert lines[-4:] == [
        "shim v1, kernel v1 in debian@1",
        "shim v1, kernel v2 no, computed",
        "shim v2, kernel v1 no, computed",
        "shim v2, kernel v2 in this evidence",
    ]
    assert "Not checked:" in asked.stderr
    assert versions(desk) == 1
    stored = desk.run("image", "update", "debian", "--from", new, "--why", "shim 2, kernel 2", stdin="y\n")
    assert "image debian@2 stored" in stored.stdout
    assert versions(desk) == 2


def test_a_draft_is_printed_and_not_stored(desk: Desk, new: Path, tmp_path: Path) -> None:
    """--draft prints the image as it would be stored; `image put` takes it, and --finish makes the last version."""
    draft = desk.run("image", "update", "debian", "--from", new, "--draft").stdout
    assert versions(desk) == 1
    joint = parse_image(draft).combinations
    assert joint is not None
    assert len(joint.all) == 4
    desk.run("image", "put", "debian", "-", stdin=draft.replace('"v2"', '"2.0"'))
    finished = desk.run("image", "update", "debian", "--finish", "--yes").stdout
    assert "PCR 4 (boot applications)" in finished
    assert "image debian@3 stored" in finished
    assert parse_image(desk.run("image", "show", "debian").stdout).combinations is None


def test_the_owner_names_components(desk: Desk, new: Path) -> None:
    """--component groups events by what their log says, several times."""
    draft = desk.run(
        "image", "update", "debian", "--from", new, "--draft", "--component", "system=*vmlinuz*",
        "--component", "system=*shim*",
    ).stdout  # fmt: skip
    joint = parse_image(draft).combinations
    assert joint is not None
    assert [component.name for component in joint.components] == ["system"]


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        ([], 2, "either --from"),
        (["--from", "NEW", "--finish"], 2, "either --from"),
        (["--from", "NEW", "--component", "shim"], 2, "NAME=GLOB"),
        (["--from", "NEW", "--component", "=shim"], 2, "NAME=GLOB"),
        (["--from", "NEW", "--component", "a shim=*"], 10, "component's name"),
        (["--from", "OLD", "--yes"], 10, "fits the image already"),
        (["--from", "MISSING", "--yes"], 17, "cannot read"),
        (["--finish", "--yes"], 10, "no update is under way"),
    ],
)
def test_bad_updates_are_refused(
    desk: Desk, new: Path, tmp_path: Path, args: list[str], status: int, words: str
) -> None:
    """Whatever is asked for wrongly is refused with a word on what is wrong, and nothing is stored."""
    files = {"NEW": new, "OLD": tmp_path / "old.json", "MISSING": tmp_path / "missing.json"}
    result = desk.run("image", "update", "debian", *(files.get(arg, arg) for arg in args), status=status)
    assert words in result.stderr
    assert versions(desk) == 1


def test_evidence_that_is_not_genuine_updates_nothing(desk: Desk, tmp_path: Path) -> None:
    """A quote that does not cover the values is refused before anything of it is compared."""
    tpm = booted(NEW)
    honest = tpm.quote
    tpm.quote = lambda data: honest(bytes(len(data)))  # type: ignore[method-assign]
    file = write_evidence(tmp_path / "forged.json", tpm)
    assert "not genuine" in desk.run("image", "update", "debian", "--from", file, "--yes", status=12).stderr
    assert versions(desk) == 1


def test_an_unknown_image_is_not_updated(desk: Desk, new: Path) -> None:
    """There is nothing to go on from."""
    desk.run("image", "update", "fedora", "--from", new, "--yes", status=15)


@pytest.mark.parametrize("state", ["proposed", "retiring", "revoked"])
def test_only_an_active_version_is_gone_on_from(desk: Desk, new: Path, state: str) -> None:
    """What was taken back, or is not approved of yet, gets into no further version by an update."""
    client = OwnerClient(identity_at(desk.folder / "acme" / "identity.toml"))
    if state == "proposed":
        toml = desk.run("image", "show", "debian").stdout
        client.call("PUT", path_of("images", "debian"), {"toml": toml, "propose": True, "why": ""})
    else:
        more = {"after_s": 60} if state == "retiring" else {}
        client.call("POST", path_of("images", "debian", "1", "state"), {"state": state, "why": "a test", **more})
    client.close()
    stored = versions(desk)
    for option in (["--from", new], ["--finish"]):
        refused = desk.run("image", "update", "debian", *option, "--yes", status=21).stderr
        assert f"is {state}" in refused
        assert ("roomkey image approve" in refused) is (state != "revoked")
    assert versions(desk) == stored
