# SPDX-License-Identifier: Apache-2.0
"""Runs cryptsetup: keys go in through its standard input or a pipe, never as arguments or files, and headers are copies
in memory that were checked (`agent.luks`).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from keys.errors import VolumeError

CRYPTSETUP_SECONDS = 60  # an Argon2 key slot takes up to 15 s in a slow guest
MAX_REASON_CHARS = 300
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
WRONG_KEY = 2

# cryptsetup(8), return codes
REASONS = {
    1: ("no LUKS2 volume, or a cryptsetup that is too old", "see that the path is right and cryptsetup 2.4 or later"),
    2: ("the key does not open this volume", "see that the key's path belongs to this volume"),
    3: ("cryptsetup has not enough memory", "give the guest more memory, or use a PBKDF2 key slot"),
    4: ("the volume is not there", "see that the device's path is right"),
    5: ("the volume is open already or busy", "close it first, or give another --name"),
}


def run(arguments: Sequence[str], key: bytes | bytearray, descriptors: Sequence[int] = ()) -> tuple[int, str]:
    """(exit status, what was said on standard error) of cryptsetup with `key` on its standard input and these
    descriptors. Raises VolumeError where it cannot be run or does not end.
    """
    try:
        process = subprocess.Popen(
            ["cryptsetup", *arguments],
            bufsize=0,  # the key goes from our array to the pipe; a buffer would keep a copy
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            pass_fds=tuple(descriptors),
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


def said_by(arguments: Sequence[str]) -> tuple[int, str, str]:
    """(exit status, what was said on standard error, and on standard output) of cryptsetup without a key. Raises
    VolumeError.
    """
    try:
        done = subprocess.run(
            ["cryptsetup", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=ENVIRONMENT,
            check=False,
            timeout=CRYPTSETUP_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VolumeError("cryptsetup cannot be run", found=str(error), mend="install cryptsetup") from None
    words = done.stderr.decode("ascii", "replace")
    return done.returncode, " ".join(words.split())[:MAX_REASON_CHARS], done.stdout.decode("ascii", "replace")


def failed(what: str, status: int, words: str) -> VolumeError:
    """What a status other than 0 means."""
    message, mend = REASONS.get(status, ("cryptsetup failed", "see what cryptsetup says"))
    return VolumeError(f"{what}: {message}", found=f"status {status}: {words}", mend=mend)


def in_memory(descriptor: int) -> str:
    """A path to a header in memory, for cryptsetup, which gets the descriptor too."""
    return f"/proc/self/fd/{descriptor}"


def through_pipe(key: bytes | bytearray) -> int:
    """The descriptor to read `key` (at most 4 KiB) from, once. To be closed."""
    reading, writing = os.pipe()
    try:
        os.write(writing, key)  # a pipe takes so much at once
    finally:
        os.close(writing)
    return reading
