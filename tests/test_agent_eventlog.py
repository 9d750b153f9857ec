# SPDX-License-Identifier: Apache-2.0
"""Replaying an event log for `doctor`."""

from __future__ import annotations

import contextlib
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.eventlog import replay
from agent.tpm2_marshal import ALG_SHA1, ALG_SHA256, ALG_SHA384
from keys.errors import AttesterError
from tests.fakes.boot import EV_NO_ACTION, Boot, Event, event_log, pcr_values
from tests.vectors import VECTORS, needs_vectors

BOOT = Boot()
LOG = event_log(BOOT.events())
HEADER = len(event_log([]))
LOCALITY = Event(0, EV_NO_ACTION, b"", b"StartupLocality\0\3")


@pytest.mark.parametrize(("bank", "name"), [(ALG_SHA256, "sha256"), (ALG_SHA384, "sha384")])
def test_a_log_leads_to_the_values(bank: int, name: str) -> None:
    """Each bank is replayed by its own digests."""
    assert replay(LOG, bank) == pcr_values(BOOT.events(), name)


def test_a_startup_locality_is_where_pcr_0_begins() -> None:
    """A StartupLocality event sets PCR 0, other events of no action nothing."""
    other = Event(3, EV_NO_ACTION, b"", b"anything")
    assert replay(event_log([LOCALITY, other]), ALG_SHA256) == {0: bytes(31) + b"\3"}


@pytest.mark.parametrize("size", [0, 10, 31, HEADER - 1, HEADER + 3, len(LOG) - 1])
def test_a_log_that_ends_early_is_refused(size: int) -> None:
    """A log that is cut anywhere but between events is an AttesterError."""
    with pytest.raises(AttesterError, match="ends in the middle"):
        replay(LOG[:size], ALG_SHA256)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (LOG.replace(b"Spec ID Event03", b"Spec ID Event02"), "not a crypto-agile"),
        (event_log(BOOT.events(), ("sha384",)), "no sha256 digests"),
        (event_log([]) + struct.pack("<III", 0, 4, 1) + b"\xff\xff", "does not announce"),
        (event_log([]) + struct.pack("<III", 0, 4, 99), "too many"),
        (event_log([]) + struct.pack("<III", 0, 4, 0) + bytes(4), "without a digest or a PCR"),
        (event_log([Event(24, 4, b"", b"")]), "without a digest or a PCR"),
    ],
)
def test_a_malformed_log_is_refused(log: bytes, words: str) -> None:
    """Unknown headers, unannounced digests, impossible counts and PCRs are AttesterErrors."""
    with pytest.raises(AttesterError, match=words):
        replay(log, ALG_SHA256)


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: LOG[: HEADER + 60] + tail))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_replay_fail_otherwise(data: bytes) -> None:
    """Arbitrary bytes give values or an AttesterError."""
    with contextlib.suppress(AttesterError):
        replay(data, ALG_SHA1)


@needs_vectors
def test_recorded_logs_lead_to_their_values() -> None:
    """The logs of real machines replay to the values that those machines showed."""
    entries = json.loads((VECTORS / "tpm" / "manifest.json").read_bytes())
    replayed = 0
    for entry in entries:
        claimed = entry.get("claims", {}).get("pcrs", {}).get("sha256")
        if entry.get("kind") == "eventlog" and entry["expect"] == "valid" and claimed:
            log = (VECTORS / "tpm" / entry["files"]["eventlog"]).read_bytes()
            values = {str(pcr): value.hex() for pcr, value in replay(log, ALG_SHA256).items()}
            assert values.items() <= claimed.items(), entry["name"]
            replayed += 1
    assert replayed > 10
