# SPDX-License-Identifier: Apache-2.0
"""PCR 7 of a firmware that checks what it starts: from its variables, and who vouches for the image."""

from __future__ import annotations

import datetime as dt
import hashlib
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from broker.cli import main
from broker.measure.secure_boot import secure_boot_on
from broker.measure.uki_boot import uki_events
from broker.measure.variables import MAX_VARIABLES, Variables, secure_boot_variables
from keys.errors import ConfigError
from tests.fakes.ovmf_vars import (
    ENABLE,
    GLOBAL,
    HEADER,
    NVRAM,
    OWNER,
    SECURITY,
    SHA256,
    certificate_table,
    enrolled,
    signature_list,
    store,
    variable,
)
from tests.fakes.pe import pe, uki

BANK = "sha256"
Key = ec.EllipticCurvePrivateKey


def certificate(name: str, key: Key, issuer: str | None = None, by: Key | None = None) -> x509.Certificate:
    """A certificate of `key`; signed by itself, or as `issuer` by `by`."""

    def called(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder().subject_name(called(name)).issuer_name(called(issuer or name))
    builder = builder.public_key(key.public_key()).serial_number(7)
    return builder.not_valid_before(now).not_valid_after(now.replace(year=2036)).sign(by or key, hashes.SHA256())


def der(one: x509.Certificate) -> bytes:
    return one.public_bytes(Encoding.DER)


OURS, THEIRS = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
CA = certificate("our CA", OURS)
LEAF = certificate("a builder", THEIRS, "our CA", OURS)
STRANGER = certificate("a stranger", THEIRS)


def signature(*certificates: x509.Certificate) -> bytes:
    """A PKCS #7 with these certificates, of which the first signs."""
    builder = pkcs7.PKCS7SignatureBuilder().set_data(b"the image's digest")
    builder = builder.add_signer(certificates[0], OURS if certificates[0] == CA else THEIRS, hashes.SHA256())
    for one in certificates[1:]:
        builder = builder.add_certificate(one)
    return builder.sign(Encoding.DER, [pkcs7.PKCS7Options.Binary])


def signed(*certificates: x509.Certificate) -> bytes:
    """A PE file whose signature brings these certificates."""
    return pe(signature=certificate_table([signature(*certificates)]))


def keys(db: bytes) -> Variables:
    return secure_boot_variables(store(enrolled(db)))


# --- the file of variables ---


def test_the_variables_of_secure_boot_are_found() -> None:
    """Whatever lies between them; deleted ones do not count, one that is being deleted only without a newer one."""
    variables = [
        variable(SECURITY, "db", b"deleted", state=0x3C),
        variable(GLOBAL, "db", b"another one's"),
        variable(SECURITY, "dbx", b"older", state=0x3E),
        variable(GLOBAL, "KEK", b"only", state=0x3E),
        variable(SECURITY, "db", b"db"),
        variable(SECURITY, "dbx", b"newer"),
        variable(GLOBAL, "PK", b"pk"),
        variable(ENABLE, "SecureBootEnable", b"\1"),
    ]
    assert secure_boot_variables(store(variables)) == Variables(b"pk", b"only", b"db", b"newer", enabled=True)


@pytest.mark.parametrize(
    "variables", [enrolled(b"db", enable=b"\0"), enrolled(b"db", pk=b""), enrolled(b"db")[:-1], []]
)
def test_without_keys_or_switch_nothing_is_checked(variables: list[bytes]) -> None:
    """No PK, or switched off: Secure Boot is off, and a prediction for it is refused."""
    found = secure_boot_variables(store(variables))
    assert not found.enabled
    with pytest.raises(ConfigError, match="Secure Boot is off"):
        secure_boot_on(found, signed(CA), BANK)


def test_a_full_store_ends_where_it_ends() -> None:
    """A store without room for another variable is read to its end."""
    only = variable(SECURITY, "db", b"db")
    size = HEADER + 28 + len(only) + 30
    assert secure_boot_variables(store([only], size=size)).db == b"db"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "ends too early"),
        (store([])[: HEADER + 4], "no variables"),
        (store([], volume=SECURITY), "no variables"),
        (store([]).replace(b"_FVH", b"_FVX"), "no variables"),
        (store([])[:-1], "no variables"),
        (store([])[:48] + struct.pack("<H", 8) + store([])[50:], "no variables"),
        (store([], kind=NVRAM), "damaged"),
        (store([], format_=0xFF), "damaged"),
        (store([], state=0xFF), "damaged"),
        (store([], store_size=0x8000), "over its volume's end"),
        (store([variable(SECURITY, "db", bytes(0x9000))[:0x7000]]), "over the end of the store"),
        (store([variable(SECURITY, "db", b"1"), variable(SECURITY, "db", b"2")]), "two variables db"),
        (store([variable(SECURITY, "db", b"").replace(
            "b\0".encode("utf-16-le"), b"b\0b\0")]), "no text"),
        (store([variable(SECURITY, "db", b"").replace("d".encode("utf-16-le"), b"\0\xd8")]), "no text"),
        (store([variable(SECURITY, f"{n}", b"") for n in range(MAX_VARIABLES)], size=0x100000), "too many"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_variables(data: bytes, why: str) -> None:
    """Each defect is refused by its name."""
    with pytest.raises(ConfigError) as caught:
        secure_boot_variables(data)
    assert why in str(caught.value)


@given(st.integers(0, 300), st.binary(min_size=1, max_size=8))
def test_only_our_errors_escape_from_the_variables(at: int, garbage: bytes) -> None:
    """A file with bytes of somebody else's is read or refused with our error."""
    data = bytearray(store(enrolled(b"db"), size=0x400))
    data[at : at + len(garbage)] = garbage
    try:
        secure_boot_variables(bytes(data))
    except ConfigError:
        return


# --- PCR 7 ---


def test_pcr_7_has_the_variables_and_who_vouches() -> None:
    """By the specification: GUID, lengths, name in UTF-16 and data, hashed; the entry of db after the separator."""
    db = signature_list([der(CA)])
    events = secure_boot_on(keys(db), signed(CA), BANK)

    def digest(guid: bytes, name: str, data: bytes) -> bytes:
        return hashlib.sha256(
            guid + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data
        ).digest()

    assert [event.digest for event in events] == [
        digest(GLOBAL.bytes_le, "SecureBoot", b"\1"),
        digest(GLOBAL.bytes_le, "PK", b"p"),
        digest(GLOBAL.bytes_le, "KEK", b"k"),
        digest(SECURITY.bytes_le, "db", db),
        digest(SECURITY.bytes_le, "dbx", b"x"),
        hashlib.sha256(bytes(4)).digest(),
        digest(SECURITY.bytes_le, "db", OWNER.bytes_le + der(CA)),
    ]
    assert events[-1].type == "EV_EFI_VARIABLE_AUTHORITY"
    assert "our CA" in events[-1].what


@pytest.mark.parametrize("image", [signed(CA), signed(LEAF), signed(LEAF, CA)])
def test_the_first_entry_that_vouches_is_measured(image: bytes) -> None:
    """The signer's own certificate, or that of who issued it; digests and strangers before it do not matter."""
    stranger = certificate("another", ec.generate_private_key(ec.SECP256R1()))
    db = (
        signature_list([bytes(32)], kind=SHA256)
        + signature_list([der(stranger)])
        + signature_list([der(CA)], header=b"h")
    )
    assert "our CA" in secure_boot_on(keys(db), image, BANK)[-1].what


def test_an_image_that_nobody_vouches_for() -> None:
    """Unsigned, or signed by somebody else: firmware would not start it, so nothing is predicted."""
    db = signature_list([der(CA)])
    for image, found in ((pe(), "no signature"), (signed(STRANGER), "a stranger")):
        with pytest.raises(ConfigError, match="no certificate in db vouches") as caught:
            secure_boot_on(keys(db), image, BANK)
        assert found in str(caught.value)


def test_a_name_alone_vouches_for_nothing() -> None:
    """A certificate that calls itself issued by our CA, and is not, does not count."""
    forged = certificate("a builder", THEIRS, "our CA", THEIRS)
    with pytest.raises(ConfigError, match="no certificate in db vouches"):
        secure_boot_on(keys(signature_list([der(CA)])), signed(forged), BANK)


@pytest.mark.parametrize(
    ("db", "why"),
    [
        (b"x" * 27, "ends too early"),
        (signature_list([der(CA)])[:-1], "sizes"),
        (signature_list([b""]), "sizes"),
        (signature_list([der(CA)], header=b"h").replace(struct.pack("<I", 1), struct.pack("<I", 1 << 30), 1), "sizes"),
        (signature_list([der(CA)])[:24] + struct.pack("<I", 1 << 20) + signature_list([der(CA)])[28:], "sizes"),
        (signature_list([b"no certificate"]), "cannot be read"),
    ],
)  # fmt: skip
def test_a_db_that_cannot_be_read(db: bytes, why: str) -> None:
    """Each defect is refused by its name."""
    with pytest.raises(ConfigError) as caught:
        secure_boot_on(keys(db), signed(CA), BANK)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (struct.pack("<IHH", 7, 0x200, 2), "size"),
        (struct.pack("<IHH", 99, 0x200, 2), "size"),
        (certificate_table([b"no signature"]), "PKCS"),
    ],
)
def test_a_signature_that_cannot_be_read(table: bytes, why: str) -> None:
    """Each defect is refused by its name; a signature of another kind is nobody's."""
    db = signature_list([der(CA)])
    with pytest.raises(ConfigError) as caught:
        secure_boot_on(keys(db), pe(signature=table), BANK)
    assert why in str(caught.value)
    with pytest.raises(ConfigError, match="no certificate in db vouches"):
        secure_boot_on(keys(db), pe(signature=certificate_table([b"other"], kind=1)), BANK)


def test_the_kernel_in_a_signed_image_is_not_measured(tmp_path: Path) -> None:
    """Under Secure Boot the stub starts it by itself: PCR 4 has the image alone. The command line predicts it too."""
    stub = {".sdmagic": b"#### LoaderInfo: systemd-stub 252.39 ####"}
    parts = {".linux": pe(), ".initrd": b"initrd", ".cmdline": b"quiet", ".osrel": b"ID=x"}
    image = bytearray(uki(stub | parts))
    table = certificate_table([signature(CA)])
    image[0x40 + 24 + 144 : 0x40 + 24 + 152] = struct.pack("<II", len(image), len(table))
    whole, variables = bytes(image) + table, store(enrolled(signature_list([der(CA)])))
    off, on = uki_events(whole, (), BANK), uki_events(whole, (), BANK, secure_boot_variables(variables))
    assert on[4] == off[4][:-1]
    assert on[7] != off[7]
    assert {index: on[index] for index in (2, 9, 11, 12)} == {index: off[index] for index in (2, 9, 11, 12)}
    files = {"web.efi": whole, "vars.fd": variables}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    command = ["image", "measure", "tpm", "--uki", str(tmp_path / "web.efi"), "--vars", str(tmp_path / "vars.fd")]
    shown = CliRunner().invoke(main, command)
    assert (shown.exit_code, "our CA" in shown.output) == (0, True)


def test_keys_of_secure_boot_go_with_a_uki() -> None:
    """A kernel that QEMU hands over is not signed in a way that is predicted here."""
    command = ["image", "measure", "tpm", "--kernel", "k", "--initrd", "i", "--memory", "1", "--vars", "v"]
    assert "go with a UKI only" in CliRunner().invoke(main, command).output
