# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.eventlog_rules: what a log may state, and which logs no firmware writes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from uuid import UUID

import pytest

from broker.verifiers.eventlog import parse_log
from broker.verifiers.eventlog_rules import BootState, judge_log, parse_variable
from keys.errors import VerificationError
from tests.fakes.tcg_log import (
    ACTION,
    APPLICATION,
    AUTHORITY,
    BOOT_VARIABLE,
    DRIVER_CONFIG,
    EFI_ACTION,
    EXIT,
    EXITED,
    IPL,
    NO_ACTION,
    SEPARATOR,
    Record,
    agile_log,
    firmware,
    variable,
)

SECURE = Record(7, DRIVER_CONFIG, variable("SecureBoot", b"\1"))
DRIVER = 0x80000004
SPDM_POLICY, SPDM_AUTHORITY = 0x800000E3, 0x800000E4


def judge(records: list[Record], banks: tuple[str, ...] = ("sha1", "sha256")) -> BootState:
    return judge_log(parse_log(agile_log(records, banks)))


def refused(records: list[Record], message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        judge(records)


def before(pcr: int, record: Record) -> list[Record]:
    """Firmware's records with one put in before the separator of `pcr`."""
    records = firmware()
    index = next(i for i, one in enumerate(records) if (one.pcr, one.type) == (pcr, SEPARATOR))
    return [*records[:index], record, *records[index:]]


def changed(pcr: int, kind: int, **changes: object) -> list[Record]:
    """Firmware's records with the first of this PCR and type changed."""
    records = firmware()
    index = next(i for i, one in enumerate(records) if (one.pcr, one.type) == (pcr, kind))
    return [*records[:index], replace(records[index], **changes), *records[index + 1 :]]  # type: ignore[arg-type]


def test_state_of_a_boot() -> None:
    """An honest log states Secure Boot, all applications in order, and that firmware is done."""
    state = judge(firmware(applications=(b"shim", b"grub")))
    assert (state.secure_boot, state.secure_boot_unclear, state.exit_boot_services) == (True, "", True)
    assert state.efi_applications == {
        bank: tuple(hashlib.new(bank, image).hexdigest() for image in (b"shim", b"grub")) for bank in ("sha1", "sha256")
    }


def test_state_without_secure_boot() -> None:
    """A variable of value 0 states that Secure Boot is off."""
    assert judge(firmware(b"\0")).secure_boot is False


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (firmware(b""), "no SecureBoot variable with a value"),
        ([record for record in firmware() if record != SECURE], "no SecureBoot variable"),
        ([record for record in firmware() if (record.pcr, record.type) != (7, SEPARATOR)], "no separator"),
        (before(7, Record(7, EFI_ACTION, b"DMA Protection Disabled")), "type 80000007"),
        (before(7, Record(7, SPDM_POLICY, b"policy")), "type 800000e3"),
        (before(7, Record(7, SPDM_AUTHORITY, b"authority")), "type 800000e4"),
        ([], "no separator"),
    ],
)
def test_secure_boot_that_is_not_stated(records: list[Record], reason: str) -> None:
    """Nothing is stated about Secure Boot where PCR 7 lacks what proves it or holds more, and the reason is given."""
    state = judge(records)
    assert state.secure_boot is None
    assert reason in state.secure_boot_unclear


def test_records_that_extend_nothing_state_nothing() -> None:
    """An EV_NO_ACTION record with a variable, a separator's digest or anything else changes no statement."""
    extra = [
        Record(7, NO_ACTION, variable("SecureBoot", b"\0")),
        Record(4, NO_ACTION, bytes(4)),
        Record(5, NO_ACTION, EXIT),
    ]
    assert judge([*extra, *firmware()]) == judge(firmware())


def test_variables_of_another_vendor() -> None:
    """Only the variable under UEFI's own GUID is Secure Boot's."""
    other = variable("SecureBoot", b"\0", vendor=UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f"))
    assert judge(before(7, Record(7, DRIVER_CONFIG, other))).secure_boot is True


def test_events_after_the_separator_of_pcr_7() -> None:
    """What comes after PCR 7's separator, an authority or an attacker's variable, states nothing about Secure Boot."""
    records = firmware(b"\0")
    records[-2:-2] = [Record(7, AUTHORITY, b"x", measured=b"y"), SECURE]
    assert judge(records).secure_boot is False


def test_secure_boot_twice() -> None:
    """Two Secure Boot variables contradict each other or one is made up."""
    refused(before(7, SECURE), "SecureBoot is measured twice")


@pytest.mark.parametrize("value", [b"\2", b"\0\1", b"\1\0\0\0"])
def test_secure_boot_that_is_no_boolean(value: bytes) -> None:
    """The variable is one byte, 0 or 1, or empty."""
    refused(firmware(value), "SecureBoot is no boolean")


@pytest.mark.parametrize("kind", [2, IPL, ACTION, BOOT_VARIABLE, AUTHORITY, APPLICATION])
def test_types_that_pcr_7_does_not_have(kind: int) -> None:
    """A genuine variable relabelled as something else, to put one's own in its place, is noticed."""
    refused(changed(7, DRIVER_CONFIG, type=kind), "unexpected type in PCR 7")


@pytest.mark.parametrize("kind", [DRIVER_CONFIG, EFI_ACTION, SPDM_POLICY])
def test_pcr_7_event_with_other_data(kind: int) -> None:
    """Data that is not what the digest is of proves nothing."""
    data = variable("SecureBoot", b"\1")
    refused(changed(7, DRIVER_CONFIG, type=kind, data=data, measured=b"another"), "digest of an event in PCR 7")


def test_malformed_variable() -> None:
    """A measured variable that does not parse is refused."""
    refused(before(7, Record(7, DRIVER_CONFIG, b"short")), "UEFI_VARIABLE_DATA is cut short")
    refused(before(7, Record(7, DRIVER_CONFIG, variable("dbx", b"x") + b"\0")), "trailing")


@pytest.mark.parametrize("pcr", range(8))
@pytest.mark.parametrize("data", [bytes(4), b"\xff" * 4])
def test_separator_under_another_type(pcr: int, data: bytes) -> None:
    """A separator that is relabelled, so that what follows looks like firmware's, is noticed in every firmware PCR."""
    refused(changed(pcr, SEPARATOR, type=IPL, data=b"harmless", measured=data), "separator is disguised")


def test_four_zero_bytes_that_are_no_separator() -> None:
    """Firmware may measure four zero bytes into PCRs 0 and 1 beside the separator, others may after PCR 7."""
    for pcr in (0, 1):
        assert judge(before(pcr, Record(pcr, 7, b"text", measured=bytes(4)))).secure_boot
    assert judge([*firmware(), Record(9, IPL, b"file", measured=bytes(4))]).secure_boot
    for pcr in (2, 7):
        refused(before(pcr, Record(pcr, 7, b"text", measured=bytes(4))), "separator is disguised")


def test_separator_with_other_data() -> None:
    """A separator says what it is: its data is allowed, and its digests are of that data."""
    refused(changed(4, SEPARATOR, data=b"\1\0\0\0"), "a separator is not one")
    refused(changed(4, SEPARATOR, data=b"WBCL"), "a separator is not one")
    refused(changed(4, SEPARATOR, measured=b"kernel"), "a separator is not one")
    assert judge(changed(4, SEPARATOR, data=b"\xff" * 4)).secure_boot


def test_separator_of_windows() -> None:
    """Windows ends its own PCRs with a separator of its own."""
    assert judge([*firmware(), Record(12, SEPARATOR, b"WBCL"), Record(12, SEPARATOR, b"WBCL")]).secure_boot
    refused([*firmware(), Record(12, SEPARATOR, b"text")], "a separator is not one")


def test_second_separator() -> None:
    """A firmware PCR has one separator."""
    refused(before(6, Record(6, SEPARATOR, bytes(4))), "two separators")


@pytest.mark.parametrize("pcr", range(8))
def test_firmware_registers_after_firmware(pcr: int) -> None:
    """What is appended to a firmware PCR after ExitBootServices is not firmware's."""
    refused([*firmware(), Record(pcr, APPLICATION, bytes(32), measured=b"good kernel")], "after ExitBootServices")


def test_records_about_exit_boot_services() -> None:
    """ExitBootServices may fail and be tried again, and only its own record in PCR 5 says that it happened."""
    failed = Record(5, EFI_ACTION, b"Exit Boot Services Returned with Failure")
    again = [*firmware(), failed, Record(5, EFI_ACTION, EXIT), Record(5, EFI_ACTION, EXITED), Record(10, IPL, b"x")]
    assert judge(again).exit_boot_services
    state = judge(firmware()[:-2])
    assert not state.exit_boot_services
    for other in (Record(5, ACTION, EXIT), Record(6, EFI_ACTION, EXIT), Record(5, EFI_ACTION, b"x")):
        assert not judge([*firmware()[:-2], other]).exit_boot_services


@pytest.mark.parametrize("kind", [ACTION, EFI_ACTION])
def test_application_under_the_type_of_an_action(kind: int) -> None:
    """An application cannot be left out of the list by calling it an action."""
    refused(changed(4, APPLICATION, type=kind), "action in PCR 4")


@pytest.mark.parametrize("kind", [IPL, DRIVER, AUTHORITY])
def test_other_types_in_pcr_4(kind: int) -> None:
    """Where PCR 4 holds something else than applications, no list of them is stated."""
    state = judge(changed(4, APPLICATION, type=kind))
    assert state.efi_applications is None
    assert state.secure_boot


def test_actions_in_pcr_4() -> None:
    """Both types of actions may stand in PCR 4 and are no applications."""
    state = judge(before(4, Record(4, ACTION, b"Booting from disk")))
    assert state.efi_applications == judge(firmware()).efi_applications


def test_variables() -> None:
    """UEFI_VARIABLE_DATA gives vendor, name and value; a name that is no UTF-16 does not stop it."""
    assert parse_variable(variable("db", b"value")) == (
        UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le,
        "db",
        b"value",
    )
    broken = bytes(16) + (1).to_bytes(8, "little") + bytes(8) + b"\x00\xd8"
    assert parse_variable(broken)[1] == "\ufffd"
