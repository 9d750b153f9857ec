# SPDX-License-Identifier: Apache-2.0
"""What a SEV launch put into the guest: taken once, whole, and used where other guests ask a broker."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from agent import doctor, efi_secret, unlock
from agent.cli import main
from agent.config import Settings
from agent.doctor import Finding, examine
from agent.efi_secret import DISK_PASSPHRASE, MAX_SECRET_BYTES, take
from agent.unlock import Outcome
from keys.errors import AttesterError, ConfigError, VolumeError
from keys.tee import Tee
from tests.fakes.sev_guest import FakeKernel

KEY = b"the disk's key\n\0\xff"


@pytest.fixture(autouse=True)
def dumpable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that runs the tests stays as it is."""
    monkeypatch.setattr("keys.secrecy.forbid_core_dumps", lambda: None)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The folder of securityfs, with the secret and another."""
    folder = tmp_path / "coco"
    folder.mkdir()
    (folder / DISK_PASSPHRASE).write_bytes(KEY)
    (folder / "e6f5a162-d67f-4750-a67c-5d065f2a9910").write_bytes(b"another")
    return folder


def test_the_secret_is_taken_whole_and_once(secrets: Path) -> None:
    """Every byte comes out; the kernel's entry is gone (removing it wipes it), and no other is touched."""
    assert take(str(secrets)) == bytearray(KEY)
    assert [path.name for path in secrets.iterdir()] == ["e6f5a162-d67f-4750-a67c-5d065f2a9910"]
    with pytest.raises(AttesterError, match="no secret at") as caught:
        take(str(secrets))
    assert "modul" in (caught.value.mend or "")
    assert "efi_secret" in (caught.value.mend or "")


class _Trickle(io.BytesIO):
    """A file that gives a byte at a time."""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return super().readinto(buffer[:1])


def test_a_file_in_pieces_is_read_to_its_end(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that gives less than there is, is not the end."""
    monkeypatch.setattr(efi_secret, "open", lambda *_, **__: _Trickle(KEY), raising=False)
    assert take(str(secrets)) == bytearray(KEY)


@pytest.mark.parametrize("size", [0, MAX_SECRET_BYTES + 1, 1 << 20])
def test_an_impossible_length_is_refused(secrets: Path, size: int) -> None:
    """Nothing, and more than the firmware's area holds, is no key."""
    (secrets / DISK_PASSPHRASE).write_bytes(bytes(size))
    with pytest.raises(AttesterError, match="impossible length"):
        take(str(secrets))


def test_the_longest_secret_is_taken(secrets: Path) -> None:
    """As much as the firmware's area holds comes out whole."""
    (secrets / DISK_PASSPHRASE).write_bytes(b"k" * MAX_SECRET_BYTES)
    assert take(str(secrets)) == bytearray(b"k" * MAX_SECRET_BYTES)


def test_what_was_read_is_wiped(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer that was read into holds zeros afterwards, also after an error."""
    buffers: list[bytearray] = []
    real = efi_secret._read

    def read(path: str, buffer: bytearray) -> int:
        buffers.append(buffer)
        return real(path, buffer)

    monkeypatch.setattr(efi_secret, "_read", read)
    take(str(secrets))
    (secrets / DISK_PASSPHRASE).write_bytes(KEY)

    def fail(path: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(AttesterError, match="not permitted"):
        take(str(secrets))
    assert len(buffers) == 2
    assert not any(map(any, buffers))


def test_a_path_that_cannot_be_is_ours(tmp_path: Path) -> None:
    """A folder's impossible name is an AttesterError as well."""
    with pytest.raises(AttesterError, match="no secret"):
        take(f"{tmp_path}\0")


# unlock, get, evidence, doctor


def config(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return ["--config", str(path)]


def test_get_takes_the_launchs_secret_and_asks_nobody(
    secrets: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """With tee = "sev" the key comes from the launch; no broker is configured, none is missed."""
    options = config(tmp_path, f'secrets = "{secrets}"\n')
    assert main(["get", "o/disk/root", "--tee", "sev", *options]) == 0
    assert capfdbinary.readouterr() == (KEY, b"")
    assert main(["get", "o/disk/root", "--tee", "sev", "--output", str(tmp_path / "k"), *options]) == (
        AttesterError.exit_status
    )


def test_unlock_opens_with_the_launchs_secret(secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`unlock` gives the injected key to cryptsetup as it would a broker's."""
    given = []

    def open_volume(device: str, name: str, key: bytearray, *, device_mapper: bool, pin: str | None) -> Outcome:
        given.append((device, name, bytes(key), pin))
        return Outcome(opened=True, name=name, pin="")

    monkeypatch.setattr(unlock, "check_volume", lambda _device: None)
    monkeypatch.setattr(unlock, "open_volume", open_volume)
    options = config(tmp_path, f'tee = "sev"\nsecrets = "{secrets}"\n')
    assert main(["unlock", "/dev/vda2", "--key", "o/disk/root", *options]) == 0
    assert given == [("/dev/vda2", "roomkey-root", KEY, None)]


def test_the_secret_is_not_taken_where_it_cannot_be_used(secrets: Path, tmp_path: Path) -> None:
    """A missing volume, an output file that is there already, or a version demanded of it, which a launch's secret does
    not have, costs nothing: the secret is still to be had.
    """
    options = config(tmp_path, f'tee = "sev"\nsecrets = "{secrets}"\n')
    missing = str(tmp_path / "no-disk")
    assert main(["unlock", missing, "--key", "o/disk/root", *options]) == VolumeError.exit_status
    there = tmp_path / "there"
    there.write_text("mine")
    assert main(["get", "o/disk/root", "--output", str(there), *options]) == ConfigError.exit_status
    assert there.read_text() == "mine"
    assert main(["get", "o/disk/root", "--at-least", "2", *options]) == ConfigError.exit_status
    assert take(str(secrets)) == KEY


def test_a_sev_guest_makes_no_evidence(tmp_path: Path) -> None:
    """There is nothing that such a guest could show; the platforms that can are named."""
    assert main(["evidence", "--tee", "sev", *config(tmp_path, "")]) == ConfigError.exit_status


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can open volumes."""
    monkeypatch.setattr(doctor, "has_device_mapper", lambda: True)
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/usr/sbin/cryptsetup")


def findings(**changes: object) -> dict[str, Finding]:
    return {finding.about: finding for finding in examine(Settings()._replace(**changes))}  # type: ignore[arg-type]


def test_doctor_looks_for_the_secret_and_leaves_it(able: None, secrets: Path) -> None:
    """A SEV guest needs its secret and what opens volumes, and no broker; looking takes nothing."""
    found = findings(tee=Tee.SEV, secrets=str(secrets))
    assert list(found) == ["launch secret", "cryptsetup", "device-mapper"]
    assert all(finding.ok for finding in found.values())
    assert (secrets / DISK_PASSPHRASE).read_bytes() == KEY


def test_doctor_misses_the_secret(able: None, tmp_path: Path) -> None:
    """Without the module there is nothing to read, and it says what to load."""
    finding = findings(tee=Tee.SEV, secrets=str(tmp_path))["launch secret"]
    assert not finding.ok
    assert "efi_secret" in finding.mend


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (FakeKernel(certificates=b"c" * 24), ["/sys/kernel/config", "version 3, VMPL 0, 24 bytes of", "c1" * 64]),
        (FakeKernel(tsm=False), ["/dev/sev-guest", "no certificates"]),
    ],
)
def test_doctor_tells_of_snp(able: None, kernel: FakeKernel, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On an SNP guest one report is made, and it says by which way, at which level and on which chip."""
    monkeypatch.setattr("agent.attesters.snp.Kernel", lambda: kernel)
    finding = findings(tee=Tee.SNP)["SNP report"]
    assert finding.ok
    assert all(word in finding.found for word in words)


def test_doctor_misses_snp(able: None, tmp_path: Path) -> None:
    """On another machine the report's line says what to load."""
    finding = findings(tee=Tee.SNP, tsm=str(tmp_path / "t"), sev_guest=str(tmp_path / "d"))["SNP report"]
    assert not finding.ok
    assert "sev-guest" in finding.mend


def test_doctor_names_a_platform_without_attester(able: None) -> None:
    """A platform that this agent cannot speak for is a line that says which it can."""
    finding = findings(tee=Tee.CCA)["platform"]
    assert not finding.ok
    assert "tpm, snp, sev" in finding.mend


def test_evidence_of_snp_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`evidence --tee snp` describes the guest from a single report."""
    kernel = FakeKernel(tsm=False)
    monkeypatch.setattr("agent.attesters.snp.Kernel", lambda: kernel)
    assert main(["evidence", "--tee", "snp", "--report-data", "ab" * 48, *config(tmp_path, "")]) == 0
    out = capfd.readouterr().out
    assert '"tee":"snp"' in out
    assert '"snp_chip_id":"c1c1' in out
    assert len(kernel.requests) == 1
