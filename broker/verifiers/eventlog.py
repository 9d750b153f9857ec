# SPDX-License-Identifier: Apache-2.0
"""The TCG event log: strict parsing and replay. What its events mean is judged in `broker.verifiers.eventlog_rules`.

Source: TCG PC Client Platform Firmware Profile 1.06, section 10. All integers are little-endian. In the SHA-1 format a
record is u32 PCR, u32 type, 20-byte digest, u32 size, data. In the crypto-agile format the first record has that form
and lists the banks ("Spec ID Event03"); every later one is u32 PCR, u32 type, u32 digest count, (u16 hash, digest)
each, u32 size, data. Checks:

    (1) every length stays within the log, every count within its cap, nothing follows the last record
    (2) the banks are known hashes of the right size, each once
    (3) every event has exactly one digest for each bank
    (4) no event is of a PCR above 23; only records that extend nothing may name the invalid PCR ffffffff
    (5) StartupLocality appears at most once, before PCR 0 is extended, and is 0, 3 or 4

A replay that reaches a quoted value proves the sequence of digests of that PCR. It proves neither the events' types,
nor data that the digest is not the hash of, nor the order between PCRs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from broker.verifiers.reader import Reader
from broker.verifiers.tpm_structures import HASHES, PCR_COUNT, SHA1, Hash
from keys.errors import VerificationError

MAX_LOG_BYTES = 192 * 1024  # what fits, as base64, into a message of 256 KiB
MAX_EVENTS = 2048

EV_NO_ACTION = 0x00000003
INVALID_PCR = 0xFFFFFFFF  # of records that Windows adds and that extend nothing
DRTM_PCRS = range(17, 23)  # all ones until a dynamic launch

_SPEC_ID = b"Spec ID Event03\0"
_SPEC_MAJOR = 2
_STARTUP_LOCALITY = b"StartupLocality\0"
_LOCALITIES = (0, 3, 4)


class Event(NamedTuple):
    """One record. `digests` are in the order of the log's banks."""

    pcr: int
    type: int
    digests: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class EventLog:
    """A parsed log. `format` is "sha1" or "crypto-agile"; the record that lists the banks is not among `events`."""

    format: str
    banks: tuple[Hash, ...]
    events: tuple[Event, ...]
    startup_locality: int | None


def parse_log(data: bytes) -> EventLog:
    """`data` as a whole event log, at most MAX_LOG_BYTES long. Raises VerificationError."""
    if len(data) > MAX_LOG_BYTES:
        raise VerificationError(
            "event log is too long", expected=f"at most {MAX_LOG_BYTES} bytes", found=str(len(data))
        )
    read = Reader(data, "event log", "little")
    first = _sha1_event(read)
    if first.type == EV_NO_ACTION and first.data.startswith(_SPEC_ID):
        banks, events = _spec_id(first), []
        sizes = {bank.id: bank.size for bank in banks}
    else:
        banks, events, sizes = (SHA1,), [first], {}
    while read.left:
        if len(events) == MAX_EVENTS:
            raise VerificationError("event log is too long", expected=f"at most {MAX_EVENTS} events")
        events.append(_agile_event(read, sizes) if sizes else _sha1_event(read))
    log = tuple(events)
    return EventLog("crypto-agile" if sizes else "sha1", banks, log, _startup_locality(log))


def replay(log: EventLog, bank: Hash) -> Mapping[int, bytes]:
    """The PCR values of `bank` after all events, for every PCR that an event extends. `bank` is one of the log's."""
    position, size = log.banks.index(bank), bank.size
    new = getattr(hashlib, bank.name)
    values: dict[int, bytes] = {}
    for event in log.events:
        if event.type != EV_NO_ACTION:
            before = values.get(event.pcr) or _initial(event.pcr, size, log.startup_locality)
            values[event.pcr] = new(before + event.digests[position]).digest()
    return values


def _initial(pcr: int, size: int, locality: int | None) -> bytes:
    if pcr in DRTM_PCRS:
        return b"\xff" * size
    return (locality or 0 if pcr == 0 else 0).to_bytes(size, "big")


def _sha1_event(read: Reader) -> Event:
    pcr, kind, digest = read.uint(4), read.uint(4), read.take(SHA1.size)
    return _event(pcr, kind, (digest,), read.take(read.uint(4)))


def _agile_event(read: Reader, sizes: Mapping[int, int]) -> Event:
    pcr, kind, count = read.uint(4), read.uint(4), read.uint(4)
    if count != len(sizes):
        raise VerificationError(
            "event log: an event has not one digest for each bank", expected=str(len(sizes)), found=str(count)
        )
    digests: dict[int, bytes] = {}
    for _ in range(count):
        bank = read.uint(2)
        if bank not in sizes or bank in digests:
            raise VerificationError(
                "event log: an event has a digest of an unknown bank, or two of one", found=f"{bank:04x}"
            )
        digests[bank] = read.take(sizes[bank])
    return _event(pcr, kind, tuple(digests[bank] for bank in sizes), read.take(read.uint(4)))


def _event(pcr: int, kind: int, digests: tuple[bytes, ...], data: bytes) -> Event:
    if pcr >= PCR_COUNT and not (kind == EV_NO_ACTION and pcr == INVALID_PCR):  # (4)
        raise VerificationError("event log: there is no such PCR", expected=f"0 to {PCR_COUNT - 1}", found=str(pcr))
    return Event(pcr, kind, digests, data)


def _spec_id(event: Event) -> tuple[Hash, ...]:
    """Check (2): TCG_EfiSpecIDEvent."""
    read = Reader(event.data, "event log's Spec ID event", "little")
    read.take(len(_SPEC_ID) + 4)  # the signature, which the caller compared, and the platform class
    _, major, _, _ = read.take(4)  # minor, major, errata, size of a UINTN
    count = read.uint(4)
    if major != _SPEC_MAJOR or not 1 <= count <= len(HASHES):
        raise VerificationError(
            "event log: this Spec ID event is not known",
            expected=f"version {_SPEC_MAJOR} and 1 to {len(HASHES)} banks",
            found=f"version {major} and {count} banks",
        )
    banks: dict[int, Hash] = {}
    for _ in range(count):
        bank, size = read.uint(2), read.uint(2)
        if bank not in HASHES or bank in banks or size != HASHES[bank].size:
            raise VerificationError(
                "event log: a bank is unknown, listed twice or of the wrong size", found=f"{bank:04x}, {size} bytes"
            )
        banks[bank] = HASHES[bank]
    read.take(read.uint(1))  # vendor information
    read.end()
    return tuple(banks.values())


def _startup_locality(events: tuple[Event, ...]) -> int | None:
    """Check (5). The record is not measured; a wrong one makes the replay of PCR 0 fail."""
    locality: int | None = None
    extended = False
    for event in events:
        if event.type != EV_NO_ACTION:
            extended = extended or event.pcr == 0
        elif event.data.startswith(_STARTUP_LOCALITY):
            value = event.data[len(_STARTUP_LOCALITY) :]
            if locality is not None or extended or len(value) != 1 or value[0] not in _LOCALITIES:
                raise VerificationError(
                    "event log: StartupLocality is not where or what it may be",
                    expected="once, before PCR 0 is extended, 0, 3 or 4",
                    found=value[:8].hex(),
                )
            locality = value[0]
    return locality
