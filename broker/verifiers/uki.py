# SPDX-License-Identifier: Apache-2.0
"""What a unified kernel image leaves in PCR 11: a prediction from its sections and the boot phases that were passed.

systemd-stub extends, for each section that it uses, the section's name with its NUL and then the section's content, in
a fixed order; systemd-pcrextend extends the name of each phase. Source: systemd, src/fundamental/uki.h,
systemd-stub(7), systemd-pcrphase.service(8).

PCR 11 alone proves little: any EFI program can extend the same values. It means something beside PCR 4 or PCR 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.verifiers.tpm_structures import Hash
from keys.errors import ConfigError

# `.pcrsig` is not measured: it holds signatures over the value that is predicted here.
SECTIONS = (".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey",
            ".profile", ".hwids")  # fmt: skip
PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready", "shutdown", "final")


def predict_pcr11(sections: Mapping[str, bytes], phases: Sequence[str], bank: Hash) -> bytes:
    """PCR 11 of `bank` after booting an image with these sections (name with its dot -> content) and these phases.

    Raises ConfigError for a section that systemd-stub does not measure, or an unknown phase.
    """
    if unknown := [name for name in (*sections, *phases) if name not in {*SECTIONS, *PHASES}]:
        raise ConfigError("this is not measured into PCR 11", found=unknown[0][:64])
    measured = [data for name in SECTIONS if name in sections for data in (name.encode() + b"\0", sections[name])]
    value = bytes(bank.size)
    for data in (*measured, *(phase.encode() for phase in phases)):
        value = bank.digest(value + bank.digest(data))
    return value
