# SPDX-License-Identifier: Apache-2.0
"""A draft of an image from one genuine piece of evidence, for its owner to read, edit and approve."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from broker.appraisal.images import (
    BANKS,
    LOCALITIES,
    MAX_EVENTS,
    MAX_IMAGE_CHARS,
    MAX_WHAT_CHARS,
    PURPOSES,
    parse_image,
    replay,
)
from broker.claims import Claims, LoggedEvent
from keys.errors import ProtocolError
from keys.tee import Tee


def enrol_image(claims: Claims, pcrs: Iterable[int], *, bank: str = "sha256", description: str = "") -> str:
    """TOML of an image that accepts exactly the `pcrs` of this evidence.

    Where the evidence's log leads to a PCR's value, its events are written too, so that a later difference can be
    named. Raises ProtocolError for a PCR that the evidence lacks or that no image may name.
    """
    lines = [f'platform = "{Tee.TPM}"', f"description = {_string(description)}", "", "[tpm]", f"bank = {_string(bank)}"]
    chosen = sorted(set(pcrs))
    lines += ["", "[tpm.pcrs]"]
    logged = []
    for index in chosen:
        value = claims.measurements.get(f"{bank}:{index}")
        if value is None:
            raise ProtocolError(f"the evidence has no PCR {index} in bank {bank}", mend="quote it, or leave it out")
        lines.append(f"{index} = {_string(value)}  # {PURPOSES[index]}")
        events = [event for event in claims.events if event.register == f"{bank}:{index}"]
        logged += _events(bank, index, value, events)
    text = "\n".join(lines + logged) + "\n"
    if len(text) > MAX_IMAGE_CHARS:
        text = "\n".join(lines) + "\n"
    parse_image(text)
    return text


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
