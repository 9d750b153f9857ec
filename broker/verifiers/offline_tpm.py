# SPDX-License-Identifier: Apache-2.0
"""TPM evidence without a broker: the caller says whose attestation key it is.

Either by its Name (ak_name=HEX), or with a certificate of the key that leads to a root of the caller's. The
endorsements are certificates, or TPMT_PUBLICs: of the attestation key for a stock guest's evidence, of the EK where the
key is its child.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from cryptography import x509

from broker.claims import Binding, Claims, Endorsements
from broker.trace import Stage, Trace
from broker.verifiers.tpm import TpmVerifier
from broker.verifiers.tpm_certificates import check_path, read_ak_certificate
from broker.verifiers.tpm_evidence import TpmEvidence
from broker.verifiers.tpm_structures import Public, parse_public
from broker.verifiers.tpm_trust import instance_id
from broker.verifiers.x509 import load_certificates
from keys import b64, strictjson
from keys.errors import ConfigError, EndorsementError, VerificationError
from keys.messages import MAX_PUBLIC_BYTES

AK_CERTIFICATE = "ak-certificate"  # Claims.trust where a certificate is the anchor
EXPECTED = "expected"  # ... where the caller named the key

_INSTANCE = frozenset(("ak_public", "ak_name", "ek_public", "ek_certificates"))


class TpmPart:
    """`broker.verifiers.offline.Part` for `tpm`."""

    def __init__(self, endorsements: Sequence[bytes], roots: Sequence[bytes], expect: Mapping[str, str]) -> None:
        self._certificates, self._publics = _sort(endorsements)
        self._roots = [root for data in roots for root in _load_roots(data)]
        self._expect = expect
        if "ak_name" not in expect and not (self._certificates and self._roots):
            raise ConfigError(
                "nothing says whose attestation key this is",
                mend="give its Name (--expect ak_name=HEX), or its certificate (--endorsement) and a root "
                "(--trust-root)",
            )

    def decode(self, evidence: object) -> TpmEvidence:
        return TpmVerifier().decode(evidence)

    def verify(self, evidence: TpmEvidence, instance: object, report_data: bytes, at: datetime, trace: Trace) -> Claims:
        with trace.recording(Stage.IDENTITY):
            ak, trust = _anchor(evidence, self._certificates, self._roots, self._publics, at, self._expect)
            parent = _parent(ak, self._publics, instance)
        trace.check(Stage.IDENTITY, "attestation key is the caller's", True, expected=trust, found=ak.name)
        claims = TpmVerifier().verify(
            replace(evidence, activation=None),  # says something only to the broker that knows the secret
            Endorsements(enrolled={instance_id(evidence): ak.raw + parent}),
            Binding(report_data),
            at,
            trace,
        )
        return replace(claims, trust=trust)


def _load_roots(data: bytes) -> tuple[x509.Certificate, ...]:
    try:
        return load_certificates(data)
    except EndorsementError as error:
        raise ConfigError("a trust root cannot be read", found=error.found) from error


def _sort(endorsements: Sequence[bytes]) -> tuple[list[x509.Certificate], list[Public]]:
    """Certificates and public areas: a DER certificate is a SEQUENCE, and no TPMT_PUBLIC begins with 0x30 or a dash."""
    certificates: list[x509.Certificate] = []
    publics: list[Public] = []
    for data in endorsements:
        try:
            if data.lstrip()[:1] in {b"\x30", b"-"}:
                certificates.extend(load_certificates(data))
            else:
                publics.append(parse_public(data))
        except VerificationError as error:
            raise ConfigError(
                "an endorsement is neither a certificate nor a TPMT_PUBLIC", found=error.message
            ) from error
    return certificates, publics


def _anchor(
    evidence: TpmEvidence,
    certificates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    publics: Sequence[Public],
    at: datetime,
    expect: Mapping[str, str],
) -> tuple[Public, str]:
    """The attestation key and by what it is trusted. Raises VerificationError, or ConfigError where it is not known."""
    if evidence.ak_spki:
        known = [public for public in publics if public.spki == evidence.ak_spki]
        if not known:
            raise ConfigError(
                "this evidence lacks the attestation key's attributes", mend="give its TPMT_PUBLIC (--endorsement)"
            )
        ak = known[0]
    else:
        ak = parse_public(evidence.ak_public)
    if "ak_name" in expect:
        if not hmac.compare_digest(ak.name.hex().encode(), expect["ak_name"].lower().encode()):
            raise VerificationError("another attestation key", expected=expect["ak_name"], found=ak.name.hex())
        return ak, EXPECTED
    leaf = next((one for one in certificates if one.public_key() == ak.key), None)
    if leaf is None:
        raise EndorsementError("no endorsement is a certificate of the attestation key", found=ak.name.hex())
    read_ak_certificate(leaf, ak.key)
    check_path(leaf, [one for one in certificates if one is not leaf], roots, at)
    return ak, AK_CERTIFICATE


def _parent(ak: Public, publics: Sequence[Public], instance: object) -> bytes:
    """TPMT_PUBLIC of the EK that may be the key's parent: handed in, or as the file describes it; else nothing.

    It needs no trust: only the true parent gives the qualified name that the TPM signed.
    """
    handed_in = [public.raw for public in publics if public.raw != ak.raw]
    if handed_in:
        return handed_in[0]
    if instance is None:
        return b""
    described = strictjson.members(instance, name="instance", required=frozenset(), optional=_INSTANCE)
    if described.get("ek_public") is None:
        return b""
    return b64.from_std(described["ek_public"], name="ek_public", max_bytes=MAX_PUBLIC_BYTES)
