# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.tpm_credential: known answers, a real TPM, and which keys a credential is made for."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import tpm2
from agent.attesters.tpm import AK_TEMPLATE, EK_PROFILES, EkProfile
from broker.verifiers import tpm_credential
from broker.verifiers.tpm import make_challenge
from broker.verifiers.tpm_credential import check_ek, ecc_seed, kdfa, seal
from broker.verifiers.tpm_structures import SHA256, parse_public
from keys.errors import ProtocolError, VerificationError
from keys.messages import TpmCredential
from tests.fakes import swtpm
from tests.fakes import tpm_forge as forge
from tests.fakes.tpm_guest import FakeTpm
from tests.needs import needs_swtpm
from tests.vectors import needs_vectors, vector

SECRET = bytes(range(32))


@needs_vectors
@pytest.mark.parametrize("name", ["keylime", "swtpm"])
def test_known_answers(name: str) -> None:
    """Credentials for fixed seeds and ephemeral keys are byte for byte those that other software and a TPM made."""
    for answer in json.loads(vector(f"{name}/makecredential.json")):
        ek = check_ek(parse_public(bytes.fromhex(answer["ek_public"])))
        if isinstance(ek.key, ec.EllipticCurvePublicKey):
            ephemeral = ec.derive_private_key(int(answer["ephemeral_d"], 16), ek.key.curve)
            seed, point = ecc_seed(ek.key, ek.name_hash, ephemeral)
            assert point.hex() == answer["encrypted_secret"]
        else:
            seed = bytes.fromhex(answer["seed"])
        blob = seal(ek, seed, bytes.fromhex(answer["ak_name"]), bytes.fromhex(answer["secret"]))
        assert blob.hex() == answer["id_object"]


@pytest.mark.parametrize("rsa_ek", [False, True], ids=["ecc", "rsa"])
def test_challenge_opens_in_the_tpm_it_was_made_for(rsa_ek: bool) -> None:
    """The declared TPM gets the secret back, another TPM or another AK gets nothing."""
    tpm, other = FakeTpm(rsa_ek=rsa_ek), FakeTpm(rsa_ek=rsa_ek)
    session = {"ak_public": tpm.ak_public, "ek_public": tpm.ek_public, "ek_certificates": ()}
    credential = TpmCredential(*make_challenge(session, SECRET, os.urandom))
    assert tpm.activate(credential) == SECRET
    other.ek_public, other._ek = tpm.ek_public, tpm._ek
    with pytest.raises(ValueError, match="another key"):
        other.activate(credential)


@needs_swtpm
@pytest.mark.parametrize("profile", EK_PROFILES, ids=lambda profile: f"{profile.certificate_index:08x}")
def test_challenge_opens_in_a_real_tpm(profile: EkProfile, tmp_path: Path) -> None:
    """TPM2_ActivateCredential of a real implementation accepts our credential for each of its EK templates."""
    with (
        swtpm.SoftwareTpm(tmp_path) as software,
        software.open() as tpm,
        tpm.primary(tpm2.RH_ENDORSEMENT, AK_TEMPLATE) as ak,
        tpm.primary(tpm2.RH_ENDORSEMENT, profile.template) as ek,
        tpm.endorsement_session() if profile.by_policy else nullcontext(tpm2.RS_PW) as authorization,
    ):
        credential = make_challenge({"ak_public": ak.public, "ek_public": ek.public}, SECRET, os.urandom)
        assert tpm.activate_credential(ak.handle, ek.handle, authorization, *credential) == SECRET


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
def test_ephemeral_key_comes_out_of_the_randomness(curve: str) -> None:
    """The same randomness gives the same credential and other randomness another one, at any value of the bytes."""
    ek = forge.storage_area(forge.ec_key(curve))
    session = {"ak_public": forge.public_area(forge.ec_key()), "ek_public": ek}
    made = [make_challenge(session, SECRET, lambda size, fill=fill: bytes([fill]) * size) for fill in (0, 255, 255, 7)]
    assert made[1] == made[2]
    assert len({point for _, point in made}) == 3


def test_randomness_that_is_asked_for() -> None:
    """An RSA seed has the digest's size, an ECC scalar 64 bits more than the curve's order."""
    asked: list[int] = []

    def random(size: int) -> bytes:
        asked.append(size)
        return os.urandom(size)

    for key in (forge.rsa_key(), forge.ec_key(), forge.ec_key("P-521")):
        session = {"ak_public": forge.public_area(forge.ec_key()), "ek_public": forge.storage_area(key)}
        make_challenge(session, SECRET, random)
    assert asked == [32, 40, 74]


@pytest.mark.parametrize("bit", [1, 4, 5, 16, 17])
def test_endorsement_key_attributes_that_are_needed(bit: int) -> None:
    """A credential is made only for a key that is bound to its TPM and only decrypts what a TPM prepared."""
    with pytest.raises(VerificationError, match="endorsement key has the wrong attributes"):
        check_ek(parse_public(forge.storage_area(forge.ec_key(), attributes=forge.EK & ~(1 << bit))))


def test_endorsement_key_that_signs() -> None:
    """A key that also signs is no endorsement key."""
    with pytest.raises(VerificationError, match="sign too much"):
        check_ek(parse_public(forge.storage_area(forge.ec_key(), attributes=forge.EK | 1 << 18)))


def test_endorsement_key_with_weak_algorithms() -> None:
    """A key with a SHA-1 Name or without a symmetric algorithm protects nothing."""
    with pytest.raises(VerificationError, match="too weak"):
        check_ek(parse_public(forge.storage_area(forge.ec_key(), name="sha1")))
    with pytest.raises(VerificationError, match="too weak"):
        check_ek(parse_public(forge.public_area(forge.ec_key(), attributes=forge.EK)))


def test_endorsement_key_of_the_broken_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """An RSA key with the ROCA fingerprint is refused."""
    area = forge.storage_area(forge.rsa_key())
    assert check_ek(parse_public(area))
    modulus = forge.rsa_key().public_key().public_numbers().n
    monkeypatch.setattr(tpm_credential, "has_roca_fingerprint", lambda found: found == modulus)
    with pytest.raises(VerificationError, match="weak RSA key"):
        check_ek(parse_public(area))


@pytest.mark.parametrize("broken", ["ak_public", "ek_public"])
def test_declaration_that_cannot_be_used(broken: str) -> None:
    """A declared key that does not parse is a fault of the message, with the reason in it."""
    session = {"ak_public": forge.public_area(forge.ec_key()), "ek_public": forge.storage_area(forge.ec_key())}
    session[broken] = session[broken][:-1]
    with pytest.raises(ProtocolError, match="declared TPM keys cannot be used: TPMT_PUBLIC is cut short"):
        make_challenge(session, SECRET, os.urandom)


def test_misuse() -> None:
    """A secret longer than the EK's digest, or a key that was not checked, is a fault of our own code."""
    ek = parse_public(forge.storage_area(forge.ec_key()))
    with pytest.raises(RuntimeError):
        seal(ek, bytes(32), ek.name, bytes(33))
    with pytest.raises(RuntimeError):
        seal(parse_public(forge.public_area(forge.ec_key())), bytes(32), ek.name, SECRET)


@given(seed=st.binary(min_size=32, max_size=32), context=st.binary(max_size=66))
@settings(max_examples=50, deadline=None)
def test_derived_keys_are_separate(seed: bytes, context: bytes) -> None:
    """The keys for encryption and for integrity differ, and a shorter key is no prefix of a longer one."""
    assert kdfa(SHA256, seed, b"STORAGE", context, 256) != kdfa(SHA256, seed, b"INTEGRITY", context, 256)
    assert kdfa(SHA256, seed, b"STORAGE", context, 256)[:16] != kdfa(SHA256, seed, b"STORAGE", context, 128)
