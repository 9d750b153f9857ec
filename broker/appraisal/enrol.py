# SPDX-License-Identifier: Apache-2.0
"""A draft of an image from one genuine piece of evidence, for its owner to read, edit and approve."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from broker.appraisal.image_tpm import BANKS, LOCALITIES, MAX_EVENTS, MAX_WHAT_CHARS, replay
from broker.appraisal.images import MAX_IMAGE_CHARS, parse_image
from broker.appraisal.registers import PURPOSES, title
from broker.claims import Claims, LoggedEvent
from keys.errors import ProtocolError
from keys.tee import Tee

_TCB = "reported_tcb_"


def enrol_image(claims: Claims, pcrs: Iterable[int] = (), *, bank: str = "sha256", description: str = "") -> str:
    """TOML of an image that accepts exactly this evidence: of a platform with a TPM its `pcrs`, of SEV-SNP the launch
    digest, and HOST_DATA where the host gave any. What could be demanded besides is there as comments.

    Where the evidence's log leads to a PCR's value, its events are written too, so that a later difference can be
    named. Raises ProtocolError for a PCR that the evidence lacks or that no image may name, and for a platform whose
    evidence is not enrolled.
    """
    head = [f'platform = "{claims.tee}"', f"description = {_string(description)}"]
    match claims.tee:
        case Tee.TPM:
            lines, events = _tpm(claims, pcrs, bank)
        case Tee.SNP:
            lines, events = _snp(claims), []
        case Tee.AZ_SNP_VTPM:
            lines, events = _tpm(claims, pcrs, bank)[0] + _snp(claims), []
        case _:
            raise ProtocolError("no image can be drafted from evidence of this platform", found=str(claims.tee))
    text = "\n".join(head + lines + events) + "\n"
    if len(text) > MAX_IMAGE_CHARS:
        text = "\n".join(head + lines) + "\n"
    parse_image(text)
    return text


def _tpm(claims: Claims, pcrs: Iterable[int], bank: str) -> tuple[list[str], list[str]]:
    """The lines of [tpm] with its values, and those of the events."""
    lines = ["", "[tpm]", f"bank = {_string(bank)}", "", "[tpm.pcrs]"]
    logged = []
    for index in sorted(set(pcrs)):
        value = claims.measurements.get(f"{bank}:{index}")
        if value is None:
            raise ProtocolError(f"the evidence has no PCR {index} in bank {bank}", mend="quote it, or leave it out")
        lines.append(f"{index} = {_string(value)}  # {PURPOSES[index]}")
        events = [event for event in claims.events if event.register == f"{bank}:{index}"]
        logged += _events(bank, index, value, events)
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
        f"# products = [{_string(str(product))}]",
        f"# min_reported_tcb = [{_string(f'{product} {tcb}')}]",
    ]
    if facts["guest_svn"]:
        lines.append(f"# min_guest_svn = {facts['guest_svn']}")
    return lines


def _register(name: str, value: str) -> str:
    return f"{name} = {_string(value)}  # {title(name)}"


def _events(bank: str, index: int, value: str, events: Sequence[LoggedEvent]) -> list[str]:
    """The lines of one [[tpm.events]], or none where the log does not lead to the value."""
    if bank not in BANKS or not 1 <= len(events) <= MAX_EVENTS:
        return []
    digests = [event.digest for event in events]
    localities = LOCALITIES if index == 0 else LOCALITIES[:1]
    locality = next((start for start in localities if replay(bank, digests, start) == value), None)
    if locality is None:
        return []
    head = ["", "[[tpm.events]]", f"pcr = {index}"] + ([f"start_locality = {locality}"] if locality else [])
    return [*head, "digests = [", *(_event(event) for event in events), "]"]


def _event(event: LoggedEvent) -> str:
    what = event.what[:MAX_WHAT_CHARS]
    return f"  {{ digest = {_string(event.digest)}, type = {_string(event.type[:64])}, what = {_string(what)} }},"


def _string(text: str) -> str:
    """A TOML basic string. JSON's escapes are TOML's, except that TOML wants DEL escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
