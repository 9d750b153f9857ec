# SPDX-License-Identifier: Apache-2.0
"""The secret that a SEV launch put into this guest's memory, from where the kernel shows it.

Linux, Documentation/security/secrets/coco and drivers/virt/coco/efi_secret: each entry of the table in OVMF's area is a
file, named by its GUID. Removing the file overwrites the entry in memory, so it is read once.

The owner's broker gives its secret to no other guest than the one that was measured. The guest, in turn, cannot know
who launched it: a host that plays the owner can give it a secret, and a disk, of the host's own. Nothing of the owner's
is in such a guest.
"""

from __future__ import annotations

import os

from keys.errors import AttesterError
from keys.secrecy import wipe

DISK_PASSPHRASE = "736869e5-84f0-4973-92ec-06879ce3da0b"  # noqa: S105  the entry's name, as GRUB and libvirt know it
MAX_SECRET_BYTES = 0xC00  # of the whole table in OVMF
MEND = "load the module efi_secret and mount securityfs; if both are there, the launch put no secret into this guest"


def take(folder: str) -> bytearray:
    """The disk's key, which is gone from the kernel's table afterwards. Raises AttesterError."""
    path = f"{folder}/{DISK_PASSPHRASE}"
    buffer = bytearray(MAX_SECRET_BYTES + 1)
    try:
        try:
            size = _read(path, buffer)
            # Before the key is used: whoever may read it later, in this boot or through a leak, finds zeros.
            os.unlink(path)  # noqa: PTH108  pathlib would cost milliseconds at boot
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            words = getattr(error, "strerror", None) or str(error)
            raise AttesterError(f"no secret at {path}", found=words, mend=MEND) from None
        if not 0 < size <= MAX_SECRET_BYTES:
            raise AttesterError(
                "the injected secret has an impossible length", expected=f"1 to {MAX_SECRET_BYTES} bytes"
            )
        with memoryview(buffer) as view:
            return bytearray(view[:size])
    finally:
        wipe(buffer)


def is_there(folder: str) -> bool:
    """Is there a secret to take? Looks only."""
    return os.access(f"{folder}/{DISK_PASSPHRASE}", os.R_OK)


def _read(path: str, buffer: bytearray) -> int:
    """Bytes of the file that are now in `buffer`; if it is full there may be more."""
    size = 0
    with open(path, "rb", buffering=0) as file, memoryview(buffer) as view:  # noqa: PTH123  unbuffered: no second copy
        while piece := file.readinto(view[size:]):
            size += piece
    return size
