# SPDX-License-Identifier: Apache-2.0
"""Judge an evidence file without a broker: the same verifier, with what the caller has at hand.

A file is JSON: {"tee", "evidence", "report_data"?, "instance"?}, as `roomkey-agent evidence` writes it; of `snp` also a
bare report of 1184 bytes. What stands for the broker's own knowledge differs from platform to platform:

    tpm                 no TPM is asked, so nothing activates a credential; the attestation key is trusted because the
                        caller names it, or because a certificate leads to a root that the caller trusts: `offline_tpm`
    snp, az-snp-vtpm    AMD's roots are built in, and the strict floors hold unless others are given: `offline_snp`

Without an anchor, or without a challenge to compare with, nothing can be judged, and that is said instead of a verdict.
Azure's evidence is as good as its paravisor: where the caller does not expect one, the trace says that none was judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from broker.claims import Claims, Trusted
from broker.trace import Stage, Trace, Verdict
from broker.verifiers.offline_snp import SnpPart
from broker.verifiers.offline_tpm import TpmPart
from broker.verifiers.snp_floors import Floors
from broker.verifiers.snp_report import REPORT_BYTES
from keys import b64, strictjson
from keys.errors import ConfigError, ProtocolError, VerificationError
from keys.tee import Tee

MAX_FILE_BYTES = 512 * 1024
MAX_REPORT_DATA_BYTES = 64
_PARAVISOR = frozenset(("measurement", "id_key_digest"))
JUDGED = (Tee.AZ_SNP_VTPM, Tee.SNP, Tee.TPM)


class Judgement(NamedTuple):
    """`claims` are None where the evidence is not genuine. `verdict` is PASSED only if every expectation is met too."""

    claims: Claims | None
    trace: Trace
    verdict: Verdict


class Part(Protocol):
    """One platform's way to judge without a broker. What it was made of can be used; each raises ConfigError where
    nothing can be judged.
    """

    def decode(self, evidence: object) -> Any:
        """Raises ProtocolError."""
        ...

    def verify(self, evidence: Any, instance: object, report_data: bytes, at: datetime, trace: Trace) -> Claims:
        """`instance` is the file's, or None. Raises VerificationError or ProtocolError."""
        ...


def judge(
    tee: str,
    evidence: bytes,
    endorsements: Sequence[bytes],
    roots: Sequence[bytes],
    at: datetime,
    expect: Mapping[str, str],
    *,
    floors: Floors | None = None,
    trusted: Trusted | None = None,
) -> Judgement:
    """Judge the file `evidence` as the platform `tee` at the time `at`.

    `endorsements` are certificates (DER, or PEM bundles), TPMT_PUBLICs or revocation lists, `roots` certificates, as
    the platform's part says. `expect` maps names of facts, registers ("sha256:4"), "report_data", "trust" or
    "init_data" to values as text. `floors` (SEV-SNP) stand for the operator's, `trusted` for AMD's own roots. Raises
    ConfigError where nothing can be judged.
    """
    part = _part(tee, endorsements, roots, expect, floors, trusted)
    trace = Trace()
    try:
        with trace.recording(Stage.ROOT_OF_TRUST):
            file = _file(tee, evidence)
            decoded = part.decode(file["evidence"])
            report_data = _report_data(file, expect)
        trace.require(Stage.ROOT_OF_TRUST, "file is of this platform", file["tee"] == tee, expected=tee)
        claims = part.verify(decoded, file.get("instance"), report_data, at, trace)
    except (VerificationError, ProtocolError):
        return Judgement(None, trace, Verdict.FAILED)
    if claims.tee is Tee.AZ_SNP_VTPM and not _PARAVISOR & expect.keys() and not (floors and floors.id_key_digests):
        # The quote is signed by whatever key the paravisor names, and anybody can run one of his own.
        trace.not_judged(Stage.TRUST, "paravisor is Microsoft's (--expect measurement=HEX or id_key_digest=HEX)")
    met = [_expected(name, value, claims, report_data, trace) for name, value in expect.items()]
    return Judgement(claims, trace, Verdict.PASSED if all(met) else Verdict.FAILED)


def _part(
    tee: str,
    endorsements: Sequence[bytes],
    roots: Sequence[bytes],
    expect: Mapping[str, str],
    floors: Floors | None,
    trusted: Trusted | None,
) -> Part:
    if tee not in JUDGED:
        raise ConfigError(
            "evidence of this platform cannot be judged offline", expected=", ".join(JUDGED), found=tee[:32]
        )
    if tee == Tee.TPM:
        if floors is not None:
            raise ConfigError("a TPM has no floors", mend="leave them out")
        return TpmPart(endorsements, roots, expect)
    if roots:
        raise ConfigError("AMD's roots are built in, and no other counts", mend="leave the trust root out")
    return SnpPart(Tee(tee), endorsements, floors, trusted)


def _file(tee: str, data: bytes) -> dict[str, Any]:
    """The members of an evidence file. Raises ProtocolError."""
    # A report begins with its version, 4 bytes little-endian; no JSON text has a zero byte.
    if tee == Tee.SNP and len(data) == REPORT_BYTES and b"\0" in data[:4]:
        return {"tee": tee, "evidence": {"report": b64.std(data)}}
    return strictjson.members(
        strictjson.loads(data, name="evidence file", max_bytes=MAX_FILE_BYTES),
        name="evidence file",
        required=frozenset(("tee", "evidence")),
        optional=frozenset(("report_data", "instance")),
    )


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
