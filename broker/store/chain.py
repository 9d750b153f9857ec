# SPDX-License-Identifier: Apache-2.0
"""The ledger's hash chain: a line that was changed, removed or put between others no longer fits.

It shows tampering only to somebody who kept a later hash: whoever can write the store can also chain it anew.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from broker.store.protocols import LedgerEntry
from keys.errors import VerificationError

GENESIS = "0" * 64  # the hash before the first line


def canonical(value: object) -> bytes:
    """What `keys.strictjson.canonical` gives, at an eighth of its cost: every release writes a whole trace."""
    return msgspec.json.encode(value, order="sorted")


def chained(entry: LedgerEntry, previous: str, body: bytes) -> str:
    """The hash of `entry`, whose own `hash` is not looked at. `body` is its body as canonical JSON.

    SHA-256 over the 32 bytes of `previous`, the canonical JSON of everything but the body, and `body`. Each part ends
    where its own grammar says, so no two contents give the same bytes.
    """
    head = {
        "at": entry.at,
        "id": entry.id,
        "kind": entry.kind,
        "owner": entry.owner,
        "sequence": entry.sequence,
        "subject": entry.subject,
        "verdict": entry.verdict,
    }
    return hashlib.sha256(bytes.fromhex(previous) + canonical(head) + body).hexdigest()


@dataclass(slots=True)
class ChainCheck:
    """Walks the ledger from its first line on. `lines` were right so far."""

    lines: int = 0
    last: str = GENESIS

    def follow(self, entry: LedgerEntry) -> None:
        """Raises VerificationError unless `entry` is the next line."""
        if entry.sequence != self.lines + 1:
            raise VerificationError(
                "the ledger lacks a line", expected=f"line {self.lines + 1}", found=f"line {entry.sequence}"
            )
        if chained(entry, self.last, canonical(entry.body)) != entry.hash:
            raise VerificationError("a line of the ledger was changed", found=f"line {entry.sequence}, {entry.id}")
        self.lines, self.last = entry.sequence, entry.hash
