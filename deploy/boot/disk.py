# SPDX-License-Identifier: Apache-2.0
"""An encrypted disk without root and without device-mapper: a file system in a file, encrypted in place."""

from __future__ import annotations

import subprocess
from pathlib import Path

DISK_BYTES = 64 << 20
ROOM_FOR_HEADER = 16 << 20  # that cryptsetup moves the data by
# The passphrase is 32 random bytes: a slow key derivation would protect nothing more, and take seconds.
PBKDF = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")


def make(path: Path, proof: str, passphrase: bytes) -> None:
    """A LUKS2 disk whose file system holds the file `proof` with that line."""
    tree = path.with_suffix(".tree")
    tree.mkdir()
    (tree / "proof").write_text(proof + "\n")
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    blocks = (DISK_BYTES - ROOM_FOR_HEADER) >> 12
    _run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tree, path, blocks)
    _encrypt(path, passphrase)


def _encrypt(path: Path, passphrase: bytes) -> None:
    with _key(path, passphrase) as key:
        _run("cryptsetup", "reencrypt", "--encrypt", "--batch-mode", "--type", "luks2", *PBKDF,
             "--reduce-device-size", str(ROOM_FOR_HEADER), "--key-file", key, path)  # fmt: skip


def encrypt_tree(path: Path, tree: Path, passphrase: bytes) -> None:
    """A LUKS2 disk with all that is in the folder `tree`."""
    used = int(subprocess.run(["du", "-sm", tree], check=True, capture_output=True, text=True).stdout.split()[0])
    size = (used * 5 // 4 + 256) << 20
    with path.open("wb") as file:
        file.truncate(size)
    _run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tree, path, (size - ROOM_FOR_HEADER) >> 12)
    _encrypt(path, passphrase)


def empty(path: Path) -> None:
    """A disk with nothing on it, in the place of what was there."""
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)


def change_key(path: Path, old: bytes, new: bytes) -> None:
    """Let `new` open the disk, and `old` no more."""
    with _key(path, old, "old") as before, _key(path, new, "new") as after:
        _run("cryptsetup", "luksChangeKey", "--batch-mode", *PBKDF, "--key-file", before, path, after)


class _key:  # noqa: N801
    """A key in a file of its own while cryptsetup reads it: these keys belong to a demo."""

    def __init__(self, disk: Path, key: bytes, name: str = "key") -> None:
        self._path, self._key = disk.with_suffix(f".{name}"), key

    def __enter__(self) -> Path:
        self._path.touch(0o600)
        self._path.write_bytes(self._key)
        return self._path

    def __exit__(self, *_: object) -> None:
        self._path.unlink()


def _run(*command: object) -> None:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
