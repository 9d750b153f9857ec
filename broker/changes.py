# SPDX-License-Identifier: Apache-2.0
"""What an owner changes leaves a line in the owner's ledger: who, what, when, why.

The line is durable before the change, so that nothing ever changes unrecorded; a change that then fails leaves a second
line that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from broker import ledger
from broker.owners import Identity
from broker.services import Services
from broker.store.protocols import Record

FAILED = "failed"


@contextmanager
def recorded(services: Services, who: Identity, verdict: str, subject: str, *, why: str, now: int) -> Iterator[None]:
    """Around the one call that makes the change. `subject` says what is changed: "key/acme/disk/root". Raises
    Unavailable, and then nothing is changed.
    """
    _line(services, who, verdict, subject, why, now)
    try:
        yield
    except Exception:
        _line(services, who, FAILED, subject, f"{verdict}: {why}", now)
        raise


def put_record(services: Services, who: Identity, record: Record, *, why: str, aliases: Sequence[str] = ()) -> None:
    """Store the next version of one of the owner's records, with its line. Raises Conflict, Unavailable."""
    verdict = "deleted" if record.body is None else "put"
    subject = f"{record.kind}/{record.name}@{record.version}"
    with recorded(services, who, verdict, subject, why=why, now=record.created_at):
        services.store.put_record(record, aliases)


def _line(services: Services, who: Identity, verdict: str, subject: str, why: str, now: int) -> None:
    ledger.record(
        services,
        id_=ledger.new_id(services.random),
        owner=who.owner,
        at=now,
        kind=ledger.CHANGE,
        verdict=verdict,
        subject=subject,
        body={"who": who.kid, "why": why},
    )
