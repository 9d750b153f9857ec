# SPDX-License-Identifier: Apache-2.0
"""A draft of an image from one genuine piece of evidence, for its owner to read, edit and approve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from broker.appraisal.image_text import events, head, start_locality, string
from broker.appraisal.image_tpm import MAX_EVENTS, MAX_TYPE_CHARS, MAX_WHAT_CHARS
from broker.appraisal.images import MAX_IMAGE_CHARS, parse_image
from broker.appraisal.registers import PURPOSES, ExpectedEvent, title
from broker.claims import Claims
from keys.errors import ProtocolError
from keys.tee import Tee

_TCB = "reported_tcb_"


CAPPED_PCR = 15  # which `roomkey-agent cap` extends


def enrol_image(
    claims: Claims,
    pcrs: Iterable[int] = (),
    *,
    bank: str = "sha256",
    description: str = "",
    once_per_boot: bool = False,
) -> str:
    """TOML of an image that accepts exactly this evidence: of a platform with a TPM its `pcrs`, of SEV-SNP the launch
    digest, and HOST_DATA where the host gave any. What could be demanded besides is there as comments.

    With `once_per_boot` PCR 15 must be zero, whatever it was in the evidence, which may come from a running system.
    Where the evidence's log leads to a PCR's value, its events are written too, so that a later difference can be
    named. Raises ProtocolError for a PCR that the evidence lacks or that no image may name, and for a platform whose
    evidence is not enrolled.
    """
    first = head(claims.tee, description)
    if once_per_boot:
        claims, pcrs = _uncapped(claims, bank), [*pcrs, CAPPED_PCR]
    match claims.tee:
        case Tee.TPM:
            lines, sequences = _tpm(claims, pcrs, bank)
        case Tee.SNP:
            lines, sequences = _snp(claims), []
        case Tee.AZ_SNP_VTPM:
            lines, sequences = _tpm(claims, pcrs, bank)[0] + _snp(claims), []
        case _:
            raise ProtocolError("no image can be drafted from evidence of this platform", found=str(claims.tee))
    text = "\n".join(first + lines + sequences) + "\n"
    if len(text) > MAX_IMAGE_CHARS:
        text = "\n".join(first + lines) + "\n"
    parse_image(text)
    return text


def _uncapped(claims: Claims, bank: str) -> Claims:
    """The evidence as it was before PCR 15 was extended."""
    register = f"{bank}:{CAPPED_PCR}"
    known = claims.measurements.get(register, "")
    return replace(
        claims,
        measurements={**claims.measurements, register: "0" * len(known)} if known else claims.measurements,
        events=tuple(event for event in claims.events if event.register != register),
    )


def logged_events(claims: Claims, register: str) -> tuple[ExpectedEvent, ...]:
    """The evidence's events of a register in the form that an image holds them in."""
    return tuple(
        ExpectedEvent(event.digest, event.type[:MAX_TYPE_CHARS], event.what[:MAX_WHAT_CHARS])
        for event in claims.events
        if event.register == register
    )


def _tpm(claims: Claims, pcrs: Iterable[int], bank: str) -> tuple[list[str], list[str]]:
    """The lines of [tpm] with its values, and those of the events."""
    lines = ["", "[tpm]", f"bank = {string(bank)}", "", "[tpm.pcrs]"]
    logged: list[str] = []
    for index in sorted(set(pcrs)):
        value = claims.measurements.get(f"{bank}:{index}")
        if value is None:
            raise ProtocolError(f"the evidence has no PCR {index} in bank {bank}", mend="quote it, or leave it out")
        lines.append(f"{index} = {string(value)}  # {PURPOSES[index]}")
        steps = logged_events(claims, f"{bank}:{index}")
        locality = start_locality(bank, index, [step.digest for step in steps], value)
        if 1 <= len(steps) <= MAX_EVENTS and locality is not None:
            logged += events(index, locality, steps)
    return lines, logged


def _snp(claims: Claims) -> list[str]:
    """The lines of [snp], with HOST_DATA where it is not zero: it may be the digest of the guest's configuration."""
    facts, values = claims.facts, claims.measurements
    lines = ["", "[snp]", _register("measurement", values["measurement"])]
    if values["host_data"].strip("0"):
        lines.append(_register("host_data", values["host_data"]))
    lines += [
        f"# {_register(name, values[name])}; instead of the measurement: every image that it signs"
        for name in ("id_key_digest", "author_key_digest")
        if values[name].strip("0")
    ]
    product = facts["product"]
    tcb = " ".join(f"{name.removeprefix(_TCB)}={value}" for name, value in facts.items() if name.startswith(_TCB))
    lines += [
        "",
        "# What this machine shows and the image could demand, beside what the broker's operator does:",
        "# [snp.floors]",
        f"# products = [{string(str(product))}]",
        f"# min_reported_tcb = [{string(f'{product} {tcb}')}]",
    ]
    if facts["guest_svn"]:
        lines.append(f"# min_guest_svn = {facts['guest_svn']}")
    return lines


def _register(name: str, value: str) -> str:
    return f"{name} = {string(value)}  # {title(name)}"
