# SPDX-License-Identifier: Apache-2.0
"""A report from configfs-tsm: the kernel's one interface (Linux 6.7 and later) to whatever makes evidence.

Linux, Documentation/ABI/testing/configfs-tsm-report and drivers/virt/coco/tsm.c. A directory of our own is a request:

    provider          text      who makes reports here: "sev_guest", "tdx_guest", "arm_cca_guest"
    privlevel_floor   number    the most privileged level (VMPL) that this guest may ask for; not everywhere
    privlevel         number    the level that is asked for; 0 unless written
    inblob            bytes     what the report is bound to; taken when the file is closed
    outblob           bytes     the report, made when it is read
    auxblob           bytes     what comes with it; may be empty, or not there
    generation        number    rises with every write

Whoever else writes into our directory changes what we read. So the generation must have risen by exactly our own write,
else it begins again; so it does when the kernel says EWOULDBLOCK, which is what it calls a write between two reads.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

from agent.deadline import Deadline
from agent.kernel import Kernel
from keys.errors import AttesterError

MAX_BLOB_BYTES = 32 * 1024  # TSM_OUTBLOB_MAX
MAX_TEXT_BYTES = 64
ATTEMPTS = 5  # reports until nobody interferes


class TsmReport(NamedTuple):
    """`auxblob` is empty where there is none."""

    outblob: bytes
    auxblob: bytes


def tsm_report(kernel: Kernel, folder: str, inblob: bytes, provider: str, deadline: Deadline) -> TsmReport:
    """A report of `provider` bound to `inblob`, through a new directory in `folder`, which is gone afterwards.

    Raises AttesterError, or Unavailable at the deadline. The kernel may hold a read for as long as the host throttles
    it (up to 60 s), which no deadline of ours ends.
    """
    directory = f"{folder}/roomkey-{os.urandom(16).hex()}"
    try:
        kernel.mkdir(directory)
        try:
            return _report(kernel, directory, inblob, provider, deadline)
        finally:
            with suppress(OSError):  # nothing hangs on it: the kernel counts nothing against a directory left behind
                kernel.rmdir(directory)
    except OSError as error:
        raise AttesterError(
            f"{folder} makes no report",
            found=error.strerror or str(error),
            mend="run as root, mount configfs on /sys/kernel/config, load the platform's module (sev-guest)",
        ) from None


def _report(kernel: Kernel, directory: str, inblob: bytes, provider: str, deadline: Deadline) -> TsmReport:
    found = _text(kernel, f"{directory}/provider")
    if found != provider:
        raise AttesterError("configfs-tsm is another platform's here", expected=provider, found=found)
    _lower_privilege(kernel, directory)
    for _ in range(ATTEMPTS):
        deadline.left("configfs-tsm")
        before = _number(kernel, f"{directory}/generation")
        kernel.write(f"{directory}/inblob", inblob)
        try:
            report = TsmReport(_blob(kernel, f"{directory}/outblob"), _optional_blob(kernel, f"{directory}/auxblob"))
        except BlockingIOError:
            continue
        if _number(kernel, f"{directory}/generation") == before + 1:
            return report
    raise AttesterError("somebody else keeps writing into our directory of configfs-tsm", found=directory)


def _lower_privilege(kernel: Kernel, directory: str) -> None:
    """Ask for the guest's own level where it is not the highest (below an SVSM). The report says which it is."""
    try:
        floor = _number(kernel, f"{directory}/privlevel_floor")
    except FileNotFoundError:
        return
    if floor:
        kernel.write(f"{directory}/privlevel", b"%d" % floor)


def _optional_blob(kernel: Kernel, path: str) -> bytes:
    try:
        return _blob(kernel, path)
    except FileNotFoundError:
        return b""


def _blob(kernel: Kernel, path: str) -> bytes:
    blob = kernel.read(path, MAX_BLOB_BYTES)
    if len(blob) > MAX_BLOB_BYTES:
        raise AttesterError(f"{path} is too long", expected=f"at most {MAX_BLOB_BYTES} bytes")
    return blob


def _number(kernel: Kernel, path: str) -> int:
    text = _text(kernel, path)
    if not text.isdecimal():
        raise AttesterError(f"{path} is not a number", found=text)
    return int(text)


def _text(kernel: Kernel, path: str) -> str:
    text = kernel.read(path, MAX_TEXT_BYTES)[:MAX_TEXT_BYTES].decode("ascii", "replace").strip()
    return "".join(c if c.isprintable() else "?" for c in text)
