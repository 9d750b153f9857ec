# SPDX-License-Identifier: Apache-2.0
"""Are these claims what the owner approved for this key? RFC 9334: appraisal of evidence against reference values.

Every check is made and recorded, also after one has failed, so that an owner sees all that differs at once:

 (1) the release rule names the platform
 (2) the instance: one that the rule names and its owner enrolled; with "any", one that a configured vendor vouches for
 (3) the measurements: all registers of one of the rule's images, and what that image demands besides (its floors).
     Where none fits, the image that differs in the fewest is taken apart: each register with its values and, where both
     logs are known, the first other event
 (4) the machine's clock has not gone back since the last time (`clock_not_behind`)

Registers that the image does not name are listed in one line as not required.

Some genuine machines count only where a rule names them, never as "any": those of a line whose secrets got out, so that
somebody with one such chip can forge reports, but only of that chip (`vcek-named`, `vlek-named`; EPYC Milan, arXiv
2605.12990); and SEV before SNP, whose firmware vouches for itself (`sev-cek`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.appraisal.difference import first_difference
from broker.appraisal.floors import check_image_floors, unmet_floors
from broker.appraisal.images import Image
from broker.appraisal.registers import Register, order, title
from broker.appraisal.rules import ANY, Rule
from broker.claims import Claims
from broker.trace import Stage, Trace
from keys.messages import ResourcePath
from keys.tee import Tee

# By what an identity must be trusted to count as "any", by platform. A platform that is not here has no "any".
TRUSTED_BY_VENDOR: Mapping[Tee, tuple[str, ...]] = {
    Tee.TPM: ("ek-certificate",),
    Tee.SNP: ("vcek", "vlek"),
    Tee.AZ_SNP_VTPM: ("vcek", "vlek"),
}
TRUSTED_BY_OWNER = "enrolled"

_CLOCK = ("reset_count", "restart_count", "clock")
_BOOT = 2  # the first of them stay the same until the machine is reset or suspended


@dataclass(frozen=True, slots=True)
class Outcome:
    """`image`: the approved image that fits, as name@version. `instances`: under which names the owner knows the guest,
    of those that the rule allows.
    """

    allowed: bool
    image: str | None
    instances: tuple[str, ...]


def appraise(
    claims: Claims,
    rule: Rule,
    path: ResourcePath,
    *,
    images: Mapping[str, Image],
    instances: Mapping[str, tuple[str, ...]],
    trace: Trace,
) -> Outcome:
    """The outcome for the key at `path`, every check in `trace`.

    `images`: those that the rule names and that exist, by name@version. `instances`: the ids of this owner's records,
    by name; those of other owners never come here.
    """
    admitted = admit(claims, rule, path, instances=instances, trace=trace)  # (1) (2)
    image = _check_images(claims, rule, path, images, trace)  # (3)
    known = _known(claims, instances)
    named = known if rule.instances == (ANY,) else tuple(name for name in known if name in rule.instances)
    return Outcome(admitted and image is not None, image, named)


def admit(
    claims: Claims, rule: Rule, path: ResourcePath, *, instances: Mapping[str, tuple[str, ...]], trace: Trace
) -> bool:
    """Whether the rule names platform and instance, (1) and (2): all that can be said before a guest is measured."""
    platform = trace.check(
        Stage.TRUST,
        "release rule names the platform",
        claims.tee in rule.platforms,
        expected=", ".join(rule.platforms),
        found=claims.tee,
        mend=f"roomkey rule set {path} --platform {claims.tee} ...",
    )
    instance = _check_instance(claims, rule, path, _known(claims, instances), trace)
    return platform and instance


def clock_not_behind(previous: Mapping[str, Any] | None, claims: Claims, challenged_at: int, trace: Trace) -> bool:
    """Whether the TPM's clock goes on from where it was last seen: a lower reset or restart count, or at the same
    counts a lower clock, means a machine put back to a snapshot or a TPM that was cleared.

    `previous` is what `clock_mark` gave at the last decision about the same machine for the same owner. Evidence whose
    challenge was issued before that one was shown may be older than it, but not from an earlier boot: who gets a
    challenge, and then boots an old snapshot to answer it, is still refused.
    """
    name = "TPM's clock goes on from where it was last seen"
    if previous is None or "clock" not in claims.facts:
        trace.not_judged(Stage.IDENTITY, name)
        return True
    before, now = _counts(previous), _counts(claims.facts)
    if challenged_at < previous["attested_at"] and now[:_BOOT] >= before[:_BOOT]:
        trace.not_judged(Stage.IDENTITY, name)
        return True
    return trace.check(
        Stage.IDENTITY,
        name,
        now >= before,
        expected=f"at least {_clock_words(before)}",
        found=_clock_words(now),
        mend=f"if the machine was restored or its TPM cleared on purpose: roomkey instance readmit NAME, "
        f"NAME being the instance with {claims.instance_ids[0]}",
    )


def clock_mark(previous: Mapping[str, Any] | None, claims: Claims, attested_at: int) -> dict[str, Any] | None:
    """The latest clock seen of this machine, for the next `clock_not_behind`; None where it has none."""
    if "clock" not in claims.facts:
        return None
    if previous is not None and _counts(previous) > _counts(claims.facts):
        return dict(previous)
    return dict(zip(_CLOCK, _counts(claims.facts), strict=True)) | {"attested_at": attested_at}


def _known(claims: Claims, instances: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Under which names the owner knows the guest."""
    return tuple(name for name, ids in instances.items() if not set(ids).isdisjoint(claims.instance_ids))


def trusted_by_vendor(claims: Claims) -> bool:
    """Whether the platform's vendor vouches for the machine, and nothing is known that lets others do so too."""
    return claims.trust in TRUSTED_BY_VENDOR.get(claims.tee, ())


def _check_instance(claims: Claims, rule: Rule, path: ResourcePath, known: tuple[str, ...], trace: Trace) -> bool:
    if rule.instances == (ANY,):
        return trace.check(
            Stage.IDENTITY,
            "a configured vendor vouches for the hardware",
            trusted_by_vendor(claims),
            expected=" or ".join(TRUSTED_BY_VENDOR.get(claims.tee, ()))
            or "a name: on this platform `any` means nobody",
            found=_trust_words(claims),
            mend=_naming(claims, path, known),
        )
    if known:
        mend = f"if it may have this key: roomkey rule set {path} --instance {known[0]} ..."
    else:
        mend = (
            f"if the machine is yours: roomkey instance add NAME {_known_by(claims)}, then roomkey rule set {path} ..."
        )
    return trace.check(
        Stage.IDENTITY,
        "release rule names the instance",
        not set(known).isdisjoint(rule.instances),
        expected=", ".join(rule.instances),
        found=", ".join(known) or f"not enrolled by the key's owner: {claims.instance_ids[0]}",
        mend=mend,
    )


def _trust_words(claims: Claims) -> str:
    if claims.trust.endswith("-named"):
        line = claims.facts.get("product", "this product line")
        return f"{claims.trust}: genuine, but others may hold keys of {line} machines, so they count only by name"
    return claims.trust


def _naming(claims: Claims, path: ResourcePath, known: tuple[str, ...]) -> str:
    """How an owner lets this very machine in."""
    rule = f"name the instance in the rule: roomkey rule set {path} --instance {known[0] if known else 'NAME'} ..."
    if claims.trust.endswith("-named"):
        rule += "; or have the operator take the line out of snp.named_only"
    return rule if known else f"roomkey instance add NAME {_known_by(claims)}, and {rule}"


def _known_by(claims: Claims) -> str:
    """The option of `roomkey instance add` for this machine."""
    kind, _, value = claims.instance_ids[0].partition(":")
    return {
        "snp-chip": f"--chip-id {value}",
        "snp-csp": f"--csp-id {shlex.quote(value)}",  # free text, and an owner pastes it
        "sev-cek": "--sev-cek FILE",
    }.get(kind, "--from EVIDENCE")


def _check_images(
    claims: Claims, rule: Rule, path: ResourcePath, images: Mapping[str, Image], trace: Trace
) -> str | None:
    """The name of the image that fits, or None."""
    differing = {
        name: (
            [register for register, allowed in image.registers.items() if not _fits(claims, register, allowed)],
            unmet_floors(image, name, claims),
        )
        for name, image in images.items()
        if image.platform is claims.tee
    }
    if not differing:
        names = ", ".join(str(image) for image in rule.images)
        trace.check(
            Stage.MEASUREMENT,
            "an image of the release rule exists for this platform",
            False,
            expected=names,
            found="none",
            mend=f"{_approval(claims.tee, rule.images[0].name)}, then roomkey rule set {path} --image ...",
        )
        return None
    distance = {name: len(registers) + floors for name, (registers, floors) in differing.items()}
    nearest = min(distance, key=lambda name: distance[name])
    image = images[nearest]
    for name, (registers, floors) in differing.items():
        if distance[name] and name != nearest:
            words = f"image {name}: {len(registers)} of {len(images[name].registers)} registers differ"
            trace.not_judged(Stage.MEASUREMENT, words + (f", {floors} of its floors are not met" if floors else ""))
    for register, allowed in image.registers.items():
        _check_register(claims, register, allowed, nearest, path, trace)
    others = sorted(claims.measurements.keys() - image.registers.keys(), key=order)
    trace.not_required(Stage.MEASUREMENT, f"registers that image {nearest} does not name", found=" ".join(others))
    floors_met = check_image_floors(image, nearest, claims, trace)
    return nearest if floors_met and not differing[nearest][0] else None


def _approval(tee: Tee, name: str) -> str:
    """How an owner approves of a boot: before SNP there is no evidence to enrol from, but its digest is computed."""
    if tee is Tee.SEV:
        return f"roomkey image measure sev ..., and roomkey image put {name} FILE"
    return f"roomkey image enrol {name} --from EVIDENCE"


def _fits(claims: Claims, register: str, allowed: Register) -> bool:
    return claims.measurements.get(register) in allowed.values


def _check_register(
    claims: Claims, register: str, allowed: Register, image: str, path: ResourcePath, trace: Trace
) -> None:
    name = image.partition("@")[0]
    mend = (
        f"if this boot is one that you trust: {_approval(claims.tee, name)} (and where "
        f"the rule names a version: roomkey rule set {path} --image {name}@NEW ...)"
    )
    fits = trace.check(
        Stage.MEASUREMENT,
        f"{title(register)} is as in image {image}",
        _fits(claims, register, allowed),
        expected=" or ".join(allowed.values),
        found=claims.measurements.get(register, "not in the evidence"),
        mend=mend,
    )
    found = [event for event in claims.events if event.register == register]
    if fits or not allowed.events or not found:
        return
    difference = first_difference(allowed.events, found)
    if difference is not None:
        trace.check(
            Stage.MEASUREMENT,
            f"{title(register)}: event {difference.position} was {difference.kind}",
            False,
            expected=difference.expected,
            found=difference.found,
            mend=mend,
        )


def _counts(facts: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(facts[name] for name in _CLOCK)


def _clock_words(counts: tuple[int, ...]) -> str:
    return ", ".join(f"{name} {count}" for name, count in zip(_CLOCK, counts, strict=True))
