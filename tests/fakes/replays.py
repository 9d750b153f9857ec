# SPDX-License-Identifier: Apache-2.0
"""Every decision that a test has made can be judged again from its bundle, and comes out the same."""

from __future__ import annotations

import json

from broker import ledger
from broker.bundle import export
from broker.replay import Replay, replay
from broker.services import Services
from broker.store.protocols import LedgerEntry, RecordKind
from keys.envelope import Keys, load_keys
from keys.errors import NotFound

MOST = 60  # decisions of one owner
A_FAULT_OF_OUR_OWN = "the broker failed while judging"  # tests break the broker to see it; nothing repeats that


def broker_keys(services: Services) -> Keys:
    return load_keys(json.dumps(services.signer.jwks()).encode())


def replayed(entry: LedgerEntry, services: Services) -> Replay:
    return replay(export(entry, services), broker_keys(services))


def check_replays(services: Services) -> None:
    owners = ["", *(record.name for record in services.store.records(RecordKind.OWNER, ""))]
    for owner in owners:
        for entry in services.store.entries(owner, kinds=(ledger.ATTEST, ledger.RELEASE), limit=MOST):
            checks = entry.body.get("trace")  # made-up lines of tests about the ledger have none
            if checks is None or any(check["name"] == A_FAULT_OF_OUR_OWN for check in checks):
                continue
            try:
                again = replayed(entry, services)
            except NotFound:  # nothing is kept of SEV's platforms, and of what belongs to nobody
                continue
            assert not again.differences
            assert again.trace.to_json() == entry.body["trace"]
