# SPDX-License-Identifier: Apache-2.0
"""Launches of SEV and SEV-ES guests, which are attested before they run: the host asks, in two calls.

At the start:

 (1) The platform's certificates lead from AMD to the PDH (`broker.verifiers.sev_certificates`).
 (2) The key exists and its rule names the platform sev, an instance of its owner with this CEK, and an image for sev.
 (3) The guest policy is ours: everything that restricts the host, and SEV-ES if the rule's images have it.
 (4) The line in the ledger is durable, then the launch is remembered, then the host gets the session for LAUNCH_START.

At the finish, with what LAUNCH_MEASURE gave:

 (5) The launch is taken, once. From here on every end leaves a line, and there is no second try.
 (6) The firmware binds a packet to one launch (API 0.17).
 (7) The HMAC fits one of the launch digests that the rule's images allow, under this launch's TIK and policy. The one
     that fits is the claim.
 (8) Appraisal, custody and the ledger's line as for every guest (`broker.release.decide`); then the packet is sealed.

The caller is the host, whom nobody trusts; nothing that it says counts unless it is under AMD's signature or TIK. The
launch's id is no secret from it, and gives nobody anything: the packet opens only in the processor. What it may replay:

    finish twice                    The launch was taken by the first; the second is refused. Who loses the answer
                                    starts again. One launch, one secret.
    another launch's measurement    Another TIK: no digest fits. TEK and TIK belong to the launch's id and to all that
                                    is remembered of it, so changing that in the store makes another launch of it too.
    its certificates                Anybody who has seen them can begin a launch for that processor; only the processor
                                    can end one.
    the session, for a second guest Both run the same image under the same policy, with the same TEK and TIK. The one
                                    packet is bound to one measurement, in which the processor put a nonce of its own,
                                    so that no other guest gets it. Both started as the owner approved.
    the packet, in the same guest   It says the same again. Where in the guest's memory it lands, the host chooses: it
                                    cannot choose what it says.

TEK and TIK are never stored: custody's key derives them again. Between start and finish that key must stay the same; a
KEK that was changed in between ends the launch.

This is the weakest kind of guest: the host can change the memory of one that runs (nothing protects its integrity), and
the firmware's version is the firmware's own word. So the rule must name both the platform and the instance.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec

from broker import ledger, release
from broker.appraisal.images import Image
from broker.appraisal.judge import admits
from broker.claims import Claims, Fact
from broker.gather import Attested, gather, owner_of
from broker.services import Services
from broker.store.protocols import Consumption
from broker.trace import Stage, Trace
from broker.verifiers import sev_launch
from broker.verifiers.sev_certificates import Chain, verify_platform
from broker.verifiers.sev_launch import Measurement
from keys import sev_packet, strictjson
from keys.custody import Custody
from keys.errors import AppraisalDenied, FreshnessError, RoomkeyError, VerificationError
from keys.messages import ResourcePath
from keys.sev_packet import LaunchKeys, Packet
from keys.tee import Tee

ID_BYTES = 16  # random bytes of a launch's id
TRUST = "sev-cek"
LAUNCH_DIGEST = "launch_digest"

_ID = re.compile(r"[0-9a-f]{32}\Z")
_KEYS = b"sev launch"
_WEAKER = "weaker: no memory integrity, firmware version self-reported"
_STATES = {
    Consumption.JUDGE: "unused and in time",
    Consumption.USED: "used before",
    Consumption.EXPIRED: "expired",
    Consumption.UNKNOWN: "unknown",
}


class Started(NamedTuple):
    """What the host needs for LAUNCH_START, and `launch` to come back with."""

    launch: str
    session: sev_launch.Session
    policy: int


def start(path: ResourcePath, chain: Chain, services: Services, *, now: int) -> Started:
    """A launch for the key at `path` on the platform that shows `chain`. `now` in milliseconds.

    Raises VerificationError (not a genuine platform) or AppraisalDenied (not one that the key's rule wants), each with
    the ledger's line in `decision`; Unavailable.
    """
    trace = Trace()
    claims = None
    evidence = hashlib.sha256(chain.pdh + chain.pek + chain.oca + chain.cek).hexdigest()
    try:
        platform = verify_platform(chain, services.sev_cas, trace)  # (1)
        trace.not_judged(Stage.ROOT_OF_TRUST, _WEAKER)
        verified = trace.to_json()
        claims = Claims(Tee.SEV, (platform.instance_id,), TRUST, {}, {"generation": str(platform.generation)})
        policy = _admit(path, claims, services, trace, now)  # (2) (3)
    except (VerificationError, AppraisalDenied) as error:
        error.decision = _line(services, path, claims, evidence, trace, "refused", now)
        raise
    claims = _with(claims, {}, _policy_facts(policy))
    decision = _line(services, path, claims, evidence, trace, "genuine", now)  # (4)
    launch_id = services.random(ID_BYTES).hex()
    name = _store_name(launch_id)
    launch = {
        "resource": str(path),
        "policy": policy,
        "claims": claims.to_json(),
        "evidence": evidence,
        "issued_at": now,
        "session": name,
        "attestation": decision,
        "trace": verified,
    }
    services.store.put_session(name, launch, now + services.challenge_lifetime_ms)
    session = sev_launch.make_session(
        _keys(services.custody, name, launch),
        policy,
        ephemeral=ec.generate_private_key(ec.SECP384R1()),
        pdh=platform.pdh.key,
        nonce=services.random(sev_launch.NONCE_BYTES),
        iv=services.random(sev_packet.IV_BYTES),
    )
    return Started(launch_id, session, policy)


def finish(launch_id: str, measurement: Measurement, services: Services, *, now: int) -> Packet:
    """The packet for LAUNCH_SECRET, if the launch that was measured is one that the key's owner approved.

    Raises FreshnessError (no such launch, or not any more) or ReleaseDenied, each with the ledger's line in `decision`;
    Unavailable. Whatever it raises, the launch is gone.
    """
    name = _store_name(launch_id)
    outcome, launch = services.store.consume_session(name, now)  # (5)
    trace = Trace() if launch is None else Trace.from_json(launch["trace"])
    try:
        trace.require(Stage.ROOT_OF_TRUST, "launch", outcome is Consumption.JUDGE,
                      expected=_STATES[Consumption.JUDGE], found=_STATES[outcome],
                      mend="start the guest anew, with a new session: each is good for one launch",
                      error=FreshnessError)  # fmt: skip
        assert launch is not None  # narrowing: the line above has raised
        return _judge(launch, _keys(services.custody, name, launch), measurement, services, now, trace)
    except Exception as error:
        # The launch is gone whatever went wrong, a fault of our own too, so the attempt must leave its line.
        known = error if isinstance(error, RoomkeyError) else VerificationError("the broker failed while judging")
        if known.decision is None:
            if not trace.failed:
                trace.fail(Stage.ROOT_OF_TRUST, known)
            path = None if launch is None else ResourcePath.parse(launch["resource"])
            claims = None if launch is None else Claims.from_json(launch["claims"])
            evidence = "" if launch is None else launch["evidence"]
            known.decision = _line(services, path, claims, evidence, trace, "refused", now)
        raise


def _judge(
    launch: dict[str, Any], keys: LaunchKeys, measurement: Measurement, services: Services, now: int, trace: Trace
) -> Packet:
    path, claims = ResourcePath.parse(launch["resource"]), Claims.from_json(launch["claims"])
    attested = _attested(path, launch, claims, trace, now)
    case, _ = gather(path, attested, services, now=now)
    (major, minor), policy = measurement.api, launch["policy"]
    trace.check(  # (6)
        Stage.TRUST,
        "firmware binds a secret to one launch",
        measurement.api >= sev_launch.MIN_API,
        expected=f"API {sev_launch.MIN_API[0]}.{sev_launch.MIN_API[1]} or newer",
        found=f"{major}.{minor}",
        mend="let the host install newer SEV firmware",
    )
    allowed = [
        digest
        for known in case.images
        if known.image.platform is Tee.SEV
        for digest in known.image.registers[LAUNCH_DIGEST].values
    ]
    digest = sev_launch.fitting_digest(keys.tik, measurement, policy, allowed)
    trace.check(  # (7)
        Stage.MEASUREMENT,
        "launch measurement is that of an approved launch digest",
        digest is not None,
        expected=f"the HMAC of one of {len(allowed)} digests under this launch's key",
        found=f"{measurement.measure.hex()} under policy {policy:#x}, API {major}.{minor}, build {measurement.build}",
        mend="another image, other CPUs, or another launch: compare with what `roomkey image measure` computes",
    )
    numbers: dict[str, Fact] = {"api_major": major, "api_minor": minor, "build_id": measurement.build}
    measured = _with(claims, {} if digest is None else {LAUNCH_DIGEST: digest}, numbers)

    def wrap(plaintext: bytes, _released: release.Released) -> Packet:
        return sev_packet.seal(plaintext, keys, measurement.measure, services.random(sev_packet.IV_BYTES))

    return release.decide(  # (8)
        path,
        replace(attested, claims=measured),
        services,
        now=now,
        wrap=wrap,
        max_bytes=sev_packet.MAX_SECRET_BYTES,
    )


def _attested(path: ResourcePath, launch: dict[str, Any], claims: Claims, trace: Trace, now: int) -> Attested:
    return Attested(
        claims=claims,
        trace=trace,
        announced=str(path),
        session=launch["session"],
        challenged_at=launch["issued_at"],
        attested_at=now,
        attestation=launch["attestation"],
        evidence=launch["evidence"],
    )


def _admit(path: ResourcePath, claims: Claims, services: Services, trace: Trace, now: int) -> int:
    """The guest policy, steps (2) and (3). Raises AppraisalDenied."""
    asks = Attested(
        claims=claims,
        trace=trace,
        announced=None,
        session="",
        challenged_at=now,
        attested_at=now,
        attestation="",
        evidence="",
    )
    case, _ = gather(path, asks, services, now=now)
    admitted = admits(case, trace)
    images = {known.ref: known.image for known in case.images if known.image.platform is Tee.SEV}
    admitted &= trace.check(
        Stage.MEASUREMENT,
        "release rule names an image for sev",
        bool(images),
        expected="an image with platform = \"sev\"",
        found=", ".join(known.ref for known in case.images) or "none",
        mend=f"roomkey image measure sev ..., roomkey image put, then roomkey rule set {path} --image NAME ...",
    )  # fmt: skip
    kinds = {name: bool(image.floors["es"]) for name, image in images.items()}
    admitted &= trace.check(
        Stage.TRUST,
        "images for sev are all SEV-ES, or none is",
        len(set(kinds.values())) <= 1,
        expected="one guest policy, which is chosen before the image is known",
        found=", ".join(f"{name}: {'SEV-ES' if es else 'SEV'}" for name, es in kinds.items()),
        mend="give guests with and without SEV-ES keys of their own",
    )
    if not admitted:
        raise AppraisalDenied("the key's rule wants no launch on this platform")
    es = sev_launch.ES if any(kinds.values()) else 0
    return sev_launch.policy_of(sev_launch.STRICT_POLICY | es, min(map(_min_api, images.values())))


def _min_api(image: Image) -> tuple[int, int]:
    """What the image demands of the firmware; what no firmware can be stands for the highest."""
    major, minor = (min(int(part), 0xFF) for part in image.floors.get("min_api", "0.0").split("."))
    return major, minor


def _policy_facts(policy: int) -> dict[str, Fact]:
    bits: dict[str, Fact] = {f"policy_{name}": bool(policy >> bit & 1) for name, bit in sev_launch.POLICY_BITS.items()}
    return {"policy": f"{policy:#x}"} | bits


def _with(claims: Claims, measurements: dict[str, str], facts: dict[str, Fact]) -> Claims:
    return Claims(claims.tee, claims.instance_ids, claims.trust, measurements, {**claims.facts, **facts})


def _store_name(launch_id: str) -> str:
    """Under what name the store keeps a launch, "" for what cannot be a launch's id. No guest's session has it: what
    begins as one kind of thing never ends as the other.
    """
    return hashlib.sha256(f"sev launch {launch_id}".encode("ascii")).hexdigest() if _ID.match(launch_id) else ""


def _keys(custody: Custody, name: str, body: dict[str, Any]) -> LaunchKeys:
    """TEK and TIK of the launch that the store keeps under `name` as `body`."""
    context = f"{name} {hashlib.sha256(strictjson.canonical(body)).hexdigest()}"
    secret = custody.derive(_KEYS, context.encode("ascii"))
    return LaunchKeys(tek=secret[: sev_packet.KEY_BYTES], tik=secret[sev_packet.KEY_BYTES :])


def _line(
    services: Services,
    path: ResourcePath | None,
    claims: Claims | None,
    evidence: str,
    trace: Trace,
    verdict: str,
    now: int,
) -> str:
    """The id of the ledger's new line about this half of a launch, for the owner of the key."""
    decision = ledger.new_id(services.random)
    owner = "" if path is None else owner_of(path, services.store)
    ids = [] if claims is None else list(claims.instance_ids)
    body = {
        "tee": str(Tee.SEV),
        "key": None if path is None else str(path),
        "instances": ids,
        "evidence": evidence,
        "claims": None if claims is None else ledger.claims_summary(claims),
        "trace": trace.to_json(),
    }
    ledger.record(services, id_=decision, owner=owner, at=now, kind=ledger.ATTEST, verdict=verdict,
                  subject=ids[0] if ids else "", body=body)  # fmt: skip
    return decision
