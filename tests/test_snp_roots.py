# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.snp_roots: AMD's nine CA certificates are the published ones, and no other ARK passes."""

from __future__ import annotations

import hashlib
from importlib.resources import files

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.verifiers import snp_roots
from broker.verifiers.snp_certificates import verify_intermediate
from broker.verifiers.snp_report import Line, SigningKey
from broker.verifiers.snp_roots import ARK_SPKI_SHA256, built_in, check_ark
from broker.verifiers.x509 import words
from keys.errors import EndorsementError
from tests.fakes.amd import AT, FakeAmd
from tests.vectors import VECTORS, needs_vectors

# By common name: SHA-256 of the DER SubjectPublicKeyInfo and of the DER certificate, as published.
PUBLISHED = {
    "ARK-Milan": (
        "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9",
        "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
    ),
    "ARK-Genoa": (
        "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831",
        "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
    ),
    "ARK-Turin": (
        "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08",
        "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
    ),
    "SEV-Milan": (
        "42491669ccb851d627ea9846cd24eccbeb7de7c2a62740120fff88001d38ebb6",
        "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
    ),
    "SEV-Genoa": (
        "0324d55bcd48ba877a8fd87c0e1b4934dec8448e3807a24384a34dc6a6c9ebb8",
        "5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521",
    ),
    "SEV-Turin": (
        "0000ead352025f208bf55297c4192c34cd1b878002107366d8f2065a9ae7d3a9",
        "5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185",
    ),
    "SEV-VLEK-Milan": (
        "66450a123ea5876206df67f2514a4fea224c0f63b18313423078b0edc4535e33",
        "c5e081f59b7efab1fe2f8b505e159704e72f29cab7ef7cf628a05a42439082f5",
    ),
    "SEV-VLEK-Genoa": (
        "7d1633252ebbadaa75f96e9b4e6f7d43a90ceb3f843937482630f8da2459264e",
        "197e610743a917d6b9bb982a5a9226ccc0a15b611be0619e626aca9151457372",
    ),
    "SEV-VLEK-Turin": (
        "bfc441408b2f806c5dbf180bd8920e6e60dd404d82141780d85dbf962954d386",
        "104e10a8bd060a3c20a434261a57d0588fd65a88915b4f65b08bdecaf8df1a3c",
    ),
}


def spki(certificate: x509.Certificate) -> str:
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).hexdigest()


def test_certificates_are_the_published_ones() -> None:
    """All nine CA certificates come with the product and have the published fingerprints; nothing else is trusted."""
    trusted = built_in()
    found = {
        words(one.subject).partition(",")[0].removeprefix("CN="): (spki(one), one.fingerprint(hashes.SHA256()).hex())
        for one in (*trusted.roots, *trusted.certificates)
    }
    assert found == PUBLISHED
    assert (len(trusted.roots), len(trusted.certificates), trusted.floors) == (3, 6, None)
    assert built_in() is trusted


def test_every_pin_is_that_of_its_root() -> None:
    """There is one pinned key a product line, and the roots are those keys' certificates, in the order of the lines."""
    assert {line: PUBLISHED[f"ARK-{line}"][0] for line in Line} == ARK_SPKI_SHA256
    assert [check_ark(root) for root in built_in().roots] == list(Line)


def test_every_intermediate_is_issued_by_its_root() -> None:
    """Each line's ARK issued its ASK and its ASVK."""
    trusted = built_in()
    found = [
        verify_intermediate(one, root, AT)
        for root in trusted.roots
        for one in trusted.certificates
        if one.issuer == root.subject
    ]
    assert found == [(line, kind) for line in Line for kind in (SigningKey.VCEK, SigningKey.VLEK)]


def test_ark_with_another_key() -> None:
    """A certificate that looks like an ARK to the last attribute is none of AMD's when its key is not pinned."""
    ark = FakeAmd().ark
    with pytest.raises(EndorsementError, match="not AMD's") as caught:
        check_ark(ark)
    assert caught.value.found == spki(ark)
    assert check_ark(ark, {Line.GENOA: spki(ark)}) is Line.GENOA
    with pytest.raises(EndorsementError, match="not AMD's"):
        check_ark(ark, {Line.MILAN: spki(ark)})


def test_ark_that_is_damaged() -> None:
    """A pinned key is not enough: an ARK whose own signature is wrong, or an ASK, is no root."""
    der = bytearray(built_in().roots[0].public_bytes(Encoding.DER))
    der[-1] ^= 1
    with pytest.raises(EndorsementError, match="signature is wrong"):
        check_ark(x509.load_der_x509_certificate(bytes(der)))
    with pytest.raises(EndorsementError, match="not an ARK"):
        check_ark(built_in().certificates[0])


def test_files_that_were_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are held against the pins too: an installation with another root in AMD's place trusts nothing."""
    monkeypatch.setattr(snp_roots, "_load", lambda _line, _kind: FakeAmd().ark)
    with pytest.raises(EndorsementError, match="not AMD's"):
        built_in.__wrapped__()


def test_files_belong_to_the_package() -> None:
    """The certificates are files inside the package, where every installation finds them."""
    names = sorted(one.name for one in (files("broker.verifiers") / "amd").iterdir() if one.is_file())
    assert names == sorted(f"{line.lower()}-{kind}.pem" for line in Line for kind in ("ark", "ask", "asvk"))


@needs_vectors
def test_certificates_of_the_recorded_evidence() -> None:
    """The CA certificates that real evidence came with are the product's."""
    recorded = {path.read_bytes() for path in (VECTORS / "snp" / "certs").iterdir()}
    trusted = built_in()
    assert recorded == {one.public_bytes(Encoding.DER) for one in (*trusted.roots, *trusted.certificates)}
