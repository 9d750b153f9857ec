# SPDX-License-Identifier: Apache-2.0
"""`roomkey image approve`, `retire`, `revoke`, `history`, and a build that may only propose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.cli.image_life import state_of
from tests.fakes.desk import Desk, open_desk

TOML = 'platform = "tpm"\n[tpm]\nbank = "sha256"\n[tpm.pcrs]\n7 = "' + "ab" * 32 + '"\n'


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "image.toml"
    path.write_text(TOML)
    return path


def test_a_version_is_put_proposed_approved_retired_and_revoked(desk: Desk, toml: Path) -> None:
    """Each command says where the version stands then, and what the bare name means."""
    desk.run("image", "put", "debian", toml)
    proposed = desk.run("image", "put", "debian", toml, "--propose")
    assert "debian@2 proposed" in proposed.stdout
    assert "roomkey image approve debian@2" in proposed.stderr
    assert "proposed" in desk.run("image", "list").stdout
    approved = desk.run("image", "approve", "debian@2", "--why", "tried")
    assert approved.stdout == "image debian@2 is active\n"
    assert "debian now means debian@2\n" in approved.stderr
    retiring = desk.run("image", "retire", "debian@1", "--after", "7d")
    assert retiring.stdout.startswith("image debian@1 is retiring until 20")
    assert "debian now means debian@2, debian@1\n" in retiring.stderr
    assert desk.run("image", "retire", "debian@1", "--now").stdout == "image debian@1 is retired\n"
    desk.run("image", "revoke", "debian@2", stdin="n\n", status=1)
    assert "no version" in desk.run("image", "revoke", "debian@2", "--why", "a hole", stdin="y\n").stderr
    assert "no version" in desk.run("image", "revoke", "debian@1", "--yes").stderr
    desk.run("image", "approve", "debian@1", status=21)
    assert desk.run("image", "show", "debian").stderr.rstrip().endswith("; revoked")
    lines = desk.run("image", "history", "debian").stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["2", "revoked"], ["2", "active"], ["2", "proposed"],
        ["1", "revoked"], ["1", "retired"], ["1", "retiring"], ["1", "active"],
    ]  # fmt: skip
    assert lines[1].endswith("a hole")
    assert [v["version"] for v in desk.json("image", "history", "debian")["versions"]] == [2, 1]


def test_a_put_says_who_is_refused_now(desk: Desk, toml: Path) -> None:
    """The version that the name meant before is named, with the command that lets its guests in meanwhile."""
    assert "refused" not in desk.run("image", "put", "debian", toml).stderr
    assert "roomkey image retire debian@1 --after 7d" in desk.run("image", "put", "debian", toml).stderr


@pytest.mark.parametrize(
    "args",
    [
        ("retire", "debian@1"),
        ("retire", "debian@1", "--after", "7d", "--now"),
        ("retire", "debian@1", "--after", "7"),
        ("retire", "debian@1", "--after", "0m"),
        ("retire", "debian@1", "--after", "366d"),
        ("retire", "debian@1", "--after", "-1d"),
        ("approve", "debian"),
        ("approve", "debian@0"),
        ("revoke", "debian@x", "--yes"),
        ("revoke", "@1", "--yes"),
    ],
)
def test_what_cannot_be_meant_is_refused(desk: Desk, toml: Path, args: tuple[str, ...]) -> None:
    """No version, no time or two, a time that is none: nothing is changed."""
    desk.run("image", "put", "debian", toml)
    desk.run("image", *args, status=2)
    assert [len(v["lives"]) for v in desk.json("image", "history", "debian")["versions"]] == [1]


@pytest.mark.parametrize(
    ("state", "until", "word"),
    [("active", None, "active"), ("retiring", 1, "retired"), ("retiring", 2**52, "retiring")],
)
def test_a_retirement_that_is_over_is_called_so(state: str, until: int | None, word: str) -> None:
    """The broker keeps `retiring` and a time; people read whether it has passed."""
    assert state_of({"state": state, "until": until}) == word


def test_a_build_proposes_and_the_owner_approves(desk: Desk, toml: Path) -> None:
    """A key of role propose puts images that are proposals, and can approve nothing and read no decisions."""
    build = desk.folder / "build" / "identity.toml"
    desk.run("identity", "new", "acme", "--broker", desk.url, "--audience", desk.services.audience, "--identity", build)
    public = build.with_suffix(".public.jwk")
    shown = desk.run("owner", "keys", "acme", "--add", public, "--role", "propose", "--config", desk.config).stdout
    assert sorted(line.split()[-1] for line in shown.splitlines()[1:]) == ["owner", "propose"]
    keys = desk.json("owner", "keys", "acme", "--config", desk.config)
    owner, proposer = sorted(keys, key=lambda key: str(key["role"]))
    assert (owner["role"], proposer["role"]) == ("owner", "propose")
    assert "debian@1 proposed" in desk.run("image", "put", "debian", toml, "--identity", build).stdout
    refused = desk.run("image", "approve", "debian@1", "--identity", build, status=20)
    assert "may only propose" in refused.stderr
    desk.run("decision", "list", "--identity", build, status=20)
    desk.run("image", "approve", "debian@1")
    desk.run("owner", "keys", "acme", "--remove", owner["kid"], "--config", desk.config, status=10)
