# SPDX-License-Identifier: Apache-2.0
"""The lines that the broker writes about its decisions and that owners read.

    kind       verdict             subject                            written by
    attest     genuine, refused    instance id, "" where none          broker.attestation, broker.sev_launches
    release    released, denied    instance id                         broker.release
    readmit    readmitted          instance id                         `readmit`, at an owner's word
    change     created, ...        what was changed                    the owner interface

A line is durable before anything follows from it. No line holds a secret; an owner sees no other owner's lines.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Sequence
from typing import Any

from broker.claims import Claims
from broker.services import Services
from broker.store.protocols import LedgerEntry

ID_BYTES = 13  # random bytes of an id, of which 100 bits are used
ID_CHARS = 20

ATTEST = "attest"
RELEASE = "release"
READMIT = "readmit"
CHANGE = "change"

_log = logging.getLogger("roomkey.decision")


def new_id(random: Callable[[int], bytes]) -> str:
    """A decision's id: "d-" and 20 characters that tell nothing and cannot be guessed."""
    return "d-" + base64.b32encode(random(ID_BYTES)).decode("ascii")[:ID_CHARS].lower()


def record(
    services: Services,
    *,
    id_: str,
    owner: str,
    at: int,
    kind: str,
    verdict: str,
    subject: str,
    body: dict[str, Any],
) -> LedgerEntry:
    """Append one line, durably, and say so in the log. Raises Unavailable; nothing may then be released."""
    entry = services.store.append(id_=id_, owner=owner, at=at, kind=kind, verdict=verdict, subject=subject, body=body)
    _log.info("%s %s %s owner=%s", kind, id_, verdict, owner or "-")
    return entry


def claims_summary(claims: Claims) -> dict[str, Any]:
    """What a line keeps of verified claims: all but the event log, which the trace quotes where it matters."""
    return {name: value for name, value in claims.to_json().items() if name != "events"}


def readmit(services: Services, *, owner: str, ids: Sequence[str], who: str, why: str, now: int) -> None:
    """Forget what clock the guests with these instance ids last showed, after an owner has looked into it.

    Raises Unavailable.
    """
    for instance_id in ids:
        record(
            services,
            id_=new_id(services.random),
            owner=owner,
            at=now,
            kind=READMIT,
            verdict="readmitted",
            subject=instance_id,
            body={"who": who, "why": why, "clock": None},
        )
