# SPDX-License-Identifier: Apache-2.0
"""From an Azure VM's quote to the key: what an owner pins, and what happens where he is fooled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.appraisal.instances import parse_instance
from broker.store.protocols import RecordKind
from broker.verifiers.snp_report import Line
from keys import b64, jwe, jwk
from keys.binding import report_data
from keys.errors import AppraisalDenied
from keys.messages import Attestation, Challenge, InitData, Request, ResourcePath
from keys.tee import Tee
from tests.fakes import tpm_forge as forge
from tests.fakes.amd import AT, MEASUREMENT, Chip, FakeAmd
from tests.fakes.az_guest import AzGuest
from tests.fakes.house import House
from tests.fakes.snp_guest import SnpGuest

PATH = "acme/disk/root"
SECRET = b"a disk's key"


class Vm:
    """An Azure VM in conversation with a broker."""

    def __init__(self, guest: AzGuest, *, version: int = 2) -> None:
        self.guest, self.version = guest, version
        self.key = ec.generate_private_key(ec.SECP256R1())

    def request(self, resource: ResourcePath | None = None) -> Request:
        return Request(Tee.AZ_SNP_VTPM, resource)

    def attestation(self, challenge: Challenge, *, init_data: InitData | None = None) -> Attestation:
        key = jwk.from_ec(self.key.public_key())
        data = report_data(Tee.AZ_SNP_VTPM, challenge.nonce, key.members)
        return Attestation(challenge.nonce, key, self.guest.evidence(data, self.version), init_data=init_data)

    def open(self, wrapped: object) -> bytes:
        return jwe.unseal(wrapped, self.key)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A broker where acme approved one paravisor and what its guest booted."""
    with House(tmp_path) as house:
        house.now = int(AT.timestamp() * 1000)
        trust(house, Line.GENOA)
        house.owner("acme")
        house.key(PATH, SECRET)
        house.image("acme", "vm", image(AzGuest(Chip(FakeAmd()))))
        house.rule(PATH, images=["vm"], platforms=["az-snp-vtpm"])
        yield house


def trust(house: House, line: Line) -> None:
    house.services = replace(house.services, trusted={Tee.AZ_SNP_VTPM: FakeAmd(line).trusted()})


def image(guest: AzGuest, measurement: bytes = MEASUREMENT) -> str:
    pcrs = "\n".join(f'{index} = "{guest.pcrs[index].hex()}"' for index in (4, 7, 9))
    return (
        f'platform = "az-snp-vtpm"\n[snp]\nmeasurement = "{measurement.hex()}"\n'
        f'[tpm]\nbank = "sha256"\n[tpm.pcrs]\n{pcrs}\n'
    )


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_genuine_vm_gets_its_key(house: House, version: int) -> None:
    """Each version of the evidence leads to the key."""
    assert house.flow(Vm(AzGuest(Chip(FakeAmd())), version=version), PATH, PATH) == SECRET


def test_a_paravisor_of_ones_own_gets_nothing(house: House) -> None:
    """Code of an attacker's at VMPL 0, with a key of his own and all the right PCRs, is genuine and gets no key."""
    with pytest.raises(AppraisalDenied):
        house.flow(Vm(AzGuest(Chip(FakeAmd()), measurement=MEASUREMENT[::-1])), PATH)


def test_another_boot_gets_nothing(house: House) -> None:
    """The approved paravisor with another kernel is denied."""
    guest = AzGuest(Chip(FakeAmd()))
    guest.extend(9, bytes(32))
    with pytest.raises(AppraisalDenied):
        house.flow(Vm(guest), PATH)


def test_a_milan_vm_is_named_by_its_vtpm(house: House) -> None:
    """Where chips do not count by themselves, the VM's enrolled key does, and no other key on the same chip."""
    trust(house, Line.MILAN)
    chip = Chip(FakeAmd(Line.MILAN))
    guest = AzGuest(chip)
    with pytest.raises(AppraisalDenied):
        house.flow(Vm(guest), PATH)
    instance = parse_instance({"az_ak": b64.std(spki(guest))}).to_body()
    assert instance["ids"] == [guest.ak_id]
    house.put(RecordKind.INSTANCE, "acme", "vm-1", instance)
    house.rule(PATH, images=["vm"], platforms=["az-snp-vtpm"], instances=["vm-1"])
    assert house.flow(Vm(guest), PATH) == SECRET
    with pytest.raises(AppraisalDenied):
        house.flow(Vm(AzGuest(chip, ak=rsa.generate_private_key(65537, 2048))), PATH)


def test_a_vm_put_back_to_a_snapshot_is_noticed(house: House) -> None:
    """The vTPM's clock must not go back between two releases, though the evidence is genuine both times."""
    house.flow(Vm(Clocked(Chip(FakeAmd()), clock=5000)), PATH)
    house.now += 1
    house.flow(Vm(Clocked(Chip(FakeAmd()), clock=6000)), PATH)
    house.now += 1
    with pytest.raises(AppraisalDenied):
        house.flow(Vm(Clocked(Chip(FakeAmd()), clock=4000)), PATH)


def test_another_guest_on_the_chip_does_not_hide_a_snapshot(house: House) -> None:
    """The host starts an SEV-SNP guest of its own on the VM's chip: its line has no clock, and clears none."""
    chip = Chip(FakeAmd())
    house.services = replace(house.services, trusted={**house.services.trusted, Tee.SNP: FakeAmd().trusted()})
    house.flow(Vm(Clocked(chip, clock=5000)), PATH)
    house.now += 1
    with pytest.raises(AppraisalDenied):
        house.flow(SnpGuest(chip), PATH)
    house.now += 1
    with pytest.raises(AppraisalDenied):
        house.flow(Vm(Clocked(chip, clock=4000)), PATH)


class Clocked(AzGuest):
    """A VM whose vTPM has counted so many milliseconds."""

    def __init__(self, chip: Chip, *, clock: int) -> None:
        super().__init__(chip)
        self.clock = clock

    def quote(self, data: bytes) -> forge.Quote:
        return replace(super().quote(data), clock=self.clock)


def spki(guest: AzGuest) -> bytes:
    return guest.ak.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
