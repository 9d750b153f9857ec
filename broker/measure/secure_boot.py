# SPDX-License-Identifier: Apache-2.0
"""PCR 7 of a VM whose firmware checks what it starts, and by which of its keys it will start an image.

TCG PC Client Platform Firmware Profile 1.06, section 3.3.4.8; UEFI 2.10, section 32.4.1 (EFI_SIGNATURE_LIST):

 (1) the variables SecureBoot, which is 1, PK, KEK, db and dbx as they are in the file of variables; the separator
 (2) the entry of db that vouches for the image: owner and certificate, under the name db. It is the first one whose
     certificate is among those in the image's signature, or has issued one of them

That the signature itself is right is for the firmware to see; an image that it does not start asks for no key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization.pkcs7 import load_der_pkcs7_certificates

from broker.measure.authenticode import certificate_table
from broker.measure.direct_boot import Event, event, separator, variable
from broker.measure.variables import GLOBAL, SECURITY, Variables
from keys.errors import ConfigError

X509 = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")  # a5c059a1-94e4-4aa7-87b5-ab155c2bf072
OWNER_BYTES = 16  # before each certificate of a list
LIST_BYTES = 28  # of a list's header
CERTIFICATE_BYTES = 8  # of a WIN_CERTIFICATE's header
PKCS7 = 0x0002  # WIN_CERT_TYPE_PKCS_SIGNED_DATA


def secure_boot_on(variables: Variables, image: bytes, bank: str) -> tuple[Event, ...]:
    """PCR 7's events in order, for the signed PE file `image`. Raises ConfigError."""
    if not variables.enabled:
        raise ConfigError(
            "with these variables Secure Boot is off", mend="enrol PK, KEK and db in them, or predict without --vars"
        )
    named = (
        ("SecureBoot", GLOBAL, b"\1"),
        ("PK", GLOBAL, variables.pk),
        ("KEK", GLOBAL, variables.kek),
        ("db", SECURITY, variables.db),
        ("dbx", SECURITY, variables.dbx),
    )
    events = [
        event(bank, variable(guid, name, data), "EV_EFI_VARIABLE_DRIVER_CONFIG", f"{name}, {len(data)} bytes")
        for name, guid, data in named
    ]  # (1)
    entry, certificate = _authority(variables.db, _signers(image))
    what = f"db: {certificate.subject.rfc4514_string()[:200]}"
    authority = event(bank, variable(SECURITY, "db", entry), "EV_EFI_VARIABLE_AUTHORITY", what)  # (2)
    return (*events, separator(bank), authority)


def _authority(db: bytes, signers: Sequence[x509.Certificate]) -> tuple[bytes, x509.Certificate]:
    """The entry of `db` that vouches for one of `signers`: its bytes, and the certificate in them."""
    for entry in _entries(db):
        try:
            known = x509.load_der_x509_certificate(entry[OWNER_BYTES:])
        except ValueError:
            raise _malformed("a certificate that cannot be read") from None
        if any(known == signer or _issued(signer, known) for signer in signers):
            return entry, known
    raise ConfigError(
        "no certificate in db vouches for this image: the firmware will not start it",
        found=", ".join(signer.subject.rfc4514_string()[:100] for signer in signers) or "no signature",
        mend="sign it with a key that db has: sbsign",
    )


def _issued(signer: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        signer.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _entries(db: bytes) -> Iterator[bytes]:
    """Owner and certificate of each entry that has a certificate, in order."""
    at = 0
    while at < len(db):
        if at + LIST_BYTES > len(db):
            raise _malformed("a list that ends too early")
        kind = db[at : at + 16]
        size, header, each = (int.from_bytes(db[at + offset : at + offset + 4], "little") for offset in (16, 20, 24))
        begin, end = at + LIST_BYTES + header, at + size
        if end > len(db) or begin > end or each <= OWNER_BYTES or (end - begin) % each:
            raise _malformed("a list whose sizes do not fit")
        if kind == X509:
            yield from (db[start : start + each] for start in range(begin, end, each))
        at = end


def _signers(image: bytes) -> list[x509.Certificate]:
    """All certificates in the image's signatures. Raises ConfigError."""
    table, found = certificate_table(image), list[x509.Certificate]()
    at = 0
    while at < len(table):
        length, kind = int.from_bytes(table[at : at + 4], "little"), int.from_bytes(table[at + 6 : at + 8], "little")
        if length < CERTIFICATE_BYTES or at + length > len(table):
            raise ConfigError("the image's signature cannot be read", found="an entry whose size does not fit")
        if kind == PKCS7:
            try:
                found += load_der_pkcs7_certificates(table[at + CERTIFICATE_BYTES : at + length])
            except ValueError:
                raise ConfigError("the image's signature cannot be read", found="no PKCS #7") from None
        at += (length + 7) & ~7
    return sorted(found, key=lambda one: one.public_bytes(Encoding.DER))


def _malformed(why: str) -> ConfigError:
    return ConfigError("db cannot be read", found=why, mend="name the OVMF_VARS file that the VM starts with")
