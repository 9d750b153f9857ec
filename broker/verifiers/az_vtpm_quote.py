# SPDX-License-Identifier: Apache-2.0
"""The quote of an Azure vTPM: signed by the key that the HCL report names, about PCR 0 to 23, for this challenge.

    (1) the quote is genuine and fresh: `tpm_quote` (1), (3), (4) and (5). The signature is RSASSA with SHA-256, always;
        extraData is the digest of the runtime data, whole (48 bytes) and without padding
    (2) the signed selection is the SHA-256 bank with PCR 0 to 23 and nothing else, before any value gets a name
    (3) the values are those that the TPM quoted: `tpm_quote` (6) and (7)

The key comes without a public area: that it is restricted, so that it signs no attestation that is not the TPM's, is
the paravisor's word, like all that the vTPM does.
"""

from __future__ import annotations

from broker.claims import Fact
from broker.trace import Stage, Trace
from broker.verifiers.az_vtpm_evidence import AzQuote
from broker.verifiers.tpm_quote import PublicKey, check_pcr_values, verify_signed_attest
from broker.verifiers.tpm_structures import ALG_RSASSA, PCR_COUNT, SHA256, Attest

_SELECTION = ((SHA256, tuple(range(PCR_COUNT))),)


def verify_az_quote(quote: AzQuote, ak: PublicKey, qualifying_data: bytes, trace: Trace) -> Attest:
    """The verified content of `quote`, checks (1) to (3). Raises VerificationError; every check is in `trace`."""
    attest, made = verify_signed_attest(quote.attest, _tpmt_signature(quote.signature), ak, qualifying_data, trace)
    trace.require(
        Stage.MEASUREMENT,
        "signed selection is PCR 0 to 23 of the SHA-256 bank",
        attest.selection == _SELECTION,
        expected="sha256: 0 to 23",
        found="; ".join(f"{bank.name}: {' '.join(map(str, indices))}" for bank, indices in attest.selection),
        mend="let the guest quote all PCRs of the SHA-256 bank",
    )
    check_pcr_values(attest, made.hash, quote.pcrs, trace)
    return attest


def quote_facts(attest: Attest) -> dict[str, Fact]:
    """What the vTPM says about itself."""
    return {
        "clock": attest.clock,
        "reset_count": attest.reset_count,
        "restart_count": attest.restart_count,
        "safe": attest.safe,
        "firmware_version": attest.firmware_version.hex(),
    }


def _tpmt_signature(raw: bytes) -> bytes:
    """A raw RSASSA signature made with SHA-256 as the TPM marshals it."""
    return b"".join(number.to_bytes(2, "big") for number in (ALG_RSASSA, SHA256.id, len(raw))) + raw
