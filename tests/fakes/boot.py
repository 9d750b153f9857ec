# SPDX-License-Identifier: Apache-2.0
"""A measured boot as firmware, boot loader and kernel write it down: events, and the TCG log that holds them.

TCG PC Client Platform Firmware Profile 1.05, section 10 (event log); the boot loader's events are GRUB's. The contents
of kernel, initrd and command line are parameters, so that a test can measure another one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from agent.tpm2_marshal import HASH_IDS

EV_NO_ACTION = 0x00000003
EV_SEPARATOR = 0x00000004
EV_S_CRTM_VERSION = 0x00000008
EV_IPL = 0x0000000D
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
EV_EFI_ACTION = 0x80000007

BANKS = ("sha256", "sha384")  # the banks that the log covers
GLOBAL_VARIABLE = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")


@dataclass(frozen=True)
class Event:
    """One measurement: `content` is hashed into the PCR, `data` is what the log says about it."""

    pcr: int
    type: int
    content: bytes
    data: bytes

    def digest(self, bank: str) -> bytes:
        return hashlib.new(bank, self.content).digest()


@dataclass(frozen=True)
class Boot:
    """What is booted. The kernel is an EFI application, and GRUB reads it, the initrd and the command line."""

    firmware: str = "Roomkey virtual firmware 1.0"
    secure_boot: bool = True
    shim: bytes = b""  # what firmware starts before the kernel; empty: it starts the kernel itself
    kernel: bytes = b"kernel 6.1.0-1"
    kernel_path: str = "\\EFI\\debian\\vmlinuz.efi"
    initrd: bytes = b"initrd with roomkey-agent"
    command_line: str = "/vmlinuz root=/dev/mapper/root ro quiet"
    keys: dict[str, bytes] = field(
        default_factory=lambda: {"PK": b"pk", "KEK": b"kek", "db": b"db", "dbx": b"dbx"}
    )  # contents of the Secure Boot variables

    def events(self) -> list[Event]:
        """Everything up to the kernel's start, in order."""
        version = self.firmware.encode("utf-16-le") + bytes(2)
        calling = b"Calling EFI Application from Boot Option"
        command_line = self.command_line.encode()
        return [
            Event(0, EV_S_CRTM_VERSION, version, version),
            *(_variable(name, content) for name, content in self._secure_boot_variables()),
            *(Event(pcr, EV_SEPARATOR, bytes(4), bytes(4)) for pcr in range(8)),
            Event(4, EV_EFI_ACTION, calling, calling),
            *([_application(self.shim, "\\EFI\\debian\\shimx64.efi")] if self.shim else []),
            _application(self.kernel, self.kernel_path),
            Event(8, EV_IPL, command_line, b"kernel_cmdline: " + command_line + b"\0"),
            Event(9, EV_IPL, self.kernel, b"/vmlinuz\0"),
            Event(9, EV_IPL, self.initrd, b"/initrd.img\0"),
            *(
                Event(5, EV_EFI_ACTION, text, text)
                for text in (b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success")
            ),
        ]

    def _secure_boot_variables(self) -> list[tuple[str, bytes]]:
        return [("SecureBoot", bytes((self.secure_boot,))), *self.keys.items()]


def event_log(events: Sequence[Event], banks: Sequence[str] = BANKS) -> bytes:
    """The crypto-agile log of `events`."""
    sizes = b"".join(struct.pack("<HH", HASH_IDS[bank], hashlib.new(bank).digest_size) for bank in banks)
    # Signature, platform class 0, specification 2.00 errata 0, 8-byte UINTN, algorithms, no vendor bytes.
    spec_id = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks)) + sizes + b"\0"
    log = struct.pack("<II20sI", 0, EV_NO_ACTION, bytes(20), len(spec_id)) + spec_id
    for event in events:
        log += struct.pack("<III", event.pcr, event.type, len(banks))
        log += b"".join(struct.pack("<H", HASH_IDS[bank]) + event.digest(bank) for bank in banks)
        log += struct.pack("<I", len(event.data)) + event.data
    return log


def pcr_values(events: Sequence[Event], bank: str = "sha256") -> dict[int, bytes]:
    """PCR 0 to 9 after `events` on a TPM that was just reset."""
    size = hashlib.new(bank).digest_size
    values = {pcr: bytes(size) for pcr in range(10)}
    for event in events:
        values[event.pcr] = hashlib.new(bank, values[event.pcr] + event.digest(bank)).digest()
    return values


def _variable(name: str, content: bytes) -> Event:
    """UEFI_VARIABLE_DATA: vendor GUID, length of the name in characters, length of the content, both."""
    vendor = IMAGE_SECURITY if name.startswith("db") else GLOBAL_VARIABLE
    data = vendor.bytes_le + struct.pack("<QQ", len(name), len(content)) + name.encode("utf-16-le") + content
    return Event(7, EV_EFI_VARIABLE_DRIVER_CONFIG, data, data)


def _application(image: bytes, path: str) -> Event:
    return Event(4, EV_EFI_BOOT_SERVICES_APPLICATION, image, _image_load(image, path))


def _image_load(image: bytes, path: str) -> bytes:
    """UEFI_IMAGE_LOAD_EVENT: address, length, link-time address, device path (one file path node) with its length."""
    text = path.encode("utf-16-le") + bytes(2)
    device_path = struct.pack("<BBH", 4, 4, 4 + len(text)) + text + struct.pack("<BBH", 0x7F, 0xFF, 4)
    return struct.pack("<QQQQ", 0x7E000000, len(image), 0, len(device_path)) + device_path
