# SPDX-License-Identifier: Apache-2.0
"""The events of a kernel that QEMU hands to OVMF (-kernel, -initrd, -append), Secure Boot off.

TCG PC Client Platform Firmware Profile 1.06, section 3.3.4 (what goes into which PCR), and Linux's EFI stub for PCR 9:

    PCR 2   no option ROM but the built-in ones: the separator alone
    PCR 4   the kernel with its header filled in; that a boot option is tried; the separator
    PCR 7   the variables SecureBoot, PK, KEK, db and dbx, the first 0, the rest empty; the separator
    PCR 8   nothing: no boot loader
    PCR 9   the command line in UTF-16 with its NUL; the initrd

PCR 0 is not here: firmware measures itself after it has changed in place, with the VM's memory and CPUs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from broker.measure.authenticode import authenticode
from broker.measure.bzimage import patched
from broker.measure.variables import GLOBAL, SECURITY
from keys.errors import ConfigError

MAX_APPEND_BYTES = 2048  # COMMAND_LINE_SIZE of x86
SEPARATOR = bytes(4)
ACTION = b"Calling EFI Application from Boot Option"
BY_FIRMWARE = " initrd=initrd"  # OVMF adds it to the command line

_VARIABLES = (  # in setup mode, as a VM has them whose owner enrolled no keys
    ("SecureBoot", GLOBAL, b"\0"),
    ("PK", GLOBAL, b""),
    ("KEK", GLOBAL, b""),
    ("db", SECURITY, b""),
    ("dbx", SECURITY, b""),
)


class Event(NamedTuple):
    """`digest`: bytes of the bank's size. `type`: as an event log names it. `what`: for a reader."""

    digest: bytes
    type: str
    what: str


def events(kernel: bytes, initrd: bytes, append: str, memory: int, bank: str) -> Mapping[int, tuple[Event, ...]]:
    """PCR -> its events in order. `memory` in MiB, `bank` a name of hashlib. Raises ConfigError."""
    if not append.isascii() or not append.isprintable() or len(append) > MAX_APPEND_BYTES:
        raise ConfigError("a command line is printable ASCII", expected=f"at most {MAX_APPEND_BYTES} characters")
    if "vga=" in append:
        raise ConfigError("QEMU takes vga= as its own, and writes it into the kernel", mend="leave vga= out")
    line = (append + BY_FIRMWARE + "\0").encode("utf-16-le")

    kernel_digest = authenticode(patched(kernel, len(initrd), memory), bank)
    return {
        2: (separator(bank),),
        4: (
            Event(kernel_digest, "EV_EFI_BOOT_SERVICES_APPLICATION", "kernel"),
            event(bank, ACTION, "EV_EFI_ACTION", ACTION.decode()),
            separator(bank),
        ),
        7: secure_boot_off(bank),
        8: (),
        9: (
            event(bank, line, "EV_EVENT_TAG", f"command line: {append}{BY_FIRMWARE}"),
            event(bank, initrd, "EV_EVENT_TAG", "initrd"),
        ),
    }


def event(bank: str, data: bytes, kind: str, what: str) -> Event:
    """The event whose digest is that of `data`."""
    return Event(hashlib.new(bank, data).digest(), kind, what)


def separator(bank: str) -> Event:
    """What ends the firmware's part of a PCR."""
    return event(bank, SEPARATOR, "EV_SEPARATOR", "")


def secure_boot_off(bank: str) -> tuple[Event, ...]:
    """PCR 7 without keys of Secure Boot."""
    variables = (
        event(bank, variable(guid, name, data), "EV_EFI_VARIABLE_DRIVER_CONFIG", f"{name}={data.hex() or 'empty'}")
        for name, guid, data in _VARIABLES
    )
    return (*variables, separator(bank))


def value(sequence: tuple[Event, ...], bank: str) -> bytes:
    """What a PCR holds after these events."""
    register = bytes(hashlib.new(bank).digest_size)
    for event in sequence:
        register = hashlib.new(bank, register + event.digest).digest()
    return register


def variable(guid: bytes, name: str, data: bytes) -> bytes:
    """UEFI_VARIABLE_DATA, whose digest is that of the event."""
    sizes = len(name).to_bytes(8, "little") + len(data).to_bytes(8, "little")
    return guid + sizes + name.encode("utf-16-le") + data
