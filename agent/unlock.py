# SPDX-License-Identifier: Apache-2.0
"""From a key to an open volume: `cryptsetup open` on a header that was checked (`agent.luks`), the key on its standard
input and nowhere else.

Where the kernel has no device-mapper (a container, a test machine) no volume can be opened; then the key is tried on
the header with --test-passphrase, and the result says so.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import NamedTuple

from agent.luks import checked_header
from keys.errors import ConfigError, VolumeError
from keys.secrecy import wipe

CRYPTSETUP_SECONDS = 60  # an Argon2 key slot takes up to 15 s in a slow guest
MAX_REASON_CHARS = 300
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}\Z")

# cryptsetup(8), return codes
REASONS = {
    1: ("no LUKS2 volume, or a cryptsetup that is too old", "see that the path is right and cryptsetup 2.4 or later"),
    2: ("the key does not open this volume", "see that the key's path belongs to this volume"),
    3: ("cryptsetup has not enough memory", "give the guest more memory, or use a PBKDF2 key slot"),
    4: ("the volume is not there", "see that the device's path is right"),
    5: ("the volume is open already or busy", "close it first, or give another --name"),
}


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


def check_volume(device: str) -> None:
    """See that `device` is there and its header in order. Raises VolumeError."""
    with checked_header(device):
        pass


def open_volume(device: str, name: str, key: bytearray, *, device_mapper: bool, pin: str | None = None) -> Outcome:
    """Open the LUKS2 volume in `device` (a block device or a file) as `name`, or test the key. `pin`: the volume that
    it must be (`agent.luks_metadata`). `key` is wiped.

    Raises VolumeError.
    """
    command = ["cryptsetup", "open", "--type", "luks2", "--key-file", "-", "--batch-mode", "--disable-external-tokens"]
    try:
        with checked_header(device, pin) as header:
            command += ["--header", f"/proc/self/fd/{header.descriptor}"]
            command += ["--", device, name] if device_mapper else ["--test-passphrase", "--", device]
            status, words = _run(command, key, header.descriptor)
    finally:
        wipe(key)
    if status != 0:
        message, mend = REASONS.get(status, ("cryptsetup failed", "see what cryptsetup says"))
        raise VolumeError(f"{device}: {message}", found=f"status {status}: {words}", mend=mend)
    return Outcome(device_mapper, name, header.volume.pin)


def _run(command: list[str], key: bytearray, header: int) -> tuple[int, str]:
    """(exit status, what was said on standard error) of `command` with `key` on its standard input and the descriptor
    `header`.
    """
    try:
        process = subprocess.Popen(
            command,
            bufsize=0,  # the key goes from our array to the pipe; a buffer would keep a copy
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            pass_fds=(header,),
        )
    except OSError as error:
        raise VolumeError("cryptsetup cannot be run", found=str(error), mend="install cryptsetup") from None
    with process:
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            with process.stdin, memoryview(key) as view:
                written = 0
                while written < len(view):
                    written += process.stdin.write(view[written:])
        except BrokenPipeError:
            pass  # it ended before it read; its status says why
        try:
            process.wait(CRYPTSETUP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise VolumeError("cryptsetup did not end", expected=f"within {CRYPTSETUP_SECONDS} s") from None
        words = process.stderr.read(4096).decode("ascii", "replace")
    return process.returncode, " ".join(words.split())[:MAX_REASON_CHARS]
