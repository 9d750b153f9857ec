# SPDX-License-Identifier: Apache-2.0
"""A TPM maker's certificate authority, made up for one test: root, intermediate, EK certificates.

The certificates look as the TCG EK Credential Profile (version 2.5, section 3.2) wants them: empty subject, critical
subjectAltName with manufacturer, model and version, extended key usage 2.23.133.8.1.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier

from agent.tpm2_marshal import ALG_RSA, CURVE_P256, Reader

EK_CERTIFICATE = ObjectIdentifier("2.23.133.8.1")
MAKER = {"2.23.133.2.1": "id:524F4F4D", "2.23.133.2.2": "Roomkey software TPM", "2.23.133.2.3": "id:00000001"}
LIFE = timedelta(days=3650)

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class EkCa:
    """A root and one intermediate that signs EK certificates. Valid from yesterday on, for ten years."""

    def __init__(self, name: str = "Roomkey test TPM maker") -> None:
        self._root_key = ec.generate_private_key(ec.SECP256R1())
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._valid_from = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
        root, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name + kind)]) for kind in (" root", " CA"))
        self.root = self._authority(root, self._root_key.public_key(), root, path_length=1)
        self.intermediate = self._authority(issuer, self._key.public_key(), root, path_length=0)

    @property
    def root_pem(self) -> bytes:
        return self.root.public_bytes(serialization.Encoding.PEM)

    def certify(self, ek: PublicKey) -> x509.Certificate:
        """An EK certificate for `ek`."""
        is_rsa = isinstance(ek, rsa.RSAPublicKey)
        names = [x509.NameAttribute(ObjectIdentifier(oid), value) for oid, value in MAKER.items()]
        return (
            self._builder(x509.Name([]), ek, self.intermediate.subject)
            .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(names))]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(key_encipherment=is_rsa, key_agreement=not is_rsa), critical=True)
            .add_extension(x509.ExtendedKeyUsage([EK_CERTIFICATE]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _authority(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, issuer: x509.Name, path_length: int
    ) -> x509.Certificate:
        return (
            self._builder(subject, key, issuer)
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(_usage(key_cert_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._root_key.public_key()), critical=False
            )
            .sign(self._root_key, hashes.SHA256())
        )

    def _builder(self, subject: x509.Name, key: PublicKey, issuer: x509.Name) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._valid_from)
            .not_valid_after(self._valid_from + LIFE)
        )


def public_key(public: bytes) -> PublicKey:
    """The key in the TPMT_PUBLIC of one of TCG's default EKs."""
    reader = Reader(public)
    kind = reader.u16()
    reader.take(2 + 4)  # name algorithm, attributes
    reader.tpm2b()  # policy
    reader.take(3 * 2 + 2)  # AES-CFB, no scheme
    if kind == ALG_RSA:
        reader.take(2 + 4)  # bits, exponent 0
        return rsa.RSAPublicNumbers(65537, int.from_bytes(reader.tpm2b(), "big")).public_key()
    curve = ec.SECP256R1() if reader.u16() == CURVE_P256 else ec.SECP384R1()
    reader.u16()  # no KDF
    x, y = (int.from_bytes(reader.tpm2b(), "big") for _ in range(2))
    return ec.EllipticCurvePublicNumbers(x, y, curve).public_key()


def _usage(**set_bits: bool) -> x509.KeyUsage:
    bits = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    return x509.KeyUsage(**(bits | set_bits))
