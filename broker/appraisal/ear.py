# SPDX-License-Identifier: Apache-2.0
"""The attestation result as an EAR token's claims (draft-ietf-rats-ear, in the spelling that deployed brokers read).

It says that the evidence is genuine, whose it is and what it measured. Whether those measurements are wanted depends on
the key that is asked for, and is decided there; so "executables" is never better than unrecognised here, and nobody who
takes the token elsewhere can read an approval out of it. The guest's key stands where a stock KBS looks for it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from broker.appraisal.identity import trusted_by_vendor
from broker.claims import Claims
from broker.verifiers.snp_floors import Floors
from keys import strictjson
from keys.binding import report_data
from keys.messages import Attestation
from keys.tee import Tee

PROFILE = "tag:github.com,2024:confidential-containers/Trustee"
VERIFIER_ID = {"developer": "roomkey", "build": "roomkey 0.1.0"}

# AR4SI trustworthiness claims (draft-ietf-rats-ar4si, section 2.3)
TRUSTWORTHY_INSTANCE = 2
GENUINE_HARDWARE = 2
UNRECOGNISED_HARDWARE = 97  # its maker's word is not shown or not enough; it counts where an owner names it
UNRECOGNISED_EXECUTABLES = 33

_SNP_FLOORS = (
    "the report's form is that of its version, 2 to 5, and what it reserves is zero",
    "the report is signed by a VCEK or VLEK that leads to a configured ARK of its product line and was not revoked",
    "the certificate is for the report's REPORTED_TCB and, of a VCEK, its CHIP_ID",
    "REPORTED_TCB and COMMITTED_TCB are not ahead of CURRENT_TCB",
    "the report meets the operator's floors, which stand beside these words in the hash",
)

# What evidence must fulfil before there are any claims, in the words whose hash the token carries.
FLOORS: dict[Tee, tuple[str, ...]] = {
    Tee.TPM: (
        "the quote is signed with SHA-256, SHA-384 or SHA-512",
        "the attestation key is restricted, signs, and is fixed to the TPM that made it",
        "the attestation key's name is made with SHA-256, SHA-384 or SHA-512",
        "the attestation key lives in the endorsement hierarchy",
        "the attestation key is trusted by a configured EK root and credential activation, or by enrolment",
        "the qualifying data is exactly the digest of this challenge and the guest's key",
        "a bank other than SHA-1 is quoted, and values of SHA-1 banks are no claims",
    ),
    Tee.SNP: (
        *_SNP_FLOORS,
        "REPORT_DATA is exactly the digest of this challenge and the guest's key, and zeros",
        "posted init-data is what HOST_DATA holds",
    ),
    Tee.AZ_SNP_VTPM: (
        *_SNP_FLOORS,
        "the report is of VMPL 0",
        "REPORT_DATA is exactly the digest of the runtime data, which hold the attestation key, and zeros",
        "the quote is signed by that key, over SHA-256 PCRs 0 to 23",
        "the qualifying data is exactly the digest of this challenge and the guest's key",
        "posted init-data is what PCR 8 holds",
    ),
}


def policy_id(tee: Tee, floors: Any = None) -> str:
    """Name, version and hash of what evidence of `tee` must fulfil: the words above and, where the platform has any,
    the operator's floors (`Trusted.floors`; None is the strict default). Another operator's floors are another policy.
    """
    policy: list[Any] = list(FLOORS[tee])
    if tee in {Tee.SNP, Tee.AZ_SNP_VTPM}:
        policy.append(asdict(Floors() if floors is None else floors))
    digest = hashlib.sha256(strictjson.canonical(policy)).hexdigest()
    return f"roomkey-{tee}-floors-1 sha256:{digest}"


def ear_claims(claims: Claims, message: Attestation, floors: Any = None) -> dict[str, Any]:
    """The token's claims, beside those that every token of ours carries (iss, aud, iat, nbf, exp, jti).

    `floors` are the operator's for this platform, None for the strict default. Facts stand under the names that
    policies for a stock KBS use, where those have any; ours keep their types, also with az-snp-vtpm, where a stock
    verifier makes texts of them all.
    """
    vendor = trusted_by_vendor(claims)
    vector = {
        "instance-identity": TRUSTWORTHY_INSTANCE,
        "executables": UNRECOGNISED_EXECUTABLES,
        "hardware": GENUINE_HARDWARE if vendor else UNRECOGNISED_HARDWARE,
    }
    key = message.tee_pubkey.members
    evidence: dict[str, Any] = {
        str(claims.tee): {
            **claims.facts,
            **_measured(claims),
            "trust": claims.trust,
            "instance_ids": list(claims.instance_ids),
        },
        "report_data": report_data(claims.tee, message.nonce, key, message.additional_evidence).hex(),
        "runtime_data_claims": {
            "nonce": message.nonce,
            "tee-pubkey": key,
            "additional-evidence": message.additional_evidence,
        },
    }
    if claims.init_data is not None:
        evidence["init_data"] = claims.init_data
    return {
        "eat_profile": PROFILE,
        "eat_nonce": message.nonce,
        "ear.verifier-id": dict(VERIFIER_ID),
        "cnf": {"jwk": key},
        "submods": {
            "cpu0": {
                "ear.status": status(vector),
                "ear.trustworthiness-vector": vector,
                "ear.appraisal-policy-id": policy_id(claims.tee, floors),
                "ear.veraison.annotated-evidence": evidence,
            }
        },
    }


def status(vector: dict[str, int]) -> str:
    """The worst tier among the claims of `vector` (AR4SI, section 2.3.2; each 8 bits, signed)."""
    worst = max((_tier(value) for value in vector.values()), default=0)
    return ("none", "affirming", "warning", "contraindicated")[worst]


def _tier(value: int) -> int:
    for tier, (low, high) in enumerate(((-1, 1), (-32, 31), (-96, 95))):
        if low <= value <= high:
            return tier
    return 3


def _measured(claims: Claims) -> dict[str, Any]:
    """Measurements as policies for a stock KBS find them: a report's fields by name; PCRs of the SHA-256 bank as pcr00
    to pcr23, which with a report beside them stand together under "tpm".
    """
    bank = {name: value for name, value in claims.measurements.items() if name.startswith("sha256:")}
    pcrs = {f"pcr{int(name.partition(':')[2]):02}": value for name, value in bank.items()}
    fields = {name: value for name, value in claims.measurements.items() if ":" not in name}
    return pcrs if claims.tee is Tee.TPM else fields | ({"tpm": pcrs} if pcrs else {})
