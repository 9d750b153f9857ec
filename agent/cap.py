# SPDX-License-Identifier: Apache-2.0
"""Ends this boot's time for keys: what runs later in it cannot ask as what runs now.

PCR 15 is zero until then. An image that names it as zero (`roomkey image enrol --once-per-boot`) lets a guest in only
before it was extended, and nothing but a reboot makes it zero again.
"""

from __future__ import annotations

import hashlib

from agent import tpm2
from agent.config import Settings
from agent.deadline import Deadline
from agent.tpm2_marshal import HASHES
from keys.errors import AttesterError, ConfigError
from keys.tee import Tee

PCR = 15
EVENT = b"roomkey cap v1"


def cap(settings: Settings, deadline: Deadline) -> None:
    """Extend PCR 15 with the digest of EVENT, in every bank. Raises ConfigError (no TPM is this machine's root of
    trust), AttesterError or Unavailable: then nothing is certain about what later code can ask for.
    """
    if settings.tee is not Tee.TPM:
        raise ConfigError("only a TPM has a register to cap", found=settings.tee, mend="leave cap out")
    with tpm2.Tpm.open(settings.tpm, deadline) as tpm:
        banks = tpm.banks()
        if unknown := [bank for bank in banks if bank not in HASHES]:
            raise AttesterError("the TPM has a bank that cannot be capped", found=f"algorithm {unknown[0]:#06x}")
        tpm.pcr_extend(PCR, {bank: hashlib.new(HASHES[bank], EVENT).digest() for bank in banks})
