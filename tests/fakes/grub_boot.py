# SPDX-License-Identifier: Apache-2.0
"""Boots as today's distributions measure them: shim, GRUB and its commands, or a unified kernel image.

What goes where: GRUB's manual ("Measuring boot components"): PCR 8 has its commands and the kernel's command line, PCR
9 the files that it reads. systemd-stub(7): PCR 11 has the name and then the content of each section of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.fakes.boot import EV_EFI_BOOT_SERVICES_APPLICATION, EV_IPL, Boot, Event, _application

_SECTIONS = 11


@dataclass(frozen=True)
class GrubBoot(Boot):
    """Firmware starts shim, shim GRUB, GRUB the kernel."""

    shim: bytes = b"shim 15.8"
    grub: bytes = b"grub 2.06-13"
    kernel: bytes = b"kernel 6.1.0-31"
    kernel_path: str = "(hd0,gpt2)/boot/vmlinuz-6.1.0-31-amd64"
    initrd_path: str = "(hd0,gpt2)/boot/initrd.img-6.1.0-31-amd64"
    command_line: str = "/boot/vmlinuz-6.1.0-31-amd64 root=/dev/mapper/root ro quiet"

    def events(self) -> list[Event]:
        return [
            *_firmwares(super().events()),
            _application(self.shim, "\\EFI\\debian\\shimx64.efi"),
            _application(self.grub, "\\EFI\\debian\\grubx64.efi"),
            _text(8, "grub_cmd", "insmod part_gpt"),
            _text(8, "grub_cmd", "search --no-floppy --fs-uuid --set=root 2f0c7e1c-4b1d-4a8e-9a57-6d3ab4c1f2ee"),
            _text(8, "grub_cmd", f"linux {self.command_line}"),
            _text(8, "kernel_cmdline", self.command_line),
            _text(8, "grub_cmd", f"initrd {self.initrd_path.partition(')')[2]}"),
            _file("(hd0,gpt2)/boot/grub/grub.cfg", b"menuentry Debian"),
            _file(self.kernel_path, self.kernel),
            _file(self.initrd_path, self.initrd),
            *_exit(super().events()),
        ]


@dataclass(frozen=True)
class UkiBoot(Boot):
    """Firmware starts a unified kernel image, which measures its own sections."""

    kernel: bytes = b"kernel 6.1.0-31"
    kernel_path: str = "\\EFI\\Linux\\debian-6.1.0-31.efi"
    command_line: str = "root=/dev/mapper/root ro quiet"

    def events(self) -> list[Event]:
        sections = {".linux": self.kernel, ".cmdline": self.command_line.encode(), ".initrd": self.initrd}
        whole = b"".join(sections.values())
        return [
            *_firmwares(super().events()),
            _application(whole, self.kernel_path),
            *(event for name, content in sections.items() for event in _section(name, content)),
            *_exit(super().events()),
        ]


def _firmwares(events: list[Event]) -> list[Event]:
    """What firmware measures before it starts the first application."""
    return events[: next(at for at, event in enumerate(events) if event.type == EV_EFI_BOOT_SERVICES_APPLICATION)]


def _exit(events: list[Event]) -> list[Event]:
    """What firmware measures when the kernel takes over."""
    return events[-2:]


def _text(pcr: int, kind: str, text: str) -> Event:
    return Event(pcr, EV_IPL, text.encode(), f"{kind}: {text}".encode() + b"\0")


def _file(path: str, content: bytes) -> Event:
    return Event(9, EV_IPL, content, path.encode() + b"\0")


def _section(name: str, content: bytes) -> tuple[Event, Event]:
    said = name.encode() + b"\0"
    return Event(_SECTIONS, EV_IPL, said, said), Event(_SECTIONS, EV_IPL, content, said)
