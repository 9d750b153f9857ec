# SPDX-License-Identifier: Apache-2.0
"""A model of what Linux shows an SNP guest: configfs-tsm and /dev/sev-guest, over one firmware.

Written from drivers/virt/coco/tsm.c, drivers/virt/coco/sev-guest/sev-guest.c and include/uapi/linux/sev-guest.h, and
not from the agent's code. Directories get their files when they are made, a binary value is judged when the report is
read, every write raises the generation; the device reads and writes its caller's memory through the pointers it gets.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent.deadline import Deadline
from agent.kernel import Kernel

TSM = "/sys/kernel/config/tsm/report"
DEVICE = "/dev/sev-guest"
PAGE = 4096
MAX_CERTIFICATES = 4 * PAGE
INVALID_LENGTH, BUSY, GENERIC = 1, 2, 3  # the hypervisor's errors

Firmware = Callable[[bytes, int], bytes]  # REPORT_DATA (64 bytes), VMPL -> report


def fake_report(
    report_data: bytes,
    vmpl: int = 0,
    *,
    version: int = 3,
    chip_id: bytes = b"\xc1" * 64,
    cpuid: tuple[int, int, int] = (0x19, 0x01, 0x01),
    signing_key: int = 0,
) -> bytes:
    """1184 bytes in the right places; nobody signed them."""
    report = bytearray(1184)
    struct.pack_into("<IIQ", report, 0, version, 0, 0x30000)
    struct.pack_into("<I", report, 0x30, vmpl)
    struct.pack_into("<I", report, 0x48, signing_key << 2)
    report[0x50:0x90] = report_data
    report[0x188:0x18B] = bytes(cpuid)
    report[0x1A0:0x1E0] = chip_id.ljust(64, b"\0")
    return bytes(report)


@dataclass
class _Item:
    """One directory under configfs."""

    inblob: bytes = b""
    privlevel: int = 0
    generation: int = 0


@dataclass
class FakeKernel(Kernel):
    """`tsm` and `device` say which interface there is. What is in a list of scripts is played once, in order, before
    the right answers.
    """

    firmware: Firmware = fake_report
    certificates: bytes = b""  # the host's table
    tsm: bool = True
    device: bool = True
    provider: bytes = b"sev_guest\n"
    floor: int = 0  # the guest's own VMPL
    missing: frozenset[str] = frozenset()  # files that this kernel does not have
    extended: bool = True  # the hypervisor knows extended requests
    response: bytes | None = None  # instead of the firmware's
    ioctl_errors: list[tuple[int, int]] = field(default_factory=list)  # errno, exitinfo2
    before_outblob: list[Callable[[_Item], None]] = field(default_factory=list)
    failing: dict[str, int] = field(default_factory=dict)  # file, or "mkdir" or "rmdir" -> errno

    def __post_init__(self) -> None:
        self.items: dict[str, _Item] = {}
        self.made: list[str] = []
        self.pauses: list[float] = []
        self.requests: list[int] = []
        self.open_files = 0

    # configfs

    def mkdir(self, path: str) -> None:
        self._fail("mkdir")
        folder, _, name = path.rpartition("/")
        if folder != TSM or not self.tsm:
            raise _error(errno.ENOENT)
        if path in self.items:
            raise _error(errno.EEXIST)
        self.items[path] = _Item()
        self.made.append(name)

    def rmdir(self, path: str) -> None:
        self._fail("rmdir")
        del self.items[path]

    def read(self, path: str, limit: int) -> bytes:
        item, name = self._file(path)
        return self._content(item, name)[: limit + 1]

    def write(self, path: str, data: bytes) -> None:
        item, name = self._file(path)
        if name == "inblob":
            if len(data) > 64:
                raise _error(errno.EFBIG)
            item.inblob = data
        elif name == "privlevel":
            if not self.floor <= int(data) <= 3:
                raise _error(errno.EINVAL)
            item.privlevel = int(data)
        else:
            raise _error(errno.EACCES)
        item.generation += 1

    def _file(self, path: str) -> tuple[_Item, str]:
        folder, _, name = path.rpartition("/")
        if folder not in self.items or name in self.missing:
            raise _error(errno.ENOENT)
        self._fail(name)
        return self.items[folder], name

    def _content(self, item: _Item, name: str) -> bytes:
        if name == "outblob":
            if self.before_outblob:
                self.before_outblob.pop(0)(item)
            if len(item.inblob) != 64 or item.privlevel < self.floor:
                raise _error(errno.EINVAL)
            return self.firmware(item.inblob, item.privlevel)
        return {
            "provider": self.provider,
            "privlevel_floor": b"%d\n" % self.floor,
            "generation": b"%d\n" % item.generation,
            "auxblob": self.certificates,
        }[name]

    # the device

    def open(self, path: str) -> int:
        if path != DEVICE or not self.device:
            raise _error(errno.ENOENT)
        self.open_files += 1
        return 7

    def close(self, fd: int) -> None:
        assert fd == 7
        self.open_files -= 1

    def pause(self, seconds: float, deadline: Deadline, waiting_for: str) -> None:
        deadline.left(waiting_for)
        self.pauses.append(seconds)

    def ioctl(self, fd: int, request: int, argument: Any) -> None:
        assert fd == 7
        assert ctypes.sizeof(argument) == 32
        self.requests.append(request)
        version, reserved, source, target, _ = struct.unpack("<B7sQQQ", argument.raw)
        if version == 0:
            raise _error(errno.EINVAL)
        assert reserved == bytes(7)
        if self.ioctl_errors:
            number, exitinfo2 = self.ioctl_errors.pop(0)
            struct.pack_into("<Q", argument, 24, exitinfo2)
            raise _error(number)
        if request == 0xC0205302:
            self._certificates(argument, source)
        elif request != 0xC0205300:
            raise _error(errno.ENOTTY)
        user_data, vmpl, rest = struct.unpack("<64sI28s", ctypes.string_at(source, 96))
        assert rest == bytes(28)
        ctypes.memmove(target, self.response or self._response(user_data, vmpl), 4000)

    def _certificates(self, argument: Any, source: int) -> None:
        address, size = struct.unpack("<QI4x", ctypes.string_at(source + 96, 16))
        if size > MAX_CERTIFICATES or size % PAGE:
            raise _error(errno.EINVAL)
        if not self.extended:
            struct.pack_into("<Q", argument, 24, GENERIC << 32)
            raise _error(errno.EIO)
        needed = -(-len(self.certificates) // PAGE) * PAGE
        if needed > size:
            ctypes.memmove(source + 104, struct.pack("<I", needed), 4)
            struct.pack_into("<Q", argument, 24, INVALID_LENGTH << 32)
            raise _error(errno.EIO)
        if size:
            ctypes.memmove(address, self.certificates.ljust(size, b"\0"), size)

    def _response(self, user_data: bytes, vmpl: int) -> bytes:
        report = self.firmware(user_data, vmpl)
        return (struct.pack("<II24x", 0, len(report)) + report).ljust(4000, b"\0")

    def _fail(self, name: str) -> None:
        if name in self.failing:
            raise _error(self.failing[name])


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
