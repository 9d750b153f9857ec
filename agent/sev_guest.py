# SPDX-License-Identifier: Apache-2.0
"""A report from /dev/sev-guest, for kernels that have no configfs-tsm.

Linux, include/uapi/linux/sev-guest.h; AMD 56860, MSG_REPORT_REQ and MSG_REPORT_RSP. Little-endian:

    argument of the ioctl, 32 bytes   u8 message version 1, 7 zero, u64 -> request, u64 -> response, u64 exitinfo2
                                      (low half: firmware's error, high half: the hypervisor's)
    request, 96 bytes                 64 report data, u32 VMPL, 28 zero
    extended request, 112 bytes       a request, u64 -> certificates, u32 their bytes (whole pages), 4 zero
    response, 4000 bytes              u32 status, u32 report's bytes, 24 reserved, the report

An extended report brings the certificates that the host keeps for its chip. It is asked for with no room first: the
hypervisor then says how much it needs, or that it has none by simply answering. A hypervisor that knows no extended
report, or wants an impossible length, is asked for the plain one.
"""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

from agent.deadline import Deadline
from agent.kernel import Kernel
from keys.errors import AttesterError

GET_REPORT = 0xC0205300  # _IOWR('S', 0, 32 bytes)
GET_EXT_REPORT = 0xC0205302
MESSAGE_VERSION = 1
REPORT_BYTES = 1184
REPORT_OFFSET = 0x20
RESPONSE_BYTES = 4000
PAGE_BYTES = 4096
MAX_CERTIFICATES_BYTES = 4 * PAGE_BYTES  # SEV_FW_BLOB_MAX_SIZE; the kernel refuses to ask for more
LENGTH_ATTEMPTS = 3  # the host may change its certificates between two requests
BUSY_SECONDS = 2.0  # what the kernel's own driver waits, too; asked sooner, some hosts never answer

VMM_INVALID_LENGTH = 1
VMM_BUSY = 2
NOT_CALLED = 0xFF  # the kernel's mark: the firmware was not reached

_ARGUMENT = struct.Struct("<B7xQQQ")
_REQUEST = struct.Struct("<64sI28x")
_EXTENSION = struct.Struct("<QI4x")


class DeviceReport(NamedTuple):
    """`certificates` is the host's table, filled up with zeros to whole pages; empty where it has none."""

    report: bytes
    certificates: bytes


class _NoExtendedReport(Exception):  # noqa: N818  handled below, never seen outside
    pass


def device_report(kernel: Kernel, path: str, report_data: bytes, deadline: Deadline) -> DeviceReport:
    """A report bound to the 64 bytes `report_data`, with the host's certificates where it has some.

    Raises AttesterError, or Unavailable at the deadline. The kernel may hold a request for as long as the host
    throttles it (up to 60 s), which no deadline of ours ends.
    """
    try:
        fd = kernel.open(path)
    except OSError as error:
        raise AttesterError(
            f"no SEV-SNP device at {path}", found=error.strerror, mend="run as root, load the module sev-guest"
        ) from None
    device = _Device(kernel, fd, report_data, deadline)
    try:
        try:
            return device.extended()
        except _NoExtendedReport:
            return DeviceReport(device.plain(), b"")
    finally:
        kernel.close(fd)


class _Device:
    def __init__(self, kernel: Kernel, fd: int, report_data: bytes, deadline: Deadline) -> None:
        self._kernel = kernel
        self._fd = fd
        self._request = _REQUEST.pack(report_data, 0)
        self._deadline = deadline

    def plain(self) -> bytes:
        request = ctypes.create_string_buffer(self._request, len(self._request))
        response = ctypes.create_string_buffer(RESPONSE_BYTES)
        vmm_error, words = self._ask(GET_REPORT, request, response)
        if words:
            raise AttesterError(
                "the kernel gives no SNP report",
                found=f"{words}, hypervisor's error {vmm_error}",
                mend="see the kernel's log; a guest whose key to the firmware is locked out must restart",
            )
        return _read(response.raw)

    def extended(self) -> DeviceReport:
        size = 0
        for _ in range(LENGTH_ATTEMPTS):
            certificates = ctypes.create_string_buffer(size or 1)
            extension = _EXTENSION.pack(ctypes.addressof(certificates) if size else 0, size)
            request = ctypes.create_string_buffer(self._request + extension, _REQUEST.size + _EXTENSION.size)
            response = ctypes.create_string_buffer(RESPONSE_BYTES)
            vmm_error, words = self._ask(GET_EXT_REPORT, request, response)
            if not words:
                return DeviceReport(_read(response.raw), certificates.raw if size else b"")
            if vmm_error != VMM_INVALID_LENGTH:
                raise _NoExtendedReport
            size = _EXTENSION.unpack_from(request.raw, _REQUEST.size)[1]
            if not 0 < size <= MAX_CERTIFICATES_BYTES:
                raise _NoExtendedReport
        raise _NoExtendedReport

    def _ask(
        self, number: int, request: ctypes.Array[ctypes.c_char], response: ctypes.Array[ctypes.c_char]
    ) -> tuple[int, str]:
        """(the hypervisor's error, what the kernel says of it); (0, "") for success. A busy one is asked again."""
        while True:
            self._deadline.left("the SNP firmware")
            argument = ctypes.create_string_buffer(
                _ARGUMENT.pack(MESSAGE_VERSION, ctypes.addressof(request), ctypes.addressof(response), 0),
                _ARGUMENT.size,
            )
            try:
                self._kernel.ioctl(self._fd, number, argument)
            except OSError as error:
                words = error.strerror or str(error)
            else:
                return 0, ""
            firmware_error, vmm_error = struct.unpack_from("<II", argument.raw, 24)
            if firmware_error not in {0, NOT_CALLED}:
                raise AttesterError(
                    "the SNP firmware gives no report",
                    found=f"firmware error {firmware_error:#x}",
                    mend="AMD 56860 lists the numbers; a guest whose key to the firmware is locked out must restart",
                )
            if vmm_error != VMM_BUSY:
                return vmm_error, words
            self._kernel.pause(BUSY_SECONDS, self._deadline, "the SNP firmware, which the host throttles")


def _read(response: bytes) -> bytes:
    """The report in a response buffer. Raises AttesterError."""
    status, size = struct.unpack_from("<II", response)
    if status != 0:
        raise AttesterError("the SNP firmware refuses the request", found=f"status {status:#x}")
    if size != REPORT_BYTES:
        raise AttesterError("the SNP report has another size", expected=f"{REPORT_BYTES} bytes", found=f"{size}")
    return response[REPORT_OFFSET : REPORT_OFFSET + REPORT_BYTES]
