# SPDX-License-Identifier: Apache-2.0
"""From a key to an open volume: `cryptsetup open` on a header that was checked (`agent.luks`), the key on its standard
input and nowhere else. Once it is open, what the kernel has is compared with what was checked.

Where the kernel has no device-mapper (a container, a test machine) no volume can be opened; then the key is tried on
the header with --test-passphrase, and the result says so.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import NamedTuple

from agent.cryptsetup import failed, in_memory, run, said_by
from agent.luks import checked_header
from agent.luks_metadata import Volume
from agent.luks_write import write_back
from keys.errors import ConfigError, VolumeError
from keys.secrecy import wipe

SECTOR_BYTES = 512  # in which device-mapper counts offsets

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}\Z")


class Outcome(NamedTuple):
    """`opened`: the volume is at /dev/mapper/NAME. Otherwise the key fits, and nothing is open. `pin`: the volume's."""

    opened: bool
    name: str
    pin: str


def has_device_mapper(misc: str = "/proc/misc", control: str = "/dev/mapper/control") -> bool:
    """Can this kernel open a volume?

    The control node is opened and not only looked for: that loads a module that waits to be loaded, and a node that
    cryptsetup left behind on a kernel without the driver cannot be opened.
    """
    try:
        os.close(os.open(control, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        try:
            with open(misc, encoding="ascii") as file:  # noqa: PTH123  pathlib would cost milliseconds at boot
                return "device-mapper" in file.read()
        except OSError:
            return False
    return True


def volume_name(name: str) -> str:
    """`name` if device-mapper takes it. Raises ConfigError."""
    if not _NAME.match(name):
        raise ConfigError("not a name for a volume", expected="letters, digits, '_', '-', '.'", found=name)
    return name


def _check_table(name: str, volume: Volume) -> None:
    """See that the open volume is what the checked header describes; else close it. Raises VolumeError."""
    status, words, said = said_by(("status", "--", name))
    if status != 0:
        raise failed(name, status, words)
    table = dict(line.strip().partition(":")[::2] for line in said.splitlines() if ":" in line)
    expected = {
        "cipher": volume.cipher,
        "sector size": str(volume.sector_bytes),
        "offset": str(volume.offset // SECTOR_BYTES),
    }
    found = {member: " ".join(table.get(member, "").split()[:1]) for member in expected}
    if found != expected:
        close_volume(name)
        raise VolumeError(f"{name}: what was opened is not what was checked", expected=str(expected), found=str(found))


def close_volume(name: str) -> None:
    """Raises VolumeError."""
    status, words = run(("close", "--", name), b"")
    if status != 0:
        raise failed(name, status, words)


def check_volume(device: str) -> None:
    """See that `device` is there and its header in order. Raises VolumeError."""
    with checked_header(device):
        pass


def open_volume(device: str, name: str, key: bytearray, *, device_mapper: bool, pin: str | None = None) -> Outcome:
    """Open the LUKS2 volume in `device` (a block device or a file) as `name`, or test the key. `pin`: the volume that
    it must be (`agent.luks_metadata`). `key` is wiped.

    Raises VolumeError.
    """
    options = ("--type", "luks2", "--key-file", "-", "--batch-mode", "--disable-external-tokens")
    try:
        with checked_header(device, pin, repair=pin is not None) as header:
            target = ("--", device, name) if device_mapper else ("--test-passphrase", "--", device)
            status, words = run(
                ("open", *options, "--header", in_memory(header.descriptor), *target), key, (header.descriptor,)
            )
            if status == 0 and header.mended:
                # The key's holder wrote it: nobody else makes a header with this pin that the key opens.
                with suppress(OSError):  # the volume is open; the next boot mends it then
                    write_back(device, header)
    finally:
        wipe(key)
    if status != 0:
        raise failed(device, status, words)
    if device_mapper:
        _check_table(name, header.volume)
    return Outcome(device_mapper, name, header.volume.pin)
