# SPDX-License-Identifier: Apache-2.0
"""The events of a unified kernel image (UKI) that OVMF starts from a disk, Secure Boot without keys or with them.

systemd-stub(7), and Linux's EFI stub for PCR 9; what firmware measures is as in `broker.measure.direct_boot`:

    PCR 2   the separator alone
    PCR 4   that a boot option is tried; the separator; the UKI; the kernel in it, which a stub starts by itself where
            Secure Boot is on
    PCR 7   the variables of Secure Boot; the separator
    PCR 9   the command line in UTF-16 with its NUL; the initrd
    PCR 11  of each section that the stub uses, its name with its NUL, then its content; the names of boot phases
    PCR 12  nothing: no command line and no credentials from outside, which the stub would measure there

PCR 11 never stands alone: any program can extend it alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from broker.measure.authenticode import authenticode, sections
from broker.measure.direct_boot import ACTION, Event, event, secure_boot_off, separator
from broker.measure.secure_boot import secure_boot_on
from broker.measure.variables import Variables
from broker.verifiers.uki import PHASES, SECTIONS
from keys.errors import ConfigError

FIRST = (".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey")  # measured by systemd-stub 252
ALL_SINCE = 255  # the first version that measures every section it has, in the order of SECTIONS

_STUB = re.compile(rb"LoaderInfo: systemd-stub (\d{1,4})")


def uki_events(
    uki: bytes, phases: Sequence[str], bank: str, variables: Variables | None = None
) -> Mapping[int, tuple[Event, ...]]:
    """PCR -> its events in order. `phases`: the names that systemd has measured when the guest asks; none where the
    initrd has no systemd. `bank`: a name of hashlib. `variables`: of a firmware that checks what it starts. Raises
    ConfigError.
    """
    if unknown := [phase for phase in phases if phase not in PHASES]:
        raise ConfigError("no phase of a boot", expected=", ".join(PHASES), found=unknown[0][:64])
    contents = sections(uki)
    if missing := [name for name in (".linux", ".initrd", ".cmdline") if name not in contents]:
        raise ConfigError("no unified kernel image", expected=f"a section {missing[0]}", mend="build it with all three")
    try:
        line = contents[".cmdline"].decode("ascii").rstrip("\0\n ")
    except UnicodeDecodeError:
        raise ConfigError("the command line in the image is not ASCII") from None
    inner = (Event(authenticode(contents[".linux"], bank), "EV_EFI_BOOT_SERVICES_APPLICATION", "kernel in it"),)
    used = [name for name in _measured(contents) if name in contents]
    return {
        2: (separator(bank),),
        4: (
            event(bank, ACTION, "EV_EFI_ACTION", ACTION.decode()),
            separator(bank),
            Event(authenticode(uki, bank), "EV_EFI_BOOT_SERVICES_APPLICATION", "unified kernel image"),
            *(inner if variables is None else ()),
        ),
        7: secure_boot_off(bank) if variables is None else secure_boot_on(variables, uki, bank),
        9: (
            event(bank, (line + "\0").encode("utf-16-le"), "EV_EVENT_TAG", f"command line: {line}"),
            event(bank, contents[".initrd"], "EV_EVENT_TAG", "initrd"),
        ),
        11: (
            *(
                event(bank, data, "EV_IPL", f"section {name}{what}")
                for name in used
                for data, what in ((name.encode() + b"\0", ", its name"), (contents[name], ""))
            ),
            *(Event(hashlib.new(bank, phase.encode()).digest(), "EV_IPL", f"phase {phase}") for phase in phases),
        ),
        12: (),
    }


def _measured(contents: Mapping[str, bytes]) -> Sequence[str]:
    """The names of the sections that this image's stub measures, in order. Raises ConfigError."""
    found = _STUB.search(contents.get(".sdmagic", b""))
    version = int(found[1]) if found else 0
    if version == 252:
        return FIRST
    if version >= ALL_SINCE:
        return SECTIONS
    raise ConfigError(
        "it is not known what this stub measures",
        expected=f"systemd-stub 252, or {ALL_SINCE} and later",
        found=f"version {version}" if found else "no systemd-stub",
        mend="enrol the image from a guest: roomkey image enrol",
    )
