# SPDX-License-Identifier: Apache-2.0
"""What the broker's decisions stand on, gathered once at start-up and handed to each of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.claims import Trusted
from broker.dossiers import Dossiers
from broker.signing import Signer
from broker.store.protocols import Store
from broker.tokens import TokenSigner
from broker.verifiers.sev_certificates import Ca
from keys.custody import Custody
from keys.tee import Tee

if TYPE_CHECKING:
    from broker.endorsements.service import EndorsementService

MAX_CHALLENGE_LIFETIME_MS = 300_000  # milliseconds; the protocol's five minutes


def now_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Services:
    """`trusted`: what the operator trusts and demands on each platform; `sev_cas`: the AMD keys that SEV's platforms
    lead to. `audience` is what owners' requests must name. Without `endorsements` nothing is looked up: there is only
    what guests bring. `tokens` sign what third parties read, `signer` what agents and owners do. `dossiers` keep
    the evidence behind decisions.

    `clock` and `random` are read at the edge only; everything further in takes a time and gets its randomness handed.
    """

    store: Store
    custody: Custody = field(repr=False)
    tokens: TokenSigner = field(repr=False)
    signer: Signer
    dossiers: Dossiers
    audience: str
    trusted: Mapping[Tee, Trusted] = field(default_factory=dict)
    sev_cas: tuple[Ca, ...] = ()
    endorsements: EndorsementService | None = None
    challenge_lifetime_ms: int = MAX_CHALLENGE_LIFETIME_MS
    clock: Callable[[], int] = now_ms
    random: Callable[[int], bytes] = field(default=os.urandom, repr=False)
