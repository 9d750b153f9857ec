# SPDX-License-Identifier: Apache-2.0
"""From a chip's report to the key: guests on SEV-SNP, as owners see them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from broker import attestation, ledger
from broker.appraisal.instances import parse_instance
from broker.store.protocols import LedgerEntry, RecordKind
from broker.verifiers.snp_report import Line
from keys.errors import AppraisalDenied, ProtocolError, ReleaseDenied, VerificationError
from keys.messages import InitData
from keys.tee import Tee
from tests.fakes.amd import AT, CSP_ID, MEASUREMENT, Chip, FakeAmd, kbs_json, raw_evidence, tsm_evidence
from tests.fakes.house import House
from tests.fakes.snp_guest import Form, SnpGuest

PATH = "acme/disk/root"
SECRET = b"a disk's key \x00\xff"
IMAGE = f'platform = "snp"\n[snp]\nmeasurement = "{MEASUREMENT.hex()}"\n'


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A broker where acme approved one launch digest, for any machine of AMD's."""
    with House(tmp_path) as house:
        house.now = int(AT.timestamp() * 1000)
        trust(house, Line.GENOA)
        house.owner("acme")
        house.key(PATH, SECRET)
        house.image("acme", "ovmf", IMAGE)
        house.rule(PATH, images=["ovmf"], platforms=["snp"])
        yield house


def trust(house: House, line: Line) -> None:
    """Let `line`'s fake AMD be the one that this broker's product trusts."""
    house.services = replace(house.services, trusted={Tee.SNP: FakeAmd(line).trusted()})


def denied(house: House, guest: SnpGuest) -> LedgerEntry:
    """The line about a genuine guest that is denied the key."""
    session_id, _ = house.attest(guest, PATH)
    with pytest.raises(ReleaseDenied) as caught:
        house.release(PATH, session_id)
    return house.store.entry("acme", str(caught.value.decision))


def failed(line: LedgerEntry) -> list[str]:
    return [check["name"] for check in line.body["trace"] if check["verdict"] == "failed"]


@pytest.mark.parametrize("form", [tsm_evidence, raw_evidence, kbs_json])
def test_a_genuine_guest_gets_its_key(house: House, form: Form) -> None:
    """Whichever way a guest sends its report, the key that it gets opens under its own key alone."""
    assert house.flow(SnpGuest(Chip(FakeAmd()), form=form), PATH, PATH) == SECRET
    assert [line.verdict for line in house.lines("acme", ledger.RELEASE)] == ["released"]


def test_another_launch_digest_gets_nothing(house: House) -> None:
    """A genuine guest that launched something else is denied, and the owner sees both digests."""
    line = denied(house, SnpGuest(Chip(FakeAmd()), measurement=MEASUREMENT[::-1]))
    check = next(check for check in line.body["trace"] if check["verdict"] == "failed")
    assert MEASUREMENT.hex() in check["expected"]
    assert check["found"] == MEASUREMENT[::-1].hex()


def test_a_debug_guest_is_not_even_attested(house: House) -> None:
    """A guest whose memory the host may read is refused before there is a token; the line names the floor."""
    with pytest.raises(VerificationError):
        house.attest(SnpGuest(Chip(FakeAmd()), policy=0x30000 | 1 << 19), PATH)
    [line] = house.lines("acme", ledger.ATTEST)
    assert failed(line) == ["debugging is off"]
    judged = [check["name"] for check in line.body["trace"] if check["verdict"] == "passed"]
    assert "MEASUREMENT (launch digest) is as in image ovmf@1" in judged  # its owner reads all that there is to say


def test_a_refusal_reaches_the_owner_of_the_chip(house: House) -> None:
    """A guest that names no key and is refused leaves its line with whoever enrolled the chip that it claims."""
    chip = Chip(FakeAmd())
    house.put(RecordKind.INSTANCE, "acme", "db-1", parse_instance({"snp_chip_id": chip.hw_id.hex()}).to_body())
    with pytest.raises(VerificationError):
        house.attest(SnpGuest(chip, policy=0x30000 | 1 << 19))
    line = house.lines("acme", ledger.ATTEST)[0]
    assert (line.verdict, line.subject) == ("refused", f"snp-chip:{chip.hw_id.hex()}")


def test_an_images_floors_add_to_the_operators(house: House) -> None:
    """A floor in the image denies a guest that the broker's floors let in."""
    house.image("acme", "ovmf", IMAGE + "[snp.floors]\nmin_guest_svn = 3\n")
    assert house.flow(SnpGuest(Chip(FakeAmd()), guest_svn=3), PATH) == SECRET
    assert denied(house, SnpGuest(Chip(FakeAmd()), guest_svn=2)).verdict == "denied"


def test_milan_gets_keys_by_name_only(house: House) -> None:
    """No rule with `any` lets a Milan machine in; one that names the enrolled chip does, and no other chip."""
    trust(house, Line.MILAN)
    chip = Chip(FakeAmd(Line.MILAN))
    assert failed(denied(house, SnpGuest(chip))) == ["a configured vendor vouches for the hardware"]
    house.put(RecordKind.INSTANCE, "acme", "db-1", parse_instance({"snp_chip_id": chip.hw_id.hex()}).to_body())
    house.rule(PATH, images=["ovmf"], platforms=["snp"], instances=["db-1"])
    assert house.flow(SnpGuest(chip), PATH) == SECRET
    other = Chip(FakeAmd(Line.MILAN), chip.hw_id[::-1])
    assert failed(denied(house, SnpGuest(other))) == ["release rule names the instance"]


def test_a_cloud_providers_machines_are_one_instance(house: House) -> None:
    """A VLEK's provider can be enrolled and named, which admits its machines and nobody else's."""
    house.put(RecordKind.INSTANCE, "acme", "cloud", parse_instance({"snp_csp_id": CSP_ID}).to_body())
    house.rule(PATH, images=["ovmf"], platforms=["snp"], instances=["cloud"])
    assert house.flow(SnpGuest(Chip(FakeAmd(), csp_id=CSP_ID)), PATH) == SECRET
    assert denied(house, SnpGuest(Chip(FakeAmd(), csp_id="CN=another"))).verdict == "denied"
    assert denied(house, SnpGuest(Chip(FakeAmd()))).verdict == "denied"


def test_evidence_is_good_for_its_own_session(house: House) -> None:
    """A report that answered one challenge does not answer another one, nor vouch for another key."""
    first, second = SnpGuest(Chip(FakeAmd())), SnpGuest(Chip(FakeAmd()))
    _, challenge = house.challenge(first, PATH)
    recorded = first.attestation(challenge)
    session_id, other = house.challenge(second, PATH)
    stolen = recorded._replace(nonce=other.nonce)
    with pytest.raises(VerificationError, match="REPORT_DATA"):
        attestation.attest(session_id, stolen, house.services, now=house.now)
    session_id, other = house.challenge(second, PATH)
    evil = recorded._replace(nonce=other.nonce, tee_pubkey=second.tee_pubkey)
    with pytest.raises(VerificationError, match="REPORT_DATA"):
        attestation.attest(session_id, evil, house.services, now=house.now)


def test_init_data_is_bound_to_the_launch(house: House) -> None:
    """Init-data is accepted only where the host launched the guest with its digest."""
    text = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = ""\n'
    init_data = InitData("toml", text)
    digest = hashlib.sha256(text.encode()).digest()
    good = SnpGuest(Chip(FakeAmd()), host_data=digest)
    session_id, _ = house.attest(good, PATH, init_data)
    assert good.open(house.release(PATH, session_id)) == SECRET
    with pytest.raises(VerificationError, match="HOST_DATA"):
        house.attest(SnpGuest(Chip(FakeAmd())), PATH, init_data)


def test_without_the_platform_in_the_rule_there_is_no_key(house: House) -> None:
    """A rule that names only another platform does not release to SNP."""
    house.rule(PATH, images=["ovmf"], platforms=["tpm"])
    with pytest.raises(AppraisalDenied):
        house.flow(SnpGuest(Chip(FakeAmd())), PATH)


def test_a_guest_without_a_certificate_is_refused_where_none_can_be_found(house: House) -> None:
    """With nobody to ask for the chip's certificate the attempt ends in the ledger, with what would mend it."""
    with pytest.raises(VerificationError, match="VCEK"):
        house.attest(SnpGuest(Chip(FakeAmd()), certificates={}), PATH)
    [check] = [line for line in house.lines("acme", ledger.ATTEST)[0].body["trace"] if line["verdict"] == "failed"]
    assert "endorsements import" in check["mend"]


def test_what_cannot_be_read_costs_no_challenge(house: House) -> None:
    """Evidence of another shape is refused before the challenge is taken: the guest may try again."""
    guest = SnpGuest(Chip(FakeAmd()))
    session_id, challenge = house.challenge(guest, PATH)
    message = guest.attestation(challenge)
    with pytest.raises(ProtocolError):
        attestation.attest(session_id, message._replace(primary_evidence={"report": ""}), house.services, now=house.now)
    assert attestation.attest(session_id, message, house.services, now=house.now)


def test_certificates_are_judged_at_the_brokers_time(house: House) -> None:
    """A broker whose certificates have run out releases nothing, whatever it released before."""
    assert house.flow(SnpGuest(Chip(FakeAmd())), PATH) == SECRET
    house.now = int(datetime(2046, 1, 1, tzinfo=UTC).timestamp() * 1000)
    with pytest.raises(VerificationError, match="not valid at this time"):
        house.attest(SnpGuest(Chip(FakeAmd())), PATH)
