# SPDX-License-Identifier: Apache-2.0
"""What is known of a vendor's endorsement (RFC 9334) once it was verified."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Genuine:
    """`data` is its one form for the store, DER. `number` grows from issue to issue (a revocation list's); 0 where
    issues are all alike. `next_update` is when its issuer promises the next one, None where nothing is promised.
    """

    data: bytes
    number: int = 0
    next_update: datetime | None = None
