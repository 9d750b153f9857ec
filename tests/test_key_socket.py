# SPDX-License-Identifier: Apache-2.0
"""Keys for systemd's crypttab: who may ask, for which volume, and that a header is judged before it is used."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import key_socket, slots
from agent.enroll import make_volume
from agent.key_socket import PATIENCE_SECONDS, answer, guard, header_file, wanted
from agent.luks import checked_header
from agent.release import Opened, Other
from agent.volumes import Row, volume_row
from keys.errors import ConfigError, ReleaseDenied, Unavailable, VolumeError
from keys.messages import ResourcePath
from keys.report import Report, Step
from tests.fakes.luks import rewrite, write
from tests.needs import needs_cryptsetup

KEY = b"k" * 44
PATH = ResourcePath("acme", "disk", "data")


def nobody_sleeps(_: float) -> None: ...


@pytest.fixture
def row(tmp_path: Path) -> Row:
    return Row("data", str(write(tmp_path / "vdb")), PATH, frozenset(("socket",)))


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


Connect = Callable[[bytes | None], tuple[socket.socket, socket.socket]]


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    """Makes a connection: systemd's end, which is bound to that address, and ours."""
    opened: list[socket.socket] = []

    def make(address: bytes | None) -> tuple[socket.socket, socket.socket]:
        listener, theirs = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        path = str(tmp_path / f"key-{len(opened)}.sock")
        listener.bind(path)
        listener.listen()
        if address is not None:
            theirs.bind(address)
        theirs.connect(path)
        ours, _ = listener.accept()
        opened.extend((listener, theirs, ours))
        return theirs, ours

    yield make
    for one in opened:
        one.close()


def peer(name: str, number: str | None = None) -> bytes:
    return f"\0{number or os.urandom(8).hex()}/cryptsetup/{name}".encode()


def received(end: socket.socket) -> bytes:
    """All that came, to the end."""
    end.settimeout(5)
    data = b""
    while piece := end.recv(4096):
        data += piece
    return data


# --- who asks ---


@pytest.mark.parametrize("number", ["6508fbd7c02edb7b", "508fbd7c02edb7b", "b"])
def test_systemd_says_which_volume_it_wants(connect: Connect, number: str) -> None:
    """The address has a random number in front, without leading zeros, and the volume's name at its end."""
    _, ours = connect(peer("web-data.1", number))
    assert wanted(ours) == "web-data.1"


@pytest.mark.parametrize(
    "address",
    [None, b"\0", peer(""), peer("a/b"), peer("-x"), peer("x\n"), peer("data", "G"), peer("data", "0" * 17),
     b"\0x/cryptsetup/data"],
)  # fmt: skip
def test_who_does_not_ask_as_systemd_gets_nothing(connect: Connect, address: bytes | None) -> None:
    """Nothing else is taken for a volume's name."""
    _, ours = connect(address)
    with pytest.raises(VolumeError, match="not systemd-cryptsetup"):
        wanted(ours)


def test_another_user_gets_nothing(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the agent's own user, which is root, may ask."""
    _, ours = connect(peer("data"))
    real = os.getuid()
    monkeypatch.setattr(key_socket.os, "getuid", lambda: real + 1)
    with pytest.raises(VolumeError, match="another user"):
        wanted(ours)


# --- the header, judged before ---


def test_the_guard_leaves_a_judged_copy(row: Row, run: str) -> None:
    """All that is before the data, for root alone; a later one takes its place."""
    for _ in range(2):
        copy = Path(guard(row, run))
        assert copy.read_bytes() == Path(row.device).read_bytes()[: copy.stat().st_size]
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        with checked_header(str(copy)) as ours, checked_header(row.device) as theirs:
            assert ours.volume == theirs.volume


def test_a_forged_header_leaves_no_file(row: Row, run: str) -> None:
    """crypttab's header= leads nowhere then, and the volume stays closed."""
    rewrite(Path(row.device), lambda header: header["segments"]["0"].update(encryption="cipher_null-ecb"))
    with pytest.raises(VolumeError, match="cipher_null"):
        guard(row, run)
    assert not Path(header_file("data", run)).exists()


def test_a_device_is_waited_for(row: Row, run: str) -> None:
    """It may come later than the guard; one that never comes is named."""
    device = Path(row.device)
    hidden = device.rename(device.with_suffix(".hidden"))
    waits = iter([lambda: None, lambda: hidden.rename(device)])
    guard(row, run, sleep=lambda _: next(waits)())
    with pytest.raises(VolumeError, match="not there"):
        guard(row._replace(device="/nowhere"), run, sleep=nobody_sleeps)


def test_a_place_that_cannot_be_written_is_named(row: Row, tmp_path: Path) -> None:
    """A guard that cannot leave its copy says so."""
    (tmp_path / "file").write_text("")
    with pytest.raises(VolumeError, match="cannot be written"):
        guard(row, str(tmp_path / "file"))


# --- the key ---


class Broker:
    """What is asked of it, and what it gives."""

    def __init__(self, *answers: Opened | Exception) -> None:
        self.asked: list[tuple[Report, str]] = []
        self._answers = list(answers)

    def __call__(self, path: ResourcePath) -> Callable[[Report, str], Opened]:
        assert path == PATH

        def ask(report: Report, session: str) -> Opened:
            self.asked.append((report, session))
            got = self._answers.pop(0)
            if isinstance(got, Exception):
                raise got
            return got

        return ask


def pin_of(row: Row) -> str:
    with checked_header(row.device) as header:
        return header.volume.pin


def test_the_key_goes_out_as_it_is(row: Row, run: str, connect: Connect) -> None:
    """Binary, whole, and ended; the pin of the judged copy went along with the question."""
    guard(row, run)
    secret = bytearray(range(256))
    broker, (theirs, ours) = Broker(Opened(secret, 1, pin_of(row))), connect(peer("data"))
    answer(ours, row, broker, lambda _: None, run)
    assert received(theirs) == bytes(range(256))
    assert broker.asked == [(Report(pin_of(row)), "")]
    assert not any(secret)


def test_without_a_judged_copy_nobody_is_asked(row: Row, run: str, connect: Connect) -> None:
    """No guard, no key."""
    broker, (theirs, ours) = Broker(), connect(peer("data"))
    with pytest.raises(VolumeError, match="not there"):
        answer(ours, row, broker, lambda _: None, run)
    ours.close()
    assert received(theirs) == b""
    assert broker.asked == []


def test_a_volume_of_another_way_is_not_opened_by_this_one(row: Row, run: str, connect: Connect) -> None:
    """Only what the table has for the socket."""
    guard(row, run)
    _, ours = connect(peer("data"))
    with pytest.raises(VolumeError, match="not opened by way of the socket"):
        answer(ours, row._replace(options=frozenset(("initramfs",))), Broker(), lambda _: None, run)


@pytest.mark.parametrize(
    "got",
    [
        Opened(bytearray(KEY), 1, "ab" * 32),
        Opened(bytearray(KEY), 1, None, format=True),
        ReleaseDenied("no"),
    ],
)
def test_a_key_for_something_else_does_not_go_out(
    row: Row, run: str, connect: Connect, got: Opened | Exception
) -> None:
    """For another volume, for one that is still to be made, or none at all: the connection gets nothing."""
    guard(row, run)
    theirs, ours = connect(peer("data"))
    with pytest.raises((VolumeError, ReleaseDenied)):
        answer(ours, row, Broker(got), lambda _: None, run)
    ours.close()
    assert received(theirs) == b""
    if isinstance(got, Opened):
        assert not any(got.secret)


def test_brokers_that_cannot_be_reached_are_asked_again(row: Row, run: str, connect: Connect) -> None:
    """Later and later, with the connection open; not for ever."""
    guard(row, run)
    slept: list[float] = []
    gone = Unavailable("nobody")
    theirs, ours = connect(peer("data"))
    answer(ours, row, Broker(gone, gone, Opened(bytearray(KEY), 1)), lambda _: None, run, sleep=slept.append)
    assert received(theirs) == KEY
    assert slept == [5, 10]
    _, ours = connect(peer("data"))
    with pytest.raises(Unavailable):
        answer(ours, row, Broker(*[gone] * 100), lambda _: None, run, sleep=slept.append)
    assert sum(slept[2:]) <= PATIENCE_SECONDS


def test_a_side_that_has_gone_is_named(row: Row, run: str, connect: Connect) -> None:
    """Who does not wait for the key any more gets none, and the key is wiped."""
    guard(row, run)
    theirs, ours = connect(peer("data"))
    theirs.close()
    secret = bytearray(KEY)
    with pytest.raises(VolumeError, match="nobody waits"):
        answer(ours, row, Broker(Opened(secret, 1)), lambda _: None, run)
    assert not any(secret)


@needs_cryptsetup
def test_keyslots_change_after_the_key_is_out(tmp_path: Path, run: str, connect: Connect) -> None:
    """What systemd opens is the volume as it was; the disk has the new keyslot for the next boot."""
    disk = tmp_path / "real"
    disk.touch()
    os.truncate(disk, 20 << 20)
    pin = make_volume(str(disk), bytearray(KEY))
    row = Row("data", str(disk), PATH, frozenset(("socket",)))
    guard(row, run)
    new = b"n" * 44
    theirs, ours = connect(peer("data"))
    first = Opened(bytearray(KEY), 1, pin, other=Other(Step.ADD, 7, bytearray(new)), session="s1")
    broker = Broker(first, Opened(bytearray(new), 2, pin, session="s2"))
    answer(ours, row, broker, lambda _: None, run)
    assert received(theirs) == KEY
    assert broker.asked[1:] == [(Report(pin, "", Step.ADD, 7), "s1")]
    with checked_header(str(disk)) as header:
        assert slots.opens(str(disk), header.descriptor, new)


# --- the table ---


def test_the_table_is_read_as_it_is_written(tmp_path: Path) -> None:
    """Comments, blanks and other rows do not matter."""
    table = tmp_path / "volumes"
    table.write_text(
        "# NAME\n\nroot /dev/vda acme/disk/root initramfs,new,mkfs=ext4\n\tdata  /dev/vdb acme/disk/data socket\n"
    )
    assert volume_row("data", str(table)) == Row("data", "/dev/vdb", PATH, frozenset(("socket",)))
    assert "mkfs=ext4" in volume_row("root", str(table)).options
    with pytest.raises(ConfigError, match="no such volume"):
        volume_row("other", str(table))
    with pytest.raises(ConfigError, match="no table"):
        volume_row("other", str(tmp_path / "none"))


@pytest.mark.parametrize(
    "line",
    ["data /dev/vdb acme/disk/data", "data /dev/vdb acme/disk socket", "data /dev/vdb acme/disk/data sockets",
     "../x /dev/vdb acme/disk/data socket", "a b c d e"],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    """A table that cannot be read is not half used."""
    table = tmp_path / "volumes"
    table.write_text(f"# first\n{line}\n")
    with pytest.raises(ConfigError, match="line 2"):
        volume_row("data", str(table))


# --- the shell's part ---

OPEN_VOLUMES = Path(__file__).resolve().parent.parent / "deploy/package/files/usr/lib/roomkey/open-volumes"


def open_volumes(tmp_path: Path, table: str, statuses: str) -> tuple[int, list[str], str]:
    """Run it with an agent that ends with one of `statuses` after the other: status, what was called, words."""
    (tmp_path / "volumes").write_text(table)
    (tmp_path / "statuses").write_text(statuses)
    programs = {
        "roomkey-agent": """echo "$@" >>"$ROOM/asked"
            read -r status <"$ROOM/statuses"; sed -i 1d "$ROOM/statuses"; exit $status""",
        "sleep": 'echo "sleep $1" >>"$ROOM/asked"',
        "poweroff": 'echo poweroff >>"$ROOM/asked"',
    }  # fmt: skip
    (tmp_path / "bin").mkdir()
    for name, body in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    script = OPEN_VOLUMES.read_text().replace("/etc/roomkey/volumes\n", f"{tmp_path}/volumes\n")
    done = subprocess.run(
        ["/bin/sh", "-c", script, "open-volumes", "initramfs"], capture_output=True, text=True, check=False,
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "ROOM": str(tmp_path)},
    )  # fmt: skip
    asked = tmp_path / "asked"
    return done.returncode, asked.read_text().splitlines() if asked.exists() else [], done.stderr


def test_volumes_are_opened_in_order_and_the_last_one_caps(tmp_path: Path) -> None:
    """Only those of the stage; a new one is enrolled, with its file system."""
    table = (
        "a /dev/null acme/disk/a initramfs\nb /dev/null acme/disk/b socket\n# c\n"
        "d /dev/null acme/disk/d initramfs,new,mkfs=ext4\n"
    )
    status, asked, _ = open_volumes(tmp_path, table, "0\n0\n")
    assert status == 0
    assert asked == [
        "unlock /dev/null --key acme/disk/a --name a",
        "enroll /dev/null --key acme/disk/d --name d --mkfs ext4 --cap",
    ]


def test_a_refusal_switches_the_machine_off(tmp_path: Path) -> None:
    """It does not spin, nor go on to the next volume: asked once, said so, no prompt."""
    table = "a /dev/null acme/disk/a initramfs\nb /dev/null acme/disk/b initramfs\n"
    _, asked, words = open_volumes(tmp_path, table, "14\n")
    assert asked == ["unlock /dev/null --key acme/disk/a --name a", "sleep 30", "poweroff"]
    assert "a stays closed" in words


def test_a_broker_that_is_away_is_asked_later_and_later(tmp_path: Path) -> None:
    """Until it answers; with `once` only once."""
    table = "a /dev/null acme/disk/a initramfs,uncapped\n"
    status, asked, _ = open_volumes(tmp_path, table, "16\n16\n16\n0\n")
    assert status == 0
    assert [line for line in asked if line.startswith("sleep")] == ["sleep 5", "sleep 10", "sleep 20"]
    assert asked[0] == "unlock /dev/null --key acme/disk/a --name a"


def test_a_prompt_is_the_owners_choice(tmp_path: Path) -> None:
    """With `prompt` what follows is the system's, and the machine stays on."""
    status, asked, _ = open_volumes(tmp_path, "a /dev/null acme/disk/a initramfs,prompt,once\n", "16\n")
    assert status == 0
    assert asked == ["unlock /dev/null --key acme/disk/a --name a --cap"]


def test_without_a_volume_for_the_stage_nothing_happens(tmp_path: Path) -> None:
    """A machine that only has volumes for the socket boots on."""
    assert open_volumes(tmp_path, "b /dev/null acme/disk/b socket\n", "")[:2] == (0, [])
