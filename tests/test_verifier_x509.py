# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.x509: a path to a configured root, every rule of it, and nothing but our errors."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.verifiers.x509 import (
    MAX_CANDIDATES,
    MAX_PATH,
    build_path,
    extension,
    is_ca,
    load_certificate,
    load_certificates,
    words,
)
from keys.errors import EndorsementError
from tests.fakes import tpm_forge as forge

AT = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
YEAR = timedelta(days=365)


def named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


@dataclass
class Party:
    """One certificate to be. `issuer` None is self-signed; `ca` None leaves basicConstraints out."""

    name: str
    issuer: Party | None = None
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    ca: bool | None = True
    path_length: int | None = None
    usage: x509.KeyUsage | None = field(default_factory=lambda: usage(signs=True))
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = ()
    start: datetime = AT - YEAR
    end: datetime = AT + YEAR
    hash: hashes.HashAlgorithm | None = field(default_factory=hashes.SHA256)

    def certificate(self) -> x509.Certificate:
        signer = self.issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(self.name))
            .issuer_name(named(signer.name))
            .public_key(self.key.public_key())
            .serial_number(1000)
            .not_valid_before(self.start)
            .not_valid_after(self.end)
        )
        if self.ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(self.ca, self.path_length), critical=True)
        if self.usage is not None:
            builder = builder.add_extension(self.usage, critical=True)
        for value, critical in self.extra:
            builder = builder.add_extension(value, critical=critical)
        return builder.sign(signer.key, self.hash)  # type: ignore[arg-type]


ROOT = Party("root")
MIDDLE = Party("middle", ROOT)
LEAF = Party("leaf", MIDDLE, ca=False, usage=usage(signs=False))


def path(
    leaf: Party = LEAF, middle: Party | None = MIDDLE, root: Party = ROOT, at: datetime = AT
) -> tuple[x509.Certificate, ...]:
    candidates = [] if middle is None else [middle.certificate()]
    return build_path(leaf.certificate(), candidates, [root.certificate()], at)


def test_path_of_three() -> None:
    """A leaf leads over an intermediate to the root, which comes last."""
    assert [words(certificate.subject) for certificate in path()] == ["CN=leaf", "CN=middle", "CN=root"]


def test_path_of_two() -> None:
    """A root may have signed the leaf itself."""
    assert len(path(replace(LEAF, issuer=ROOT), None)) == 2


def test_root_comes_only_from_the_configuration() -> None:
    """A root that comes with the evidence vouches for nothing, also not under the name of a configured one."""
    with pytest.raises(EndorsementError, match="no configured root"):
        build_path(LEAF.certificate(), [MIDDLE.certificate(), ROOT.certificate()], [], AT)
    impostor = Party("root")
    with pytest.raises(EndorsementError, match="signature is wrong"):
        build_path(LEAF.certificate(), [MIDDLE.certificate(), ROOT.certificate()], [impostor.certificate()], AT)


def test_missing_intermediate_names_the_issuer() -> None:
    """Without its issuer a certificate leads nowhere, and the refusal names whom to configure."""
    with pytest.raises(EndorsementError, match="no configured root") as caught:
        path(middle=None)
    assert (caught.value.expected, caught.value.found) == ("CN=root", "issuer CN=middle")


def test_leaf_that_is_a_ca() -> None:
    """A CA's certificate is no device's."""
    with pytest.raises(EndorsementError, match="device's certificate is a CA"):
        path(replace(LEAF, ca=True))
    assert path(replace(LEAF, ca=None))


@pytest.mark.parametrize("who", ["leaf", "middle", "root"])
@pytest.mark.parametrize("days", [-1, 1])
def test_validity_of_each_certificate(who: str, days: int) -> None:
    """Every certificate of the path is valid at the given time, the root too."""
    window = {"start": AT + timedelta(days=1)} if days > 0 else {"end": AT - timedelta(days=1)}
    root = replace(ROOT, **window) if who == "root" else ROOT
    middle = replace(MIDDLE, issuer=root, **(window if who == "middle" else {}))
    leaf = replace(LEAF, issuer=middle, **(window if who == "leaf" else {}))
    with pytest.raises(EndorsementError, match="not valid at this time") as caught:
        path(leaf, middle, root)
    assert caught.value.found is not None
    assert who in caught.value.found


def test_validity_includes_its_ends() -> None:
    """The first and the last second are inside."""
    for at in (LEAF.start, LEAF.end):
        assert path(at=at)


@pytest.mark.parametrize("ca", [False, None])
def test_issuer_that_is_no_ca(ca: bool | None) -> None:
    """A certificate without the CA bit vouches for nobody."""
    middle = replace(MIDDLE, ca=ca)
    with pytest.raises(EndorsementError, match="issuer is not a CA"):
        path(replace(LEAF, issuer=middle), middle)


def test_path_length_of_a_ca() -> None:
    """A CA that allows nothing below it but leaves vouches for no path with a CA between."""
    root = replace(ROOT, path_length=0)
    middle = replace(MIDDLE, issuer=root)
    with pytest.raises(EndorsementError, match="path below a CA is too long"):
        path(replace(LEAF, issuer=middle), middle, root)
    root = replace(ROOT, path_length=1)
    middle = replace(MIDDLE, issuer=root, path_length=0)
    assert path(replace(LEAF, issuer=middle), middle, root)


def test_issuer_that_may_not_sign_certificates() -> None:
    """An issuer whose keyUsage lacks certificate signing vouches for nobody; one without keyUsage may."""
    middle = replace(MIDDLE, usage=usage(signs=False))
    with pytest.raises(EndorsementError, match="keyUsage"):
        path(replace(LEAF, issuer=middle), middle)
    middle = replace(MIDDLE, usage=None)
    assert path(replace(LEAF, issuer=middle), middle)


UNKNOWN = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)


def test_critical_extensions_that_nobody_understands() -> None:
    """An unknown critical extension refuses a leaf or an issuer, an unknown uncritical one does not."""
    with pytest.raises(EndorsementError, match="critical extension") as caught:
        path(replace(LEAF, extra=(UNKNOWN,)))
    assert caught.value.found == "1.2.3.4: CN=leaf"
    middle = replace(MIDDLE, extra=(UNKNOWN,))
    with pytest.raises(EndorsementError, match="critical extension"):
        path(replace(LEAF, issuer=middle), middle)
    assert path(replace(LEAF, extra=((UNKNOWN[0], False),)))


def test_critical_extension_that_the_caller_understands() -> None:
    """The caller may take a critical extension of the leaf upon itself, but not one of an issuer."""
    leaf, middle = replace(LEAF, extra=(UNKNOWN,)), replace(MIDDLE, extra=(UNKNOWN,))
    known = (x509.ObjectIdentifier("1.2.3.4"),)
    assert build_path(leaf.certificate(), [MIDDLE.certificate()], [ROOT.certificate()], AT, known)
    with pytest.raises(EndorsementError, match="critical extension"):
        build_path(replace(leaf, issuer=middle).certificate(), [middle.certificate()], [ROOT.certificate()], AT, known)


def test_issuer_without_a_name() -> None:
    """An empty name identifies no issuer."""
    root = Party("")
    with pytest.raises(EndorsementError, match="no name"):
        path(replace(LEAF, issuer=root), None, root)


def test_signature_of_somebody_else() -> None:
    """An issuer of the right name but another key did not sign."""
    with pytest.raises(EndorsementError, match="signature is wrong"):
        path(middle=replace(MIDDLE, key=ec.generate_private_key(ec.SECP256R1())))


def test_changed_certificate() -> None:
    """A certificate with one flipped bit in its signed part does not verify."""
    der = bytearray(LEAF.certificate().public_bytes(Encoding.DER))
    der[der.index(b"leaf")] ^= 1
    with pytest.raises(EndorsementError, match="signature is wrong"):
        build_path(load_certificate(bytes(der)), [MIDDLE.certificate()], [ROOT.certificate()], AT)


@pytest.mark.parametrize(
    "root",
    [
        Party("root", key=forge.rsa_key(1024)),
        Party("root", key=ec.generate_private_key(ec.SECP192R1())),
        Party("root", key=ed25519.Ed25519PrivateKey.generate(), hash=None),
    ],
    ids=["rsa-1024", "p-192", "ed25519"],
)
def test_weak_issuer(root: Party) -> None:
    """A signature with a key that is too short, or of an algorithm that no TPM maker uses, is refused."""
    with pytest.raises(EndorsementError, match="signed too weakly"):
        path(replace(LEAF, issuer=root, hash=root.hash), None, root)


def test_weak_hash() -> None:
    """A right signature with a short hash is refused."""
    root = Party("root", key=forge.rsa_key())
    with pytest.raises(EndorsementError, match="signed too weakly") as caught:
        path(replace(LEAF, issuer=root, hash=hashes.SHA224()), None, root)
    assert caught.value.found == "CN=root: sha224"


def test_length_of_a_path() -> None:
    """The longest allowed path is accepted, one more is refused."""
    parties = [ROOT]
    for depth in range(MAX_PATH):
        parties.append(Party(f"ca {depth}", parties[-1]))
    for depth, accepted in ((MAX_PATH - 2, True), (MAX_PATH - 1, False)):
        leaf = replace(LEAF, issuer=parties[depth]).certificate()
        candidates = [party.certificate() for party in parties[1 : depth + 1]]
        if accepted:
            assert len(build_path(leaf, candidates, [ROOT.certificate()], AT)) == MAX_PATH
        else:
            with pytest.raises(EndorsementError, match="certificate path is too long"):
                build_path(leaf, candidates, [ROOT.certificate()], AT)


def test_number_of_candidates() -> None:
    """More candidates than any chain has are refused before anything is computed."""
    with pytest.raises(EndorsementError, match="too many certificates"):
        build_path(LEAF.certificate(), [MIDDLE.certificate()] * (MAX_CANDIDATES + 1), [ROOT.certificate()], AT)


def test_detours_end() -> None:
    """CAs that sign each other in a circle, and useless candidates, neither hang nor hide the right path."""
    first, second = Party("middle"), Party("twin")
    circle = [replace(first, issuer=second).certificate(), replace(second, issuer=first).certificate()]
    with pytest.raises(EndorsementError):
        build_path(replace(LEAF, issuer=first).certificate(), circle, [ROOT.certificate()], AT)
    expired = replace(MIDDLE, end=AT - timedelta(days=1))
    candidates = [expired.certificate(), *circle, MIDDLE.certificate()]
    assert len(build_path(LEAF.certificate(), candidates, [ROOT.certificate()], AT)) == 3


ROOT_PEM = ROOT.certificate().public_bytes(Encoding.PEM)


def test_loading() -> None:
    """A certificate is read from DER and from PEM, and several from a bundle, none of them unreadable."""
    certificate = LEAF.certificate()
    for encoding in (Encoding.DER, Encoding.PEM):
        assert load_certificate(certificate.public_bytes(encoding)) == certificate
        assert load_certificates(certificate.public_bytes(encoding)) == (certificate,)
    bundle = certificate.public_bytes(Encoding.PEM) + b"\n" + ROOT_PEM
    assert [words(one.subject) for one in load_certificates(bundle)] == ["CN=leaf", "CN=root"]
    with pytest.raises(EndorsementError, match="cannot be read"):
        load_certificates(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert not is_ca(certificate)
    assert extension(certificate, x509.ExtendedKeyUsage) is None
    assert words(named("")) == "(no name)"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read"),
        (b"\x30\x03\x02\x01\x00", "cannot be read"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be read"),
        (b"-----BEGIN nothing", "cannot be read"),
        (LEAF.certificate().public_bytes(Encoding.DER) + b"\0", "cannot be read"),
        (bytes(8 * 1024 + 1), "too long"),
    ],
)
def test_loading_of_something_else(data: bytes, message: str) -> None:
    """What is no certificate, to the last byte, is refused."""
    with pytest.raises(EndorsementError, match=message):
        load_certificate(data)


PURPOSE = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
GOOD = replace(LEAF, extra=(PURPOSE,)).certificate().public_bytes(Encoding.DER)
CHAIN = MIDDLE.certificate(), ROOT.certificate()


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_changed_certificates_raise_only_our_error(data: st.DataObject) -> None:
    """A certificate with changed bytes is read and used, or refused with our error."""
    der = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    with suppress(EndorsementError):
        build_path(load_certificate(bytes(der)), CHAIN[:1], CHAIN[1:], AT)
