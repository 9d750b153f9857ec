# SPDX-License-Identifier: Apache-2.0
"""Certificates of TPM keys: what makes one an endorsement key's or an attestation key's, and what it says.

Source: TCG EK Credential Profile 2.5, section 3; TCG TPM 2.0 Keys for Device Identity and Attestation, section 8.
The checks:

    (1) keyUsage is there: keyEncipherment for an RSA EK, keyAgreement for an ECC EK, digitalSignature for an AK
    (2) where there is an extendedKeyUsage, it names the purpose: 2.23.133.8.1 for an EK, 2.23.133.8.3 for an AK
    (3) the certified key is the key in the TPMT_PUBLIC, whose attributes were checked
    (4) a path leads to a configured root, see `broker.verifiers.x509`

Google's newer certificates have neither extendedKeyUsage nor subjectAltName, and its older AK certificates name the
EK's purpose; keyUsage tells the two apart in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID

from broker.verifiers.x509 import build_path, extension, words
from keys.errors import EndorsementError

EK_PURPOSE = x509.ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate
AK_PURPOSE = x509.ObjectIdentifier("2.23.133.8.3")  # tcg-kp-AIKCertificate

_MANUFACTURER = x509.ObjectIdentifier("2.23.133.2.1")
_MODEL = x509.ObjectIdentifier("2.23.133.2.2")
_VERSION = x509.ObjectIdentifier("2.23.133.2.3")

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class TpmCertificate:
    """What a certificate says. Names are RFC 4514 text; manufacturer, model and version are "" where it has none."""

    subject: str
    issuer: str
    serial: str
    not_before: datetime
    not_after: datetime
    purposes: tuple[str, ...]
    manufacturer: str
    model: str
    version: str


def read_ek_certificate(certificate: x509.Certificate, key: PublicKey) -> TpmCertificate:
    """Checks (1) to (3) for the certificate of the endorsement key `key`. Raises EndorsementError."""
    usage = _usage(certificate)
    if not (usage.key_encipherment if isinstance(key, rsa.RSAPublicKey) else usage.key_agreement):
        raise EndorsementError("not an EK certificate", expected="keyUsage keyEncipherment (RSA) or keyAgreement (ECC)")
    _check_purpose(certificate, (EK_PURPOSE,), "EK")
    return _read(certificate, key)


def read_ak_certificate(certificate: x509.Certificate, key: PublicKey) -> TpmCertificate:
    """Checks (1) to (3) for the certificate of the attestation key `key`. Raises EndorsementError."""
    if not _usage(certificate).digital_signature:
        raise EndorsementError("not an AK certificate", expected="keyUsage digitalSignature")
    _check_purpose(certificate, (AK_PURPOSE, EK_PURPOSE), "AK")
    return _read(certificate, key)


def check_path(
    leaf: x509.Certificate, candidates: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], at: datetime
) -> tuple[x509.Certificate, ...]:
    """Check (4): leaf first, root last. Raises EndorsementError."""
    # The name of a TPM is in a critical subjectAltName, because its subject is often empty; `_read` reads it.
    return build_path(leaf, candidates, roots, at, understood=(ExtensionOID.SUBJECT_ALTERNATIVE_NAME,))


def _usage(certificate: x509.Certificate) -> x509.KeyUsage:
    usage = extension(certificate, x509.KeyUsage)
    if usage is None:
        raise EndorsementError("a TPM key's certificate has no keyUsage", found=words(certificate.subject))
    return usage


def _check_purpose(certificate: x509.Certificate, purposes: tuple[x509.ObjectIdentifier, ...], what: str) -> None:
    found = extension(certificate, x509.ExtendedKeyUsage)
    if found is not None and not any(purpose in found for purpose in purposes):
        raise EndorsementError(
            f"not an {what} certificate",
            expected="extendedKeyUsage " + " or ".join(purpose.dotted_string for purpose in purposes),
            found=" ".join(purpose.dotted_string for purpose in found),
        )


def _read(certificate: x509.Certificate, key: PublicKey) -> TpmCertificate:
    if certificate.public_key() != key:
        raise EndorsementError("the certificate is another key's", found=words(certificate.subject))
    tpm = _tpm_name(certificate)
    purposes = extension(certificate, x509.ExtendedKeyUsage) or ()
    return TpmCertificate(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        serial=f"{certificate.serial_number:x}",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        purposes=tuple(purpose.dotted_string for purpose in purposes),
        manufacturer=_vendor(tpm.get(_MANUFACTURER, "")),
        model=tpm.get(_MODEL, ""),
        version=tpm.get(_VERSION, ""),
    )


def _tpm_name(certificate: x509.Certificate) -> dict[x509.ObjectIdentifier, str]:
    """Attributes of the directory names in the subjectAltName; none where there is none."""
    names = extension(certificate, x509.SubjectAlternativeName)
    directories = names.get_values_for_type(x509.DirectoryName) if names is not None else []
    return {attribute.oid: str(attribute.value) for directory in directories for attribute in directory}


def _vendor(value: str) -> str:
    """The TCG vendor id as its four letters ("id:49465800" is "IFX"), or as it stands if it is no such thing."""
    try:
        letters = bytes.fromhex(value.removeprefix("id:")).rstrip(b"\0").decode("ascii")
    except ValueError:
        return value
    return letters if letters.isprintable() else value
