# SPDX-License-Identifier: Apache-2.0
"""Instances: ids are made out of keys, and keys that no guest could be trusted by are not enrolled."""

import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.appraisal.instances import Instance, parse_instance
from keys import b64
from keys.errors import ProtocolError
from tests.fakes.ek_ca import EkCa
from tests.fakes.sev import FakePlatform, FakeSev
from tests.fakes.tpm_guest import FakeTpm

CA = EkCa()
TPM = FakeTpm(CA)
AK_IDS = (f"tpm-ak:{TPM.ak_name.hex()}", f"tpm-spki:{hashlib.sha256(TPM.ak_spki).hexdigest()}")
EK_ID = f"tpm-ek:{hashlib.sha256(TPM.ek_spki).hexdigest()}"
AK, EK, CERTIFICATE = (b64.std(data) for data in (TPM.ak_public, TPM.ek_public, TPM.certificates[0]))
CHIP, TURIN = "0a" * 64, "0b" * 8


def spki(key: Any) -> bytes:
    encoded: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


SMALL = rsa.generate_private_key(65537, 1024)  # noqa: S505  to be refused
AZ_AK = spki(rsa.generate_private_key(65537, 2048))


@pytest.mark.parametrize(
    ("posted", "instance"),
    [
        ({"ak_public": AK}, Instance(AK_IDS, TPM.ak_public)),
        ({"ek_public": EK, "description": "rack 3"}, Instance((EK_ID,), None, "rack 3")),
        ({"ek_certificate": CERTIFICATE}, Instance((EK_ID,))),
        ({"ek_public": EK, "ek_certificate": CERTIFICATE}, Instance((EK_ID,))),
        ({"ak_public": AK, "ek_certificate": CERTIFICATE}, Instance((EK_ID, *AK_IDS), TPM.ak_public)),
        ({"ak_public": AK, "ek_public": EK}, Instance((EK_ID, *AK_IDS), TPM.ak_public + TPM.ek_public)),
        ({"snp_chip_id": CHIP.upper()}, Instance((f"snp-chip:{CHIP}",))),
        ({"snp_chip_id": TURIN}, Instance((f"snp-chip:{TURIN}",))),
        ({"snp_chip_id": TURIN + "00" * 56}, Instance((f"snp-chip:{TURIN}",))),
        ({"snp_csp_id": "CN=cc-us-east-2.amazonaws.com"}, Instance(("snp-csp:CN=cc-us-east-2.amazonaws.com",))),
        ({"az_ak": b64.std(AZ_AK)}, Instance((f"az-ak:{hashlib.sha256(AZ_AK).hexdigest()}",))),
        (
            {"snp_chip_id": CHIP, "az_ak": b64.std(AZ_AK), "ek_public": EK},
            Instance((EK_ID, f"snp-chip:{CHIP}", f"az-ak:{hashlib.sha256(AZ_AK).hexdigest()}")),
        ),
    ],
)
def test_ids_are_made_out_of_the_keys(posted: dict[str, Any], instance: Instance) -> None:
    """Each key gives its ids; the EK's public area is kept behind the AK's, which may have been made under it."""
    assert parse_instance(posted) == instance
    assert Instance.from_body(json.loads(json.dumps(instance.to_body()))) == instance


@pytest.mark.parametrize(
    ("posted", "word"),
    [
        ({}, "names no key"),
        ({"description": "x"}, "names no key"),
        ({"ids": ["tpm-ak:00"], "ak_public": AK}, "unknown member"),
        ({"ak_public": AK, "description": "x" * 501}, "description is too long"),
        ({"ak_public": AK[:-4]}, "cannot be enrolled"),
        ({"ak_public": "*"}, "ak_public is not standard base64"),
        ({"ak_public": EK}, "wrong attributes"),
        ({"ak_public": b64.std(FakeTpm(attributes=0x00040072).ak_public)}, "wrong attributes"),
        ({"ek_public": AK}, "wrong attributes"),
        ({"ek_public": EK, "ak_public": b64.std(TPM.ak_public + TPM.ek_public)}, "trailing bytes"),
        ({"ek_certificate": AK}, "cannot be enrolled"),
        ({"ek_public": b64.std(FakeTpm().ek_public), "ek_certificate": CERTIFICATE}, "not the key in ek_certificate"),
        ({"snp_chip_id": ""}, "snp_chip_id is not"),
        ({"snp_chip_id": CHIP[2:]}, "snp_chip_id is not"),
        ({"snp_chip_id": TURIN[2:]}, "snp_chip_id is not"),
        ({"snp_chip_id": "0x" + TURIN[2:]}, "snp_chip_id is not"),
        ({"snp_chip_id": 7}, "snp_chip_id is not"),
        ({"snp_chip_id": "00" * 64}, "masked"),
        ({"snp_chip_id": "00" * 8}, "masked"),
        ({"snp_csp_id": ""}, "not a cspID"),
        ({"snp_csp_id": "CN=x\n"}, "not a cspID"),
        ({"snp_csp_id": "CN=\u00e9"}, "not a cspID"),
        ({"snp_csp_id": "x" * 257}, "snp_csp_id is too long"),
        ({"snp_csp_id": 7}, "must be a string"),
        ({"sev_cek": "AAAA"}, "CEK has another length"),
        ({"sev_cek": b64.std(bytes(2085))}, "sev_cek is too long"),
        ({"az_ak": "AAAA"}, "not a SubjectPublicKeyInfo"),
        ({"az_ak": b64.std(AZ_AK[:-1])}, "not a SubjectPublicKeyInfo"),
        ({"az_ak": b64.std(spki(ec.generate_private_key(ec.SECP256R1())))}, "not an attestation key of Azure's"),
        ({"az_ak": b64.std(spki(SMALL))}, "not an attestation key of Azure's"),
    ],
)
def test_what_nobody_could_be_trusted_by_is_not_enrolled(posted: dict[str, Any], word: str) -> None:
    """Ids from outside, unrestricted or swapped keys, broken structures, contradictions: each is a ProtocolError."""
    with pytest.raises(ProtocolError, match=word):
        parse_instance(posted)


def test_any_certified_key_can_be_an_endorsement_key() -> None:
    """A certificate alone is enrolled by its key; whether its maker is trusted is decided when a guest comes."""
    certificate = CA.certify(ec.generate_private_key(ec.SECP384R1()).public_key())
    assert len(parse_instance({"ek_certificate": b64.std(certificate.public_bytes(Encoding.DER))}).ids) == 1


def test_a_processor_before_snp_is_known_by_its_cek() -> None:
    """The id is the SHA-256 of the public key field, so that another signature of AMD's does not change it."""
    platform = FakePlatform(FakeSev())
    cek = platform.chain.cek
    [name] = parse_instance({"sev_cek": b64.std(cek)}).ids
    assert name == f"sev-cek:{hashlib.sha256(cek[0x10:0x414]).hexdigest()}" == platform.instance_id
    resigned = cek[:0x420] + bytes((cek[0x420] ^ 1,)) + cek[0x421:]  # in the first slot's signature
    assert parse_instance({"sev_cek": b64.std(resigned)}).ids == (name,)
    with pytest.raises(ProtocolError, match="another key stands for the CEK"):
        parse_instance({"sev_cek": b64.std(platform.chain.pek)})
