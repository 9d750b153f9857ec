# SPDX-License-Identifier: Apache-2.0
"""To which component of a machine a boot event belongs, as far as its PCR, its type and its description say.

These words prove nothing, and nothing is let in by them: they only say which events are expected to change together.
Where they are wrong, an update has states that the image does not foresee, and a guest in one of those is refused; the
owner then says it himself (`roomkey image update --component NAME=GLOB`).
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from broker.appraisal.registers import ExpectedEvent

OTHER = "other"


class Naming(NamedTuple):
    """Events whose type or description match `glob` (letters of either case), in one of `pcrs` (none: in any)."""

    component: str
    glob: str
    pcrs: tuple[int, ...] = ()


DEFAULTS = (  # the first that matches
    Naming("firmware", "*", (0, 1, 2, 3)),
    Naming("secureboot", "*", (7, 14)),  # variables and certificates; keys that shim's owner enrolled
    Naming("shim", "*shim*", (4,)),
    Naming("shim", r"*\efi\boot\boot*.efi", (4,)),  # shim's copy at the path where firmware looks by itself
    Naming("systemd-boot", "*systemd-boot*", (4,)),
    Naming("grub", "*grub*", (4,)),
    Naming("kernel", "*vmlinu*", (4,)),
    Naming("kernel", "*linux*", (4,)),
    Naming("kernel", "*kernel*", (4,)),
    Naming("kernel", "image of * bytes, no file", (4,)),  # loaded by GRUB from its memory
    Naming("grub", "*.mod", (9,)),
    Naming("grub", "*.lst", (9,)),
    Naming("kernel", "*", (8, 9, 11, 12, 13)),  # command line, GRUB's commands, files, unified kernel image
)


def component_of(register: str, event: ExpectedEvent, own: Iterable[Naming] = ()) -> str:
    """The component of an event in `register` ("sha256:4"): by the owner's `own` namings, then by the defaults."""
    index = int(register.partition(":")[2])
    words = (event.what.lower(), event.type.lower())
    return next(
        (
            naming.component
            for naming in (*own, *DEFAULTS)
            if (not naming.pcrs or index in naming.pcrs)
            and any(fnmatchcase(word, naming.glob.lower()) for word in words)
        ),
        OTHER,
    )
