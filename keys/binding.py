# SPDX-License-Identifier: Apache-2.0
"""What evidence is bound to: the broker's nonce and the guest's ephemeral key, hashed the same way on both sides.

KBS attestation protocol 0.4.0, runtime data: RFC 8785 canonical JSON of nonce, tee-pubkey and the additional evidence;
SHA-384, for IBM Secure Execution SHA-512.
"""

from __future__ import annotations

import hashlib
import hmac

from keys.strictjson import canonical
from keys.tee import Tee

TPM_QUALIFYING_DATA_BYTES = 32  # fits the smallest TPM2B_DATA in the field (34 bytes on SHA-256-only TPMs)
ACTIVATION_LABEL = b"roomkey tpm activation v1\0"
PROOF_KEY_LABEL = b"roomkey tpm activation proof key v1\0"


def report_data(tee: Tee, nonce: str, tee_pubkey: dict[str, str], additional_evidence: str = "") -> bytes:
    """The digest that the primary evidence carries: 48 bytes, for `se` 64.

    `nonce` is the text of the challenge as it was sent, `tee_pubkey` the members that `keys.jwk` lists.
    """
    runtime = {"additional-evidence": additional_evidence, "nonce": nonce, "tee-pubkey": tee_pubkey}
    return hashlib.new("sha512" if tee is Tee.SE else "sha384", canonical(runtime)).digest()


def tpm_qualifying_data(data: bytes) -> bytes:
    """What a TPM quote carries as extraData: the first 32 bytes of the report data."""
    return data[:TPM_QUALIFYING_DATA_BYTES]


def activation_proof_key(secret: bytes) -> bytes:
    """The 32 bytes that proofs are made with: HMAC-SHA-256 of a label under the session's activation secret.

    Whoever checks a proof, now or years later, needs no more than this; the secret itself also wraps the key.
    """
    return hmac.digest(secret, PROOF_KEY_LABEL, "sha256")


def activation_proof(proof_key: bytes, qualifying_data: bytes) -> bytes:
    """32 bytes that show that the TPM opened this session's credential, for this quote. HMAC-SHA-256.

    Without it a software key with somebody else's EK certificate would pass as that TPM until the release, where it
    could open nothing; the audit log would still name the wrong machine.
    """
    return hmac.digest(proof_key, ACTIVATION_LABEL + qualifying_data, "sha256")
