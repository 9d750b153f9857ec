# SPDX-License-Identifier: Apache-2.0
"""Twelve things that go wrong with a guest, and what its owner reads of each.

Everything is real but the hardware: the guest attests and asks for the key, the broker decides and writes its line, and
`roomkey decision show` asks a broker on loopback for it. Time, randomness and the names of machines are fixed, so that
the output is the same to the byte; nothing is masked. `ROOMKEY_GOLDEN=write` writes the files in tests/golden anew.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from werkzeug.serving import make_server

from broker import owner_identity
from broker.app import create_app
from broker.appraisal.enrol import enrol_image
from broker.appraisal.instances import Instance, Standing, parse_instance
from broker.claims import Claims
from broker.cli import main
from broker.owners import parse_key, to_body
from broker.services import now_ms
from broker.session import store_name
from broker.store.protocols import RecordKind
from broker.verifiers.snp_floors import Floors
from broker.verifiers.snp_report import POLICY_BITS
from keys import b64, strictjson
from keys.errors import RoomkeyError
from keys.tee import Tee
from tests.fakes.amd import AT, MEASUREMENT, POLICY, TCBS, Chip, FakeAmd
from tests.fakes.boot import Boot
from tests.fakes.desk import Quiet
from tests.fakes.grub_boot import GrubBoot, UkiBoot
from tests.fakes.house import House
from tests.fakes.snp_guest import SnpGuest
from tests.fakes.tpm_guest import FakeTpm, Guest

GOLDEN = Path(__file__).parent / "golden"
WRITE = os.environ.get("ROOMKEY_GOLDEN") == "write"
MAX_LINES = 45
KEY = "acme/disk/root"
NOW = int(AT.timestamp() * 1000)
DAY = 24 * 3600 * 1000
AMD = FakeAmd()
CHIP = Chip(AMD)
GRUB_PCRS, UKI_PCRS = (0, 4, 7, 8, 9), (0, 4, 7, 11)
SNP_IMAGE = f'platform = "snp"\n[snp]\nmeasurement = "{MEASUREMENT.hex()}"\n'


def counted() -> Callable[[int], bytes]:
    """Bytes that are the same in every run."""
    numbers = itertools.count()
    return lambda size: hashlib.shake_256(str(next(numbers)).encode()).digest(size)


class Scene:
    """An owner `acme` with a key, and a broker that stands at `NOW`."""

    def __init__(self, folder: Path) -> None:
        self.house = House(folder)
        self.house.now = NOW
        self.trust(Floors())
        self.house.owner("acme")
        self.house.key(KEY, b"a disk's key")
        self.identity = folder / "identity.toml"

    def trust(self, floors: Floors) -> None:
        """Let the fake AMD be the one that counts, with these floors."""
        self.house.services = replace(self.house.services, random=counted(), trusted={Tee.SNP: AMD.trusted(floors)})

    def enrol(
        self, tpm: FakeTpm, *, owner: str = "acme", standing: Standing = Standing.ENROLLED, why: str = ""
    ) -> None:
        instance = parse_instance({"ak_public": b64.std(tpm.ak_public)})
        body = replace(instance, standing=standing, why=why).to_body()
        self.house.put(RecordKind.INSTANCE, owner, "web-1", body)

    def approve(self, tpm: FakeTpm, pcrs: Sequence[int]) -> None:
        """Let what `tpm` has booted be the image debian, as its evidence shows it."""
        session_id, _ = self.house.attest(Guest(tpm))
        held = self.house.store.session_attestation(store_name(session_id), NOW)
        assert held is not None
        self.house.image("acme", "debian", enrol_image(Claims.from_json(held[1]["claims"]), pcrs))

    def snp_rule(self) -> None:
        self.house.image("acme", "debian", SNP_IMAGE)
        chip = Instance((f"snp-chip:{CHIP.hw_id.hex()}",), None)
        self.house.put(RecordKind.INSTANCE, "acme", "web-1", chip.to_body())
        self.house.rule(KEY, images=["debian"], instances=["web-1"], platforms=["snp"])

    def refused(self, guest: Any) -> str:
        """The decision that sends `guest` away."""
        with pytest.raises(RoomkeyError) as caught:
            self.house.release(KEY, self.house.attest(guest, KEY)[0])
        return str(caught.value.decision)

    def show(self, decision: str, *options: str) -> str:
        """What `roomkey decision show` prints of it."""
        with self._served() as url:
            owner = owner_identity.create(
                self.identity, owner="acme", broker=url, audience=self.house.services.audience, ca_pem=None
            )
            jwk = strictjson.loads(owner_identity.public_file(self.identity).read_bytes(), name="key", max_bytes=1000)
            self.house.put(RecordKind.OWNER, "", owner.owner, to_body([parse_key(jwk)]))
            result = CliRunner().invoke(
                main, ["decision", "show", decision, *options], env={"ROOMKEY_IDENTITY": str(self.identity)}
            )
        assert result.exit_code == 0, result.output
        return result.stdout

    @contextmanager
    def _served(self) -> Iterator[str]:
        app = create_app(replace(self.house.services, clock=now_ms))
        server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    with made.house:
        yield made


def machine(number: int = 1) -> FakeTpm:
    return FakeTpm(ak=ec.derive_private_key(number, ec.SECP256R1()))


def rebooted(scene: Scene, before: Boot, after: Boot, pcrs: Sequence[int] = GRUB_PCRS) -> str:
    """A guest approved with one boot comes with another."""
    tpm = machine()
    tpm.boot(before)
    scene.enrol(tpm)
    scene.approve(tpm, pcrs)
    scene.house.rule(KEY, images=["debian"], instances=["web-1"])
    tpm.boot(after)
    return scene.refused(Guest(tpm))


def kernel(scene: Scene) -> str:
    return rebooted(
        scene, UkiBoot(), UkiBoot(kernel=b"kernel 6.1.0-32", kernel_path="\\EFI\\Linux\\debian-6.1.0-32.efi"), UKI_PCRS
    )


def initrd(scene: Scene) -> str:
    return rebooted(scene, GrubBoot(), GrubBoot(initrd=b"initrd with something more"))


def command_line(scene: Scene) -> str:
    changed = GrubBoot().command_line.replace("quiet", "init=/bin/sh")
    return rebooted(scene, GrubBoot(), GrubBoot(command_line=changed))


def secure_boot(scene: Scene) -> str:
    return rebooted(scene, GrubBoot(), GrubBoot(secure_boot=False))


def debug(scene: Scene) -> str:
    scene.snp_rule()
    return scene.refused(SnpGuest(CHIP, policy=POLICY | 1 << POLICY_BITS["debug_allowed"]))


def vmpl(scene: Scene) -> str:
    scene.snp_rule()
    return scene.refused(SnpGuest(CHIP, vmpl=1))


def tcb(scene: Scene) -> str:
    scene.snp_rule()
    return scene.refused(SnpGuest(Chip(AMD, tcb=TCBS[AMD.line] | {"snp": 20})))


def crl(scene: Scene) -> str:
    scene.trust(Floors(require_crl=True))
    scene.snp_rule()
    return scene.refused(SnpGuest(CHIP, certificates={**CHIP.certificates, "crl": AMD.crl(number=7, end=AT)}))


def attestation_key(scene: Scene) -> str:
    known, reinstalled = machine(), machine(2)
    scene.enrol(known)
    known.boot(GrubBoot())
    reinstalled.boot(GrubBoot())
    scene.approve(known, GRUB_PCRS)
    scene.house.rule(KEY, images=["debian"], instances=["web-1"])
    return scene.refused(Guest(reinstalled))


def owner(scene: Scene) -> str:
    ours, theirs = machine(), machine(2)
    scene.house.owner("bob")
    scene.enrol(theirs, owner="bob")
    scene.enrol(ours)
    ours.boot(GrubBoot())
    theirs.boot(GrubBoot())
    scene.approve(ours, GRUB_PCRS)
    scene.house.rule(KEY, images=["debian"], instances=["web-1"])
    return scene.refused(Guest(theirs))


def revoked(scene: Scene) -> str:
    tpm = machine()
    tpm.boot(GrubBoot())
    scene.enrol(tpm)
    scene.approve(tpm, GRUB_PCRS)
    scene.house.rule(KEY, images=["debian"], instances=["web-1"])
    scene.enrol(tpm, standing=Standing.REVOKED, why="sold in May")
    return scene.refused(Guest(tpm))


def retired(scene: Scene) -> str:
    tpm = machine()
    tpm.boot(GrubBoot())
    scene.enrol(tpm)
    scene.approve(tpm, GRUB_PCRS)
    tpm.boot(GrubBoot(kernel=b"kernel 6.1.0-32", kernel_path="(hd0,gpt2)/boot/vmlinuz-6.1.0-32-amd64"))
    scene.approve(tpm, GRUB_PCRS)
    retiring = {"state": "retiring", "why": "CVE-2026-1234", "until": NOW - DAY}
    scene.house.now = NOW - 8 * DAY
    scene.house.put(RecordKind.IMAGE_STATE, "acme", "debian@1", retiring)
    scene.house.now = NOW
    scene.house.rule(KEY, images=["debian"], instances=["web-1"])
    tpm.boot(GrubBoot())
    return scene.refused(Guest(tpm))


DEFECTS: dict[str, tuple[Callable[[Scene], str], str]] = {  # and what the first sentence must say
    "kernel": (kernel, "its kernel is not the approved one"),
    "initrd": (initrd, "its initrd is not the approved one"),
    "command-line": (command_line, "kernel command line"),
    "secure-boot": (secure_boot, "Secure Boot is off"),
    "debug": (debug, "DEBUG bit"),
    "vmpl": (vmpl, "VMPL 1"),
    "tcb": (tcb, "snp is 20, not 23"),
    "crl": (crl, "revocation list of AMD's"),
    "attestation-key": (attestation_key, "nobody knows its attestation key"),
    "owner": (owner, "the key's owner has not enrolled this machine"),
    "revoked": (revoked, "web-1 asked"),
    "retired": (retired, "it runs debian@1, which is retired since"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_the_owner_reads_what_is_wrong(scene: Scene, name: str) -> None:
    """The output is the kept one to the byte, fits on a page, and its first sentence names the defect."""
    defect, words = DEFECTS[name]
    shown = scene.show(defect(scene))
    head = " ".join(shown.partition("\n  decision")[0].split())
    assert words in head
    assert KEY in head
    assert len(shown.splitlines()) <= MAX_LINES
    file = GOLDEN / f"{name}.txt"
    if WRITE:
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8")


def test_no_kept_output_is_left_over() -> None:
    """Each file in tests/golden is one of the defects."""
    assert {file.stem for file in GOLDEN.iterdir()} == set(DEFECTS)
