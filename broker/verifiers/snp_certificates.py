# SPDX-License-Identifier: Apache-2.0
"""AMD's certificates for SEV-SNP: ARK (root) -> ASK -> VCEK (a chip's key), ARK -> ASVK -> VLEK (a cloud provider's).

AMD 57230 (VCEK certificate and KDS), AMD 58369 (VLEK certificate). Names say which kind a certificate is and of which
product line; what they say counts once the signatures are checked up to a root. The checks:

    (1) X.509 v3, every extension once, no critical one that nobody here understands
    (2) subject and issuer are AMD's, attribute by attribute, with the common names of this kind and line
    (3) a CA's key is RSA of 4096 bits with exponent 65537; a VEK's (VCEK, VLEK) is on P-384
    (4) ARK, ASK and ASVK are CAs by basicConstraints (pathLen 0 but for the ARK) and may sign certificates by keyUsage,
        the ARK also revocation lists; a VEK is no CA, and has no keyUsage or one that allows signatures
    (5) a VEK has AMD's extensions of its kind and line, each once and no other of AMD's: structVersion, productName of
        the line, every component of the TCB; a VCEK has hwID, a VLEK cspID
    (6) VCEKs are issued by an ASK and VLEKs by an ASVK of their line, that by the ARK of that line, the ARK by itself
    (7) the ARK is one of the given roots
    (8) every signature is right, both as the certificate declares it and as RSASSA-PSS with SHA-384, MGF1 with SHA-384
        and 48 bytes of salt; what is declared inside the signed part and outside is the same
    (9) all are valid at the given time

Serial numbers are not looked at: AMD gives every VEK the number 0. Revocation: see `broker.verifiers.snp_crl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from broker.verifiers.snp_report import CHIP_ID_BYTES, TCB_LAYOUT, Line, SigningKey
from broker.verifiers.x509 import check_critical, check_valid, extension, is_ca, load_certificate, readable, words
from keys.errors import EndorsementError

CACHED = 256  # of each: VEKs that were read, CAs, signatures that were checked
MAX_INTERMEDIATES = 64  # certificates: the product's six, the operator's, and what came with the evidence
CA_KEY_BITS = 4096
CA_KEY_EXPONENT = 65537
TURIN_HW_ID_BYTES = 8
MAX_TEXT_BYTES = 127  # of productName and cspID: DER's short form of a length

_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)
_SHA384 = hashes.SHA384()
_SIGNATURE = b"\x03\x82\x02\x01\x00"  # a BIT STRING of 512 bytes, of which no bit is unused

_AMD = {
    NameOID.COUNTRY_NAME: "US",
    NameOID.STATE_OR_PROVINCE_NAME: "CA",
    NameOID.LOCALITY_NAME: "Santa Clara",
    NameOID.ORGANIZATION_NAME: "Advanced Micro Devices",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "Engineering",
}
_ARKS = {f"ARK-{line}": line for line in Line}
_INTERMEDIATES = {f"SEV-{line}": (line, SigningKey.VCEK) for line in Line} | {
    f"SEV-VLEK-{line}": (line, SigningKey.VLEK) for line in Line
}
_VEKS = {SigningKey.VCEK: "SEV-VCEK", SigningKey.VLEK: "SEV-VLEK"}
_UNDERSTOOD = frozenset((ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE))

# AMD's extensions, by what follows this prefix of their names.
_PREFIX = "1.3.6.1.4.1.3704.1."
_STRUCT_VERSION, _PRODUCT_NAME, _HW_ID, _CSP_ID = "1", "2", "4", "5"
_SPLS = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_RESERVED_SPLS = ("3.4", "3.5", "3.6", "3.7")  # spl4 to spl7; Turin's have no spl4
_ZERO = b"\x02\x01\x00"


@dataclass(frozen=True, slots=True)
class Vek:
    """What a VCEK's or VLEK's certificate says of its key. Signatures and dates are not checked yet: `verify_chain`.

    `tcb` is the TCB that the key was derived for, by component as `snp_report.tcb` names them. `hw_id` names a VCEK's
    chip: 64 bytes, or 8 on Turin. `csp_id` names the provider that AMD issued a VLEK to.
    """

    kind: SigningKey
    line: Line
    key: ec.EllipticCurvePublicKey
    tcb: Mapping[str, int]
    hw_id: bytes | None
    csp_id: str | None
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class Chain:
    """A path that holds: every check of this module's list is passed."""

    vek: Vek
    intermediate: x509.Certificate
    ark: x509.Certificate
    line: Line


def verify_chain(
    vek: Vek, intermediates: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], at: datetime
) -> Chain:
    """Checks (6) to (9): the path from `vek`, which `read_vek` read, over one of `intermediates` to one of `roots`.

    The intermediates are trusted for nothing. Signatures of certificates that were checked before are remembered, dates
    are compared each time. Raises EndorsementError that says what stopped the last path that was tried.
    """
    if len(intermediates) > MAX_INTERMEDIATES:
        raise EndorsementError(
            "too many certificates", expected=f"at most {MAX_INTERMEDIATES}", found=str(len(intermediates))
        )
    certificate = vek.certificate
    problem = EndorsementError(
        f"no {vek.line} root vouches for this {vek.kind.upper()}",
        expected=f"{words(certificate.issuer)}, issued by a configured ARK-{vek.line}",
        mend=f"trust AMD's built-in roots for {vek.line}",
    )
    for intermediate in intermediates:
        if intermediate.subject != certificate.issuer:
            continue
        for ark in roots:
            if ark.subject != intermediate.issuer:
                continue
            try:
                _check_intermediate(intermediate, ark)
                _check_signed(certificate, intermediate)
                for one in (certificate, intermediate, ark):
                    check_valid(one, at)  # (9)
            except EndorsementError as error:
                problem = error
                continue
            return Chain(vek, intermediate, ark, vek.line)
    raise problem


def verify_intermediate(certificate: x509.Certificate, ark: x509.Certificate, at: datetime) -> tuple[Line, SigningKey]:
    """The line of an ASK or ASVK that `ark` issued, and the kind of VEK that it may issue. Raises EndorsementError."""
    found = _check_intermediate(certificate, ark)
    for one in (certificate, ark):
        check_valid(one, at)  # (9)
    return found


@lru_cache(maxsize=CACHED)
def read_ark(certificate: x509.Certificate) -> Line:
    """The line of an ARK: checks (1) to (4) and (8), its own signature. Says nothing about whether to trust it.

    Raises EndorsementError.
    """
    name = _common_name(certificate.subject)
    line = _ARKS.get(name)
    if line is None or _common_name(certificate.issuer) != name:
        raise _not_a("n ARK", certificate)
    _check_ca(certificate, path_length=None, signs_lists=True)
    _check_signed(certificate, certificate)
    return line


@lru_cache(maxsize=CACHED)
def read_vek(data: bytes) -> Vek:
    """The VCEK or VLEK certificate in `data`, DER or PEM, checks (1) to (5). Raises EndorsementError."""
    certificate = load_certificate(data)
    # (2) the issuer's name says kind and line, and every other name must agree
    line, kind = _INTERMEDIATES.get(_common_name(certificate.issuer), (None, None))
    if line is None or kind is None or _common_name(certificate.subject) != _VEKS[kind]:
        raise _not_a(" VCEK or VLEK", certificate)
    values = {
        found.oid.dotted_string.removeprefix(_PREFIX): found.value.public_bytes()
        for found in certificate.extensions
        if found.oid.dotted_string.startswith(_PREFIX)
    }
    _check_form(certificate, {x509.ObjectIdentifier(_PREFIX + suffix) for suffix in values})  # (1)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):  # (3)
        raise EndorsementError("a VEK's key is of another kind", expected="P-384", found=words(certificate.subject))
    usage = extension(certificate, x509.KeyUsage)
    if is_ca(certificate) or (usage is not None and not usage.digital_signature):  # (4)
        raise EndorsementError("a VEK's certificate is not for signing reports", found=words(certificate.subject))
    # (5) takes out what belongs, so that whatever is left does not
    struct_version = _integer(_take(values, _STRUCT_VERSION))
    if struct_version != int(line is Line.TURIN):
        raise EndorsementError(f"structVersion is not that of {line}", found=str(struct_version))
    product = _text(_take(values, _PRODUCT_NAME))
    if product.partition("-")[0] != line:  # the stepping behind the dash is not reliable
        raise EndorsementError("productName is of another line", expected=line, found=product)
    tcb = {component: _integer(_take(values, _SPLS[component])) for component in TCB_LAYOUT[line]}
    for suffix in _RESERVED_SPLS:
        if values.pop(suffix, _ZERO) != _ZERO:
            raise EndorsementError("a reserved component of the certificate's TCB is not zero", found=_PREFIX + suffix)
    vcek = kind is SigningKey.VCEK
    hw_id = _hw_id(_take(values, _HW_ID), line) if vcek else None
    csp_id = None if vcek else _text(_take(values, _CSP_ID))
    if values:
        raise EndorsementError(
            f"a {line} {kind.upper()} has an extension that does not belong there",
            found=" ".join(_PREFIX + suffix for suffix in values),
        )
    return Vek(kind, line, key, tcb, hw_id, csp_id, certificate)


def rsa_key(certificate: x509.Certificate) -> rsa.RSAPublicKey:
    """The key of a CA, check (3). Raises EndorsementError."""
    key = certificate.public_key()
    if (
        not isinstance(key, rsa.RSAPublicKey)
        or key.key_size != CA_KEY_BITS
        or key.public_numbers().e != CA_KEY_EXPONENT
    ):
        raise EndorsementError(
            "a CA's key is of another kind",
            expected=f"RSA of {CA_KEY_BITS} bits, exponent {CA_KEY_EXPONENT}",
            found=words(certificate.subject),
        )
    return key


def verify_pss(key: rsa.RSAPublicKey, whole: bytes, signed: bytes, signature: bytes) -> None:
    """The signature that ends `whole` (DER of a certificate or list) is right under AMD's parameters, check (8).

    Raises InvalidSignature. The library does not mind unused bits in the signature; here one certificate has one form.
    """
    if not whole.endswith(_SIGNATURE + signature):
        raise InvalidSignature
    key.verify(signature, signed, _PSS, _SHA384)


@lru_cache(maxsize=CACHED)
def _check_intermediate(certificate: x509.Certificate, ark: x509.Certificate) -> tuple[Line, SigningKey]:
    """Line and kind of VEK: checks (1) to (4), (6) and (8) of an ASK or ASVK and its ARK."""
    found = _INTERMEDIATES.get(_common_name(certificate.subject))
    if found is None or _ARKS.get(_common_name(certificate.issuer)) is not found[0]:
        raise _not_a("n ASK or ASVK", certificate)
    _check_ca(certificate, path_length=0, signs_lists=False)
    read_ark(ark)
    _check_signed(certificate, ark)
    return found


@lru_cache(maxsize=CACHED)
def _check_signed(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Check (8). The key signs under one set of parameters: what verifies as declared and as AMD's, declares AMD's."""
    try:
        with readable():
            certificate.verify_directly_issued_by(issuer)  # also compares the names, and the two declarations
            verify_pss(
                rsa_key(issuer),
                certificate.public_bytes(Encoding.DER),
                certificate.tbs_certificate_bytes,
                certificate.signature,
            )
    except InvalidSignature as error:
        raise EndorsementError(
            "a certificate's signature is wrong",
            expected="RSASSA-PSS with SHA-384 and 48 bytes of salt",
            found=f"{words(certificate.subject)}, issuer {words(issuer.subject)}",
        ) from error


def _check_ca(certificate: x509.Certificate, *, path_length: int | None, signs_lists: bool) -> None:
    """Checks (1), (3) and (4) of a CA."""
    _check_form(certificate, frozenset())
    rsa_key(certificate)
    constraints, usage = extension(certificate, x509.BasicConstraints), extension(certificate, x509.KeyUsage)
    if constraints is None or not constraints.ca or constraints.path_length != path_length:
        raise EndorsementError(
            "a CA's basicConstraints are not AMD's",
            expected=f"CA, pathLen {path_length}",
            found=words(certificate.subject),
        )
    if usage is None or not usage.key_cert_sign or (signs_lists and not usage.crl_sign):
        raise EndorsementError("a CA may not sign what it signs (keyUsage)", found=words(certificate.subject))


def _check_form(
    certificate: x509.Certificate, understood: frozenset[x509.ObjectIdentifier] | set[x509.ObjectIdentifier]
) -> None:
    """Check (1); `load_certificate` refuses an extension that is there twice."""
    if certificate.version is not x509.Version.v3:
        raise EndorsementError("a certificate is not X.509 v3", found=words(certificate.subject))
    check_critical(certificate, _UNDERSTOOD | understood)


def _common_name(name: x509.Name) -> str:
    """Check (2), without the common name, which is handed back. The attributes' order does not matter."""
    attributes = {attribute.oid: str(attribute.value) for attribute in name}
    common_name = attributes.pop(NameOID.COMMON_NAME, "")
    if attributes != _AMD or len(list(name)) != len(_AMD) + 1:
        raise EndorsementError("a certificate's name is not AMD's", found=words(name))
    return common_name


def _not_a(what: str, certificate: x509.Certificate) -> EndorsementError:
    return EndorsementError(
        f"the certificate is not a{what}", found=f"{words(certificate.subject)}, issuer {words(certificate.issuer)}"
    )


def _take(values: dict[str, bytes], suffix: str) -> bytes:
    value = values.pop(suffix, None)
    if value is None:
        raise EndorsementError("a VEK's certificate lacks an extension", expected=_PREFIX + suffix)
    return value


def _integer(value: bytes) -> int:
    """A DER INTEGER from 0 to 255. Above 127 it takes two bytes: 02 02 00 db."""
    number = value[-1] if value else 0
    if value != (bytes((2, 1, number)) if number < 0x80 else bytes((2, 2, 0, number))):
        raise EndorsementError("an extension of a VEK's certificate is no INTEGER from 0 to 255", found=value.hex())
    return number


def _text(value: bytes) -> str:
    """A DER IA5String of visible characters, at least one."""
    text = value[2:].decode("latin-1")
    if (
        value[:2] != bytes((0x16, len(text) & 0xFF))
        or not 0 < len(text) <= MAX_TEXT_BYTES
        or not (text.isascii() and text.isprintable())
    ):
        raise EndorsementError("an extension of a VEK's certificate is no IA5String", found=value[:64].hex())
    return text


def _hw_id(value: bytes, line: Line) -> bytes:
    """The bytes as they stand, or in an OCTET STRING. The lengths keep the two apart."""
    size = TURIN_HW_ID_BYTES if line is Line.TURIN else CHIP_ID_BYTES
    if value[:2] == bytes((4, size)) and len(value) == 2 + size:
        value = value[2:]
    if len(value) != size:
        raise EndorsementError("hwID has a wrong length", expected=f"{size} bytes on {line}", found=value[:64].hex())
    return value
