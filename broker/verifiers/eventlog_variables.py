# SPDX-License-Identifier: Apache-2.0
"""UEFI variables as a boot's log has them, in words: is Secure Boot on, whose keys does it know, who vouched.

An EV_EFI_VARIABLE_DRIVER_CONFIG or EV_EFI_VARIABLE_BOOT event holds a whole variable. An EV_EFI_VARIABLE_AUTHORITY
event holds the one entry of it by which a loader was let in: EFI_SIGNATURE_DATA, or with shim's own key the bare
certificate.

Source: UEFI 2.10, 3.3 (variables), 32.4.1 (signature lists); TCG PC Client Platform Firmware Profile 1.06, 10.4; shim.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from cryptography import x509
from cryptography.x509.oid import NameOID

from broker.verifiers.eventlog_rules import parse_variable
from broker.verifiers.eventlog_text import count, printable, text
from broker.verifiers.reader import Reader
from broker.verifiers.x509 import readable
from keys.errors import VerificationError

SECURE_BOOT = "SecureBoot"
_SWITCHES: Mapping[str, str] = {  # variables of one byte, 1 for on; no byte at all means off
    SECURE_BOOT: "Secure Boot is",
    "DeployedMode": "Secure Boot's deployed mode is",
    "AuditMode": "Secure Boot's audit mode is",
}
_KEY_LISTS: Mapping[str, str] = {
    "PK": "whose platform it is",
    "KEK": "who may change db and dbx",
    "db": "allowed to boot",
    "dbx": "revoked",
    "dbr": "recovery",
    "dbt": "time stamps",
    "MokList": "the machine owner's keys",
    "MokListX": "revoked by the machine's owner",
}
_ON_OFF = {b"": "off", b"\0": "off", b"\1": "on"}

_GUID_BYTES = 16
_LIST_HEADER = _GUID_BYTES + 12  # EFI_SIGNATURE_LIST: the type, and the sizes of list, header and one entry
_SHA256_BYTES = 32
_LOAD_OPTION_HEADER = 6  # u32 attributes and u16 path length before an EFI_LOAD_OPTION's description


def variable(data: bytes) -> str:
    """A whole variable. Raises VerificationError where `data` has not the form of one."""
    guid, name, value = parse_variable(data)
    words = printable(name) or str(UUID(bytes_le=guid))
    if name in _SWITCHES and value in _ON_OFF:
        return f"{_SWITCHES[name]} {_ON_OFF[value]}"
    if name in _KEY_LISTS and (entries := _entries(value)) is not None:
        size = f"{count(entries, 'entry', 'entries')}, {count(len(value))}"
        return f"{words} ({_KEY_LISTS[name]}): {size if value else 'empty'}"
    if len(value) == 1:
        return f"{words} = {value[0]}"
    if name == "BootOrder":
        return f"{words} = " + " ".join(f"{value[i + 1]:02x}{value[i]:02x}" for i in range(0, len(value) - 1, 2))
    if name.startswith("Boot") and len(value) > _LOAD_OPTION_HEADER:
        description = value[_LOAD_OPTION_HEADER:].decode("utf-16-le", "replace").split("\0")[0]
        return f"{words}: {printable(description)}"
    if name.startswith("SbatLevel"):
        return f"{words}: {text(value)}"
    return f"{words}, {count(len(value))}"


def authority(data: bytes) -> str:
    """The entry of a variable that let a loader in. Raises VerificationError as `variable` does."""
    _, name, value = parse_variable(data)
    if len(value) == _GUID_BYTES + _SHA256_BYTES:
        return f"let in by {printable(name)}: the digest {value[_GUID_BYTES:].hex()}"
    for der in (value[_GUID_BYTES:], value):
        if subject := _subject(der):
            return f"let in by {printable(name)}: {subject}"
    return variable(data)


def _entries(value: bytes) -> int | None:
    """How many entries a variable's EFI_SIGNATURE_LISTs have, None where it holds something else."""
    read = Reader(value, "EFI_SIGNATURE_LIST", "little")
    entries = 0
    try:
        while read.left:
            read.take(_GUID_BYTES)
            size, header, entry = read.uint(4), read.uint(4), read.uint(4)
            body = size - _LIST_HEADER - header
            if body < 0 or entry <= _GUID_BYTES or body % entry:
                return None
            read.take(header + body)
            entries += body // entry
    except VerificationError:
        return None
    return entries


def _subject(der: bytes) -> str:
    """What a certificate calls its holder, "" where `der` is none."""
    try:
        with readable():
            names = x509.load_der_x509_certificate(der).subject
    except VerificationError:
        return ""
    common = names.get_attributes_for_oid(NameOID.COMMON_NAME)
    return printable(str(common[0].value) if common else names.rfc4514_string())
