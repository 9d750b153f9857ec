# SPDX-License-Identifier: Apache-2.0
"""Does the guest run one of the rule's images? Pure.

All registers of one image must be as one of its states says, and what the image demands besides (its floors) must hold.
Where no image that counts fits, one that does not (superseded, retired, revoked, only proposed) may: then that is what
the guest runs, and what is said. Else the image that differs in the fewest is taken apart: each register with its
values and, where both logs are known, each event that differs.

Registers that the image does not name are listed in one line as not required.
"""

from __future__ import annotations

from typing import NamedTuple

from broker.appraisal.case import Case
from broker.appraisal.difference import differences
from broker.appraisal.fit import Fit, fit
from broker.appraisal.floors import check_image_floors, unmet_floors
from broker.appraisal.image_life import ImageState, KnownImage
from broker.appraisal.registers import Register, order, title
from broker.appraisal.rules import Rule
from broker.claims import Claims
from broker.trace import Stage, Trace
from keys.tee import Tee


class _Candidate(NamedTuple):
    known: KnownImage
    fit: Fit
    floors: int  # that are not met

    @property
    def distance(self) -> int:
        return len(self.fit.differing) + self.floors

    @property
    def words(self) -> str:
        """ "debian-12@3 (shim 15.8, kernel 6.1.0-31)"."""
        return f"{self.known.ref} ({self.fit.combination})" if self.fit.combination else self.known.ref


def check_images(case: Case, rule: Rule, trace: Trace) -> str | None:
    """The image that fits and counts, as name@version, or None; every check is in `trace`."""
    claims = case.claims
    candidates = [
        _Candidate(known, fit(known.image, claims), unmet_floors(known.image, known.ref, claims))
        for known in case.images
        if known.image.platform is claims.tee
    ]
    counting = [candidate for candidate in candidates if candidate.known.counts]
    fitting = [candidate for candidate in candidates if not candidate.distance]
    runs = next((candidate for candidate in fitting if candidate.known.counts), fitting[0] if fitting else None)
    if runs is not None and not runs.known.counts and any(not candidate.fit.differing for candidate in counting):
        runs = None  # one that counts has all its registers: then only its floors stand between
    if runs is None and not counting:
        names = ", ".join(str(image) for image in rule.images)
        trace.check(
            Stage.MEASUREMENT,
            "an image of the release rule exists for this platform",
            False,
            expected=names,
            found="none that counts" if candidates else "none",
            mend=f"{_approval(claims.tee, rule.images[0].name)}, then roomkey rule set {case.path} --image ...",
        )
        return None
    nearest = runs or min(counting, key=lambda candidate: candidate.distance)
    for candidate in candidates:
        if candidate is not nearest and candidate.known.counts and candidate.distance:
            _sum_up(candidate, trace)
    _take_apart(nearest, case, trace)
    if runs is None:
        return None
    return runs.known.ref if _check_counts(runs.known, counting, case, rule, trace) else None


def _check_counts(known: KnownImage, counting: list[_Candidate], case: Case, rule: Rule, trace: Trace) -> bool:
    """Whether the image that the guest runs is one that counts. A retirement that has not ended is told."""
    life = known.life
    if known.counts and life.state is ImageState.RETIRING:
        trace.not_judged(Stage.MEASUREMENT, f"image {known.ref} is {life.words(case.at)}")
    newest = next((candidate.known.ref for candidate in counting if candidate.known.name == known.name), "")
    meant = [candidate.known.ref for candidate in counting] or [str(image) for image in rule.images]
    return trace.check(
        Stage.MEASUREMENT,
        f"image {known.ref} may still be used",
        known.counts,
        expected=", ".join(meant),
        found=f"the guest runs {known.ref}, which "
        + (f"is {life.words(case.at)}" if known.counts or not life.usable(case.at) else "the rule does not mean"),
        mend=_renewal(known, newest),
    )


def _renewal(known: KnownImage, newest: str) -> str:
    update = f"update the guest to {newest} (roomkey image diff {known.ref} {newest})" if newest else "update the guest"
    match known.life.state:
        case ImageState.REVOKED:
            return update
        case ImageState.PROPOSED:
            return f"if you approve of it: roomkey image approve {known.ref}"
        case ImageState.RETIRING:
            return f"{update}; or let it in for longer: roomkey image retire {known.ref} --after 7d"
        case _:
            return f"{update}; or let it in meanwhile: roomkey image retire {known.ref} --after 7d"


def _sum_up(candidate: _Candidate, trace: Trace) -> None:
    registers, floors = candidate.fit.differing, candidate.floors
    words = f"image {candidate.words}: {len(registers)} of {len(candidate.known.image.registers)} registers differ"
    trace.not_judged(Stage.MEASUREMENT, words + (f", {floors} of its floors are not met" if floors else ""))


def _take_apart(candidate: _Candidate, case: Case, trace: Trace) -> None:
    known, claims = candidate.known, case.claims
    for register in sorted(candidate.fit.expected, key=order):
        _check_register(candidate, register, candidate.fit.expected[register], case, trace)
    others = sorted(claims.measurements.keys() - known.image.registers.keys(), key=order)
    trace.not_required(Stage.MEASUREMENT, f"registers that image {known.ref} does not name", found=" ".join(others))
    check_image_floors(known.image, known.ref, claims, trace)


def _approval(tee: Tee, name: str) -> str:
    """How an owner approves of a boot: before SNP there is no evidence to enrol from, but its digest is computed."""
    if tee is Tee.SEV:
        return f"roomkey image measure sev ..., and roomkey image put {name} FILE"
    return f"roomkey image enrol {name} --from EVIDENCE"


def _check_register(candidate: _Candidate, register: str, expected: Register, case: Case, trace: Trace) -> None:
    known, claims = candidate.known, case.claims
    mend = (
        f"if this boot is one that you trust: {_approval(claims.tee, known.name)}; and where "
        f"the rule names a version: roomkey rule set {case.path} --image {known.name}@NEW ..."
    )
    fits = trace.check(
        Stage.MEASUREMENT,
        f"{title(register)} is as in image {candidate.words}",
        register not in candidate.fit.differing,
        expected=" or ".join(expected.values),
        found=claims.measurements.get(register, "not in the evidence"),
        mend=mend,
    )
    if not fits:
        _check_events(register, expected, claims, mend, trace)


def _check_events(register: str, expected: Register, claims: Claims, mend: str, trace: Trace) -> None:
    found = [event for event in claims.events if event.register == register]
    if not expected.events or not found:
        return
    for difference in differences(expected.events, found):
        trace.check(
            Stage.MEASUREMENT,
            f"{title(register)}: event {difference.position} was {difference.kind}",
            False,
            expected=difference.expected,
            found=difference.found,
            mend=mend,
        )
