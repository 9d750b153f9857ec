# SPDX-License-Identifier: Apache-2.0
"""May this guest have this key? RFC 9334: appraisal of claims against reference values, and the owner's rule. Pure.

Every check is made and recorded, also after one has failed, so that an owner sees all that differs at once:

 (1) the session asks for the key that it announced; the key exists; it has a release rule
 (2) the rule names the platform
 (3) the guest: `broker.appraisal.identity`
 (4) the measurements: `broker.appraisal.measured`
 (5) who was enrolled for one image runs that one
 (6) nothing of it is distrusted: `broker.appraisal.distrust`
 (7) the machine's clock has not gone back: `broker.appraisal.clock`
 (8) where the rule forbids clones: no other release to the same guest is live
 (9) a trace that came with a failed check leads to no key, whatever appraisal says

What is not allowed is denied: there is no third verdict. Besides, a decision may change where the guest stands (`Act`);
whoever asked for the judgement carries that out.
"""

from __future__ import annotations

from typing import NamedTuple

from broker.appraisal.case import Case
from broker.appraisal.clock import clock_not_behind
from broker.appraisal.distrust import check_distrust
from broker.appraisal.identity import Act, Identity, check_guest, means, stranger_name
from broker.appraisal.image_life import when
from broker.appraisal.instances import Standing
from broker.appraisal.measured import check_images
from broker.appraisal.rules import Rule
from broker.trace import Stage, Trace

ACTIVE_KEY = "active"


class Judged(NamedTuple):
    """`image`: the image that fits and counts, as name@version. `names`: under which the owner knows the guest, of
    those that the rule allows. `steady`: its clock has not gone back. `act` is about the guest called `guest`.
    """

    allowed: bool
    image: str | None = None
    names: tuple[str, ...] = ()
    steady: bool = True
    act: Act = Act.NOTHING
    guest: str = ""


def judge(case: Case, trace: Trace) -> Judged:
    """The judgement of `case`, each check (1) to (9) in `trace`, which goes on where the verifier left off."""
    sound = not trace.failed  # (9)
    wanted = _check_wanted(case, trace)  # (1)
    if case.rule is None:
        return Judged(False)
    platform = _check_platform(case, case.rule, trace)  # (2)
    identity = check_guest(case, case.rule, trace)  # (3)
    image = check_images(case, case.rule, trace)  # (4)
    bound = _check_bound_image(case, identity, image, trace)  # (5)
    trusted = check_distrust(case.distrusted, case.claims, image, trace)  # (6)
    steady = clock_not_behind(case.clock, case.claims, case.challenged_at, trace)  # (7)
    alone = _check_alone(case, case.rule, trace)  # (8)
    fit = sound and wanted and platform and image is not None and bound and trusted and steady
    unfit = sound and (image is None or not steady)
    act, guest = _act(case, case.rule, identity, fit=fit, unfit=unfit, alone=alone)
    return Judged(fit and identity.admitted and alone, image, identity.names, steady, act, guest)


def admits(case: Case, trace: Trace) -> bool:
    """Checks (1) to (3) and (6), all that can be said before a guest is measured."""
    wanted = _check_wanted(case, trace)
    if case.rule is None:
        return False
    platform = _check_platform(case, case.rule, trace)
    identity = check_guest(case, case.rule, trace)
    trusted = check_distrust(case.distrusted, case.claims, None, trace)
    # Who is not enrolled yet cannot become so here: an enrolment belongs to a guest that was measured.
    return wanted and platform and trusted and identity.admitted and identity.act is Act.NOTHING


def not_judged(trace: Trace) -> None:
    """Say that all this was not judged, because there is no genuine evidence that it could be judged on."""
    for stage, name in (
        (Stage.TRUST, "release rule"),
        (Stage.IDENTITY, "guest is one that the rule names"),
        (Stage.MEASUREMENT, "measurements are those of an image of the rule"),
    ):
        trace.not_judged(stage, name)


def _check_wanted(case: Case, trace: Trace) -> bool:
    """Check (1)."""
    path = case.path
    ours = trace.check(
        Stage.SECRET,
        "session asks for the key that it announced",
        case.announced is None or case.announced == str(path),
        expected="the key named when the challenge was asked for",
        found=path,
        mend="let the guest attest again for this key",
    )
    exists = trace.check(
        Stage.SECRET,
        "key exists",
        case.key is not None and case.key[1] == ACTIVE_KEY,
        expected=path,
        found="no such key" if case.key is None else case.key[1],
        mend=f"roomkey key put {path} or roomkey key generate {path}",
    )
    ruled = trace.check(
        Stage.TRUST,
        "key has a release rule",
        case.rule is not None,
        expected="a rule; without one nobody gets the key",
        mend=f"roomkey rule set {path} --image NAME --platform tpm --instance NAME",
    )
    return ours and exists and ruled


def _check_platform(case: Case, rule: Rule, trace: Trace) -> bool:
    """Check (2)."""
    return trace.check(
        Stage.TRUST,
        "release rule names the platform",
        case.claims.tee in rule.platforms,
        expected=", ".join(rule.platforms),
        found=case.claims.tee,
        mend=f"roomkey rule set {case.path} --platform {case.claims.tee} ...",
    )


def _check_bound_image(case: Case, identity: Identity, image: str | None, trace: Trace) -> bool:
    """Check (5), for who is enrolled and for who would be by the ticket."""
    bounds = {guest.name: guest.bound.image for guest in case.guests if guest.bound is not None}
    if identity.act is Act.REDEEM and case.ticket is not None:
        bounds[case.ticket.name] = case.ticket.image
    good = True
    for name, named in bounds.items():
        good &= trace.check(
            Stage.IDENTITY,
            f"guest {name} runs the image that it was enrolled for",
            image is not None and means(named, image),
            expected=named,
            found=image or "none of the rule's images",
            mend=f"enrol it for another: roomkey guest ticket {name} --key {case.path} --image IMAGE",
        )
    return good


def _check_alone(case: Case, rule: Rule, trace: Trace) -> bool:
    """Check (8). Another session of the same guest cannot be told from a clone of it, so it waits too."""
    name = "no other release to the same guest is live"
    if rule.clones == "allow":
        trace.not_required(Stage.IDENTITY, name)
        return True
    live = case.lease is not None and case.lease.until > case.at and case.lease.holder != case.session
    return trace.check(
        Stage.IDENTITY,
        name,
        not live,
        expected="none",
        found="" if case.lease is None else f"one to another session, until {when(case.lease.until)}",
        mend="a clone, or the same guest again too soon: it may come again then, or at once after "
        f"roomkey guest readmit {case.guests[0].name if case.guests else 'NAME'}",
    )


def _act(case: Case, rule: Rule, identity: Identity, *, fit: bool, unfit: bool, alone: bool) -> tuple[Act, str]:
    """What becomes of the guest. `fit`: all but who it is was all right; `unfit`: what it runs was not."""
    enrolled = next((guest.name for guest in case.guests if guest.standing is Standing.ENROLLED), "")
    if not alone and rule.clones == "quarantine" and enrolled:
        return Act.QUARANTINE, enrolled
    if unfit and rule.sticky_failure and enrolled:
        return Act.FAIL, enrolled
    if not fit or not alone or identity.act is Act.NOTHING:
        return Act.NOTHING, ""
    if identity.act is Act.QUEUE:
        return Act.QUEUE, stranger_name(case.claims)
    return (identity.act, identity.names[0]) if identity.admitted else (Act.NOTHING, "")
