# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.tpm_certificates: what makes a certificate an EK's or an AK's, on made-up and on real ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from broker.verifiers.tpm_certificates import check_path, read_ak_certificate, read_ek_certificate
from broker.verifiers.tpm_structures import parse_public
from broker.verifiers.x509 import load_certificate
from keys.errors import EndorsementError
from tests.fakes import tpm_forge as forge
from tests.fakes.ek_ca import EkCa
from tests.vectors import needs_vectors, vector

EK_PURPOSE, AK_PURPOSE, OTHER = (x509.ObjectIdentifier(f"2.23.133.8.{number}") for number in (1, 3, 2))
KEY = ec.generate_private_key(ec.SECP256R1())
USES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def certificate(
    *uses: str,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | None = None,
    purposes: tuple[x509.ObjectIdentifier, ...] = (),
    names: x509.GeneralName | None = None,
) -> x509.Certificate:
    """A self-signed certificate with these uses; without any it has no keyUsage."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key or KEY.public_key())
        .serial_number(0xABC)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
    )
    if uses:
        builder = builder.add_extension(x509.KeyUsage(**{use: use in uses for use in USES}), critical=True)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([names]), critical=True)
    return builder.sign(KEY, hashes.SHA256())


def directory(**values: str) -> x509.GeneralName:
    """The TCG's names of a TPM: manufacturer, model, version."""
    numbers = {"manufacturer": 1, "model": 2, "version": 3}
    return x509.DirectoryName(
        x509.Name(
            [
                x509.NameAttribute(x509.ObjectIdentifier(f"2.23.133.2.{numbers[what]}"), value)
                for what, value in values.items()
            ]
        )
    )


def test_what_a_certificate_says() -> None:
    """Subject, issuer, serial number, dates, purposes and the TPM's names come out as they are written."""
    names = directory(manufacturer="id:49465800", model="SLB 9670", version="id:073f")
    said = read_ek_certificate(certificate("key_agreement", purposes=(EK_PURPOSE,), names=names), KEY.public_key())
    assert (said.subject, said.issuer, said.serial) == ("CN=device", "CN=device", "abc")
    assert (said.not_before.year, said.not_after.day) == (2026, 2)
    assert said.purposes == ("2.23.133.8.1",)
    assert (said.manufacturer, said.model, said.version) == ("IFX", "SLB 9670", "id:073f")


@pytest.mark.parametrize("vendor", ["id:00001014", "none", "id:zz", "id:FF000000"])
def test_manufacturer_without_letters(vendor: str) -> None:
    """A manufacturer that is no four letters stays as it stands."""
    said = read_ek_certificate(certificate("key_agreement", names=directory(manufacturer=vendor)), KEY.public_key())
    assert said.manufacturer == vendor


def test_certificate_without_names_and_purposes() -> None:
    """Neither extendedKeyUsage nor subjectAltName is needed, and other names than a directory's are passed over."""
    said = read_ek_certificate(certificate("key_agreement"), KEY.public_key())
    assert (said.purposes, said.manufacturer, said.model, said.version) == ((), "", "", "")
    names = x509.DNSName("tpm.example")
    assert read_ek_certificate(certificate("key_agreement", names=names), KEY.public_key()).model == ""


def test_key_usage_of_an_endorsement_key() -> None:
    """An ECC EK agrees on keys and an RSA EK enciphers them; a certificate for anything else is not an EK's."""
    rsa_ek = forge.rsa_key().public_key()
    assert read_ek_certificate(certificate("key_encipherment", key=rsa_ek), rsa_ek)
    for uses, key in (
        (("key_encipherment", "digital_signature"), KEY.public_key()),
        (("key_agreement", "digital_signature"), rsa_ek),
    ):
        with pytest.raises(EndorsementError, match="not an EK certificate"):
            read_ek_certificate(certificate(*uses, key=key), key)


def test_key_usage_of_an_attestation_key() -> None:
    """An AK signs; a certificate of a key that only deciphers is not an AK's."""
    assert read_ak_certificate(certificate("digital_signature"), KEY.public_key())
    with pytest.raises(EndorsementError, match="not an AK certificate"):
        read_ak_certificate(certificate("key_agreement"), KEY.public_key())


def test_certificate_without_key_usage() -> None:
    """A certificate that does not say what its key is for is refused."""
    for read in (read_ek_certificate, read_ak_certificate):
        with pytest.raises(EndorsementError, match="no keyUsage"):
            read(certificate(), KEY.public_key())


def test_purposes() -> None:
    """Where purposes are stated, the right one is among them; Google's AK certificates name the EK's."""
    assert read_ek_certificate(certificate("key_agreement", purposes=(OTHER, EK_PURPOSE)), KEY.public_key())
    for purpose in (AK_PURPOSE, EK_PURPOSE):
        assert read_ak_certificate(certificate("digital_signature", purposes=(purpose,)), KEY.public_key())
    with pytest.raises(EndorsementError, match="not an EK certificate"):
        read_ek_certificate(certificate("key_agreement", purposes=(AK_PURPOSE,)), KEY.public_key())
    with pytest.raises(EndorsementError, match="not an AK certificate"):
        read_ak_certificate(certificate("digital_signature", purposes=(OTHER,)), KEY.public_key())


def test_certificate_of_another_key() -> None:
    """A certificate vouches for its own key only."""
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(EndorsementError, match="another key's"):
        read_ek_certificate(certificate("key_agreement"), other)
    with pytest.raises(EndorsementError, match="another key's"):
        read_ak_certificate(certificate("digital_signature"), other)


def test_path_of_an_endorsement_key() -> None:
    """A TPM's certificate, whose critical name no other code would read, leads to its maker's root and no other."""
    ca, other = EkCa(), EkCa()
    leaf, at = ca.certify(KEY.public_key()), datetime.now(UTC)
    assert check_path(leaf, [ca.intermediate], [ca.root], at)[-1] == ca.root
    with pytest.raises(EndorsementError):
        check_path(leaf, [ca.intermediate], [other.root], at)


GOOGLE = {
    "uca": ("gce/tpm_ek_intermediate_3.crt", "gce/tpm_ek_root_1.cer"),
    "pca": ("gce/gcp_ek_ak_ca_intermediate_v3.crt", "gce/gcp_ek_ak_ca_root.crt"),
}


@needs_vectors
@pytest.mark.filterwarnings("ignore:Attribute's length must be:UserWarning")
@pytest.mark.parametrize("authority", ["uca", "pca"])
@pytest.mark.parametrize("key", ["rsa", "ecc"])
def test_google_certificates(authority: str, key: str) -> None:
    """Google's certificates of both hierarchies are told apart by their use, and lead to their own root only."""
    signs, deciphers = (
        load_certificate(vector(f"gce/{authority}_tpm_{key}_{use}_cert.pem")) for use in ("sign", "enc")
    )
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for leaf, right, wrong in (
        (signs, read_ak_certificate, read_ek_certificate),
        (deciphers, read_ek_certificate, read_ak_certificate),
    ):
        certified = leaf.public_key()
        assert isinstance(certified, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
        assert right(leaf, certified)
        with pytest.raises(EndorsementError):
            wrong(leaf, certified)
        for name, (intermediate, root) in GOOGLE.items():
            candidates, roots = [load_certificate(vector(intermediate))], [load_certificate(vector(root))]
            if name == authority:
                assert len(check_path(leaf, candidates, roots, at)) == 3
            else:
                with pytest.raises(EndorsementError, match="no configured root"):
                    check_path(leaf, candidates, roots, at)


@needs_vectors
@pytest.mark.parametrize("key", ["rsa", "ec"])
def test_infineon_certificates(key: str) -> None:
    """A discrete TPM's real EK certificate certifies the key that its default template gives."""
    ek = parse_public(vector(f"keylime/infineon-ek-{key}.tpmt.bin"))
    said = read_ek_certificate(load_certificate(vector(f"keylime/infineon-ek-{key}.der")), ek.key)
    assert (said.manufacturer, said.model, said.version, said.subject) == ("IFX", "SLB 9670 TPM2.0", "id:073f", "")
