# SPDX-License-Identifier: Apache-2.0
"""Which platforms this broker can judge: one row each, loaded when first asked for.

No entry points: what can lead to a release is decided in this repository, never by what else is installed.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from broker.claims import Verifier
from keys.errors import ProtocolError
from keys.tee import Tee

VERIFIERS: dict[Tee, str] = {
    Tee.AZ_SNP_VTPM: "broker.verifiers.az_snp_vtpm:AzSnpVtpmVerifier",
    Tee.SNP: "broker.verifiers.snp:SnpVerifier",
    Tee.TPM: "broker.verifiers.tpm:TpmVerifier",
}


@cache
def verifier_for(tee: Tee) -> Verifier:
    """The verifier of `tee`. Raises ProtocolError for a platform without one."""
    if tee not in VERIFIERS:
        raise ProtocolError("no verifier for this platform", expected=", ".join(sorted(VERIFIERS)), found=tee)
    module, _, name = VERIFIERS[tee].partition(":")
    verifier: Verifier = getattr(import_module(module), name)()
    return verifier
