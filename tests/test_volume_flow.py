# SPDX-License-Identifier: Apache-2.0
"""A guest, its disk and the real broker: a new volume is made once, and its keyslots are changed, whatever breaks off.

Real cryptsetup on files; the guest is one on SEV-SNP, whose evidence costs little.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import enroll, luks_write, slots
from agent import volume as agent_volume
from agent.attesters.snp import SnpAttester
from agent.client import fetch
from agent.config import Settings
from agent.cryptsetup import ENVIRONMENT
from agent.deadline import Deadline
from agent.luks import checked_header
from agent.release import Opened
from agent.release import Other as AgentOther
from agent.volume import Making, key_for
from broker import keyring, ledger, release
from broker.app import create_app
from broker.appraisal.volume import Volume
from broker.owners import Identity, Role
from broker.volumes import NEXT, RECOVERY, known_volume, other_key, staged
from keys import strictjson
from keys.errors import ConfigError, Conflict, NotFound, ProtocolError, ReleaseDenied, Unavailable, VolumeError
from keys.messages import ResourcePath
from keys.report import Report, Step
from keys.tee import Tee
from tests.fakes.amd import AT, MEASUREMENT, Chip, FakeAmd, cert_table
from tests.fakes.house import House
from tests.fakes.luks import rewrite
from tests.fakes.sev_guest import FakeKernel
from tests.fakes.wsgi import Served
from tests.needs import needs_cryptsetup

pytestmark = needs_cryptsetup

PATH = ResourcePath("acme", "disk", "root")
WHO = Identity("acme", "kid", Role.OWNER)
DISK_BYTES = 20 << 20


class Crash(BaseException):
    """The machine loses its power."""


class Machine:
    """A guest with a disk. `between` sits in front of the broker."""

    making = Making(False, "", "root")

    def __init__(self, house: House, amd: FakeAmd, disk: Path, hw_id: bytes | None = None) -> None:
        self.house, self.disk, self.said = house, disk, list[str]()
        self.between: Callable[[Any], Any] = lambda app: app
        self._chip = Chip(amd, hw_id)
        disk.touch()
        os.truncate(disk, DISK_BYTES)

    def boot(self, *, enrolling: bool = False) -> Opened:
        """What `unlock` or `enroll` asks for."""
        kernel = FakeKernel(
            firmware=lambda data, vmpl: self._chip.report(data, vmpl=vmpl, measurement=MEASUREMENT),
            certificates=cert_table(self._chip.certificates),
        )
        pinned = self.house.directory / "broker-keys.json"
        pinned.write_bytes(strictjson.compact(self.house.services.signer.jwks()))
        with Served(self.between(create_app(self.house.services))) as broker:
            settings = Settings((broker.url,), tee=Tee.SNP, broker_keys=str(pinned))

            def ask(report: Report, session: str) -> Opened:
                attester = SnpAttester(settings, Deadline(10), kernel)
                return fetch(settings, attester, PATH, Deadline(10), report=report, session=session)

            return key_for(str(self.disk), ask, self.said.append, self.making if enrolling else None)

    def opens(self, key: bytes) -> bool:
        with checked_header(str(self.disk), repair=True) as header:
            return slots.opens(str(self.disk), header.descriptor, key)

    @property
    def keyslots(self) -> int:
        with checked_header(str(self.disk)) as header:
            return len(header.volume.keyslots)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path) as house:
        house.owner("acme")
        house.now = int(AT.timestamp() * 1000)
        house.amd = FakeAmd()  # type: ignore[attr-defined]
        house.services = replace(house.services, trusted={Tee.SNP: house.amd.trusted()})  # type: ignore[attr-defined]
        house.image("acme", "ovmf", f'platform = "snp"\n[snp]\nmeasurement = "{MEASUREMENT.hex()}"\n')
        house.rule(str(PATH), images=["ovmf"], platforms=["snp"])
        yield house


@pytest.fixture
def machine(house: House, tmp_path: Path) -> Machine:
    return Machine(house, house.amd, tmp_path / "disk.img")  # type: ignore[attr-defined]


def provision(house: House, *, again: bool = False) -> None:
    keyring.provision(PATH, house.services, WHO, again=again, why="", now=house.now)


def rotate(house: House) -> None:
    assert keyring.rotate(PATH, house.services, WHO, why="", now=house.now) is None


@pytest.fixture
def enrolled(house: House, machine: Machine) -> Machine:
    """A machine whose volume is made and known."""
    provision(house)
    machine.boot(enrolling=True)
    return machine


def volume(house: House) -> Volume:
    known = known_volume(PATH, house.store)
    assert known is not None
    return known


def secret(house: House, version: int) -> bytes:
    key = house.store.key(*PATH, version)
    return house.custody.open(*PATH, version, key.sealed or b"")


def last_line(house: House) -> dict[str, Any]:
    return house.lines("acme", ledger.RELEASE)[0].body


# --- a new volume ---


def test_a_new_volume_is_made_once(house: House, machine: Machine) -> None:
    """The guest makes it with the broker's key and tells its pin; from then on it is an ordinary volume."""
    provision(house)
    got = machine.boot(enrolling=True)
    assert volume(house) == Volume(got.volume)
    assert machine.opens(bytes(got.secret))
    assert machine.keyslots == 1
    before = machine.disk.read_bytes()
    for enrolling in (True, False):
        again = machine.boot(enrolling=enrolling)
        assert (again.secret, again.volume, again.format) == (got.secret, got.volume, False)
    assert machine.disk.read_bytes() == before
    assert [line.body["step"] for line in house.lines("acme", ledger.RELEASE)][::-1] == ["format", None, None, None]


def test_a_new_key_is_text(house: House, machine: Machine) -> None:
    """A passphrase that every way into cryptsetup takes: 32 random bytes in base64."""
    provision(house)
    got = machine.boot(enrolling=True)
    assert len(got.secret) == 44
    assert got.secret.isascii()
    rotate(house)
    assert len(machine.boot().secret) == 44


def test_an_empty_disk_is_an_attack_from_then_on(house: House, enrolled: Machine) -> None:
    """A host that empties the disk gets no new volume: refused, and the owner reads what was found."""
    enrolled.disk.write_bytes(bytes(DISK_BYTES))
    for enrolling, found in ((True, "an empty disk"), (False, "no LUKS2 header")):
        with pytest.raises(ReleaseDenied if enrolling else VolumeError):
            enrolled.boot(enrolling=enrolling)
        [failed] = [check for check in last_line(house)["trace"] if check["verdict"] == "failed"]
        assert failed["found"] == found
        assert "--again" in failed["mend"]
    assert enrolled.disk.read_bytes() == bytes(DISK_BYTES)


def test_a_lost_disk_is_ordered_anew(house: House, enrolled: Machine) -> None:
    """The owner's word makes an empty disk a new volume, with another key."""
    enrolled.disk.write_bytes(bytes(DISK_BYTES))
    with pytest.raises(Conflict):
        provision(house)
    provision(house, again=True)
    got = enrolled.boot(enrolling=True)
    assert got.version == 2
    assert volume(house) == Volume(got.volume)


def test_only_one_guest_makes_it(house: House, machine: Machine, tmp_path: Path) -> None:
    """A second guest of the same image is refused while the first has begun, and its disk stays as it was."""
    provision(house)
    machine.between = lost_answer(3)
    with pytest.raises(Unavailable):
        machine.boot(enrolling=True)
    other = Machine(house, house.amd, tmp_path / "other.img", bytes(range(64)))  # type: ignore[attr-defined]
    with pytest.raises(ReleaseDenied):
        other.boot(enrolling=True)
    assert other.disk.read_bytes() == bytes(DISK_BYTES)
    machine.between = lambda app: app
    assert machine.boot(enrolling=True).volume == volume(house).pin


def test_unlock_makes_nothing(house: House, machine: Machine) -> None:
    """An agent that came to open a volume does not make one, whatever the broker says."""
    provision(house)
    with pytest.raises(VolumeError):
        machine.boot()
    assert machine.disk.read_bytes() == bytes(DISK_BYTES)


def test_a_full_disk_is_not_touched(house: House, machine: Machine) -> None:
    """Somebody's data, or somebody's volume, is in nobody's way: refused by the guest, and told to the owner."""
    provision(house)
    for at, data in ((1024, b"superblock"), (DISK_BYTES - 100, b"backup table")):
        machine.disk.write_bytes(bytes(at) + data.ljust(DISK_BYTES - at, b"\0"))
        before = machine.disk.read_bytes()
        with pytest.raises(VolumeError):
            machine.boot(enrolling=True)
        assert last_line(house)["report"]["found"].startswith("not empty")
        assert machine.disk.read_bytes() == before
    theirs = ["cryptsetup", "luksFormat", "-q", *slots.PBKDF, "--key-file", "-", str(machine.disk)]
    subprocess.run(theirs, input=b"theirs", check=True)
    before = machine.disk.read_bytes()
    with pytest.raises(VolumeError, match="not empty"):
        machine.boot(enrolling=True)
    assert machine.disk.read_bytes() == before


def test_nobody_gets_the_key_of_a_new_volume_otherwise(house: House, machine: Machine) -> None:
    """A guest that says nothing of its disk gets no key that is meant for a new one."""
    provision(house)
    machine.disk.write_bytes(b"")
    with pytest.raises(VolumeError):
        machine.boot()
    assert last_line(house)["version"] == 1
    assert house.lines("acme", ledger.RELEASE)[0].verdict == "denied"


# --- whatever breaks off ---


def writes(monkeypatch: pytest.MonkeyPatch, survive: int) -> None:
    """The machine loses its power at the write to its disk after `survive`, half of which is on it."""
    left = [survive]
    real = luks_write._write

    def write(device: int, data: bytes, at: int) -> None:
        if left[0] == 0:
            real(device, data[: len(data) // 2], at)
            raise Crash
        left[0] -= 1
        real(device, data, at)

    monkeypatch.setattr(luks_write, "_write", write)


def lost_answer(which: int) -> Callable[[Any], Any]:
    """The broker's answer to one request, counted from 1, and all after it, do not arrive."""
    count = [0]

    def between(app: Any) -> Any:
        def relay(environ: dict[str, Any], start_response: Any) -> Any:
            count[0] += 1
            body = b"".join(app(environ, start_response if count[0] < which else lambda *_: None))
            if count[0] < which:
                return [body]
            start_response("503 Service Unavailable", [("Retry-After", "60")])
            return [b""]

        return relay

    return between


WRITES = [0, 1, 2, 40, *range(60, 68)]  # of the 67 that it takes


@pytest.mark.parametrize("survive", WRITES)
def test_a_new_volume_survives_a_loss_of_power(
    house: House, machine: Machine, monkeypatch: pytest.MonkeyPatch, survive: int
) -> None:
    """Wherever the first attempt stops, the next one ends with one volume, which is known."""
    provision(house)
    with monkeypatch.context() as patch:
        writes(patch, survive)
        try:
            machine.boot(enrolling=True)
        except Crash:
            assert volume(house).pin is None
    got = machine.boot(enrolling=True)
    assert volume(house) == Volume(got.volume)
    assert machine.opens(bytes(got.secret))
    assert machine.keyslots == 1


@pytest.mark.parametrize("which", range(1, 7))
def test_a_new_volume_survives_a_lost_answer(house: House, machine: Machine, which: int) -> None:
    """Whichever answer is lost, the next attempt ends with one volume, which is known."""
    provision(house)
    machine.between = lost_answer(which)
    with pytest.raises(Unavailable):
        machine.boot(enrolling=True)
    machine.between = lambda app: app
    got = machine.boot(enrolling=True)
    assert volume(house) == Volume(got.volume)
    assert machine.opens(bytes(got.secret))


# --- rotation ---


def finished(house: House, machine: Machine, version: int) -> None:
    """The volume has one keyslot, which the newest key opens and the older one does not."""
    assert volume(house) == Volume(volume(house).pin)
    assert house.store.key(*PATH).version == version
    assert machine.opens(secret(house, version))
    assert not machine.opens(secret(house, version - 1))
    assert machine.keyslots == 1


def staged_keys(house: House) -> list[str]:
    """The tags of what waits for a guest."""
    return [key.tag for key in house.store.sealed_keys(None, 100) if "~" in key.tag]


def test_a_key_is_rotated_at_the_next_boot(house: House, enrolled: Machine) -> None:
    """Before it, guests get the old version; at it, the new one takes the old one's place; after it nothing waits."""
    before = enrolled.boot().secret
    rotate(house)
    with pytest.raises(Conflict, match="waits"):
        rotate(house)
    assert house.store.key(*PATH).version == 1
    got = enrolled.boot()
    assert got.version == 2
    assert got.secret != before
    finished(house, enrolled, 2)
    steps = [line.body["step"] for line in house.lines("acme", ledger.RELEASE)][:3]
    assert steps[::-1] == ["add", "remove", None]
    rotate(house)
    enrolled.boot()
    finished(house, enrolled, 3)
    assert staged_keys(house) == []


@pytest.mark.parametrize("survive", [0, 30, *range(60, 73), 100, 130])
def test_a_rotation_survives_a_loss_of_power(
    house: House, enrolled: Machine, monkeypatch: pytest.MonkeyPatch, survive: int
) -> None:
    """Wherever it stops, a released key opens the volume, and the next boot ends with one keyslot."""
    rotate(house)
    with monkeypatch.context() as patch:
        writes(patch, survive)
        try:
            enrolled.boot()
        except Crash:
            assert enrolled.opens(secret(house, house.store.key(*PATH).version))
    assert enrolled.opens(bytes(enrolled.boot().secret))
    finished(house, enrolled, 2)


@pytest.mark.parametrize("which", range(1, 10))
def test_a_rotation_survives_a_lost_answer(house: House, enrolled: Machine, which: int) -> None:
    """Whichever answer is lost: once there was a key the volume opens, and a later boot ends with one keyslot."""
    rotate(house)
    enrolled.between = lost_answer(which)
    if which <= 3:
        with pytest.raises(Unavailable):
            enrolled.boot()
    else:
        assert enrolled.opens(bytes(enrolled.boot().secret))
        assert "the next boot tries again" in enrolled.said[-1]
    enrolled.between = lambda app: app
    assert enrolled.opens(bytes(enrolled.boot().secret))
    finished(house, enrolled, 2)


@pytest.mark.parametrize(
    ("method", "times"), [("put_key", 1), ("put_record", 1), ("put_record", 2), ("put_record", 3), ("destroy_key", 1)]
)
def test_a_rotation_survives_a_broker_that_dies(
    house: House, enrolled: Machine, monkeypatch: pytest.MonkeyPatch, method: str, times: int
) -> None:
    """Whichever of the store's writes is the last one, the guest is never given a key that its volume does not know."""
    rotate(house)
    left = [times]
    real = getattr(house.store, method)

    def failing(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Unavailable("the broker died")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(house.store, method, failing)
        got = enrolled.boot()
        assert enrolled.opens(bytes(got.secret))
    assert enrolled.opens(bytes(enrolled.boot().secret))
    enrolled.boot()
    finished(house, enrolled, 2)


def test_a_header_that_is_not_whole_is_mended_only_for_the_pin(enrolled: Machine) -> None:
    """What a crash leaves of one header opens where the broker knows the volume, and nowhere else."""
    damaged = bytearray(enrolled.disk.read_bytes())
    damaged[5000] ^= 1
    enrolled.disk.write_bytes(damaged)
    with pytest.raises(VolumeError, match="checksum"), checked_header(str(enrolled.disk)):
        pass
    assert enrolled.opens(bytes(enrolled.boot().secret))


def test_a_forged_header_is_told_to_the_owner(house: House, enrolled: Machine) -> None:
    """A null cipher in the header: no key leaves the broker, and the owner reads which defect it was."""
    rewrite(enrolled.disk, lambda header: header["segments"]["0"].update(encryption="cipher_null-ecb"))
    with pytest.raises(VolumeError, match="cipher_null-ecb") as caught:
        enrolled.boot()
    line = house.lines("acme", ledger.RELEASE)[0]
    assert (line.verdict, caught.value.decision) == ("denied", line.id)
    assert "cipher_null-ecb" in line.body["report"]["found"]


def test_a_rotation_can_be_forced(house: House, enrolled: Machine) -> None:
    """At once, for who changes the disk by hand: what waited waits no more."""
    rotate(house)
    assert keyring.rotate(PATH, house.services, WHO, at_once=True, why="", now=house.now) is not None
    assert volume(house) == Volume(volume(house).pin)
    assert house.store.key(*PATH).version == 2


def test_the_key_in_use_is_never_removed(enrolled: Machine, house: House) -> None:
    """Should a broker call the present key the older one, its keyslot stays."""
    known = volume(house)
    keyring.put_volume(PATH, known, replace(known, last=1), house.services, house.now)
    assert enrolled.opens(bytes(enrolled.boot().secret))
    assert "the one that opens it" in enrolled.said[-1]
    assert enrolled.keyslots == 1


# --- recovery ---

FIRST, SECOND = b"f" * 44, b"s" * 44


def test_a_recovery_passphrase_has_a_keyslot_of_its_own(house: House, enrolled: Machine) -> None:
    """It opens the volume, survives rotations, and a later one takes its place; the broker keeps none of them."""
    for passphrase in (FIRST, SECOND):
        keyring.put_recovery(PATH, passphrase, house.services, WHO, why="", now=house.now)
        got = enrolled.boot()
        assert enrolled.opens(passphrase)
        assert enrolled.opens(bytes(got.secret))
        assert enrolled.keyslots == 2
        assert house.store.key(*staged(PATH, RECOVERY)).sealed is None
    assert not enrolled.opens(FIRST)
    rotate(house)
    enrolled.boot()
    assert enrolled.opens(SECOND)
    assert enrolled.keyslots == 2


def test_a_weak_recovery_passphrase_is_refused(house: House, enrolled: Machine) -> None:
    """Its keyslot costs little to try: what somebody could guess is not taken."""
    with pytest.raises(ProtocolError, match="long and random"):
        keyring.put_recovery(PATH, b"correct horse battery staple", house.services, WHO, why="", now=house.now)
    assert volume(house).recovery is None


def test_a_recovery_passphrase_needs_a_volume(house: House) -> None:
    """Where no volume is known, nobody would put it anywhere."""
    for before in ("none", "ordered"):
        if before == "ordered":
            provision(house)
        with pytest.raises(NotFound):
            keyring.put_recovery(PATH, FIRST, house.services, WHO, why="", now=house.now)


def test_a_destroyed_key_leaves_nothing_staged(house: House, enrolled: Machine) -> None:
    """What waited for the guest is erased with the key."""
    rotate(house)
    keyring.put_recovery(PATH, FIRST, house.services, WHO, why="", now=house.now)
    keyring.destroy(PATH, house.services, WHO, why="", now=house.now)
    assert all(key.sealed is None for key in house.store.sealed_keys(None, 10))


# --- what the guest itself sees to ---


def test_a_disk_that_is_too_small_or_not_there(tmp_path: Path) -> None:
    """Named, before anything is asked or written."""
    small = tmp_path / "small"
    small.write_bytes(bytes(1 << 20))
    with pytest.raises(VolumeError, match="too small"):
        enroll.what_is_on(str(small))
    with pytest.raises(VolumeError, match="not there"):
        enroll.what_is_on(str(tmp_path / "none"))


def test_a_thorough_look_finds_what_a_quick_one_does_not(tmp_path: Path) -> None:
    """One byte in the middle of a disk is somebody's."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(9 << 20) + b"x" + bytes(10 << 20))
    assert enroll.what_is_on(str(disk)) is enroll.Disk.EMPTY
    assert enroll.what_is_on(str(disk), whole=True) is enroll.Disk.OTHER


# --- what comes between ---


def test_a_record_that_changed_meanwhile_gives_no_key(
    house: House, enrolled: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner pins another volume while a guest's step is judged: refused, and the record is the owner's."""
    rotate(house)
    real = release.judge_volume
    other = Volume("ab" * 32)

    def between(*arguments: Any) -> Any:
        told = real(*arguments)
        if told.volume is not None:
            keyring.put_volume(PATH, volume(house), other, house.services, house.now)
        return told

    with monkeypatch.context() as patch:
        patch.setattr(release, "judge_volume", between)
        got = enrolled.boot()
    assert enrolled.opens(bytes(got.secret))
    assert volume(house) == other
    [failed] = [check for check in last_line(house)["trace"] if check["verdict"] == "failed"]
    assert failed["name"] == release.KEPT


def test_a_staged_key_that_custody_did_not_seal_goes_nowhere(house: House, enrolled: Machine) -> None:
    """Bytes in the store that were exchanged: no key at all, before and after the guest's word."""
    rotate(house)
    key = house.store.key(*staged(PATH, NEXT))
    house.store.replace_sealed(key, b"x" * len(key.sealed or b""))
    with pytest.raises(ReleaseDenied):
        enrolled.boot()
    known = volume(house)
    keyring.put_volume(PATH, known, replace(known, last=1), house.services, house.now)  # as if it had been confirmed
    with pytest.raises(ReleaseDenied):
        enrolled.boot()
    assert house.store.key(*PATH).version == 1


def test_secrets_are_in_no_repr(house: House, enrolled: Machine) -> None:
    """What carries keys through a release shows none of them."""
    rotate(house)
    other = other_key(PATH, volume(house), house.services)
    assert other is not None
    theirs = AgentOther(other.step, other.version, bytearray(other.secret))
    opened = release._Opened(house.store.key(*PATH), other.secret, None, None, other=other)
    told = Opened(bytearray(other.secret), 1, other=theirs)
    for one in (other, theirs, opened, told):
        assert other.secret.decode() not in repr(one)


# --- the guest's own part ---


def cryptsetup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Another program of that name."""
    program = tmp_path / "bin" / "cryptsetup"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "PATH", f"{program.parent}:{ENVIRONMENT['PATH']}")


@pytest.fixture
def disk(tmp_path: Path) -> tuple[str, str]:
    """A disk with a volume that `KEY` opens, and its pin."""
    path = tmp_path / "own.img"
    path.touch()
    os.truncate(path, DISK_BYTES)
    return str(path), enroll.make_volume(str(path), bytearray(KEY))


KEY, OTHER_KEY = b"k" * 44, b"o" * 44


def step(which: Step, secret: bytes = OTHER_KEY) -> AgentOther:
    return AgentOther(which, 1, bytearray(secret))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("exit 4", "not there"),
        ("exit 2", "its own key"),
        ('case $1 in open) exit 0;; esac; exit 3', "luksRemoveKey: .* memory"),
        ('echo >>"$0.n"; cat >/dev/null; [ "$(wc -l <"$0.n")" = 1 ] || exit 2', "do not open as they should"),
    ],
)  # fmt: skip
def test_a_cryptsetup_that_fails_changes_nothing(
    disk: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    """Whatever it says, the disk stays as it was."""
    path, pin = disk
    before = Path(path).read_bytes()
    cryptsetup(tmp_path, monkeypatch, body)
    with pytest.raises(VolumeError, match=words):
        slots.change(path, pin, bytearray(KEY), step(Step.REMOVE))
    assert Path(path).read_bytes() == before


def test_a_keyslot_needs_the_key_that_opens_the_volume(disk: tuple[str, str]) -> None:
    """Another key, or another volume, changes nothing."""
    path, pin = disk
    before = Path(path).read_bytes()
    with pytest.raises(VolumeError, match="its own key"):
        slots.change(path, pin, bytearray(OTHER_KEY), step(Step.ADD, KEY))
    with pytest.raises(VolumeError, match="another volume"):
        slots.change(path, "ab" * 32, bytearray(KEY), step(Step.ADD))
    assert Path(path).read_bytes() == before


def test_every_step_can_be_done_again(disk: tuple[str, str]) -> None:
    """What is there already is left as it is."""
    path, pin = disk
    for which in (Step.ADD, Step.RECOVERY, Step.REMOVE):
        slots.change(path, pin, bytearray(KEY), step(which))
        once = Path(path).read_bytes()
        slots.change(path, pin, bytearray(KEY), step(which))
        assert Path(path).read_bytes() == once


def test_a_disk_that_cannot_be_written_is_named(disk: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A read error of the system becomes an error with the device's name."""
    path, pin = disk

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left")

    monkeypatch.setattr(slots, "write_back", full)
    with pytest.raises(VolumeError, match="cannot be written"):
        slots.change(path, pin, bytearray(KEY), step(Step.ADD))
    monkeypatch.setattr(enroll, "write_back", full)
    os.truncate(path, 0)
    os.truncate(path, DISK_BYTES)
    with pytest.raises(VolumeError, match="cannot be written"):
        enroll.make_volume(path, bytearray(KEY))


def test_a_format_that_fails_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cryptsetup that cannot make a header leaves the disk empty."""
    path = tmp_path / "empty.img"
    path.touch()
    os.truncate(path, DISK_BYTES)
    cryptsetup(tmp_path, monkeypatch, "exit 3")
    with pytest.raises(VolumeError, match="memory"):
        enroll.make_volume(str(path), bytearray(KEY))
    assert not any(path.read_bytes())


def test_a_file_system_is_made_before_the_broker_knows_the_volume(
    house: House, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened, made, closed, and only then told: an attempt that fails begins anew."""
    did: list[str] = []
    monkeypatch.setattr(agent_volume, "open_volume", lambda *_, **__: did.append("open"))
    monkeypatch.setattr(agent_volume, "close_volume", lambda _: did.append("close"))
    monkeypatch.setattr(agent_volume, "make_file_system", lambda kind, _: did.append(kind))
    monkeypatch.setattr(Machine, "making", Making(False, "ext4", "root"))
    provision(house)
    machine.boot(enrolling=True)
    assert did == ["open", "ext4", "close"]


def test_a_mkfs_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not there, or with its words; and only known file systems are made."""
    monkeypatch.setitem(ENVIRONMENT, "PATH", str(tmp_path))
    with pytest.raises(VolumeError, match="cannot be run"):
        enroll.make_file_system("ext4", "/dev/null")
    (tmp_path / "mkfs.ext4").write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    (tmp_path / "mkfs.ext4").chmod(0o755)
    with pytest.raises(VolumeError, match="no room"):
        enroll.make_file_system("ext4", "/dev/null")
    assert enroll.file_system("xfs") == "xfs"
    with pytest.raises(ConfigError):
        enroll.file_system("ntfs")
