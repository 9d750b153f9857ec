# SPDX-License-Identifier: Apache-2.0
"""The agent's memory of versions: it only grows, is whole or not there, and is never guessed."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import versions
from agent.deadline import Deadline
from agent.versions import known, remember
from keys.errors import ConfigError, Unavailable
from keys.messages import ResourcePath

PATH, OTHER = ResourcePath("acme", "disk", "root"), ResourcePath("globex", "disk", "root")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "versions.json"


def test_a_missing_file_knows_nothing(file: Path) -> None:
    """Before the first key every version is new."""
    assert known(str(file), PATH) == 0
    assert not file.exists()


def test_the_newest_version_is_remembered(file: Path) -> None:
    """Each key has its own newest version; an older one changes nothing."""
    for path, version in ((PATH, 2), (OTHER, 7), (PATH, 3), (PATH, 1)):
        remember(str(file), path, version, Deadline(5))
    assert (known(str(file), PATH), known(str(file), OTHER)) == (3, 7)
    assert json.loads(file.read_bytes()) == {"acme/disk/root": 3, "globex/disk/root": 7}


def test_the_file_is_private_and_alone(file: Path) -> None:
    """Mode 0600 whatever the umask, and no draft is left; a draft of a crash before is overwritten."""
    (file.parent / ".versions.json.new").write_text("half a wo")
    (file.parent / ".versions.json.new").chmod(0o644)
    remember(str(file), PATH, 1, Deadline(5))
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["versions.json"]


def test_nothing_is_written_when_nothing_is_new(file: Path) -> None:
    """The same version again leaves the file as it is."""
    remember(str(file), PATH, 4, Deadline(5))
    before = file.stat().st_ino
    remember(str(file), PATH, 4, Deadline(5))
    assert file.stat().st_ino == before


def test_a_link_in_the_drafts_place_is_not_followed(file: Path) -> None:
    """Nobody makes the agent write elsewhere."""
    (file.parent / ".versions.json.new").symlink_to(file.parent / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be written"):
        remember(str(file), PATH, 1, Deadline(5))
    assert not (file.parent / "elsewhere").exists()


def test_a_file_without_a_folder_is_in_the_working_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name is a name here."""
    monkeypatch.chdir(file.parent)
    remember("versions.json", PATH, 1, Deadline(5))
    assert known(str(file), PATH) == 1


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "7", '{"acme/disk/root":"1"}', '{"acme/disk/root":0}', '{"acme/disk/root":-1}',
        '{"acme/disk/root":true}', '{"acme/disk/root":1.5}', '{"acme/disk/root":9007199254740992}',
        '{"acme/disk":1}', '{"acme/disk/root":1,"acme/disk/root":2}', '{"acme/disk/root":null}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_an_error(file: Path, text: str) -> None:
    """What cannot be what was written is neither nothing nor overwritten."""
    file.write_text(text)
    for ask in (lambda: known(str(file), PATH), lambda: remember(str(file), PATH, 1, Deadline(5))):
        with pytest.raises(ConfigError, match="damaged") as caught:
            ask()
        assert caught.value.mend
    assert file.read_text() == text


def test_a_file_that_is_none_is_an_error(file: Path) -> None:
    """A folder in its place, or one that is too long, is named."""
    file.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        known(str(file), PATH)
    file.rmdir()
    file.write_bytes(b" " * (versions.MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="too long"):
        known(str(file), PATH)


def test_a_full_file_is_an_error(file: Path) -> None:
    """No file is written that could not be read the next time."""
    path = "a/b/" + "x" * 96
    many = {f"{path[:-4]}{number:04}": 1 for number in range(1000)}
    text = json.dumps(many, separators=(",", ":"))[: versions.MAX_FILE_BYTES]
    file.write_text(text.rpartition(",")[0] + "}")
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="full"):
        remember(str(file), ResourcePath("a", "b", "y" * 96), 1, Deadline(5))
    assert file.read_bytes() == before


@pytest.mark.parametrize("spoil", [lambda folder: folder.rmdir(), lambda folder: folder.chmod(0o500)])
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    """A version that cannot be remembered is told, with what mends it."""
    folder = tmp_path / "state"
    folder.mkdir()
    spoil(folder)
    if folder.exists() and os.geteuid() == 0:
        (folder / ".versions.json.new").mkdir()  # root writes everywhere, but not into this
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        remember(str(folder / "versions.json"), PATH, 1, Deadline(5))
    assert "versions" in (caught.value.mend or "")


def test_two_agents_do_not_forget_for_each_other(file: Path) -> None:
    """Many that write at the same time lose nothing: each reads again under the lock."""
    paths = [ResourcePath("acme", "disk", f"d{number}") for number in range(12)]
    threads = [threading.Thread(target=remember, args=(str(file), path, 3, Deadline(20))) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [known(str(file), path) for path in paths] == [3] * len(paths)


def test_a_lock_is_not_waited_for_without_end(file: Path) -> None:
    """An agent that hangs with the lock does not keep this one from ending."""
    holder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another agent"):
            remember(str(file), PATH, 1, Deadline(0.05))
    finally:
        os.close(holder)
    remember(str(file), PATH, 1, Deadline(5))
