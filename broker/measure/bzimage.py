# SPDX-License-Identifier: Apache-2.0
"""A Linux kernel as QEMU hands it to the firmware: with its setup header filled in, as boot loaders do.

Sources: Linux, Documentation/arch/x86/boot.rst; QEMU, hw/i386/x86.c, x86_load_linux (machine type q35, and no SEV:
there the kernel is left as it is).
"""

from __future__ import annotations

from keys.errors import ConfigError

MIB = 1 << 20
MAX_MEMORY = 1 << 20  # MiB

_OLDEST = 0x20C  # of the boot protocol: from here on a kernel can have an EFI stub
_CAN_BE_ABOVE_4G = 2  # xloadflags
_SPLIT_FROM = 0xB0000000  # bytes of memory; from here on q35 has LOW below 4 GiB
_LOW = 0x80000000
_ACPI_BYTES = 0x28000  # that QEMU keeps free below
_PAGE = 4096


def patched(kernel: bytes, initrd_bytes: int, memory: int) -> bytes:
    """The kernel as firmware measures it, with an initrd of that size in a VM with `memory` MiB. Raises ConfigError."""
    if kernel[0x202:0x206] != b"HdrS" or int.from_bytes(kernel[0x206:0x208], "little") < _OLDEST:
        raise ConfigError(
            "no Linux kernel that QEMU can hand to UEFI firmware", mend="name a bzImage of Linux 3.7 or later"
        )
    if not 1 <= memory <= MAX_MEMORY:
        raise ConfigError("no such size of memory", expected=f"1 to {MAX_MEMORY} MiB", found=str(memory))
    below = memory * MIB if memory * MIB < _SPLIT_FROM else _LOW
    flags = int.from_bytes(kernel[0x236:0x238], "little")
    limit = 0xFFFFFFFF if flags & _CAN_BE_ABOVE_4G else int.from_bytes(kernel[0x22C:0x230], "little")
    highest = min(limit, below - _ACPI_BYTES - 1)
    if initrd_bytes > highest:
        raise ConfigError("the initrd does not fit into the memory", expected=f"at most {highest} bytes")
    image = bytearray(kernel)
    image[0x210] = 0xB0  # type_of_loader: QEMU
    image[0x211] |= 0x80  # loadflags: the heap's end is valid
    image[0x224:0x226] = (0xFE00).to_bytes(2, "little")  # heap_end_ptr
    image[0x228:0x22C] = (0x20000).to_bytes(4, "little")  # cmd_line_ptr
    image[0x218:0x21C] = ((highest - initrd_bytes) & ~(_PAGE - 1)).to_bytes(4, "little")  # ramdisk_image
    image[0x21C:0x220] = initrd_bytes.to_bytes(4, "little")  # ramdisk_size
    return bytes(image)
