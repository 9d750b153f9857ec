# SPDX-License-Identifier: Apache-2.0
"""Posted init-data on platforms whose guests measure it themselves, into PCR 8 of a TPM.

KBS protocol, init-data: the register must be SHA-256(32 zero bytes || digest), so only a digest of 32 bytes fits.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

from broker.trace import Stage, Trace
from broker.verifiers.tpm_quote import PcrValues

INIT_DATA_PCR = 8
INIT_DATA_BYTES = 32  # the digest that PCR 8 of the SHA-256 bank is extended with


def check_init_data(digest: bytes, pcrs: PcrValues, trace: Trace) -> None:
    """PCR 8 was extended once, with `digest`, the digest of the posted text. Raises VerificationError."""
    trace.require(
        Stage.MEASUREMENT,
        "init-data has a digest that a TPM can hold",
        len(digest) == INIT_DATA_BYTES,
        expected=f"{INIT_DATA_BYTES} bytes",
        found=len(digest),
        mend='use algorithm = "sha256" in the init-data',
    )
    expected = sha256(bytes(INIT_DATA_BYTES) + digest).digest()
    found = pcrs.get("sha256", {}).get(INIT_DATA_PCR, b"")
    trace.require(
        Stage.MEASUREMENT,
        "init-data is what PCR 8 holds",
        hmac.compare_digest(found, expected),
        expected=expected,
        found=found or "PCR 8 of the SHA-256 bank is not quoted",
        mend="post the init-data that was measured when the guest booted",
    )
