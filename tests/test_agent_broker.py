# SPDX-License-Identifier: Apache-2.0
"""The agent and the real broker: SNP guests that attest themselves, SEV guests that their host launches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent import sev_launch
from agent.attesters.snp import SnpAttester
from agent.client import fetch
from agent.config import Settings
from agent.deadline import Deadline
from agent.efi_secret import DISK_PASSPHRASE, take
from broker.app import create_app
from broker.appraisal.instances import parse_instance
from broker.signing import Signer
from broker.store.protocols import RecordKind
from keys import b64, strictjson
from keys.errors import ProtocolError, ReleaseDenied, VerificationError
from keys.messages import ResourcePath
from keys.tee import Tee
from tests.fakes.amd import AT, MEASUREMENT, Chip, FakeAmd, cert_table
from tests.fakes.house import House
from tests.fakes.qmp import FakeQemu
from tests.fakes.sev import FakeLaunch, FakePlatform, FakeSev
from tests.fakes.sev_guest import FakeKernel
from tests.fakes.wsgi import Served

PATH = ResourcePath("acme", "disk", "root")
SECRET = b"a disk's key \x00\xff"
OVMF = b"firmware"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A broker with acme's key."""
    with House(tmp_path) as house:
        house.owner("acme")
        house.key(str(PATH), SECRET)
        yield house


# SEV-SNP


@pytest.fixture
def snp(house: House) -> House:
    """acme approved one launch digest."""
    house.now = int(AT.timestamp() * 1000)
    house.services = replace(house.services, trusted={Tee.SNP: FakeAmd().trusted()})
    house.image("acme", "ovmf", f'platform = "snp"\n[snp]\nmeasurement = "{MEASUREMENT.hex()}"\n')
    house.rule(str(PATH), images=["ovmf"], platforms=["snp"])
    return house


def guest(chip: Chip, *, tsm: bool = True, measurement: bytes = MEASUREMENT) -> SnpAttester:
    """The agent on a guest of `chip`, whose host keeps the certificates."""
    kernel = FakeKernel(
        firmware=lambda data, vmpl: chip.report(data, vmpl=vmpl, measurement=measurement),
        certificates=cert_table(chip.certificates),
        tsm=tsm,
    )
    return SnpAttester(Settings(tee=Tee.SNP), Deadline(10), kernel)


def ask(house: House, attester: SnpAttester, between: Callable[[Any], Any] = lambda app: app) -> bytearray:
    """The agent, with the broker's key pinned. `between` sits in front of the broker."""
    pinned = house.directory / "broker-keys.json"
    pinned.write_bytes(strictjson.compact(house.services.signer.jwks()))
    with Served(between(create_app(house.services))) as broker:
        return fetch(Settings((broker.url,), broker_keys=str(pinned)), attester, PATH, Deadline(10)).secret


@pytest.mark.parametrize("tsm", [True, False])
def test_an_snp_guest_gets_its_key(snp: House, tsm: bool) -> None:
    """By either interface the broker takes what the agent sends, and the key comes out."""
    assert ask(snp, guest(Chip(FakeAmd()), tsm=tsm)) == SECRET


def test_an_snp_guest_of_another_image_does_not(snp: House) -> None:
    """Another launch digest is denied, and the agent says by which decision."""
    with pytest.raises(ReleaseDenied, match="decision d-"):
        ask(snp, guest(Chip(FakeAmd()), measurement=MEASUREMENT[::-1]))


def test_a_host_cannot_strip_the_signature(snp: House) -> None:
    """Who sits between and asks for the plain answer in the guest's place has nothing that the agent takes."""

    def stripping(app: Any) -> Any:
        def relay(environ: dict[str, Any], start_response: Any) -> Any:
            return app(environ | {"HTTP_ACCEPT": "application/json"}, start_response)

        return relay

    with pytest.raises(ProtocolError, match="no release envelope"):
        ask(snp, guest(Chip(FakeAmd())), stripping)


def test_a_host_cannot_play_an_older_answer(snp: House) -> None:
    """The broker's own answer to an earlier attempt does not even open: it was wrapped to another key."""
    recorded: list[Any] = []

    def replaying(app: Any) -> Any:
        def relay(environ: dict[str, Any], start_response: Any) -> Any:
            answer = [b"".join(app(environ, start_response))]
            if "/resource/" not in environ["PATH_INFO"]:
                return answer
            recorded.append(answer)
            return recorded[0]

        return relay

    assert ask(snp, guest(Chip(FakeAmd())), replaying) == SECRET
    with pytest.raises(VerificationError, match="does not open"):
        ask(snp, guest(Chip(FakeAmd())), replaying)


def test_another_brokers_word_is_not_taken(snp: House) -> None:
    """A broker with the same keys in its store, but another signing key, is not the owner's."""
    other = replace(snp.services, signer=Signer(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(VerificationError, match="not signed by a pinned key"):
        ask(snp, guest(Chip(FakeAmd())), lambda _: create_app(other))


def test_an_instance_that_the_agent_describes_can_be_named(snp: House) -> None:
    """What `evidence` says of the chip is what an owner enrols; the rule then wants this chip and no other."""
    chip = Chip(FakeAmd())
    described = guest(chip).instance()
    snp.put(RecordKind.INSTANCE, "acme", "web-1", parse_instance(described).to_body())
    snp.rule(str(PATH), images=["ovmf"], platforms=["snp"], instances=["web-1"])
    assert ask(snp, guest(chip)) == SECRET
    with pytest.raises(ReleaseDenied):
        ask(snp, guest(Chip(FakeAmd(), chip.hw_id[::-1])))


# SEV


@pytest.fixture(scope="module")
def platform() -> FakePlatform:
    return FakePlatform(FakeSev())


class Host:
    """A SEV host with the agent, its platform's certificates, and a QEMU for each launch."""

    def __init__(self, house: House, platform: FakePlatform, directory: Path) -> None:
        house.services = replace(house.services, sev_cas=(platform.amd.ca,))
        digest = hashlib.sha256(OVMF).hexdigest()
        house.image("acme", "web", f'platform = "sev"\n[sev]\nlaunch_digest = "{digest}"\n')
        body = parse_instance({"sev_cek": b64.std(platform.cek)}).to_body()
        house.put(RecordKind.INSTANCE, "acme", "host-1", body)
        house.rule(str(PATH), images=["web"], platforms=["sev"], instances=["host-1"])
        self.platform = platform
        self.directory = directory
        self.chain = directory / "chain"
        self.chain.write_bytes(platform.pdh + platform.pek + platform.oca + platform.cek + platform.amd.ask)
        self.launch_dir = directory / "launch"

    def start(self, url: str) -> FakeLaunch:
        """The agent's first step, and what QEMU does with its files."""
        path = str(self.launch_dir)
        launch = sev_launch.start(Settings((url,)), PATH, [str(self.chain)], path, Deadline(10))
        godh, session = (
            b64.from_std((self.launch_dir / name).read_text(), name=name, max_bytes=4096)
            for name in (sev_launch.GODH, sev_launch.SESSION)
        )
        return self.platform.launch_start(godh, session, launch.policy)

    def qemu(self, guest: FakeLaunch) -> FakeQemu:
        policy = sev_launch.read_launch(str(self.launch_dir)).policy
        (self.directory / "qmp").unlink(missing_ok=True)
        return FakeQemu(self.directory / "qmp", guest, policy=policy, api=self.platform.api, build=self.platform.build)

    def finish(self, qemu: FakeQemu) -> None:
        sev_launch.finish(Settings(), str(self.launch_dir), qemu.path, Deadline(10))


@pytest.fixture
def host(house: House, platform: FakePlatform, tmp_path: Path) -> Host:
    return Host(house, platform, tmp_path)


def test_a_sev_guest_gets_its_key_before_it_runs(house: House, host: Host, tmp_path: Path) -> None:
    """From the platform's certificates to the secret in the guest's memory, where the agent takes it."""
    with Served(create_app(house.services)) as broker:
        guest = host.start(broker.url).update(OVMF)
        with host.qemu(guest) as qemu:
            host.finish(qemu)
            assert qemu.running
    (tmp_path / DISK_PASSPHRASE).write_bytes(guest.secret(DISK_PASSPHRASE))
    assert take(str(tmp_path)) == SECRET


def test_a_sev_guest_with_another_image_does_not_start(house: House, host: Host) -> None:
    """Another firmware is denied; the guest gets nothing, and is not let run."""
    with Served(create_app(house.services)) as broker:
        guest = host.start(broker.url).update(b"another")
        with host.qemu(guest) as qemu, pytest.raises(ReleaseDenied, match="decision d-"):
            host.finish(qemu)
    assert not qemu.running
    assert guest.memory == b""


def test_a_launch_is_good_for_one_secret(house: House, host: Host) -> None:
    """The same files do not give a second guest the key."""
    with Served(create_app(house.services)) as broker:
        guest = host.start(broker.url).update(OVMF)
        with host.qemu(guest) as qemu:
            host.finish(qemu)
        with host.qemu(guest) as qemu, pytest.raises(VerificationError, match="decision d-"):
            host.finish(qemu)
        assert not qemu.running
