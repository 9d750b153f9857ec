# SPDX-License-Identifier: Apache-2.0
"""A fleet that is updated guest by guest and component by component: nobody is refused on the way, nobody left behind
is let in after it, and no machine that no update makes ever is.

The images are made by the owner's commands from the evidence of two guests; every boot of every guest is judged.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import pytest

from broker.appraisal.images import Image, parse_image
from broker.appraisal.judge import judge
from broker.trace import Trace
from keys.errors import ReleaseDenied
from tests.fakes.boot import Boot
from tests.fakes.cases import case_of
from tests.fakes.desk import KEY, Desk, open_desk
from tests.fakes.evidence_file import booted, write_evidence
from tests.fakes.house import claims_of
from tests.fakes.tpm_guest import FakeTpm

GUESTS = 200
SHIM = (b"shim 15.7", b"shim 15.8")
KERNEL = (b"kernel 6.1.0-31", b"kernel 6.1.0-32")
INITRD = (b"initrd 6.1.0-31", b"initrd 6.1.0-32")
COMMAND_LINE = ("/vmlinuz-6.1.0-31 root=/dev/vda1 ro", "/vmlinuz-6.1.0-32 root=/dev/vda1 ro")


def boot(shim: int, kernel: int, initrd: int | None = None, command_line: int | None = None) -> Boot:
    """0 for what was before the update, 1 for after; initrd and command line go with the kernel."""
    return Boot(
        shim=SHIM[shim],
        kernel=KERNEL[kernel],
        initrd=INITRD[kernel if initrd is None else initrd],
        command_line=COMMAND_LINE[kernel if command_line is None else command_line],
    )


class Images(NamedTuple):
    old: Image
    rolling: Image
    finished: Image


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(tmp_path_factory.mktemp("fleet")) as made:
        yield made


@pytest.fixture(scope="module")
def images(desk: Desk) -> Images:
    """What the owner's three commands store."""
    folder = desk.folder
    desk.run("image", "enrol", "fleet", "--from", write_evidence(folder / "old.json", booted(boot(0, 0))), "--yes")
    desk.run("image", "update", "fleet", "--from", write_evidence(folder / "new.json", booted(boot(1, 1))), "--yes")
    desk.run("image", "update", "fleet", "--finish", "--yes")
    return Images(*(parse_image(desk.run("image", "show", f"fleet@{version}").stdout) for version in (1, 2, 3)))


def allowed(tpm: FakeTpm, image: Image) -> bool:
    """The whole judgement of the guest's boot, with this image in the rule."""
    case = case_of(claims_of(tpm), images={"debian@1": image})
    return judge(case, Trace()).allowed


def test_nobody_is_refused_while_the_fleet_rolls(images: Images) -> None:
    """200 guests update shim and kernel over three boots in an order of their own; each boot of each is let in."""
    chance = random.Random(2026)
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(GUESTS):
        tpm = FakeTpm()
        between = chance.choice([(0, 0), (0, 1), (1, 0), (1, 1)])
        for state in ((0, 0), between, (1, 1)):
            tpm.boot(boot(*state))
            assert allowed(tpm, images.rolling), state
            seen[state] += 1
    assert sorted(seen) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert seen.total() == 3 * GUESTS


def test_a_machine_that_no_update_makes_is_refused(images: Images) -> None:
    """Of all mixtures of old and new parts those four are let in in which the kernel's parts are of one version."""
    tpm = FakeTpm()
    for parts in product((0, 1), repeat=4):
        tpm.boot(boot(*parts))
        assert allowed(tpm, images.rolling) is (len(set(parts[1:])) == 1), parts


def test_what_is_neither_old_nor_new_is_refused(images: Images) -> None:
    """A third kernel, another shim, other firmware, Secure Boot off: an update in progress lets nothing else in."""
    tpm = FakeTpm()
    new = boot(1, 1)
    for other in (
        replace(new, kernel=b"kernel of somebody"),
        replace(new, shim=b"shim of somebody"),
        replace(new, shim=b""),
        replace(new, firmware="another firmware"),
        replace(new, secure_boot=False),
        replace(new, command_line=f"{COMMAND_LINE[1]} init=/bin/sh"),
    ):
        tpm.boot(other)
        assert not allowed(tpm, images.rolling)


def test_after_the_update_only_the_new_release_is_let_in(images: Images) -> None:
    """With the finished image the old release and both states in between are refused; before the update only the old
    release was let in.
    """
    tpm = FakeTpm()
    for state in product((0, 1), repeat=2):
        tpm.boot(boot(*state))
        assert allowed(tpm, images.old) is (state == (0, 0))
        assert allowed(tpm, images.finished) is (state == (1, 1))


def test_a_guest_gets_its_key_all_the_way(desk: Desk, images: Images) -> None:
    """One guest against the whole broker: its key in every state while the image rolls, then in the new one only."""
    assert images.rolling.combinations is not None
    tpm = booted(boot(0, 0))
    desk.run("key", "generate", KEY)
    desk.run("instance", "add", "web-1", "--from", write_evidence(desk.folder / "web-1.json", tpm))
    for version, states in ((2, list(product((0, 1), repeat=2))), (3, [(1, 1)])):
        desk.run("rule", "set", KEY, "--image", f"fleet@{version}", "--instance", "web-1")
        for state in product((0, 1), repeat=2):
            tpm.boot(boot(*state))
            if state in states:
                assert len(desk.ask(tpm)) == 32
            else:
                with pytest.raises(ReleaseDenied):
                    desk.ask(tpm)
