# SPDX-License-Identifier: Apache-2.0
"""Whose guest is it? The machine's ids against those that the key's owner enrolled, and where each stands. Pure.

 (1) no machine of the owner's that shares an id with it stands otherwise than enrolled; with "any" neither
 (2) whoever was enrolled for one key, or with one init-data, counts for nothing else
 (3) the rule names the machine, or means all that are enrolled, or means any that a configured vendor vouches for
 (4) who is not known may be enrolled by this very request: by a ticket that its owner issued for this key, or because
     the rule says `unsafe_first_use`. Otherwise, where the rule means all that are enrolled, it waits for its owner

Some genuine machines count only where a rule names them, never as "any": those of a line whose secrets got out, so that
somebody with one such chip can forge reports, but only of that chip (`vcek-named`, `vlek-named`; EPYC Milan, arXiv
2605.12990); and SEV before SNP, whose firmware vouches for itself (`sev-cek`).
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from broker.appraisal.case import Case, KnownGuest
from broker.appraisal.image_life import when
from broker.appraisal.instances import Standing
from broker.appraisal.rules import ANY, ENROLLED, Rule
from broker.claims import Claims
from broker.trace import Stage, Trace
from keys.tee import Tee

# By what an identity must be trusted to count as "any", by platform. A platform that is not here has no "any".
TRUSTED_BY_VENDOR: Mapping[Tee, tuple[str, ...]] = {
    Tee.TPM: ("ek-certificate",),
    Tee.SNP: ("vcek", "vlek"),
    Tee.AZ_SNP_VTPM: ("vcek", "vlek"),
}

_MEND = {
    Standing.PENDING: "if the machine is yours: roomkey guest approve {name}",
    Standing.DENIED: "if it may come after all: roomkey guest approve {name}",
    Standing.REVOKED: "if you trust it again: roomkey guest readmit {name}",
    Standing.QUARANTINED: "find out which of the two is yours, then: roomkey guest readmit {name}",
    Standing.FAILED: "find out what it ran, then: roomkey guest readmit {name}",
}


class Act(StrEnum):
    """What becomes of a guest with the decision."""

    NOTHING = ""
    REDEEM = "redeem"  # enrol it by its ticket
    FIRST_USE = "first use"  # enrol it because the rule says so
    QUEUE = "queue"  # let it wait for its owner
    FAIL = "fail"  # it failed, and stays failed
    QUARANTINE = "quarantine"  # it was seen twice


class Identity(NamedTuple):
    """`names`: under which the owner knows the guest, of those that the rule allows. `act`: what would enrol it."""

    admitted: bool
    names: tuple[str, ...]
    act: Act = Act.NOTHING


def check_guest(case: Case, rule: Rule, trace: Trace) -> Identity:
    """Checks (1) to (4), each in `trace`."""
    in_order = True
    for guest in case.guests:
        in_order &= _check_standing(guest, trace)
        in_order &= _check_bound(guest, case, trace)
    known = tuple(guest.name for guest in case.guests)
    if rule.instances == (ANY,):
        vouched = _check_vendor(case, known, trace)
        return Identity(vouched and in_order, known)
    named = tuple(name for name in known if rule.instances == (ENROLLED,) or name in rule.instances)
    if not known:
        return _check_stranger(case, rule, trace)
    admitted = trace.check(
        Stage.IDENTITY,
        "release rule names the instance",
        bool(named),
        expected=", ".join(rule.instances),
        found=", ".join(known),
        mend=f"if it may have this key: roomkey rule set {case.path} --instance {known[0]} ...",
    )
    return Identity(admitted and in_order, named)


def trusted_by_vendor(claims: Claims) -> bool:
    """Whether the platform's vendor vouches for the machine, and nothing is known that lets others do so too."""
    return claims.trust in TRUSTED_BY_VENDOR.get(claims.tee, ())


def stranger_name(claims: Claims) -> str:
    """What a guest is called that nobody has named yet: the same one always the same."""
    return f"g-{hashlib.sha256(claims.instance_ids[0].encode()).hexdigest()[:12]}"


def means(named: str, image: str) -> bool:
    """Whether `named`, NAME or NAME@VERSION, means `image` (name@version)."""
    return named in {image, image.partition("@")[0]}


def _check_standing(guest: KnownGuest, trace: Trace) -> bool:
    """Check (1)."""
    found = f"{guest.standing} since {when(guest.since)}, by {guest.who}"
    return trace.check(
        Stage.IDENTITY,
        f"guest {guest.name} is enrolled",
        guest.standing is Standing.ENROLLED,
        expected=Standing.ENROLLED,
        found=f"{found}: {guest.why}" if guest.why else found,
        mend=_MEND.get(guest.standing, "").format(name=guest.name),
    )


def _check_bound(guest: KnownGuest, case: Case, trace: Trace) -> bool:
    """Check (2)."""
    if guest.bound is None:
        return True
    again = f"enrol it for more: roomkey instance add {guest.name} {_known_by(case.claims)}"
    good = trace.check(
        Stage.IDENTITY,
        f"guest {guest.name} was enrolled for this key",
        guest.bound.key == str(case.path),
        expected=guest.bound.key,
        found=case.path,
        mend=again,
    )
    if guest.bound.init_data is not None:
        good &= trace.check(
            Stage.IDENTITY,
            f"guest {guest.name} came with the init-data that it was enrolled with",
            guest.bound.init_data == case.claims.init_data,
            expected=guest.bound.init_data,
            found=case.claims.init_data or "none",
            mend=again,
        )
    return good


def _check_vendor(case: Case, known: tuple[str, ...], trace: Trace) -> bool:
    claims = case.claims
    return trace.check(
        Stage.IDENTITY,
        "a configured vendor vouches for the hardware",
        trusted_by_vendor(claims),
        expected=" or ".join(TRUSTED_BY_VENDOR.get(claims.tee, ())) or "a name: on this platform `any` means nobody",
        found=_trust_words(claims),
        mend=_naming(case, known),
    )


def _check_stranger(case: Case, rule: Rule, trace: Trace) -> Identity:
    """Check (4)."""
    ticket, everyone = case.ticket, rule.instances == (ENROLLED,)
    if ticket is not None:
        good = trace.check(
            Stage.IDENTITY,
            "ticket is good, and for this key",
            ticket.state == "good" and ticket.key == str(case.path),
            expected=f"an unused ticket for {case.path}",
            found=ticket.state if ticket.state != "good" else f"for {ticket.key}",
            mend=f"issue a new one: roomkey guest ticket NAME --key {case.path} --image IMAGE",
        )
        named = trace.check(
            Stage.IDENTITY,
            "release rule names the instance",
            everyone or ticket.name in rule.instances,
            expected=", ".join(rule.instances),
            found=f"{ticket.name or 'nobody'}, by the ticket",
            mend=f"if it may have this key: roomkey rule set {case.path} --instance {ticket.name or 'NAME'} ...",
        )
        return Identity(True, (ticket.name,), Act.REDEEM) if good and named else Identity(False, ())
    name = stranger_name(case.claims)
    if rule.unsafe_first_use:
        trace.check(Stage.IDENTITY, "UNSAFE: the rule enrols whoever comes first", True, found=f"enrolled as {name}")
        return Identity(True, (name,), Act.FIRST_USE)
    mend = f"if the machine is yours: roomkey instance add NAME {_known_by(case.claims)}"
    trace.check(
        Stage.IDENTITY,
        "release rule names the instance",
        False,
        expected=", ".join(rule.instances),
        found=f"not enrolled by the key's owner: {case.claims.instance_ids[0]}",
        mend=f"if the machine is yours: roomkey guest approve {name}"
        if everyone
        else f"{mend}, then roomkey rule set {case.path} ...",
    )
    return Identity(False, (), Act.QUEUE if everyone else Act.NOTHING)


def _trust_words(claims: Claims) -> str:
    if claims.trust.endswith("-named"):
        line = claims.facts.get("product", "this product line")
        return f"{claims.trust}: genuine, but others may hold keys of {line} machines, so they count only by name"
    return claims.trust


def _naming(case: Case, known: tuple[str, ...]) -> str:
    """How an owner lets this very machine in."""
    claims = case.claims
    rule = f"name the instance in the rule: roomkey rule set {case.path} --instance {known[0] if known else 'NAME'} ..."
    if claims.trust.endswith("-named"):
        rule += "; or have the operator take the line out of snp.named_only"
    return rule if known else f"roomkey instance add NAME {_known_by(claims)}; and {rule}"


def _known_by(claims: Claims) -> str:
    """The option of `roomkey instance add` for this machine."""
    kind, _, value = claims.instance_ids[0].partition(":")
    return {
        "snp-chip": f"--chip-id {value}",
        "snp-csp": f"--csp-id {shlex.quote(value)}",  # free text, and an owner pastes it
        "sev-cek": "--sev-cek FILE",
    }.get(kind, "--from EVIDENCE")
