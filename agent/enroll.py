# SPDX-License-Identifier: Apache-2.0
"""Makes the volume of a new machine, when the broker says that there is none yet.

That a disk is empty says nothing: its host can empty it. What counts is the broker's signed word (`Opened.format`), and
that nothing which may be somebody's is in the way:

    empty     zeros at the beginning and the end of the disk, or in all of it
    begun     a header of LUKS2 that is not whole, with zeros where the data begin and end: an interrupted beginning
    sound     a sound volume. If the new key opens it, it is that key's from an interrupted beginning: nobody else could
              make one, and nothing was ever entrusted to it. Otherwise it is somebody's
    other     somebody's
"""

from __future__ import annotations

import os
import subprocess
from enum import StrEnum

from agent.cryptsetup import ENVIRONMENT, failed, in_memory, run
from agent.luks import MAGICS, checked_header
from agent.luks_write import write_back
from agent.slots import PBKDF, opens
from keys.errors import ConfigError, VolumeError

DATA_OFFSET = 16 << 20  # bytes before the data, as cryptsetup leaves them
SMALLEST = DATA_OFFSET + (1 << 20)  # bytes of a disk that is worth it
PROBE = 1 << 20  # bytes that are looked at, at each end
FILE_SYSTEMS = ("ext4", "xfs", "btrfs")
MKFS_SECONDS = 600

_FORMAT = (
    "luksFormat", "--type", "luks2", "--batch-mode", *PBKDF, "--cipher", "aes-xts-plain64", "--key-size", "512",
    "--offset", str(DATA_OFFSET // 512), "--key-file", "-",
)  # fmt: skip


class Disk(StrEnum):
    """What is on a disk; see above."""

    EMPTY = "empty"
    BEGUN = "begun"
    SOUND = "sound"
    OTHER = "other"


def what_is_on(device: str, *, whole: bool = False) -> Disk:
    """`whole`: look at every byte before it is called empty. Raises VolumeError."""
    try:
        with checked_header(device, repair=True):
            return Disk.SOUND
    except VolumeError:
        pass  # then it is one of the others
    try:
        with open(device, "rb", buffering=0) as disk:  # noqa: PTH123  pathlib would cost milliseconds at boot
            size = disk.seek(0, os.SEEK_END)
            if size < SMALLEST:
                raise VolumeError(f"{device}: too small", expected=f"{SMALLEST} bytes or more", found=str(size))
            begun = os.pread(disk.fileno(), 6, 0) == MAGICS[0]
            start = DATA_OFFSET if begun else 0
            ends = [(start, size)] if whole else [(start, min(start + PROBE, size)), (size - PROBE, size)]
            if all(_is_zero(disk.fileno(), at, end) for at, end in ends):
                return Disk.BEGUN if begun else Disk.EMPTY
    except OSError as error:
        raise VolumeError(
            f"{device}: the volume is not there", found=str(error), mend="see that the device's path is right"
        ) from None
    return Disk.OTHER


def make_volume(device: str, key: bytearray, *, whole: bool = False) -> str:
    """The pin of the volume that `key` opens on `device` from now on. Raises VolumeError: then nothing that may be
    somebody's was touched.
    """
    state = what_is_on(device, whole=whole)
    if state is Disk.SOUND:
        with checked_header(device, repair=True) as header:
            if opens(device, header.descriptor, key):
                write_back(device, header)  # both of it, where it was not whole
                return header.volume.pin
    if state in {Disk.SOUND, Disk.OTHER}:
        raise not_empty(device)
    copy = os.memfd_create("luks-header")
    try:
        os.ftruncate(copy, DATA_OFFSET)
        status, words = run((*_FORMAT, "--header", in_memory(copy), "--", device), key, (copy,))
        if status != 0:
            raise failed(device, status, words)
        with checked_header(in_memory(copy)) as header:
            write_back(device, header, begin=True)
            pin = header.volume.pin
    except OSError as error:
        raise VolumeError(f"{device}: the header cannot be written", found=str(error)) from None
    finally:
        os.close(copy)
    with checked_header(device, pin):
        return pin


def not_empty(device: str) -> VolumeError:
    return VolumeError(
        f"{device}: the disk is not empty, and what is on it is nothing of this key's",
        mend="see that it is the right disk; if it may be lost, overwrite it with zeros (blkdiscard -z)",
    )


def file_system(text: str) -> str:
    """`text` if it is one that can be made. Raises ConfigError."""
    if text not in FILE_SYSTEMS:
        raise ConfigError("not a file system for --mkfs", expected=" or ".join(FILE_SYSTEMS), found=text)
    return text


def make_file_system(kind: str, device: str) -> None:
    """Raises VolumeError."""
    try:
        done = subprocess.run(
            [f"mkfs.{kind}", "-q", device], capture_output=True, stdin=subprocess.DEVNULL, env=ENVIRONMENT,
            timeout=MKFS_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VolumeError(f"mkfs.{kind} cannot be run", found=str(error)[:300]) from None
    if done.returncode != 0:
        words = " ".join(done.stderr.decode("ascii", "replace").split())[:300]
        raise VolumeError(f"mkfs.{kind} failed", found=words)


def _is_zero(disk: int, at: int, end: int) -> bool:
    while at < end:
        piece = os.pread(disk, min(PROBE, end - at), at)
        if not piece or piece.count(0) != len(piece):
            return False
        at += len(piece)
    return True
