# SPDX-License-Identifier: Apache-2.0
"""A boot event in words an owner understands: type name, and what was measured as far as the log says it.

The words come from the log's unauthenticated data: they explain, and nothing is decided by them. They are printable and
short whatever the log holds, and no log makes these functions fail.

Source: TCG PC Client Platform Firmware Profile 1.06, section 10.2 to 10.4; UEFI 2.10, section 10 (device paths).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from uuid import UUID

from broker.verifiers.eventlog import Event
from broker.verifiers.eventlog_text import count, printable, short, text
from broker.verifiers.eventlog_variables import authority, variable
from broker.verifiers.reader import Reader
from broker.verifiers.uki import SECTIONS
from keys.errors import VerificationError

TYPES: Mapping[int, str] = {
    0x00000000: "EV_PREBOOT_CERT",
    0x00000001: "EV_POST_CODE",
    0x00000002: "EV_UNUSED",
    0x00000003: "EV_NO_ACTION",
    0x00000004: "EV_SEPARATOR",
    0x00000005: "EV_ACTION",
    0x00000006: "EV_EVENT_TAG",
    0x00000007: "EV_S_CRTM_CONTENTS",
    0x00000008: "EV_S_CRTM_VERSION",
    0x00000009: "EV_CPU_MICROCODE",
    0x0000000A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0000000B: "EV_TABLE_OF_DEVICES",
    0x0000000C: "EV_COMPACT_HASH",
    0x0000000D: "EV_IPL",
    0x0000000E: "EV_IPL_PARTITION_DATA",
    0x0000000F: "EV_NONHOST_CODE",
    0x00000010: "EV_NONHOST_CONFIG",
    0x00000011: "EV_NONHOST_INFO",
    0x00000012: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x00000013: "EV_POST_CODE2",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x8000000D: "EV_EFI_GPT_EVENT2",
    0x80000010: "EV_EFI_HCRTM_EVENT",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
    0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
    0x800000E3: "EV_EFI_SPDM_DEVICE_POLICY",
    0x800000E4: "EV_EFI_SPDM_DEVICE_AUTHORITY",
}

_MEDIA_PATH = 4  # device path node type
_FILE_PATH = 4  # its sub-types
_FIRMWARE_FILE = 6
_ROM_RANGE = 8
_MESSAGING_PATH = 3
_MAC_ADDRESS = 11
_URI = 24
_UKI_PCR = 11  # systemd-stub measures there each section's name, and then its content, described by the name
_SLASH = "\\"
_END_OF_PATH = 0x7F


def type_name(kind: int) -> str:
    """The event type's name, or its number where the profile has none."""
    return TYPES.get(kind, f"{kind:08x}")


def describe(event: Event) -> str:
    """What `event` says it measured: at most MAX_WORDS printable characters, possibly none."""
    try:
        words = _WORDS.get(event.type, text)(event.data)
    except VerificationError:  # the data has not the form of its type
        words = text(event.data)
    if event.pcr == _UKI_PCR and words in SECTIONS:
        words = f"{words} of the unified kernel image"
    return short(words)


def _separator(data: bytes) -> str:
    return "end of what firmware measured" if data in {bytes(4), b"\xff" * 4} else text(data)


def _image(data: bytes) -> str:
    """UEFI_IMAGE_LOAD_EVENT: the file at the end of the device path, if a file was loaded."""
    read = Reader(data, "UEFI_IMAGE_LOAD_EVENT", "little")
    read.take(8)  # where it was loaded
    size = read.uint(8)
    read.take(8)  # where it was linked to run
    path = Reader(read.take(read.uint(8)), "device path", "little")
    words = origin = ""
    while path.left:
        kind, sub_type, length = path.uint(1), path.uint(1), path.uint(2)
        node = path.take(length - 4 if length >= 4 else path.left + 1)
        if kind == _END_OF_PATH:
            break
        if kind == _MEDIA_PATH and sub_type == _FILE_PATH:
            part = printable(node.decode("utf-16-le", "replace"))
            words = f"{words.rstrip(_SLASH)}{_SLASH}{part.lstrip(_SLASH)}" if words else part
        elif kind == _MEDIA_PATH and sub_type == _FIRMWARE_FILE and len(node) == 16:
            words = f"firmware file {UUID(bytes_le=node)}"
        elif kind == _MEDIA_PATH and sub_type == _ROM_RANGE:
            origin = " in a card's ROM"
        elif kind == _MESSAGING_PATH and sub_type == _MAC_ADDRESS:
            origin = " from the network"
        elif kind == _MESSAGING_PATH and sub_type == _URI:
            words = printable(node.decode("utf-8", "replace"))
    return words or f"image of {count(size)}{origin or ', no file'}"


def _tagged(data: bytes) -> str:
    """TCG_PCClientTaggedEvent: u32 tag, u32 size, data."""
    read = Reader(data, "tagged event", "little")
    tag = read.uint(4)
    return f"{text(read.take(read.uint(4)))} (tag {tag:08x})"


def _blob(data: bytes) -> str:
    """EFI_PLATFORM_FIRMWARE_BLOB: u64 base, u64 length. Some firmware writes a text instead."""
    if len(data) != 16:
        return text(data)
    return f"firmware at {int.from_bytes(data[:8], 'little'):x}, {count(int.from_bytes(data[8:], 'little'))}"


def _named_blob(data: bytes) -> str:
    """UEFI_PLATFORM_FIRMWARE_BLOB2: u8 size, description, u64 base, u64 length."""
    read = Reader(data, "firmware blob", "little")
    return f"{text(read.take(read.uint(1)))}: {_blob(read.take(16))}"


def _fixed(words: str) -> Callable[[bytes], str]:
    return lambda _data: words


_WORDS: Mapping[int, Callable[[bytes], str]] = {
    0x00000001: _blob,
    0x00000004: _separator,
    0x00000006: _tagged,
    0x80000001: variable,
    0x80000002: variable,
    0x80000003: _image,
    0x80000004: _image,
    0x80000005: _image,
    0x80000006: _fixed("partition table of the boot disk"),
    0x80000008: _blob,
    0x80000009: _fixed("firmware's tables"),
    0x8000000A: _named_blob,
    0x8000000B: _fixed("firmware's tables"),
    0x8000000C: variable,
    0x8000000D: _fixed("partition table of the boot disk"),
    0x800000E0: authority,
}
