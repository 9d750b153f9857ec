# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.eventlog: strict parsing of both formats, and replay."""

from __future__ import annotations

import hashlib
import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.verifiers.eventlog import MAX_EVENTS, MAX_LOG_BYTES, parse_log, replay
from broker.verifiers.eventlog_rules import judge_log
from broker.verifiers.tpm_structures import BANKS, SHA1, SHA256
from keys.errors import VerificationError
from tests.fakes import boot
from tests.fakes.tcg_log import (
    IPL,
    NO_ACTION,
    Record,
    agile_log,
    agile_record,
    firmware,
    sha1_record,
    spec_id,
)
from tests.vectors import needs_vectors, vector


def sha1(data: bytes) -> bytes:
    return hashlib.new("sha1", data, usedforsecurity=False).digest()


def locality(value: bytes = b"\3", pcr: int = 0) -> Record:
    return Record(pcr, NO_ACTION, b"StartupLocality\0" + value)


def refused(data: bytes, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        parse_log(data)


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_replay_of_a_boot(bank: str) -> None:
    """The replay of a crypto-agile log reaches the values that the same boot leaves in each bank of a TPM."""
    events = boot.Boot().events()
    log = parse_log(boot.event_log(events, ("sha1", "sha256", "sha384", "sha512")))
    assert log.format == "crypto-agile"
    assert [known.name for known in log.banks] == ["sha1", "sha256", "sha384", "sha512"]
    assert len(log.events) == len(events)
    assert replay(log, BANKS[bank]) == {p: v for p, v in boot.pcr_values(events, bank).items() if any(v)}


def test_sha1_format() -> None:
    """A log without a Spec ID record has SHA-1 digests only."""
    log = parse_log(sha1_record(4, IPL, b"one") + sha1_record(4, IPL, b"two"))
    assert (log.format, log.banks, [event.data for event in log.events]) == ("sha1", (SHA1,), [b"one", b"two"])
    first = sha1(bytes(20) + sha1(b"one"))
    assert replay(log, SHA1) == {4: sha1(first + sha1(b"two"))}


def test_records_that_extend_nothing() -> None:
    """EV_NO_ACTION records are read and not replayed, also those of Windows for no PCR at all."""
    log = parse_log(agile_log([Record(0xFFFFFFFF, NO_ACTION, b"x"), Record(1, NO_ACTION, b"y"), Record(2, IPL, b"z")]))
    assert list(replay(log, SHA256)) == [2]


@pytest.mark.parametrize("value", [0, 3, 4])
def test_startup_locality(value: int) -> None:
    """PCR 0, and only PCR 0, starts at the locality that the log states."""
    log = parse_log(agile_log([Record(1, IPL, b"a"), locality(bytes((value,))), Record(0, IPL, b"b")]))
    assert log.startup_locality == value
    start = bytes(31) + bytes((value,))
    assert replay(log, SHA256)[0] == hashlib.sha256(start + hashlib.sha256(b"b").digest()).digest()
    assert replay(log, SHA256)[1] == hashlib.sha256(bytes(32) + hashlib.sha256(b"a").digest()).digest()


@pytest.mark.parametrize(
    "records",
    [
        [locality(), locality()],
        [Record(0, IPL, b"x"), locality()],
        [locality(b"\1")],
        [locality(b"")],
        [locality(b"\3\3")],
    ],
    ids=["twice", "late", "value", "short", "long"],
)
def test_startup_locality_that_firmware_does_not_write(records: list[Record]) -> None:
    """StartupLocality is there at most once, before PCR 0 is extended, with a locality that can start a TPM."""
    refused(agile_log(records), "StartupLocality")


def test_registers_of_a_dynamic_launch() -> None:
    """PCRs 17 to 22 start with all ones, their neighbours with zeros."""
    log = parse_log(agile_log([Record(pcr, IPL, b"x") for pcr in (16, 17, 22, 23)]))
    digest = hashlib.sha256(b"x").digest()
    zeros, ones = (hashlib.sha256(start + digest).digest() for start in (bytes(32), b"\xff" * 32))
    assert replay(log, SHA256) == {16: zeros, 17: ones, 22: ones, 23: zeros}


def test_digests_in_another_order() -> None:
    """The order of an event's digests may differ from the Spec ID record's; each goes to its own bank."""
    record = Record(3, IPL, b"x")
    log = parse_log(spec_id(["sha1", "sha256"]) + agile_record(record, ["sha256", "sha1"]))
    assert log.events[0].digests == (sha1(b"x"), hashlib.sha256(b"x").digest())


def test_vendor_bytes() -> None:
    """The Spec ID record may end with vendor bytes of the length that it states, and nothing more."""
    assert parse_log(spec_id(["sha256"], vendor=b"vendor")).events == ()
    plain = spec_id(["sha256"])
    refused(struct.pack("<II20sI", 0, NO_ACTION, bytes(20), len(plain) - 31) + plain[32:] + b"\0", "trailing bytes")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (spec_id(["sha256"], major=1), "version 1 and 1 banks"),
        (spec_id([]), "version 2 and 0 banks"),
        (spec_id(["sha1", "sha256", "sha384", "sha512", "sha256"]), "version 2 and 5 banks"),
        (spec_id(["sha256", "sha256"]), "listed twice"),
        (spec_id(["sha256"], sizes=struct.pack("<HH", 0x0B, 20)), "wrong size"),
        (spec_id(["sha256"], sizes=struct.pack("<HH", 0x12, 32)), "unknown"),
        (spec_id(["sha256", "sha1"], sizes=struct.pack("<HH", 0x0B, 32)), "cut short"),
    ],
)
def test_spec_id_that_is_not_known(head: bytes, message: str) -> None:
    """Version, number, kinds and sizes of the banks are those of the specification."""
    refused(head, message)


@pytest.mark.parametrize("banks", [["sha256"], ["sha256", "sha384", "sha1"], []])
def test_event_with_another_number_of_digests(banks: list[str]) -> None:
    """An event has exactly as many digests as the log has banks."""
    refused(spec_id(["sha256", "sha384"]) + agile_record(Record(0, IPL, b"x"), banks), "not one digest for each bank")


@pytest.mark.parametrize("banks", [["sha256", "sha1"], ["sha256", "sha256"]], ids=["unknown", "twice"])
def test_event_with_other_banks(banks: list[str]) -> None:
    """An event has one digest of each bank of the log, and of no other."""
    refused(spec_id(["sha256", "sha384"]) + agile_record(Record(0, IPL, b"x"), banks), "unknown bank, or two of one")


@pytest.mark.parametrize("record", [Record(24, IPL), Record(0xFFFFFFFF, IPL), Record(24, NO_ACTION)])
def test_register_that_does_not_exist(record: Record) -> None:
    """PCRs end at 23; the invalid PCR belongs to records that extend nothing."""
    refused(agile_log([record]), "no such PCR")
    refused(sha1_record(record.pcr, record.type, b"x"), "no such PCR")


def test_sizes() -> None:
    """The number of bytes and of events is bounded."""
    refused(bytes(MAX_LOG_BYTES + 1), f"at most {MAX_LOG_BYTES} bytes")
    record = agile_record(Record(8, IPL), ["sha1"])
    assert len(parse_log(spec_id(["sha1"]) + record * MAX_EVENTS).events) == MAX_EVENTS
    refused(spec_id(["sha1"]) + record * (MAX_EVENTS + 1), f"at most {MAX_EVENTS} events")


def test_every_cut_is_noticed() -> None:
    """A log that ends inside a record, or goes on after the last, is refused."""
    records = firmware()
    data = agile_log(records, ("sha1", "sha256"))
    ends = {len(agile_log(records[:count], ("sha1", "sha256"))) for count in range(len(records) + 1)}
    for size in range(len(data)):
        if size not in ends:
            refused(data[:size], "cut short")
    refused(data + b"\0", "cut short")
    refused(b"", "cut short")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_changed_logs_raise_only_our_error(data: st.DataObject) -> None:
    """A log with changed bytes is parsed, replayed and judged, or refused with our error."""
    log = bytearray(agile_log([locality(), *firmware()], ("sha1", "sha256")))
    for _ in range(data.draw(st.integers(1, 4))):
        log[data.draw(st.integers(0, len(log) - 1))] = data.draw(st.integers(0, 255))
    for candidate in (bytes(log), data.draw(st.binary(max_size=200))):
        with suppress(VerificationError):
            parsed = parse_log(candidate)
            for bank in parsed.banks:
                replay(parsed, bank)
            judge_log(parsed)


@needs_vectors
@pytest.mark.parametrize(
    ("name", "format_", "events"),
    [("eventlogs/rhel8-uefi.bin", "crypto-agile", 82), ("eventlogs/debian-10.bin", "sha1", 25)],
)
def test_real_logs(name: str, format_: str, events: int) -> None:
    """Logs of real machines parse, and no cut of them but between records does."""
    data = vector(name)
    log = parse_log(data)
    assert (log.format, len(log.events)) == (format_, events)
    refused(data[:-1], "cut short")
