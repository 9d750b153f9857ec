# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.eventlog_words: boot events in words, whatever their data."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.verifiers.eventlog import Event, parse_log
from broker.verifiers.eventlog_text import MAX_WORDS
from broker.verifiers.eventlog_words import TYPES, describe, type_name
from tests.fakes import boot
from tests.fakes.tcg_log import APPLICATION, BOOT_VARIABLE, DRIVER_CONFIG, EFI_ACTION, IPL, SEPARATOR, TAG, variable
from tests.vectors import needs_vectors, vector

POST_CODE, CRTM_VERSION, BLOB, BLOB2, GPT, TABLES = 1, 8, 0x80000008, 0x8000000A, 0x80000006, 0x80000009


def words(kind: int, data: bytes, *, pcr: int = 0) -> str:
    return describe(Event(pcr, kind, (), data))


def load_event(*nodes: bytes) -> bytes:
    path = b"".join(nodes)
    return struct.pack("<QQQQ", 0, 4096, 0, len(path)) + path


def node(kind: int, sub_type: int, data: bytes) -> bytes:
    return struct.pack("<BBH", kind, sub_type, 4 + len(data)) + data


def file(text: str) -> bytes:
    return node(4, 4, text.encode("utf-16-le") + bytes(2))


END = node(0x7F, 0xFF, b"")
DRIVER, AUTHORITY = 0x80000004, 0x800000E0
GUID = UUID("7adbad98-7fe1-4774-9260-747327435e6d")


def key_list(entry: int, count: int, *, size: int | None = None) -> bytes:
    """An EFI_SIGNATURE_LIST of entries of that many bytes, which says that it is `size` bytes long."""
    body = bytes(entry * count)
    return GUID.bytes_le + struct.pack("<III", 28 + len(body) if size is None else size, 0, entry) + body


def certificate(*name: tuple[x509.ObjectIdentifier, str]) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(oid, text) for oid, text in name])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1)
    built = (
        builder.not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2036, 1, 1, tzinfo=UTC))
        .sign(key, SHA256())
    )
    return built.public_bytes(Encoding.DER)


CERTIFICATE = certificate((NameOID.ORGANIZATION_NAME, "Roomkey"), (NameOID.COMMON_NAME, "Roomkey Secure Boot CA"))
UNNAMED = certificate((NameOID.ORGANIZATION_NAME, "Roomkey"))
NAMELESS = certificate()


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (APPLICATION, load_event(file("\\EFI\\debian\\shimx64.efi"), END), "\\EFI\\debian\\shimx64.efi"),
        (APPLICATION, load_event(node(2, 1, bytes(8)), file("\\EFI"), file("grub.efi"), END), "\\EFI\\grub.efi"),
        (APPLICATION, load_event(file("\\EFI\\"), file("\\grub.efi")), "\\EFI\\grub.efi"),
        (APPLICATION, load_event(node(4, 6, GUID.bytes_le), END), f"firmware file {GUID}"),
        (APPLICATION, load_event(node(4, 6, b"short"), END), "image of 4096 bytes, no file"),
        (APPLICATION, load_event(node(4, 1, bytes(38)), END), "image of 4096 bytes, no file"),
        (APPLICATION, load_event(END, file("after the end")), "image of 4096 bytes, no file"),
        (APPLICATION, load_event(struct.pack("<BBH", 4, 4, 3)), "36 bytes"),
        (APPLICATION, b"short", "short"),
        (APPLICATION, load_event(node(3, 11, bytes(33)), END), "image of 4096 bytes from the network"),
        (APPLICATION, load_event(node(3, 24, b"http://boot.example/uki.efi"), END), "http://boot.example/uki.efi"),
        (DRIVER, load_event(node(1, 1, bytes(2)), node(4, 8, bytes(20)), END), "image of 4096 bytes in a card's ROM"),
        (DRIVER_CONFIG, variable("SecureBoot", b"\1"), "Secure Boot is on"),
        (DRIVER_CONFIG, variable("SecureBoot", b"\0"), "Secure Boot is off"),
        (DRIVER_CONFIG, variable("SecureBoot", b""), "Secure Boot is off"),
        (DRIVER_CONFIG, variable("SecureBoot", b"\2"), "SecureBoot = 2"),
        (DRIVER_CONFIG, variable("SecureBoot", b"\1\1"), "SecureBoot, 2 bytes"),
        (DRIVER_CONFIG, variable("AuditMode", b"\1"), "Secure Boot's audit mode is on"),
        (DRIVER_CONFIG, variable("db", key_list(48, 2)), "db (allowed to boot): 2 entries, 124 bytes"),
        (DRIVER_CONFIG, variable("dbx", key_list(48, 3) + key_list(48, 1)), "dbx (revoked): 4 entries, 248 bytes"),
        (DRIVER_CONFIG, variable("dbx", b""), "dbx (revoked): empty"),
        (DRIVER_CONFIG, variable("PK", key_list(800, 1)), "PK (whose platform it is): 1 entry, 828 bytes"),
        (DRIVER_CONFIG, variable("KEK", key_list(16, 1)), "KEK, 44 bytes"),
        (DRIVER_CONFIG, variable("db", key_list(48, 2)[:-1]), "db, 123 bytes"),
        (DRIVER_CONFIG, variable("db", key_list(48, 1, size=75)), "db, 76 bytes"),
        (DRIVER_CONFIG, variable("db", key_list(48, 1, size=27)), "db, 76 bytes"),
        (DRIVER_CONFIG, variable("db", b"?"), "db = 63"),
        (AUTHORITY, variable("db", bytes(16) + CERTIFICATE), "let in by db: Roomkey Secure Boot CA"),
        (AUTHORITY, variable("Shim", CERTIFICATE), "let in by Shim: Roomkey Secure Boot CA"),
        (AUTHORITY, variable("db", bytes(16) + UNNAMED), "let in by db: O=Roomkey"),
        (AUTHORITY, variable("db", bytes(16) + NAMELESS), f"db, {16 + len(NAMELESS)} bytes"),
        (AUTHORITY, variable("db", bytes(16) + b"\xab" * 32), f"let in by db: the digest {'ab' * 32}"),
        (AUTHORITY, variable("db", bytes(20)), "db, 20 bytes"),
        (AUTHORITY, variable("MokListTrusted", b"\1"), "MokListTrusted = 1"),
        (DRIVER_CONFIG, variable("other", bytes(300)), "other, 300 bytes"),
        (DRIVER_CONFIG, variable("", bytes(3)), "8be4df61-93ca-11d2-aa0d-00e098032b8c, 3 bytes"),
        (BOOT_VARIABLE, variable("BootOrder", b"\1\0\x0c\0\1"), "BootOrder = 0001 000c"),
        (
            BOOT_VARIABLE,
            variable("Boot0001", bytes(6) + "Linux Boot".encode("utf-16-le") + bytes(9)),
            "Boot0001: Linux Boot",
        ),
        (BOOT_VARIABLE, variable("Boot0001", bytes(6)), "Boot0001, 6 bytes"),
        (BOOT_VARIABLE, b"\1\0\0\0", "4 bytes"),
        (AUTHORITY, variable("SbatLevel", b"sbat,1,2021030218\n"), "SbatLevel: sbat,1,2021030218"),
        (IPL, b"kernel_cmdline: /vmlinuz ro quiet\0", "kernel_cmdline: /vmlinuz ro quiet"),
        (IPL, "console=tty0".encode("utf-16-le") + bytes(2), "console=tty0"),
        (IPL, "initrd=x".encode("utf-16-le") + b"\0", "initrd=x"),
        (IPL, b"tab\there\nnext", "tab here next"),
        (IPL, b"\xff\xfe\xfd", "3 bytes"),
        (IPL, b"escape \x1b[31m", "12 bytes"),
        (IPL, "right-to-left \u202e".encode(), "17 bytes"),
        (IPL, b"", ""),
        (IPL, b"\0\0", "2 bytes"),
        (EFI_ACTION, b"Exit Boot Services Invocation", "Exit Boot Services Invocation"),
        (SEPARATOR, bytes(4), "end of what firmware measured"),
        (SEPARATOR, b"WBCL", "WBCL"),
        (TAG, struct.pack("<II", 0x8F3B22EC, 13) + b"Linux initrd\0", "Linux initrd (tag 8f3b22ec)"),
        (TAG, b"\1", "1 byte"),
        (CRTM_VERSION, "2.3.5".encode("utf-16-le") + bytes(2), "2.3.5"),
        (POST_CODE, b"ACPI DATA", "ACPI DATA"),
        (POST_CODE, struct.pack("<QQ", 0xFF000000, 65536), "firmware at ff000000, 65536 bytes"),
        (BLOB, struct.pack("<QQ", 0x820000, 917504), "firmware at 820000, 917504 bytes"),
        (BLOB2, b"\x04POST" + struct.pack("<QQ", 1, 2), "POST: firmware at 1, 2 bytes"),
        (GPT, b"EFI PART", "partition table of the boot disk"),
        (TABLES, bytes(32), "firmware's tables"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_words(kind: int, data: bytes, expected: str) -> None:
    """Each event says what it is about: file, variable, command line, string, or how many bytes nobody can read."""
    assert words(kind, data) == expected


def test_long_words_are_cut() -> None:
    """A long text ends with an ellipsis at the limit."""
    assert words(IPL, b"a" * MAX_WORDS) == "a" * MAX_WORDS
    assert words(IPL, b"a" * 5000) == "a" * (MAX_WORDS - 1) + "…"


def test_sections_of_a_unified_kernel_image_are_called_that() -> None:
    """In PCR 11 a section's name says whose it is; in other PCRs, and other words there, stay as they are."""
    name = ".cmdline".encode("utf-16-le") + bytes(2)
    assert words(IPL, name, pcr=11) == ".cmdline of the unified kernel image"
    assert words(IPL, name, pcr=12) == ".cmdline"
    assert words(IPL, b"enter-initrd", pcr=11) == "enter-initrd"


def test_type_names() -> None:
    """A type has its name from the specification, or its number."""
    assert type_name(0x80000003) == "EV_EFI_BOOT_SERVICES_APPLICATION"
    assert type_name(0xA0000001) == "a0000001"


@given(kind=st.sampled_from([*TYPES, 0x12345678]), data=st.binary(max_size=300))
@example(kind=APPLICATION, data=load_event(file("\\EFI\\x\ny"), node(4, 4, b"odd")))
@example(kind=DRIVER_CONFIG, data=variable("name\u202e", b"\0"))
@example(kind=AUTHORITY, data=variable("name\u202e", bytes(16) + certificate((NameOID.COMMON_NAME, "CA \u202e"))))
@example(kind=AUTHORITY, data=variable("n" * 500, bytes(48)))
@example(kind=BOOT_VARIABLE, data=variable("Boot0000", bytes(6) + b"\0\xd8\n\0"))
@settings(max_examples=200, deadline=None)
def test_words_are_printable_and_short(kind: int, data: bytes) -> None:
    """No data makes the description fail, long, or more than one printable line."""
    text = words(kind, data)
    assert len(text) <= MAX_WORDS
    assert text.isprintable()


def test_words_of_a_boot() -> None:
    """A whole boot reads as a story: firmware, Secure Boot, kernel, command line."""
    log = parse_log(boot.event_log(boot.Boot().events(), ("sha256",)))
    story = [describe(event) for event in log.events]
    for chapter in ("Roomkey virtual firmware 1.0", "Secure Boot is on", "\\EFI\\debian\\vmlinuz.efi", "/initrd.img"):
        assert chapter in story
    assert any(text.startswith("kernel_cmdline: /vmlinuz root=") for text in story)


@needs_vectors
@pytest.mark.parametrize("name", ["gdc-host", "goatt-option-rom", "ubuntu-2404-amd-sevsnp", "arch-linux-workstation"])
def test_words_of_real_logs(name: str) -> None:
    """Events of real machines get printable words."""
    for event in parse_log(vector(f"eventlogs/{name}.bin")).events:
        assert describe(event).isprintable()
