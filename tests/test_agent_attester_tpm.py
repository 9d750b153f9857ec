# SPDX-License-Identifier: Apache-2.0
"""The TPM's evidence and its activation, on real software TPMs with every kind of endorsement key."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import tpm2
from agent.attesters import registry
from agent.attesters import tpm as attester_tpm
from agent.attesters.tpm import AK_TEMPLATE, EK_PROFILES, EkProfile, TpmAttester
from agent.config import Settings
from agent.deadline import Deadline
from agent.tpm2_marshal import ALG_SHA256, CURVE_P256, Reader, read_quote
from broker.verifiers.tpm_credential import make_challenge
from keys import b64, jwk
from keys.binding import activation_proof, activation_proof_key
from keys.errors import AttesterError, ConfigError, ProtocolError
from keys.messages import MAX_BODY_BYTES, Attestation, Challenge, ResourcePath, TpmCredential, TpmDeclaration
from keys.strictjson import compact
from keys.tee import Tee
from tests.fakes.boot import Boot, pcr_values
from tests.fakes.ek_ca import EkCa
from tests.fakes.swtpm import SoftwareTpm, nv_define, nv_write, persist, set_up_with_swtpm_setup
from tests.needs import needs_swtpm

pytestmark = needs_swtpm

PATH = ResourcePath("owner", "disk", "root")
REPORT_DATA = bytes(range(48))
CA = EkCa()


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[SoftwareTpm]:
    with SoftwareTpm(tmp_path / "tpm") as machine:
        yield machine


def attester(tpm: SoftwareTpm, eventlog: str = "") -> TpmAttester:
    return TpmAttester(Settings(tpm=tpm.address, eventlog=eventlog), Deadline(10))


def seal(declaration: TpmDeclaration, secret: bytes) -> Challenge:
    """The broker's challenge: `secret` for the declared EK and AK."""
    return Challenge("nonce", TpmCredential(*make_challenge(declaration._asdict(), secret, os.urandom)))


def declared(open_attester: TpmAttester) -> TpmDeclaration:
    declaration = open_attester.request(PATH).tpm
    assert declaration is not None
    return declaration


def verify_quote(evidence: dict[str, str]) -> None:
    """The signature in `evidence` is by its AK over its attest."""
    public = Reader(b64.from_std(evidence["ak_public"], name="ak", max_bytes=500)[16:])  # after type to scheme
    assert public.u16() == CURVE_P256
    public.u16()  # no KDF
    x, y = (int.from_bytes(public.tpm2b(), "big") for _ in range(2))
    signature = Reader(b64.from_std(evidence["signature"], name="signature", max_bytes=500)[4:])
    r, s = (int.from_bytes(signature.tpm2b(), "big") for _ in range(2))
    ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key().verify(
        utils.encode_dss_signature(r, s),
        b64.from_std(evidence["attest"], name="attest", max_bytes=500),
        ec.ECDSA(hashes.SHA256()),
    )


def test_the_registry_loads_the_attester() -> None:
    """`tpm` is a platform of this agent, one without a row is a ConfigError."""
    assert registry.attester_for(Tee.TPM) is TpmAttester
    with pytest.raises(ConfigError, match="no attester"):
        registry.attester_for(Tee.CSV)


def test_evidence_is_a_quote_of_all_pcrs_over_the_report_data(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """The AK signs the first 32 bytes of the report data and a digest that exactly the sent PCR values give."""
    boot, log = Boot(), tmp_path / "log"
    tpm.measure_boot(boot, log)
    with attester(tpm, str(log)) as machine:
        evidence = machine.evidence(REPORT_DATA)
    assert evidence.keys() == {"ak_public", "attest", "signature", "pcrs", "eventlog"}
    verify_quote(evidence)
    values = {int(index): bytes.fromhex(value) for index, value in evidence["pcrs"]["sha256"].items()}
    assert list(values) == list(range(24))
    assert {index: values[index] for index in range(10)} == pcr_values(boot.events())
    quoted = read_quote(b64.from_std(evidence["attest"], name="attest", max_bytes=500))
    digest = hashlib.sha256(b"".join(values.values())).digest()
    assert quoted == (REPORT_DATA[:32], [(ALG_SHA256, list(range(24)))], digest)
    assert b64.from_std(evidence["eventlog"], name="log", max_bytes=9999) == log.read_bytes()


def test_the_attestation_key_outlives_a_reboot_and_nothing_else(tmp_path: Path) -> None:
    """One TPM has one AK for ever, without any file; another TPM has another."""
    names = []
    for directory, reset in (("a", True), ("b", False)):
        with SoftwareTpm(tmp_path / directory) as machine:
            for _ in range(2 if reset else 1):
                with attester(machine) as open_attester:
                    names.append(open_attester.ak_name)
                machine.reset()
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("profile", EK_PROFILES, ids=lambda profile: profile.label)
def test_every_kind_of_endorsement_key_opens_a_credential(profile: EkProfile, tpm: SoftwareTpm) -> None:
    """The TPM gives back the secret that was sealed to its certified EK and AK Name, and the evidence proves it."""
    certificate = tpm.manufacture(CA, profile)
    with attester(tpm) as machine:
        declaration = declared(machine)
        assert declaration.ek_certificates[0] == certificate
        assert len(declaration.ek_certificates) == 2
        secret = os.urandom(32)
        assert machine.accept(seal(declaration, secret)) == secret
        proof = machine.evidence(REPORT_DATA, secret)["activation"]
    made = activation_proof(activation_proof_key(secret), REPORT_DATA[:32])
    assert b64.from_std(proof, name="activation", max_bytes=32) == made


def test_an_attempt_leaves_nothing_in_the_tpm(tpm: SoftwareTpm) -> None:
    """Keys and sessions are flushed, after success and after failure."""
    tpm.manufacture(CA)
    for fit in (True, False, True, False):
        with attester(tpm) as machine:
            challenge = seal(declared(machine), bytes(32))
            assert challenge.tpm is not None
            if fit:
                machine.accept(challenge)
            else:
                broken = challenge.tpm._replace(credential_blob=bytes(len(challenge.tpm.credential_blob)))
                with pytest.raises(AttesterError):
                    machine.accept(challenge._replace(tpm=broken))
    with tpm.open() as client:
        assert client.handles(0x80000000, 0x80FFFFFF) == []
        assert client.handles(0x02000000, 0x03FFFFFF) == []


def test_a_persistent_endorsement_key_is_used(tpm: SoftwareTpm) -> None:
    """An RSA EK that the maker left in the TPM is not made again."""
    tpm.manufacture(CA, EK_PROFILES[3], persistent=0x81010001)
    with attester(tpm) as machine:
        assert machine.ek is not None
        assert machine.ek.key.handle == 0x81010001
        assert machine.accept(seal(declared(machine), bytes(32))) == bytes(32)


def test_a_persistent_key_that_is_not_the_certified_one_is_passed_over(tpm: SoftwareTpm) -> None:
    """Neither a key of another kind nor another key of the EK's kind stands in for it."""
    sibling = EK_PROFILES[0].template[:-1] + b"\1"
    with tpm.open() as client:
        for template, handle in ((AK_TEMPLATE, 0x81010001), (sibling, 0x81010002)):
            with client.primary(tpm2.RH_ENDORSEMENT, template) as key:
                persist(client, key.handle, handle)
    tpm.manufacture(CA)
    with attester(tpm) as machine:
        assert machine.ek is not None
        assert machine.ek.key.handle >= 0x80000000
        assert machine.ek.key.handle not in {0x81010001, 0x81010002}


def test_a_certificate_of_another_tpm_is_not_declared(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """An EK certificate that does not fit this TPM's key is as good as none."""
    with SoftwareTpm(tmp_path / "other") as other:
        certificate = other.manufacture(CA)
    with tpm.open() as client:
        nv_write(client, EK_PROFILES[0].certificate_index, certificate)
    with attester(tpm) as machine:
        assert machine.ek is None


def test_keys_that_do_not_fit_are_flushed_at_once(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """Four certificates of another TPM do not use up the three object slots of this one."""
    with SoftwareTpm(tmp_path / "other") as other:
        certificates = {p.certificate_index: other.manufacture(CA, p, chain=False) for p in EK_PROFILES}
    with tpm.open() as client:
        for index, certificate in certificates.items():
            nv_write(client, index, certificate)
    with attester(tpm) as machine:
        assert machine.ek is None


def test_an_area_that_cannot_be_read_is_passed_over(tpm: SoftwareTpm) -> None:
    """An NV area that was defined and never written is as good as none."""
    with tpm.open() as client:
        nv_define(client, EK_PROFILES[0].certificate_index, 100)
    with attester(tpm) as machine:
        assert machine.ek is None


@pytest.mark.parametrize("content", [b"\xff" * 20, b"\0\0", b"\x30\x82\xff\xff"])
def test_an_area_without_a_certificate_is_passed_over(content: bytes, tpm: SoftwareTpm) -> None:
    """Fill bytes where a certificate should be are as good as none."""
    with tpm.open() as client:
        nv_write(client, EK_PROFILES[0].certificate_index, content)
    with attester(tpm) as machine:
        assert machine.ek is None


def test_without_a_certificate_nothing_is_declared(tpm: SoftwareTpm) -> None:
    """A TPM without EK certificate asks without `tpm`, takes a challenge without credential, and sends no proof."""
    with attester(tpm) as machine:
        assert machine.request(PATH).tpm is None
        assert machine.accept(Challenge("nonce")) is None
        assert "activation" not in machine.evidence(REPORT_DATA)
        assert machine.instance()["ek_certificates"] == []
        assert machine.instance()["ek_public"] is None


def test_a_broker_cannot_talk_a_declared_ek_away(tpm: SoftwareTpm) -> None:
    """A challenge without a credential is refused by a guest that declared an EK."""
    tpm.manufacture(CA, chain=False)
    with attester(tpm) as machine, pytest.raises(ProtocolError, match="declared"):
        machine.accept(Challenge("nonce"))


def test_an_unasked_credential_is_refused(tpm: SoftwareTpm) -> None:
    """A challenge with a credential is refused by a guest that declared no EK."""
    with attester(tpm) as machine, pytest.raises(ProtocolError, match="declared"):
        machine.accept(Challenge("nonce", TpmCredential(b"blob", b"secret")))


def test_a_short_activation_secret_is_refused(tpm: SoftwareTpm) -> None:
    """A secret of other than 32 bytes does not become a key."""
    tpm.manufacture(CA, chain=False)
    with attester(tpm) as machine, pytest.raises(ProtocolError, match="length"):
        machine.accept(seal(declared(machine), bytes(16)))


def test_an_instance_names_keys_and_certificates(tpm: SoftwareTpm) -> None:
    """What an owner enrols: AK, its Name, EK and its certificates."""
    certificate = tpm.manufacture(CA, chain=False)
    with attester(tpm) as machine:
        declaration = declared(machine)
        assert machine.instance() == {
            "ak_public": b64.std(declaration.ak_public),
            "ak_name": machine.ak_name.hex(),
            "ek_public": b64.std(declaration.ek_public),
            "ek_certificates": [b64.std(certificate)],
        }


def test_a_pcr_that_changes_after_the_quote_is_quoted_again(tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    """IMA may extend PCR 10 between quote and read; the values sent are always those quoted."""
    real, reads = tpm2.Tpm.pcr_read, []

    def read(self: tpm2.Tpm, bank: int, indices: range) -> dict[int, bytes]:
        reads.append(bank)
        if len(reads) == 1:
            self.pcr_extend(10, {ALG_SHA256: bytes(32)})
        return real(self, bank, indices)

    monkeypatch.setattr(tpm2.Tpm, "pcr_read", read)
    with attester(tpm) as machine:
        evidence = machine.evidence(REPORT_DATA)
    assert len(reads) == 2
    quoted = read_quote(b64.from_std(evidence["attest"], name="attest", max_bytes=500))
    values = b"".join(map(bytes.fromhex, evidence["pcrs"]["sha256"].values()))
    assert hashlib.sha256(values).digest() == quoted.pcr_digest


def test_pcrs_that_never_rest_end_in_an_error(tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    """After five quotes that do not fit the values the agent gives up."""
    monkeypatch.setattr(tpm2.Tpm, "pcr_read", lambda *_: {0: b"never the same"})
    with attester(tpm) as machine, pytest.raises(AttesterError, match="faster"):
        machine.evidence(REPORT_DATA)


def test_a_quote_of_something_else_is_not_sent(tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TPM that quotes other PCRs or another nonce is caught before the broker has to."""
    real = tpm2.Tpm.quote
    with attester(tpm) as machine:
        monkeypatch.setattr(tpm2.Tpm, "quote", lambda self, key, _, bank, pcrs: real(self, key, b"other", bank, pcrs))
        with pytest.raises(AttesterError, match="something else"):
            machine.evidence(REPORT_DATA)
        monkeypatch.setattr(tpm2.Tpm, "quote", lambda self, key, data, bank, _: real(self, key, data, bank, [0]))
        with pytest.raises(AttesterError, match="something else"):
            machine.evidence(REPORT_DATA)


def test_a_missing_event_log_is_left_out(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """The log only explains: without one the evidence is as good."""
    with attester(tpm, str(tmp_path / "none")) as machine:
        assert "eventlog" not in machine.evidence(REPORT_DATA)


def test_an_event_log_too_long_to_send_is_an_error(tmp_path: Path) -> None:
    """A log that no message can carry is named with what to do, not cut."""
    log = tmp_path / "log"
    log.write_bytes(bytes(attester_tpm.MAX_EVENT_LOG_BYTES))
    assert len(attester_tpm.read_event_log(str(log))) == attester_tpm.MAX_EVENT_LOG_BYTES
    log.write_bytes(bytes(attester_tpm.MAX_EVENT_LOG_BYTES + 1))
    with pytest.raises(AttesterError, match="too long") as caught:
        attester_tpm.read_event_log(str(log))
    assert "eventlog" in (caught.value.mend or "")


def test_the_longest_event_log_fits_into_a_message(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """An attestation with the longest log that is sent stays below what a broker reads."""
    log = tmp_path / "log"
    log.write_bytes(bytes(attester_tpm.MAX_EVENT_LOG_BYTES))
    key = jwk.from_ec(ec.generate_private_key(ec.SECP256R1()).public_key())
    with attester(tpm, str(log)) as machine:
        message = Attestation("x" * 44, key, machine.evidence(REPORT_DATA, bytes(32)))
    assert len(compact(message.to_json())) < MAX_BODY_BYTES


def test_an_event_log_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """A log that is there and cannot be read is not taken for none."""
    with pytest.raises(AttesterError, match="cannot be read"):
        attester_tpm.read_event_log(str(tmp_path))


def test_a_tpm_made_by_swtpm_setup_is_attested(tmp_path: Path) -> None:
    """With the certificates of swtpm's own tool the P-384 EK is preferred, and its persistent copy used."""
    set_up_with_swtpm_setup(tmp_path / "tpm", tmp_path / "ca")
    with SoftwareTpm(tmp_path / "tpm") as machine, attester(machine) as open_attester:
        assert open_attester.ek is not None
        assert open_attester.ek.profile.label == "P-384, high range"
        assert open_attester.ek.key.handle == 0x81010016
        assert open_attester.accept(seal(declared(open_attester), bytes(32))) == bytes(32)


def test_certificates_are_split_and_their_padding_cut() -> None:
    """DER SEQUENCEs of each length form follow one another; fill, or a broken length, ends the list."""
    short, long, longer = b"\x30\x02ab", b"\x30\x81\x80" + bytes(128), b"\x30\x82\x01\x00" + bytes(256)
    assert attester_tpm.split_certificates(short + long + longer + b"\xff" * 9) == [short, long, longer]
    for broken in (b"", b"\x30", b"\x30\x05ab", b"\x30\x83\0\0\0", b"\x30\x80\0\0", b"\x31\x02ab", longer[:-1]):
        assert attester_tpm.split_certificates(broken) == []


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_splitting_any_bytes_gives_their_beginning(data: bytes) -> None:
    """What is split off is a prefix of what was there, cut nowhere else."""
    assert data.startswith(b"".join(attester_tpm.split_certificates(data)))
