# SPDX-License-Identifier: Apache-2.0
"""What if the operator's floors for SEV-SNP were others? The attempts to attest of the last days, judged again.

Each recorded attempt of a platform with a report of SEV-SNP whose evidence was genuine is judged twice by
`broker.verifiers.snp_floors`: under the floors in force and under the candidate. Evidence that was refused as not
genuine is not touched by floors. `named_only`, `masked_chip_id` and `require_crl` speak of the way to the claims, and
are not judged again. Nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from broker import ledger
from broker.requests import Requests
from broker.store.protocols import LedgerEntry, RecordKind, Store
from broker.trace import Trace
from broker.verifiers.snp_floors import Floors, check_floors
from broker.what_if import recorded_claims
from keys.tee import Tee

_SNP = frozenset((str(Tee.SNP), str(Tee.AZ_SNP_VTPM)))


class Turned(NamedTuple):
    """An attempt whose verdict would be another. `reason`: the first floor that is then not met, "" where all are."""

    owner: str
    decision: str
    at: int
    key: str
    guest: str
    reason: str


@dataclass(slots=True)
class Report:
    """`judged`: genuine attempts of SEV-SNP's platforms. `truncated`: there were more than one report looks at."""

    judged: int = 0
    refused: list[Turned] = field(default_factory=list)
    let_in: list[Turned] = field(default_factory=list)
    truncated: bool = False


def try_floors(live: Floors, candidate: Floors, store: Store, *, since: int) -> Report:
    """Whose evidence would newly be refused or taken, of all owners, since then (milliseconds). Raises Unavailable."""
    report = Report()
    for owner in ("", *(record.name for record in store.records(RecordKind.OWNER, ""))):
        attempts = Requests(owner, store, since, kind=ledger.ATTEST)
        for entry in attempts:
            if entry.body["claims"] is None or entry.body["tee"] not in _SNP:
                continue
            report.judged += 1
            before, after = _unmet(entry, live), _unmet(entry, candidate)
            if bool(before) is not bool(after):
                guest = Turned(owner, entry.id, entry.at, entry.body["key"] or "", entry.subject, after)
                (report.refused if after else report.let_in).append(guest)
        report.truncated |= attempts.truncated
    return report


def _unmet(entry: LedgerEntry, floors: Floors) -> str:
    """The first floor that the recorded claims do not meet, "" where they meet all."""
    claims, trace = recorded_claims(entry.body), Trace()
    check_floors(claims.facts, claims.measurements, floors, trace, quiet=True)
    return trace.failed[0].name if trace.failed else ""
