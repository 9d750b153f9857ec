# SPDX-License-Identifier: Apache-2.0
"""What an event log may state, although types and data of its events are not authenticated.

A replay proves digests only. Whoever extends PCRs can label each of those digests at will, append events
and reorder those of different PCRs. These rules (TCG PC Client Platform Firmware Profile 1.06, sections 3.3 and 10.4)
take from a log only what its digests force to be true:

    (1) a digest of a separator is typed as separator and the other way round: it ends what firmware measured. In PCRs 0
        and 1 firmware may have measured the same four bytes as something else, beside the separator
    (2) PCRs 0 to 7 have at most one separator each
    (3) firmware's PCRs get nothing after ExitBootServices but the record that it returned
    (4) PCR 7 before its separator holds variables whose digest is the hash of their data, and actions likewise; Secure
        Boot's variable is there at most once. With actions or device policies between, nothing is stated about it
    (5) PCR 4 lists every application: actions there are hashes of their text; with any other type nothing is stated

The list of applications is complete, never "contains a good one": the running system can extend PCR 4 and move the
record to where firmware's would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.verifiers.eventlog import EV_NO_ACTION, Event, EventLog
from broker.verifiers.reader import Reader
from broker.verifiers.tpm_structures import HASHES
from keys.errors import VerificationError

EV_SEPARATOR = 0x00000004
EV_ACTION = 0x00000005
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
EV_EFI_ACTION = 0x80000007
EV_EFI_SPDM_DEVICE_POLICY = 0x800000E3
EV_EFI_SPDM_DEVICE_AUTHORITY = 0x800000E4

FIRMWARE_PCRS = range(8)
EXIT_BOOT_SERVICES = b"Exit Boot Services Invocation"

_GLOBAL_VARIABLE = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")  # 8be4df61-93ca-11d2-aa0d-00e098032b8c
_ENDS_FIRMWARE = (bytes(4), b"\xff" * 4)  # the separator's data; 00000001 tells of an error in the firmware
_WINDOWS_SEPARATOR = b"WBCL"  # in PCRs 12 to 14
_SEPARATOR_DIGESTS = frozenset(known.digest(data) for known in HASHES.values() for data in _ENDS_FIRMWARE)
_EXIT_RECORDS = (
    EXIT_BOOT_SERVICES,
    b"Exit Boot Services Returned with Failure",
    b"Exit Boot Services Returned with Success",
)


@dataclass(frozen=True, slots=True)
class BootState:
    """What a log states where PCR 7 and PCR 4 replay to quoted values.

    `secure_boot` is None where nothing is stated, and `secure_boot_unclear` says why ("" where it is stated).
    `efi_applications` maps each bank to the Authenticode digests, lower-case hex, of all applications in order; None
    where PCR 4 holds something else beside them.
    """

    secure_boot: bool | None
    secure_boot_unclear: str
    efi_applications: Mapping[str, tuple[str, ...]] | None
    exit_boot_services: bool


def judge_log(log: EventLog) -> BootState:
    """What `log` states. Raises VerificationError where it breaks a rule, which no firmware's log does."""
    exited = _check_order(log)
    secure_boot, unclear = _secure_boot(log)
    return BootState(secure_boot, unclear, _applications(log), exited)


def parse_variable(data: bytes) -> tuple[bytes, str, bytes]:
    """UEFI_VARIABLE_DATA: vendor GUID (16 bytes, mixed-endian), name, value. Raises VerificationError."""
    read = Reader(data, "UEFI_VARIABLE_DATA", "little")
    guid, chars, size = read.take(16), read.uint(8), read.uint(8)
    name, value = read.take(2 * chars), read.take(size)
    read.end()
    return guid, name.decode("utf-16-le", "replace"), value


def _check_order(log: EventLog) -> bool:
    """Rules (1) to (3); whether the log has ExitBootServices."""
    exited = False
    separated: set[int] = set()
    alike: list[Event] = []
    for event in log.events:
        if event.type == EV_NO_ACTION:
            continue
        if event.type == EV_SEPARATOR:
            _check_separator(log, event, separated)
        elif event.pcr in FIRMWARE_PCRS and not _SEPARATOR_DIGESTS.isdisjoint(event.digests):
            alike.append(event)
        if exited and event.pcr in FIRMWARE_PCRS and not (event.pcr == 5 and event.data in _EXIT_RECORDS):
            raise _broken("firmware's PCR was extended after ExitBootServices", event)
        exited = exited or (event.pcr == 5 and event.type == EV_EFI_ACTION and event.data == EXIT_BOOT_SERVICES)
    for event in alike:
        if event.pcr not in {0, 1} or event.pcr not in separated:
            raise _broken("a separator is disguised as another event", event)
    return exited


def _check_separator(log: EventLog, event: Event, separated: set[int]) -> None:
    firmware = event.pcr in FIRMWARE_PCRS
    allowed = _ENDS_FIRMWARE if firmware else (*_ENDS_FIRMWARE, _WINDOWS_SEPARATOR)
    if event.data not in allowed or not _is_hash_of_data(log, event):
        raise _broken("a separator is not one", event)
    if firmware and event.pcr in separated:
        raise _broken("a PCR has two separators", event)
    separated.add(event.pcr)


def _secure_boot(log: EventLog) -> tuple[bool | None, str]:
    """Rule (4)."""
    value: bytes | None = None
    action = ""
    for event in log.events:
        if event.pcr != 7 or event.type == EV_NO_ACTION:
            continue
        if event.type == EV_SEPARATOR:
            break
        if event.type in {EV_EFI_ACTION, EV_EFI_SPDM_DEVICE_POLICY, EV_EFI_SPDM_DEVICE_AUTHORITY}:
            action = f"PCR 7 holds an event of type {event.type:08x} before its separator"
        elif event.type != EV_EFI_VARIABLE_DRIVER_CONFIG:
            raise _broken("unexpected type in PCR 7 before its separator", event)
        if not _is_hash_of_data(log, event):
            raise _broken("the digest of an event in PCR 7 is not of its data", event)
        if event.type == EV_EFI_VARIABLE_DRIVER_CONFIG and (found := _secure_boot_value(event)) is not None:
            if value is not None:
                raise _broken("SecureBoot is measured twice", event)
            value = found
    else:
        return None, "PCR 7 has no separator"
    if not value:
        return None, "PCR 7 has no SecureBoot variable with a value"
    return (None, action) if action else (value == b"\1", "")


def _secure_boot_value(event: Event) -> bytes | None:
    """The value, none to one byte, if the event is about the variable SecureBoot."""
    guid, name, value = parse_variable(event.data)
    if guid != _GLOBAL_VARIABLE or name != "SecureBoot":
        return None
    if value not in {b"", b"\0", b"\1"}:
        raise _broken("SecureBoot is no boolean", event)
    return value


def _applications(log: EventLog) -> Mapping[str, tuple[str, ...]] | None:
    """Rule (5)."""
    found: list[Event] = []
    for event in log.events:
        if event.pcr != 4 or event.type in {EV_NO_ACTION, EV_SEPARATOR}:
            continue
        if event.type in {EV_ACTION, EV_EFI_ACTION}:
            if not _is_hash_of_data(log, event):
                raise _broken("the digest of an action in PCR 4 is not of its text", event)
        elif event.type == EV_EFI_BOOT_SERVICES_APPLICATION:
            found.append(event)
        else:
            return None
    return {bank.name: tuple(event.digests[i].hex() for event in found) for i, bank in enumerate(log.banks)}


def _is_hash_of_data(log: EventLog, event: Event) -> bool:
    return all(bank.digest(event.data) == digest for bank, digest in zip(log.banks, event.digests, strict=True))


def _broken(what: str, event: Event) -> VerificationError:
    return VerificationError(
        f"event log: {what}",
        found=f"type {event.type:08x} in PCR {event.pcr}, digest {event.digests[0].hex()}",
        mend="no firmware writes such a log; PCR values can also be judged without one",
    )
