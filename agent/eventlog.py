# SPDX-License-Identifier: Apache-2.0
"""Does the firmware's event log lead to the PCR values? For `doctor` only: the broker judges with a parser of its own.

TCG PC Client Platform Firmware Profile 1.05, section 10. Little-endian.
"""

from __future__ import annotations

import hashlib

from agent.tpm2_marshal import HASHES, MAX_BANKS, PCRS
from keys.errors import AttesterError

EV_NO_ACTION = 0x00000003
SPEC_ID = b"Spec ID Event03\0"
SPEC_ID_FIXED_BYTES = 24  # signature, platform class, version, UINTN size; then the algorithms
STARTUP_LOCALITY = b"StartupLocality\0"


class _Log:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def at_end(self) -> bool:
        return self._offset == len(self._data)

    def take(self, size: int) -> bytes:
        end = self._offset + size
        if end > len(self._data):
            raise AttesterError("the event log ends in the middle of an event")
        field = self._data[self._offset : end]
        self._offset = end
        return field

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "little")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")


def replay(log: bytes, bank: int) -> dict[int, bytes]:
    """The values of the PCRs that the crypto-agile `log` has events for. Raises AttesterError."""
    events = _Log(log)
    sizes = _algorithms(events)
    if bank not in sizes:
        raise AttesterError(f"the event log has no {HASHES[bank]} digests", mend="enable the bank in the firmware")
    values: dict[int, bytes] = {}
    reset = bytes(sizes[bank])
    while not events.at_end():
        pcr, kind = events.u32(), events.u32()
        digest = _digests(events, sizes).get(bank)
        data = events.take(events.u32())
        if kind == EV_NO_ACTION:
            if data[:-1] == STARTUP_LOCALITY:
                values[0] = reset[:-1] + data[-1:]
        elif digest is None or pcr >= PCRS:
            raise AttesterError("the event log has an event without a digest or a PCR")
        else:
            values[pcr] = hashlib.new(HASHES[bank], values.get(pcr, reset) + digest).digest()
    return values


def _algorithms(events: _Log) -> dict[int, int]:
    """Hash algorithm -> bytes of its digests, from the first event, which is in the old SHA-1 format."""
    events.take(4 + 4 + 20)
    header = _Log(events.take(events.u32()))
    if not header.take(SPEC_ID_FIXED_BYTES).startswith(SPEC_ID):
        raise AttesterError("the event log is not a crypto-agile TCG log")
    return {header.u16(): header.u16() for _ in range(_count(header))}


def _digests(events: _Log, sizes: dict[int, int]) -> dict[int, bytes]:
    digests = {}
    for _ in range(_count(events)):
        algorithm = events.u16()
        if algorithm not in sizes:
            raise AttesterError("the event log has a digest that its first event does not announce")
        digests[algorithm] = events.take(sizes[algorithm])
    return digests


def _count(log: _Log) -> int:
    count = log.u32()
    if count > MAX_BANKS:
        raise AttesterError("the event log names too many hash algorithms", found=f"{count}")
    return count
