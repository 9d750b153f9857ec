# SPDX-License-Identifier: Apache-2.0
"""A path from one certificate to a root that the operator configured.

Vendors' device certificates are outside what the library's web-oriented path validation accepts (no SAN, no EKU,
RSASSA-PSS), so the path is built here, for exactly what such chains need. RFC 5280, section 6, without policies:

    (1) the leaf is no CA
    (2) every certificate is valid at the given time
    (3) every issuer's subject is the next one's issuer, and not empty
    (4) every issuer is a CA by basicConstraints, its pathLen allows what is below it, and where it has a keyUsage, that
        allows signing certificates
    (5) no certificate has a critical extension that nobody here understands
    (6) every signature is right, made with SHA-256 or better and a key of at least 2048 bits RSA or 256 bits EC
    (7) the path ends in one of the given roots and has at most MAX_PATH certificates

The candidates are trusted for nothing; a root among them is only a candidate. Revocation is not looked at.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID

from keys.errors import EndorsementError

MAX_PATH = 6  # certificates, leaf and root included
MAX_CANDIDATES = 512  # certificates that come with the evidence, from a cache, or from the operator
MAX_CERTIFICATE_BYTES = 8 * 1024
CACHED = 256  # certificates that are remembered; none is longer than MAX_CERTIFICATE_BYTES
MIN_RSA_BITS = 2048
MIN_EC_BITS = 256

Value = TypeVar("Value", bound=x509.ExtensionType)

# Google's TPM certificates have names longer than X.520 allows; the library reads them and warns, once a certificate.
warnings.filterwarnings("ignore", message="Attribute's length must be", category=UserWarning)
# AMD gives every VCEK and VLEK the serial number 0, which RFC 5280 forbids; the library reads them and warns.
warnings.filterwarnings("ignore", message="Parsed a serial number which wasn't positive", category=UserWarning)

_STRONG = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_UNDERSTOOD = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE}


# What the library raises on certificates that it cannot read or use; turned into EndorsementError in `readable`.
_FOREIGN = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@lru_cache(maxsize=CACHED)
def load_certificate(data: bytes) -> x509.Certificate:
    """One certificate, DER or PEM. Raises EndorsementError if it or one of its extensions cannot be read.

    The newest are remembered, read and not judged: every guest of a fleet brings the same intermediates.
    """
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise EndorsementError("a certificate is too long", expected=f"at most {MAX_CERTIFICATE_BYTES} bytes")
    with readable():
        return _read(x509.load_pem_x509_certificate(data) if _is_pem(data) else x509.load_der_x509_certificate(data))


def load_certificates(data: bytes) -> tuple[x509.Certificate, ...]:
    """All certificates of an operator's file: a PEM bundle, or one in DER. Raises EndorsementError."""
    if not _is_pem(data):
        return (load_certificate(data),)
    with readable():
        return tuple(map(_read, x509.load_pem_x509_certificates(data)))


def _is_pem(data: bytes) -> bool:
    return data.lstrip().startswith(b"-----BEGIN")


def _read(certificate: x509.Certificate) -> x509.Certificate:
    """Read what the library reads lazily: a certificate that was loaded here raises nothing later."""
    certificate.public_key()
    _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.signature_hash_algorithm
    return certificate


def build_path(
    leaf: x509.Certificate,
    candidates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    at: datetime,
    understood: Iterable[x509.ObjectIdentifier] = (),
) -> tuple[x509.Certificate, ...]:
    """The path from `leaf` (first) to one of `roots` (last), every check of this module's list passed at `at`.

    All certificates come from `load_certificate` or `load_certificates`. `understood` are critical extensions of the
    leaf that the caller judges itself. Raises EndorsementError that says what stopped the longest way that was found.
    """
    if len(candidates) > MAX_CANDIDATES:
        raise EndorsementError(
            "too many certificates", expected=f"at most {MAX_CANDIDATES}", found=str(len(candidates))
        )
    # (1) a CA would otherwise pass as a device that it may issue certificates for
    if is_ca(leaf):
        raise EndorsementError("a device's certificate is a CA", found=words(leaf.subject))
    check_valid(leaf, at)
    check_critical(leaf, _UNDERSTOOD.union(understood))
    # Shortest paths first, every candidate at most once: a tangle of cross-certificates costs no more than a chain.
    paths: list[tuple[x509.Certificate, ...]] = [(leaf,)]
    unused = list(dict.fromkeys(candidates))  # a guest often sends an intermediate that the operator has too
    problem = EndorsementError(
        "no configured root vouches for this certificate",
        expected="; ".join(words(root.subject) for root in roots) or "a configured root",
        found=f"issuer {words(leaf.issuer)}",
        mend="configure the issuer's root certificate, if you trust it",
    )
    for path in paths:
        for issuer in [one for one in (*roots, *unused) if one.subject == path[-1].issuer]:
            try:
                _check_issuer(path, issuer, at)
            except EndorsementError as error:
                problem = error
                continue
            if issuer in roots:  # (7) equal to the last byte
                return (*path, issuer)
            unused.remove(issuer)
            paths.append((*path, issuer))  # the outer loop goes on with it
    raise problem


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether basicConstraints say that it is a CA."""
    constraints = extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def extension(certificate: x509.Certificate, kind: type[Value]) -> Value | None:
    """The value of the certificate's extension of this kind, if it has one."""
    for candidate in certificate.extensions:
        if isinstance(candidate.value, kind):
            return candidate.value
    return None


def words(name: x509.Name) -> str:
    """A distinguished name as RFC 4514 text, for people."""
    return name.rfc4514_string() or "(no name)"


def _check_issuer(path: tuple[x509.Certificate, ...], issuer: x509.Certificate, at: datetime) -> None:
    """Checks (2) to (6) of `issuer` as the one that vouches for the end of `path`."""
    who = words(issuer.subject)
    if len(path) >= MAX_PATH:  # (7)
        raise EndorsementError("the certificate path is too long", expected=f"at most {MAX_PATH} certificates")
    check_valid(issuer, at)  # (2)
    # (3) the caller compared the names; the library compares them again when it checks the signature
    if not issuer.subject.rdns:
        raise EndorsementError("an issuer has no name")
    # (4) a certificate that is no CA's must not make a path
    constraints = extension(issuer, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise EndorsementError("an issuer is not a CA", found=who)
    if constraints.path_length is not None and constraints.path_length < len(path) - 1:
        raise EndorsementError(
            "the path below a CA is too long",
            expected=f"at most {constraints.path_length}",
            found=f"{who}: {len(path) - 1}",
        )
    usage = extension(issuer, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        raise EndorsementError("an issuer may not sign certificates (keyUsage)", found=who)
    check_critical(issuer, _UNDERSTOOD)  # (5)
    # (6) strength first, then the signature itself
    key, hashed = issuer.public_key(), path[-1].signature_hash_algorithm
    strong = (isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS) or (
        isinstance(key, ec.EllipticCurvePublicKey) and key.key_size >= MIN_EC_BITS
    )
    if not strong or not isinstance(hashed, _STRONG):
        raise EndorsementError(
            "a certificate is signed too weakly",
            expected=f"RSA of {MIN_RSA_BITS} or EC of {MIN_EC_BITS} bits, SHA-256 or better",
            found=f"{who}: {hashed.name if hashed else 'no hash'}",
        )
    try:
        with readable():
            path[-1].verify_directly_issued_by(issuer)
    except InvalidSignature as error:
        raise EndorsementError("a certificate's signature is wrong", found=f"issuer {who}") from error


def check_valid(certificate: x509.Certificate, at: datetime) -> None:
    """Check (2) of one certificate. Raises EndorsementError."""
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= at <= last:
        raise EndorsementError(
            "a certificate is not valid at this time",
            expected=f"{first:%Y-%m-%dT%H:%M:%SZ} to {last:%Y-%m-%dT%H:%M:%SZ}",
            found=f"{at:%Y-%m-%dT%H:%M:%SZ}: {words(certificate.subject)}",
        )


def check_critical(certificate: x509.Certificate, understood: Collection[x509.ObjectIdentifier]) -> None:
    """Check (5) of one certificate. Raises EndorsementError."""
    for found in certificate.extensions:
        if found.critical and found.oid not in understood:
            raise EndorsementError(
                "a certificate has a critical extension that is not understood",
                found=f"{found.oid.dotted_string}: {words(certificate.subject)}",
            )


@contextmanager
def readable(what: str = "a certificate") -> Iterator[None]:
    """The one place where the library's exceptions about a certificate or a revocation list become ours."""
    try:
        yield
    except _FOREIGN as error:
        raise EndorsementError(f"{what} cannot be read or used", found=type(error).__name__) from error
