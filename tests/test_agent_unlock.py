# SPDX-License-Identifier: Apache-2.0
"""Opening real LUKS2 files with cryptsetup, and what it is given: the key on standard input and nothing else."""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent import cryptsetup
from agent.unlock import has_device_mapper, open_volume, volume_name
from keys.errors import ConfigError, VolumeError
from keys.secrecy import forbid_core_dumps
from tests.fakes.luks import rewrite, write
from tests.needs import needs_cryptsetup

KEY = b"32 bytes\nwith\0 what a text lacks"

FAKE = """#!/bin/sh
if [ "$1" = status ]; then
    cat {directory}/table
    exit 0
fi
if [ "$1" = close ]; then
    echo "$@" > {directory}/closed
    exit 0
fi
printf '%s\\n' "$@" > {directory}/argv
env > {directory}/env
cat > {directory}/stdin
echo "  some words  of
 cryptsetup" >&2
exit {status}
"""


TABLE = """/dev/mapper/root is active.
  type:    LUKS2
  cipher:  aes-xts-plain64
  keysize: 512 bits
  device:  /dev/vda
  sector size:  512
  offset:  2048 sectors
"""


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LUKS2 volume in a file, with a cheap key slot."""
    path = tmp_path_factory.mktemp("volume") / "disk.img"
    with path.open("wb") as file:
        file.truncate(20 << 20)
    subprocess.run(
        [
            "cryptsetup", "luksFormat", "--type", "luks2", "--batch-mode", "--key-file", "-",
            "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", str(path),
        ],
        input=KEY,
        check=True,
    )  # fmt: skip
    return path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that holds a `cryptsetup` which writes down what it is given; its exit status is in `status`."""
    monkeypatch.setitem(cryptsetup.ENVIRONMENT, "PATH", f"{tmp_path}:{cryptsetup.ENVIRONMENT['PATH']}")
    _install(tmp_path, 0)
    (tmp_path / "table").write_text(TABLE)
    return tmp_path


def _install(directory: Path, status: int) -> None:
    script = directory / "cryptsetup"
    script.write_text(FAKE.format(directory=directory, status=status))
    script.chmod(0o755)


@pytest.fixture
def disk(tmp_path: Path) -> str:
    """A volume that only a `cryptsetup` of the test's opens."""
    return str(write(tmp_path / "vda2"))


@needs_cryptsetup
def test_the_right_key_opens_a_real_volume(volume: Path) -> None:
    """A binary key with newlines and NULs is taken whole, and wiped afterwards."""
    key = bytearray(KEY)
    assert open_volume(str(volume), "root", key, device_mapper=False)[:2] == (False, "root")
    assert key == bytearray(len(KEY))


@needs_cryptsetup
@pytest.mark.parametrize("wrong", [b"another key", KEY[:-1], KEY + b"\n", KEY.partition(b"\n")[0]])
def test_the_wrong_key_does_not(volume: Path, wrong: bytes) -> None:
    """Any other key is a VolumeError, and is wiped, too."""
    key = bytearray(wrong)
    with pytest.raises(VolumeError, match="does not open"):
        open_volume(str(volume), "root", key, device_mapper=False)
    assert key == bytearray(len(wrong))


@needs_cryptsetup
def test_another_volume_gets_no_key(volume: Path, disk: str) -> None:
    """The volume with the pin opens; another one is refused before cryptsetup sees the key, which is wiped."""
    key = bytearray(KEY)
    pin = open_volume(str(volume), "root", key, device_mapper=False).pin
    assert open_volume(str(volume), "root", bytearray(KEY), device_mapper=False, pin=pin).pin == pin
    key = bytearray(KEY)
    with pytest.raises(VolumeError, match="another volume"):
        open_volume(disk, "root", key, device_mapper=False, pin=pin)
    assert key == bytearray(len(KEY))


@needs_cryptsetup
@pytest.mark.parametrize("part", ["segments", "keyslots"])
def test_a_header_with_a_null_cipher_gets_no_key(volume: Path, tmp_path: Path, part: str) -> None:
    """A host that lets the right key open a volume of its own making is stopped before cryptsetup sees the key."""
    disk = tmp_path / "disk.img"
    shutil.copyfile(volume, disk)
    key = bytearray(KEY)

    def change(header: dict[str, Any]) -> None:
        (header[part]["0"] if part == "segments" else header[part]["0"]["area"])["encryption"] = "cipher_null-ecb"

    rewrite(disk, change)
    with pytest.raises(VolumeError, match="protects"):
        open_volume(str(disk), "root", key, device_mapper=False)
    assert not any(key)


@needs_cryptsetup
def test_what_is_no_volume_is_named(tmp_path: Path) -> None:
    """A missing device and a file without LUKS2 header are told from a wrong key."""
    (tmp_path / "empty").write_bytes(bytes(4096))
    for name, words in (("none", "not there"), ("empty", "no LUKS2 header")):
        with pytest.raises(VolumeError, match=words):
            open_volume(str(tmp_path / name), "root", bytearray(KEY), device_mapper=False)


@needs_cryptsetup
def test_a_device_that_looks_like_an_option_is_a_device(tmp_path: Path) -> None:
    """No device name is read as an option of cryptsetup."""
    with pytest.raises(VolumeError, match="not there"):
        open_volume("--test-passphrase", "root", bytearray(KEY), device_mapper=False)


@pytest.mark.parametrize(
    ("device_mapper", "tail"), [(True, ["--", "DISK", "root"]), (False, ["--test-passphrase", "--", "DISK"])]
)
def test_cryptsetup_gets_the_key_on_standard_input_only(
    fake: Path, disk: str, device_mapper: bool, tail: list[str]
) -> None:
    """The key is in no argument and in no variable, and the environment is the small fixed one."""
    os.environ["ROOMKEY_TEST_SECRET"] = "must not be passed on"
    try:
        outcome = open_volume(disk, "root", bytearray(KEY), device_mapper=device_mapper)
    finally:
        del os.environ["ROOMKEY_TEST_SECRET"]
    assert outcome[:2] == (device_mapper, "root")
    assert (fake / "stdin").read_bytes() == KEY
    said = [re.sub(r"^/proc/self/fd/[0-9]+$", "COPY", word.replace(disk, "DISK"))
            for word in (fake / "argv").read_text().splitlines()]  # fmt: skip
    assert said == [
        "open", "--type", "luks2", "--key-file", "-", "--batch-mode", "--disable-external-tokens", "--header", "COPY",
        *tail,
    ]  # fmt: skip
    names = {line.partition("=")[0] for line in (fake / "env").read_text().splitlines()}
    assert names <= {"PATH", "LC_ALL", "PWD", "SHLVL", "_"}


@pytest.mark.parametrize(
    ("status", "words"),
    [(1, "no LUKS2 volume"), (2, "does not open"), (3, "memory"), (4, "not there"), (5, "busy"), (77, "failed")],
)
def test_each_failure_of_cryptsetup_has_its_words(fake: Path, disk: str, status: int, words: str) -> None:
    """Every exit status is a VolumeError with its cause, what cryptsetup said on one line, and what mends it."""
    _install(fake, status)
    with pytest.raises(VolumeError, match=words) as caught:
        open_volume(disk, "root", bytearray(KEY), device_mapper=True)
    assert caught.value.found == f"status {status}: some words of cryptsetup"
    assert caught.value.mend


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("aes-xts-plain64", "cipher_null"),
        ("size:  512", "size:  4096"),
        ("2048 sectors", "0 sectors"),
        ("  offset", ""),
    ],
)
def test_what_was_opened_is_compared_with_what_was_checked(fake: Path, disk: str, line: str, other: str) -> None:
    """Another cipher, sector size or offset in the kernel than in the checked header: closed again, and said so."""
    (fake / "table").write_text(TABLE.replace(line, other))
    with pytest.raises(VolumeError, match="not what was checked"):
        open_volume(disk, "root", bytearray(KEY), device_mapper=True)
    assert (fake / "closed").read_text() == "close -- root\n"


def test_a_cryptsetup_that_does_not_read_the_key_is_judged_by_its_status(fake: Path, disk: str) -> None:
    """A child that ends before the key is written does not kill the agent with a broken pipe."""
    script = fake / "cryptsetup"
    script.write_text("#!/bin/sh\nexec <&-\nexit 4\n")
    with pytest.raises(VolumeError, match="not there"):
        open_volume(disk, "root", bytearray(1 << 20), device_mapper=True)


def test_a_cryptsetup_that_hangs_is_ended(fake: Path, disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that never ends is killed after its time."""
    monkeypatch.setattr(cryptsetup, "CRYPTSETUP_SECONDS", 0.05)
    (fake / "cryptsetup").write_text("#!/bin/sh\nexec sleep 60\n")
    key = bytearray(KEY)
    with pytest.raises(VolumeError, match="did not end"):
        open_volume(disk, "root", key, device_mapper=True)
    assert not any(key)


def test_a_missing_cryptsetup_is_named(disk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cryptsetup there is a VolumeError."""
    monkeypatch.setitem(cryptsetup.ENVIRONMENT, "PATH", str(tmp_path))
    with pytest.raises(VolumeError, match="cannot be run"):
        open_volume(disk, "root", bytearray(KEY), device_mapper=True)


@pytest.mark.parametrize("name", ["root", "roomkey-root.v2", "0", "a" * 127])
def test_a_volume_has_a_plain_name(name: str) -> None:
    """Letters, digits, dot, dash and underscore make a name."""
    assert volume_name(name) == name


@pytest.mark.parametrize("name", ["", "-x", ".", "..", "a/b", "a b", "a\n", "a" * 128, "\u00e4"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    """No name leaves /dev/mapper or looks like an option."""
    with pytest.raises(ConfigError, match="not a name"):
        volume_name(name)


def test_device_mapper_is_found_where_it_is(tmp_path: Path) -> None:
    """The kernel's list of drivers or a control node that opens show it; a node without a driver does not."""
    misc, control, missing = tmp_path / "misc", tmp_path / "control", str(tmp_path / "missing")
    misc.write_text("236 device-mapper\n")
    assert has_device_mapper(str(misc), missing)
    misc.write_text("200 tun\n")
    assert not has_device_mapper(str(misc), missing)
    assert not has_device_mapper(missing, missing)
    with socket.socket(socket.AF_UNIX) as dead:  # opening it fails like a node whose driver is missing: ENXIO
        dead.bind(str(tmp_path / "dead"))
        assert not has_device_mapper(str(misc), str(tmp_path / "dead"))
    control.touch()
    assert has_device_mapper(str(misc), str(control))
    assert has_device_mapper(missing, str(control))


def test_a_process_that_can_be_dumped_gets_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel refuses, the agent stops before it has a key."""

    class Refusing:
        def __init__(self, *_: object) -> None: ...

        def prctl(self, *_: int) -> int:
            return -1

    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    monkeypatch.setattr("ctypes.CDLL", Refusing)
    with pytest.raises(ConfigError, match="core dumps"):
        forbid_core_dumps()


def test_a_process_with_a_key_is_never_dumped() -> None:
    """After `forbid_core_dumps` the core limit is 0 and the kernel counts the process as not dumpable."""
    code = (
        "import ctypes, resource\n"
        "from keys.secrecy import forbid_core_dumps\n"
        "forbid_core_dumps()\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(0, 0) 0"


def test_what_the_kernel_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The core limit is set to nothing and PR_SET_DUMPABLE to 0."""
    asked: list[tuple[object, ...]] = []

    class Library:
        def __init__(self, *_: object) -> None: ...

        def prctl(self, *arguments: int) -> int:
            asked.append(arguments)
            return 0

    monkeypatch.setattr("resource.setrlimit", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr("ctypes.CDLL", Library)
    forbid_core_dumps()
    assert asked == [(resource.RLIMIT_CORE, (0, 0)), (4, 0, 0, 0, 0)]
