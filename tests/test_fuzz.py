# SPDX-License-Identifier: Apache-2.0
"""The targets of `make fuzz` start from inputs that their readers take, to begin behind the first check."""

from __future__ import annotations

import pytest

from fuzz.targets import TARGETS
from keys.errors import RoomkeyError
from tests.vectors import needs_vectors

# Whole verifiers: no recorded evidence answers a challenge of ours.
NEVER_TAKEN = {"snp-evidence", "azure-evidence"}


@needs_vectors
@pytest.mark.parametrize("name", TARGETS)
def test_targets_take_their_seeds(name: str) -> None:
    """Every target has seeds of the size that it fuzzes, takes some, and refuses others with our errors only."""
    target = TARGETS[name]
    seeds, taken = target.seeds(), 0
    assert seeds
    assert max(len(seed) for seed in seeds) <= target.max_bytes
    for seed in (*seeds, b"", b"\0", b"{}", seeds[0][:-1]):
        try:
            target.read(seed)
            taken += 1
        except RoomkeyError:
            continue
    assert taken or name in NEVER_TAKEN
