# SPDX-License-Identifier: Apache-2.0
"""Whose attestation key is it? Without this a key made in software passes every other check.

An AK is trusted by one of two things. By its TPM's maker ("ek-certificate"):

    (1) the session's AK is the one that quoted
    (2) the TPM opened this session's credential, which was made for this EK and this AK Name, for this quote
    (3) the session's EK is a key that such a credential protects
    (4) its certificate is an EK certificate of that very key and leads to a configured root

or by an owner ("enrolled"):

    (5) the public area that the owner enrolled is, to the last byte, the one that quoted

One object ties certificate, EK, AK Name and quote together: a step that trusted one of them for itself would let an
attacker combine somebody else's certificate with a key of their own. Enrolment stands in only for (4), never for (2): a
session that declared a TPM must prove it.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from broker.claims import Endorsements
from broker.trace import Stage, Trace
from broker.verifiers.tpm_certificates import TpmCertificate, check_path, read_ek_certificate
from broker.verifiers.tpm_credential import check_ek
from broker.verifiers.tpm_evidence import TpmEvidence
from broker.verifiers.tpm_structures import Public, name_of, parse_public, parse_public_prefix
from broker.verifiers.x509 import load_certificate
from keys.binding import activation_proof
from keys.errors import EndorsementError, VerificationError

EK_CERTIFICATE = "ek-certificate"
ENROLLED = "enrolled"


@dataclass(frozen=True, slots=True)
class Trust:
    """By what the AK is trusted. `ek` is a candidate for the AK's parent, certified or not; `certificate` is set for
    EK_CERTIFICATE only, with the subject of the root it leads to.
    """

    by: str
    ek: Public | None = None
    certificate: TpmCertificate | None = None
    root: str = ""


def instance_id(evidence: TpmEvidence) -> str:
    """The id under which an owner would have enrolled the AK. Raises VerificationError if the AK has none."""
    if evidence.ak_spki:
        return f"tpm-spki:{sha256(evidence.ak_spki).hexdigest()}"
    return f"tpm-ak:{name_of(evidence.ak_public).hex()}"


def attestation_key(evidence: TpmEvidence, endorsements: Endorsements, trace: Trace) -> Public:
    """The AK with its attributes: from the evidence, or for a stock guest, which sends none, from the enrolment."""
    if not evidence.ak_spki:
        with trace.recording(Stage.ROOT_OF_TRUST):
            return parse_public(evidence.ak_public)
    with trace.recording(Stage.IDENTITY):
        enrolled = endorsements.enrolled.get(instance_id(evidence))
        if enrolled is None:
            raise VerificationError(
                "attestation key is not enrolled, and its attributes are not known",
                found=instance_id(evidence),
                mend="enrol the key's TPMT_PUBLIC, or let the guest use roomkey-agent",
            )
        ak, _ = parse_public_prefix(enrolled)
        if ak.spki != evidence.ak_spki:
            raise VerificationError("the enrolled attestation key is another key", found=instance_id(evidence))
        return ak


def judge_trust(
    ak: Public,
    evidence: TpmEvidence,
    endorsements: Endorsements,
    qualifying_data: bytes,
    at: datetime,
    trace: Trace,
) -> Trust:
    """By what `ak`, which signed the quote with `qualifying_data`, is trusted. Raises VerificationError."""
    session, enrolled = endorsements.session, endorsements.enrolled.get(instance_id(evidence))
    declared: Public | None = None
    if session:
        _check_activation(ak, evidence, endorsements, qualifying_data, trace)
        with trace.recording(Stage.ENDORSEMENT):
            declared = check_ek(parse_public(session["ek_public"]))  # (3)
        try:
            certificate, root = _ek_certificate(declared, session, endorsements, at)
        except EndorsementError as error:
            if enrolled is None:
                trace.fail(Stage.ENDORSEMENT, error)
                raise
            trace.not_required(Stage.ENDORSEMENT, "EK certificate leads to a configured root", found=error)
        else:
            trace.check(Stage.ENDORSEMENT, "EK certificate leads to a configured root", True, found=root)
            return Trust(EK_CERTIFICATE, declared, certificate, root)
    else:
        trace.require(
            Stage.TRUST,
            "no activation proof without a declared TPM",
            evidence.activation is None,
            mend="declare the TPM's keys when asking for the challenge",
        )
    trace.require(
        Stage.IDENTITY,
        "attestation key is trusted",
        enrolled is not None,
        expected="an EK certificate with credential activation, or an enrolled key",
        found=instance_id(evidence),
        mend="if the machine is yours: roomkey instance add NAME --from EVIDENCE; or let the operator configure the "
        "root certificate of its TPM's maker (tpm.ek_root_files)",
    )
    assert enrolled is not None  # narrowing: the line above has raised
    with trace.recording(Stage.IDENTITY):
        public, rest = parse_public_prefix(enrolled)
        parent = parse_public(rest) if rest else declared
    trace.require(Stage.IDENTITY, "enrolled public area is the attestation key's", public.raw == ak.raw)  # (5)
    return Trust(ENROLLED, parent)


def _check_activation(
    ak: Public, evidence: TpmEvidence, endorsements: Endorsements, qualifying_data: bytes, trace: Trace
) -> None:
    """Checks (1) and (2)."""
    if endorsements.activation is None:
        raise RuntimeError("a session that declared a TPM has an activation secret")
    trace.require(
        Stage.TRUST,
        "attestation key is the one that the session declared",
        ak.raw == endorsements.session["ak_public"],
        found=ak.name,
        mend="ask for a new challenge with the key that quotes",
    )
    given = evidence.activation or b""
    opened = hmac.compare_digest(given, activation_proof(endorsements.activation, qualifying_data))
    trace.require(
        Stage.TRUST,
        "TPM opened this session's credential",
        opened,
        found="its proof" if opened else "another proof" if given else "no proof",
        mend="the attestation key and the EK must be in one TPM, and the credential must be this session's",
    )


def _ek_certificate(
    ek: Public, session: Mapping[str, Any], endorsements: Endorsements, at: datetime
) -> tuple[TpmCertificate, str]:
    """Check (4): what the certificate says, and the root's subject."""
    if not session["ek_certificates"]:
        raise EndorsementError("the session declared no EK certificate")
    leaf, *chain = [load_certificate(der) for der in session["ek_certificates"]]
    certificate = read_ek_certificate(leaf, ek.key)
    path = check_path(leaf, (*chain, *endorsements.trusted.certificates), endorsements.trusted.roots, at)
    return certificate, path[-1].subject.rfc4514_string()
