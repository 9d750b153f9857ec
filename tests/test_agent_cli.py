# SPDX-License-Identifier: Apache-2.0
"""The roomkey-agent command, mostly as a user runs it: in a process of its own, against a real TPM and a TLS broker."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import cli, cryptsetup, doctor, unlock
from agent.cap import EVENT, PCR
from agent.cli import main
from agent.config import Settings
from agent.doctor import Finding, examine, table
from agent.luks import checked_header
from agent.release import Opened
from agent.tpm2_marshal import HASHES
from agent.unlock import Outcome
from keys import b64
from keys.errors import (
    AttesterError,
    ConfigError,
    NotFound,
    ReleaseDenied,
    Unavailable,
    VerificationError,
    VolumeError,
)
from keys.messages import Request
from tests.fakes import luks
from tests.fakes.boot import Boot
from tests.fakes.ek_ca import EkCa
from tests.fakes.kbs import SIGNER, FakeKbs, pin, raw, refusal
from tests.fakes.luks import write
from tests.fakes.swtpm import SoftwareTpm
from tests.fakes.tls import TlsCa
from tests.needs import needs_cryptsetup, needs_swtpm

pytestmark = needs_swtpm

ROOT = Path(__file__).parent.parent
KEY = b"the disk's key\n\0\xff"


class Machine:
    """A guest, its broker, and the command line that joins them."""

    def __init__(self, directory: Path, tpm: SoftwareTpm, ca: TlsCa, kbs: FakeKbs) -> None:
        self.directory = directory
        self.tpm = tpm
        self.kbs = kbs
        self.ca = ca
        self.options = [
            "--broker", kbs.url, "--ca-file", str(ca.ca_file), "--tpm", tpm.address,
            "--eventlog", str(directory / "log"), "--timeout", "10", "--broker-keys", pin(directory),
        ]  # fmt: skip

    def run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "agent", *arguments, *self.options]
        return subprocess.run(command, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, check=False)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("machine")
    ca = TlsCa(directory / "tls")
    with SoftwareTpm(directory / "tpm") as tpm, FakeKbs({"o/disk/root": KEY}, ca.server_context()) as kbs:
        tpm.manufacture(EkCa())
        tpm.measure_boot(Boot(), directory / "log")
        yield Machine(directory, tpm, ca, kbs)


@pytest.fixture(autouse=True)
def dumpable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that runs the tests stays as it is."""
    monkeypatch.setattr("keys.secrecy.forbid_core_dumps", lambda: None)


# In a process of its own


def test_get_writes_the_key_to_a_pipe(machine: Machine) -> None:
    """`get` gives exactly the key on standard output, and nothing else anywhere."""
    done = machine.run("get", "o/disk/root")
    assert (done.returncode, done.stdout, done.stderr) == (0, KEY, b"")


def test_a_key_that_is_not_there_is_one_line_and_a_status(machine: Machine) -> None:
    """A failure is one line with its cause and has the error's exit status."""
    done = machine.run("get", "o/disk/none")
    assert done.returncode == NotFound.exit_status
    assert done.stdout == b""
    assert done.stderr.startswith(b"roomkey-agent: error: the broker does not release the key to this guest")
    assert done.stderr.count(b"\n") == 1


def test_a_key_is_never_shown_in_a_traceback_or_message(machine: Machine) -> None:
    """An unlock that fails after the key has arrived says nothing of the key."""
    done = machine.run("unlock", str(machine.directory / "none"), "--key", "o/disk/root")
    assert done.returncode == VolumeError.exit_status
    assert KEY[:8] not in done.stderr + done.stdout
    assert b64.std(KEY).encode()[:8] not in done.stderr + done.stdout


def test_a_key_is_not_written_to_a_terminal(machine: Machine) -> None:
    """`get` on a terminal asks for --output before it asks for the key."""
    asked = len(machine.kbs.received)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "agent", "get", "o/disk/root", *machine.options]
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        words = process.stderr.read()
    os.close(theirs)
    os.close(ours)
    assert process.returncode == ConfigError.exit_status
    assert b"terminal" in words
    assert len(machine.kbs.received) == asked


def test_wrong_arguments_are_told_apart(machine: Machine) -> None:
    """What argparse refuses has status 2."""
    assert machine.run("frobnicate").returncode == 2


def test_an_isolated_interpreter_starts_the_agent(machine: Machine) -> None:
    """`python -I`, as the initramfs starts it, needs nothing from the working directory or the environment."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runpy; runpy.run_module('agent', run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", code, "get", "o/disk/root", *machine.options]
    assert subprocess.run(command, cwd="/", env={}, capture_output=True, check=False).stdout == KEY


# In this process


def run(machine: Machine, *arguments: str) -> int:
    return main([*arguments, *machine.options])


@needs_cryptsetup
def test_unlock_tests_the_key_where_there_is_no_device_mapper(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`unlock` of a real LUKS2 file: plainly said that nothing was opened, and the broker's pin counts."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"")
    os.truncate(disk, 20 << 20)
    slot = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
    subprocess.run(["cryptsetup", "luksFormat", "-q", "--key-file", "-", *slot, str(disk)], input=KEY, check=True)
    monkeypatch.setattr(unlock, "has_device_mapper", lambda: False)
    assert run(machine, "unlock", str(disk), "--key", "o/disk/root") == 0
    said = capfd.readouterr().err
    assert "NOT opened: this kernel has no device-mapper" in said
    pin = said.rpartition("roomkey volume pin o/disk/root ")[2].strip()
    monkeypatch.setitem(machine.kbs.volumes, "o/disk/root", pin)
    assert run(machine, "unlock", str(disk), "--key", "o/disk/root") == 0
    assert "volume pin" not in capfd.readouterr().err
    monkeypatch.setitem(machine.kbs.volumes, "o/disk/root", "ab" * 32)
    assert run(machine, "unlock", str(disk), "--key", "o/disk/root") == VolumeError.exit_status
    assert "another volume than the one that the key belongs to" in capfd.readouterr().err


@pytest.mark.parametrize(("options", "name"), [([], "roomkey-root"), (["--name", "data"], "data")])
def test_unlock_opens_where_there_is_one(
    machine: Machine,
    options: list[str],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With device-mapper `unlock` runs `cryptsetup open` under the given name, by default one made of the key's tag."""
    status = "echo 'cipher: aes-xts-plain64\nsector size: 512\noffset: 2048 sectors'; exit"
    script = f'#!/bin/sh\n[ "$1" != status ] || {{ {status}; }}\necho "$@" > {tmp_path}/argv; cat > {tmp_path}/stdin\n'
    (tmp_path / "cryptsetup").write_text(script)
    (tmp_path / "cryptsetup").chmod(0o755)
    monkeypatch.setitem(cryptsetup.ENVIRONMENT, "PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(unlock, "has_device_mapper", lambda: True)
    disk = luks.write(tmp_path / "vda2")
    assert run(machine, "unlock", str(disk), "--key", "o/disk/root", *options) == 0
    assert (tmp_path / "argv").read_text().endswith(f"-- {disk} {name}\n")
    assert (tmp_path / "stdin").read_bytes() == KEY
    assert f"opened {disk} as /dev/mapper/{name}" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [["--key", "o/disk"], ["--key", "o/disk/root", "--name", "../x"]])
def test_unlock_checks_its_arguments_before_it_asks(machine: Machine, arguments: list[str]) -> None:
    """A bad path or name is found before a key is fetched."""
    asked = len(machine.kbs.received)
    assert run(machine, "unlock", "/dev/vda2", *arguments) != 0
    assert len(machine.kbs.received) == asked


def test_get_writes_a_new_private_file(machine: Machine, tmp_path: Path) -> None:
    """--output makes a file that only its owner reads, and never touches one that is there."""
    output = tmp_path / "key"
    assert run(machine, "get", "o/disk/root", "--output", str(output)) == 0
    assert output.read_bytes() == KEY
    assert output.stat().st_mode & 0o777 == 0o600
    output.write_bytes(b"precious")
    assert run(machine, "get", "o/disk/root", "--output", str(output)) == ConfigError.exit_status
    assert output.read_bytes() == b"precious"


def test_a_terminal_on_standard_output_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever standard output is, a terminal never gets a key."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run(machine, "get", "o/disk/root") == ConfigError.exit_status


def test_a_link_is_not_followed(machine: Machine, tmp_path: Path) -> None:
    """A link that somebody put in the file's place leads nowhere."""
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    assert run(machine, "get", "o/disk/root", "--output", str(tmp_path / "key")) == ConfigError.exit_status
    assert not (tmp_path / "elsewhere").exists()


def test_a_fetched_key_is_wiped_when_it_cannot_be_written(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens after the fetch, the key's bytes are overwritten."""
    key = bytearray(KEY)
    monkeypatch.setattr(cli, "_fetch", lambda *_: Opened(key, None))
    assert run(machine, "get", "o/disk/root", "--output", "/nonexistent/key") == ConfigError.exit_status
    assert not any(key)


def test_the_owners_id_of_a_refusal_is_printed(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    """The second line of a refusal tells how the owner reads its reasons."""
    machine.kbs.script["resource"].append(refusal(403, "PolicyDeny", "decision d-abcdefghijklmnopqrst"))
    assert run(machine, "get", "o/disk/root", "--output", "/nonexistent") == ReleaseDenied.exit_status
    lines = capfd.readouterr().err.splitlines()
    assert lines[1] == "roomkey-agent: mend: the owner reads why with: roomkey decision show d-abcdefghijklmnopqrst"


def test_an_older_version_than_the_least_is_refused(machine: Machine) -> None:
    """--at-least takes a version and refuses an older one; what is no version is a wrong argument."""
    assert machine.run("get", "o/disk/root", "--at-least", "1").stdout == KEY
    assert run(machine, "get", "o/disk/root", "--output", "/x", "--at-least", "2") == VerificationError.exit_status
    for text in ("0", "-1", "x", ""):
        with pytest.raises(SystemExit) as caught:
            run(machine, "get", "o/disk/root", "--at-least", text)
        assert caught.value.code == 2


def test_a_ticket_is_read_from_its_file(machine: Machine, tmp_path: Path) -> None:
    """--ticket names a file whose line goes to the broker; one that is not there is found before anything is asked."""
    (tmp_path / "ticket").write_text("Xk3-ticket\n")
    output = str(tmp_path / "key")
    assert run(machine, "get", "o/disk/root", "--output", output, "--ticket", str(tmp_path / "ticket")) == 0
    assert Request.from_bytes(machine.kbs.asked("auth")[-1].body).ticket == "Xk3-ticket"
    asked = len(machine.kbs.received)
    assert run(machine, "get", "o/disk/root", "--output", "/x", "--ticket", "/nonexistent") == ConfigError.exit_status
    assert len(machine.kbs.received) == asked


def test_settings_reach_the_conversation(machine: Machine, tmp_path: Path) -> None:
    """The ticket's file that a setting names may be gone, and the version is remembered where a setting says."""
    (tmp_path / "agent.toml").write_text(f'ticket = "{tmp_path}/none"\nversions = "{tmp_path}/versions.json"\n')
    options = ["--config", str(tmp_path / "agent.toml"), "--output", str(tmp_path / "key")]
    assert run(machine, "get", "o/disk/root", *options) == 0
    assert json.loads((tmp_path / "versions.json").read_bytes()) == {"o/disk/root": 1}


def test_unpinned_keys_are_a_config_error(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    """Without the file of pinned keys `get` says where it comes from; only the switch does without."""
    options = [*machine.options, "--broker-keys", "/nonexistent"]
    assert main(["get", "o/disk/root", *options, "--output", "/x"]) == ConfigError.exit_status
    assert "signing.pub.json" in capfd.readouterr().err
    done = machine.run("get", "o/disk/root", "--unsafe-plain-kbs")
    assert (done.returncode, done.stdout) == (0, KEY)


def test_an_interrupt_is_a_status(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control-C ends the command without a traceback."""

    def interrupt(*_: object) -> bytearray:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    monkeypatch.setattr(cli, "_fetch", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
    try:
        assert run(machine, "get", "o/disk/root", "--output", "/nonexistent") == cli.INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)


def test_evidence_describes_the_machine(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    """`evidence` prints one JSON object: platform, instance, evidence, and the report data that it is bound to."""
    report_data = bytes(range(48))
    assert run(machine, "evidence", "--report-data", report_data.hex()) == 0
    description = json.loads(capfd.readouterr().out)
    assert description.keys() == {"tee", "instance", "evidence", "report_data"}
    assert description["tee"] == "tpm"
    assert description["report_data"] == b64.std(report_data)
    assert description["instance"]["ak_public"] == description["evidence"]["ak_public"]
    assert len(description["instance"]["ek_certificates"]) == 2


def test_evidence_is_fresh_each_time(machine: Machine, tmp_path: Path) -> None:
    """Without --report-data it is random."""
    for name in "ab":
        assert run(machine, "evidence", "--output", str(tmp_path / name)) == 0
    first, second = (json.loads((tmp_path / name).read_bytes()) for name in "ab")
    assert first["report_data"] != second["report_data"]
    assert first["instance"] == second["instance"]


@pytest.mark.parametrize("text", ["", "xyz", "00" * 47, "00" * 49])
def test_report_data_has_its_length(machine: Machine, text: str) -> None:
    """--report-data takes 48 bytes of hex and nothing else."""
    assert run(machine, "evidence", "--report-data", text) == ConfigError.exit_status


# doctor


def findings(machine: Machine, **changes: object) -> dict[str, Finding]:
    settings = Settings(
        (machine.kbs.url,), str(machine.ca.ca_file), tpm=machine.tpm.address, eventlog=str(machine.directory / "log"),
        broker_keys=pin(machine.directory),
    )  # fmt: skip
    return {finding.about: finding for finding in examine(settings._replace(**changes))}  # type: ignore[arg-type]


def test_doctor_finds_a_healthy_machine_healthy(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that gets its key every line is ok and says what was found."""
    monkeypatch.setattr(doctor, "has_device_mapper", lambda: True)
    monkeypatch.setattr("shutil.which", lambda *_, **__: "/usr/sbin/cryptsetup")
    found = findings(machine)
    assert [about for about, finding in found.items() if not finding.ok] == []
    assert "sha256" in found["TPM"].found
    assert "P-256, low range, with 1" in found["EK certificate"].found
    assert "leads to PCR 0, 1" in found["event log"].found
    assert "protocol 0.4.0" in found[f"broker {machine.kbs.url}"].found


@pytest.mark.parametrize(
    ("about", "changes"),
    [
        ("TPM", {"tpm": "device:/nonexistent"}),
        ("attestation key", {"tpm": "device:/nonexistent"}),
        ("event log", {"eventlog": "/nonexistent"}),
        ("event log", {"eventlog": ""}),
        ("broker", {"brokers": ()}),
        ("broker https://127.0.0.1:1", {"brokers": ("https://127.0.0.1:1",)}),
        ("broker ftp://x", {"brokers": ("ftp://x",)}),
    ],
)
def test_doctor_says_what_to_mend(machine: Machine, about: str, changes: dict[str, object]) -> None:
    """Each thing that is missing has a line of its own, with what mends it."""
    finding = findings(machine, **changes)[about]
    assert not finding.ok
    assert finding.mend


def test_doctor_shows_whom_this_machine_believes(machine: Machine, tmp_path: Path) -> None:
    """The pinned keys are named; a file that cannot be used is a failure with its mend."""
    assert SIGNER.kid in findings(machine)["broker keys"].found
    for path in ("/nonexistent", str(tmp_path)):
        finding = findings(machine, broker_keys=path)["broker keys"]
        assert not finding.ok
    assert "signing.pub.json" in findings(machine, broker_keys="/nonexistent")["broker keys"].mend


def test_doctor_warns_of_plain_answers(machine: Machine) -> None:
    """With unsafe_plain_kbs the machine gets its key, so nothing fails; but there is something to mend."""
    finding = findings(machine, unsafe_plain_kbs=True)["broker keys"]
    assert finding.ok
    assert finding.mend
    assert table([finding]).startswith("warn  broker keys  unsafe_plain_kbs")


def test_doctor_misses_cryptsetup_and_device_mapper(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that cannot open volumes is told so."""
    monkeypatch.setattr(doctor, "has_device_mapper", lambda: False)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    found = findings(machine)
    assert not found["cryptsetup"].ok
    assert not found["device-mapper"].ok


def test_doctor_misses_a_sha_256_bank(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TPM with SHA-1 registers only cannot attest here."""
    monkeypatch.setattr("agent.tpm2.Tpm.banks", lambda _: [4])
    assert not findings(machine)["TPM"].ok


def test_doctor_sees_a_log_that_does_not_fit(machine: Machine, tmp_path: Path) -> None:
    """A log of another boot is named with the PCRs that differ."""
    with SoftwareTpm(tmp_path / "tpm") as other:
        other.measure_boot(Boot(kernel=b"another"), tmp_path / "log")
    finding = findings(machine, eventlog=str(tmp_path / "log"))["event log"]
    assert not finding.ok
    assert "PCR 4, 9" in finding.found


def test_doctor_knows_a_tpm_without_certificate(machine: Machine, tmp_path: Path) -> None:
    """Without an EK certificate the mend is to enrol the attestation key."""
    with SoftwareTpm(tmp_path / "tpm") as bare:
        finding = findings(machine, tpm=bare.address)["EK certificate"]
    assert not finding.ok
    assert "roomkey-agent evidence" in finding.mend


def test_doctor_speaks_plain_http_on_loopback(machine: Machine) -> None:
    """A broker on this machine without TLS is fine, and said."""
    with FakeKbs({}) as kbs:
        finding = findings(machine, brokers=(kbs.url,))[f"broker {kbs.url}"]
    assert finding.ok
    assert "plain http" in finding.found


def test_doctor_sees_a_broker_of_another_version(machine: Machine) -> None:
    """A broker that refuses the protocol's version is a line that says no."""
    machine.kbs.script["auth"].append(refusal(401, "AttestationError", "KBS Client Protocol Version Mismatch"))
    finding = findings(machine)[f"broker {machine.kbs.url}"]
    assert not finding.ok
    assert "Version Mismatch" in finding.found


def test_doctors_table_can_be_read() -> None:
    """One line for each finding, columns aligned, and the mend under a failure."""
    lines = table([Finding("TPM", True, "x", ""), Finding("event log", False, "none", "mount it")]).splitlines()
    assert lines == ["ok    TPM        x", "FAIL  event log  none", "                 mend: mount it"]


@pytest.mark.parametrize("as_json", [True, False])
def test_doctors_status_says_whether_all_is_well(
    machine: Machine, as_json: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit status 0 if every line is ok, else 1; --json prints the same findings for programs."""
    for ok in (True, False):
        monkeypatch.setattr(doctor, "examine", lambda _, ok=ok: [Finding("TPM", ok, "x", "")])
        assert run(machine, "doctor", *(["--json"] if as_json else [])) == (0 if ok else 1)
        out = capfd.readouterr().out
        if as_json:
            assert json.loads(out) == [{"about": "TPM", "ok": ok, "found": "x", "mend": ""}]
        else:
            assert out.startswith("ok" if ok else "FAIL")


def test_errors_keep_their_exit_statuses(machine: Machine) -> None:
    """A missing TPM and an unreachable broker end in different statuses."""
    options = machine.options
    assert main(["get", "o/disk/root", *options, "--tpm", "device:/nonexistent", "--output", "/x"]) == (
        AttesterError.exit_status
    )
    machine.kbs.script["auth"] += 50 * [raw(503, b"", "Retry-After: 99\r\n")]
    assert main(["get", "o/disk/root", *options, "--output", "/x"]) == Unavailable.exit_status
    machine.kbs.script["auth"].clear()


# --- once in a boot ---


def test_a_capped_boot_shows(machine: Machine, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`cap` extends PCR 15 in every bank; `unlock --cap` does so before it uses the key."""

    def fifteen() -> dict[int, bytes]:
        with machine.tpm.open() as tpm:
            return {bank: tpm.pcr_read(bank, [PCR])[PCR] for bank in tpm.banks()}

    machine.tpm.reset()
    machine.tpm.measure_boot(Boot(), machine.directory / "log")
    before = fifteen()
    assert not any(any(value) for value in before.values())
    disk = write(tmp_path / "disk.img")
    assert run(machine, "unlock", str(disk), "--key", "o/disk/root", "--cap") == VolumeError.exit_status
    once = fifteen()
    assert run(machine, "cap") == 0
    assert "PCR 15 is capped" in capfd.readouterr().err
    for bank, value in once.items():
        event = hashlib.new(HASHES[bank], EVENT).digest()
        assert value == hashlib.new(HASHES[bank], before[bank] + event).digest()
        assert fifteen()[bank] == hashlib.new(HASHES[bank], value + event).digest()
    machine.tpm.reset()
    machine.tpm.measure_boot(Boot(), machine.directory / "log")


def test_without_the_cap_the_key_is_not_used(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TPM that cannot be capped ends it: the key is wiped and no volume is opened."""
    key = bytearray(KEY)
    monkeypatch.setattr(cli, "_fetch", lambda *_: Opened(key, None))
    monkeypatch.setattr("agent.tpm2.Tpm.banks", lambda _tpm: [0x12])
    monkeypatch.setattr(unlock, "open_volume", lambda *_, **__: pytest.fail("a volume was opened"))
    disk = write(tmp_path / "disk.img")
    assert run(machine, "unlock", str(disk), "--key", "o/disk/root", "--cap") == AttesterError.exit_status
    assert not any(key)


def test_only_a_tpm_is_capped(machine: Machine) -> None:
    """A machine without one is told so."""
    assert run(machine, "cap", "--tee", "snp") == ConfigError.exit_status


# --- a header, judged alone ---


def test_a_header_is_judged_without_anything_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`luks check` needs no settings, no key and no broker; it says what the volume is, and how to pin it."""
    disk = luks.write(tmp_path / "disk.img")
    assert main(["luks", "check", str(disk)]) == 0
    said = capfd.readouterr()
    assert "cipher        aes-xts-plain64\n" in said.out
    assert "size          all that there is\n" in said.out
    assert "integrity     no\n" in said.out
    assert "keyslots      0\n" in said.out
    assert "tokens        none\n" in said.out
    pin = said.err.rpartition("--pin ")[2].strip()
    assert main(["luks", "check", str(disk), "--pin", pin, "--json"]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["pin"] == pin
    assert said.err == ""


def test_a_header_that_is_not_sound_ends_with_its_defect(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The exit status is the volume's error, and the line names what is wrong."""
    content = luks.metadata()
    content["segments"]["0"]["encryption"] = "cipher_null-ecb"
    disk = luks.write(tmp_path / "disk.img", content)
    assert main(["luks", "check", str(disk)]) == VolumeError.exit_status
    assert "the data's cipher is not one that is allowed" in capfd.readouterr().err


def test_another_volume_ends_with_both_pins(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Which was expected, and which is there."""
    disk = luks.write(tmp_path / "disk.img")
    assert main(["luks", "check", str(disk), "--pin", "ab" * 32]) == VolumeError.exit_status
    assert f"expected pin {'ab' * 32}" in capfd.readouterr().err


@pytest.mark.parametrize("pin", ["", "ab", "AB" * 32, "zz" * 32, " " + "ab" * 31 + " "])
def test_a_pin_is_64_hex_digits(pin: str) -> None:
    """Anything else is a wrong argument, before the disk is looked at."""
    with pytest.raises(SystemExit) as caught:
        main(["luks", "check", "/none", "--pin", pin])
    assert caught.value.code == 2


# --- new volumes, and volumes that systemd opens ---


def test_enroll_opens_a_volume_that_is_made_already(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a sound disk it does what `unlock` does, and says what it asks for and how long."""
    opened: list[str | None] = []
    monkeypatch.setattr(
        unlock, "open_volume", lambda *_, pin, **__: opened.append(pin) or Outcome(True, "root", "ab" * 32)
    )
    disk = luks.write(tmp_path / "vda2")
    with checked_header(str(disk)) as header:
        pin = header.volume.pin
    monkeypatch.setitem(machine.kbs.volumes, "o/disk/root", pin)
    assert run(machine, "enroll", str(disk), "--key", "o/disk/root") == 0
    assert opened == [pin]
    assert "for o/disk/root, for at most 10 s" in capfd.readouterr().err


def test_nothing_is_made_without_a_brokers_word(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An empty disk for which the broker orders no volume stays empty; nor is one made on a plain KBS's word."""
    disk = tmp_path / "empty"
    disk.write_bytes(bytes(20 << 20))
    assert run(machine, "enroll", str(disk), "--key", "o/disk/root") == VolumeError.exit_status
    assert run(machine, "enroll", str(disk), "--key", "o/disk/root", "--unsafe-plain-kbs") == ConfigError.exit_status
    assert "nobody has signed for a new volume" in capfd.readouterr().err
    monkeypatch.setattr(unlock, "has_device_mapper", lambda: False)
    assert run(machine, "enroll", str(disk), "--key", "o/disk/root", "--mkfs", "ext4") == ConfigError.exit_status
    assert not any(disk.read_bytes())


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's table of volumes and its folder of judged headers."""
    disk = luks.write(tmp_path / "vdb")
    path = tmp_path / "volumes"
    path.write_text(f"data {disk} o/disk/root socket\n")
    monkeypatch.setattr("agent.volumes.volume_row.__defaults__", (str(path),))
    monkeypatch.setattr("agent.key_socket.guard.__defaults__", (str(tmp_path / "run"),))
    monkeypatch.setattr("agent.key_socket.answer.__defaults__", (str(tmp_path / "run"),))
    return tmp_path


def test_systemd_gets_the_key_of_a_judged_volume(
    machine: Machine, volumes: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The guard judges the header, then the socket gives the key."""
    assert main(["luks", "guard", "data"]) == 0
    assert (volumes / "run/data.hdr").exists()
    theirs, ours = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with socket.socket(socket.AF_UNIX) as listener, theirs:
        listener.bind(str(volumes / "key.sock"))
        listener.listen()
        theirs.bind(f"\0{os.urandom(8).hex()}/cryptsetup/data".encode())
        theirs.connect(str(volumes / "key.sock"))
        ours.close()
        ours, _ = listener.accept()
        real = socket.socket
        monkeypatch.setattr("socket.socket", lambda *a, **k: ours if k == {"fileno": 0} else real(*a, **k))
        assert run(machine, "socket") == 0
        assert theirs.recv(100) == KEY
    assert "gave systemd the key of data" in capfd.readouterr().err


def test_a_socket_is_what_systemd_starts(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    """From a shell there is no connection, and it is said which unit to enable."""
    assert run(machine, "socket") == ConfigError.exit_status
    assert "roomkey-key.socket" in capfd.readouterr().err
