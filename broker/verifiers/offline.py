# SPDX-License-Identifier: Apache-2.0
"""Judge an evidence file without a broker: the same verifier, with what the caller has at hand.

A file is JSON: {"tee", "evidence", "report_data"?, "instance"?}, as `roomkey-agent evidence` writes it. No TPM is
asked, so nothing activates a credential; the attestation key is trusted because the caller names it (ak_name=HEX), or
because a certificate of it leads to a root that the caller trusts. Without such an anchor, or without a challenge to
compare with, nothing can be judged, and that is said instead of a verdict.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from cryptography import x509

from broker.claims import Binding, Claims, Endorsements
from broker.trace import Stage, Trace, Verdict
from broker.verifiers.tpm import TpmVerifier
from broker.verifiers.tpm_certificates import check_path, read_ak_certificate
from broker.verifiers.tpm_evidence import TpmEvidence
from broker.verifiers.tpm_structures import Public, parse_public
from broker.verifiers.tpm_trust import instance_id
from broker.verifiers.x509 import load_certificates
from keys import b64, strictjson
from keys.errors import ConfigError, EndorsementError, ProtocolError, VerificationError
from keys.messages import MAX_PUBLIC_BYTES
from keys.tee import Tee

MAX_FILE_BYTES = 512 * 1024
MAX_REPORT_DATA_BYTES = 64
AK_CERTIFICATE = "ak-certificate"  # Claims.trust where a certificate is the anchor
EXPECTED = "expected"  # ... where the caller named the key

_INSTANCE = frozenset(("ak_public", "ak_name", "ek_public", "ek_certificates"))


class Judgement(NamedTuple):
    """`claims` are None where the evidence is not genuine. `verdict` is PASSED only if every expectation is met too."""

    claims: Claims | None
    trace: Trace
    verdict: Verdict


def judge(
    tee: str,
    evidence: bytes,
    endorsements: Sequence[bytes],
    roots: Sequence[bytes],
    at: datetime,
    expect: Mapping[str, str],
) -> Judgement:
    """Judge the file `evidence` as the platform `tee` at the time `at`.

    `endorsements` are certificates (DER, or PEM bundles) or TPMT_PUBLICs: of the attestation key for a stock guest's
    evidence, of the EK where the key is its child. `roots` are certificates. `expect` maps names of facts, registers
    ("sha256:4"), "report_data", "trust" or "init_data" to values as text. Raises ConfigError where nothing can be
    judged.
    """
    if tee != Tee.TPM:
        raise ConfigError("evidence of this platform cannot be judged offline", expected=Tee.TPM, found=tee[:32])
    certificates, publics = _sort(endorsements)
    anchors = [root for data in roots for root in load_roots(data)]
    if "ak_name" not in expect and not (certificates and anchors):
        raise ConfigError(
            "nothing says whose attestation key this is",
            mend="give its Name (--expect ak_name=HEX), or its certificate (--endorsement) and a root (--trust-root)",
        )
    trace = Trace()
    try:
        with trace.recording(Stage.ROOT_OF_TRUST):
            file = strictjson.members(
                strictjson.loads(evidence, name="evidence file", max_bytes=MAX_FILE_BYTES),
                name="evidence file",
                required=frozenset(("tee", "evidence")),
                optional=frozenset(("report_data", "instance")),
            )
            decoded = TpmVerifier().decode(file["evidence"])
            report_data = _report_data(file, expect)
        trace.require(Stage.ROOT_OF_TRUST, "file is of this platform", file["tee"] == tee, expected=tee)
        with trace.recording(Stage.IDENTITY):
            ak, trust = _anchor(decoded, certificates, anchors, publics, at, expect)
            parent = _parent(ak, publics, file.get("instance"))
        trace.check(Stage.IDENTITY, "attestation key is the caller's", True, expected=trust, found=ak.name)
        claims = TpmVerifier().verify(
            replace(decoded, activation=None),  # says something only to the broker that knows the secret
            Endorsements(enrolled={instance_id(decoded): ak.raw + parent}),
            Binding(report_data),
            at,
            trace,
        )
    except (VerificationError, ProtocolError):
        return Judgement(None, trace, Verdict.FAILED)
    claims = replace(claims, trust=trust)
    met = [_expected(name, value, claims, report_data, trace) for name, value in expect.items()]
    return Judgement(claims, trace, Verdict.PASSED if all(met) else Verdict.FAILED)


def load_roots(data: bytes) -> tuple[x509.Certificate, ...]:
    """The trust anchors that a file holds. Raises ConfigError."""
    try:
        return load_certificates(data)
    except EndorsementError as error:
        raise ConfigError("a trust root cannot be read", found=error.found) from error


def _report_data(file: Mapping[str, Any], expect: Mapping[str, str]) -> bytes:
    """What the caller expects, or what the file says that it is bound to."""
    if "report_data" in expect:
        try:
            return bytes.fromhex(expect["report_data"])
        except ValueError as error:
            raise ConfigError("the expected report_data is not hex") from error
    if "report_data" not in file:
        raise ConfigError(
            "nothing says which challenge this evidence answers",
            mend="give the report data (--expect report_data=HEX); the file has none",
        )
    return b64.from_std(file["report_data"], name="report_data", max_bytes=MAX_REPORT_DATA_BYTES)


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


def _expected(name: str, value: str, claims: Claims, report_data: bytes, trace: Trace) -> bool:
    """Record whether the claim `name` is `value`; a claim that the evidence does not make is not met."""
    made: dict[str, object] = {
        **claims.facts,
        **claims.measurements,
        "report_data": report_data.hex(),
        "trust": claims.trust,
        "init_data": claims.init_data,
    }
    found = made.get(name)
    text = str(found).lower() if isinstance(found, bool) else str(found)
    stage = Stage.MEASUREMENT if name in claims.measurements else Stage.IDENTITY
    return trace.check(
        stage,
        f"{name} is as expected",
        found is not None and text.lower() == value.lower(),
        expected=value,
        found="no such claim" if found is None else text,
    )
