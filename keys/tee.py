# SPDX-License-Identifier: Apache-2.0
"""The names of platforms as the KBS attestation protocol spells them in `tee`, and Roomkey's own where it has none."""

from __future__ import annotations

from enum import StrEnum


class Tee(StrEnum):
    """A platform whose evidence the protocol can carry. Which of them are judged, `broker.verifiers.registry` says."""

    AZ_SNP_VTPM = "az-snp-vtpm"
    AZ_TDX_VTPM = "az-tdx-vtpm"
    CCA = "cca"
    CSV = "csv"
    PEF = "pef"
    SE = "se"
    SEV = "sev"
    SGX = "sgx"
    SNP = "snp"
    TDX = "tdx"
    TPM = "tpm"
