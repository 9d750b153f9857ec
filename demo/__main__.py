# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a measured guest unlocks its disk, four that should not get the key do not, an update is let in.

Only real parts: broker and command lines as installed, TLS, SQLite, a software TPM with an EK certificate of its own
maker's CA, a boot measured into it event by event, a LUKS2 file. Everything lies in one folder under .state, which is
removed at the end. Exits non-zero if any step comes out otherwise than told.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

from demo.parts import decision_in, free_port, owner, running_broker, with_cookie_of
from demo.stage import Failed, Stage
from demo.tap import Tap
from tests.fakes.boot import Boot
from tests.fakes.swtpm import SoftwareTpm, set_up_with_swtpm_setup

KEY = "acme/disk/root"
OTHER_KEY = "globex/disk/root"
DISK_BYTES = 32 * 1024 * 1024
PCRS = "0,2,4,7,8,9"
IMAGE = "debian-12"
DENIED = 14  # exit status of the agent when a release rule says no

GOOD = Boot(kernel=b"Debian kernel 6.1.0-31", kernel_path="\\EFI\\debian\\vmlinuz-6.1.0-31.efi")
UPDATED = Boot(kernel=b"Debian kernel 6.1.0-32", kernel_path="\\EFI\\debian\\vmlinuz-6.1.0-32.efi")
TAMPERED = Boot(kernel=b"Debian kernel 6.1.0-31 and a back door", kernel_path="\\EFI\\debian\\vmlinuz-6.1.0-31.efi")


def main() -> int:
    base = Path(__file__).resolve().parent.parent / ".state"
    base.mkdir(exist_ok=True)
    room = base / f"demo-{secrets.token_hex(4)}"
    room.mkdir()
    stage = Stage({f"{room}/": "", str(room): "."})
    began = time.monotonic()
    try:
        _story(room, stage)
    except Failed:
        print("\nThe demo failed: the step above came out otherwise. What it left behind is in", room, file=sys.stderr)
        return 1
    shutil.rmtree(room)
    print(f"\nAll {len(stage.steps)} steps came out as told, in {time.monotonic() - began:.0f} s:")
    for step in stage.steps:
        print(f"   - {step}")
    print("\nNext: README.md for your own broker, docs/architecture.md for how it works.")
    return 0


def _story(room: Path, stage: Stage) -> None:
    stage.chapter("A machine with a TPM")
    stage.tell("A software TPM stands in for the chip or the vTPM. Its maker's CA certifies its endorsement key (EK).")
    maker = room / "tpm-maker"
    set_up_with_swtpm_setup(room / "tpm", maker)
    stage.expect((maker / "issuercert.pem").exists(), "a TPM with an EK certificate from its maker's CA")

    stage.chapter("The owner's side: a broker that trusts nothing yet")
    port = free_port()
    broker = room / "broker"
    stage.run("roomkey", "init", broker, "--port", str(port))
    config = broker / "broker.toml"
    settings = config.read_text().replace(
        "ek_root_files = []", f'ek_root_files = ["{maker / "swtpm-localca-rootca-cert.pem"}"]'
    )  # fmt: skip
    config.write_text(
        settings.replace("ek_intermediate_files = []", f'ek_intermediate_files = ["{maker / "issuercert.pem"}"]')
    )
    stage.tell("The operator lists the TPM maker's certificates in broker.toml, and starts it.")
    with SoftwareTpm(room / "tpm") as tpm, running_broker(config, port, broker / "tls" / "ca.pem"):
        _tell(room, stage, tpm, broker, port)


def _tell(room: Path, stage: Stage, tpm: SoftwareTpm, broker: Path, port: int) -> None:
    ca = broker / "tls" / "ca.pem"
    url = f"https://localhost:{port}"
    stage.expect(True, f"the broker answers on {url}, TLS 1.3, SQLite")
    acme = owner(stage, room, broker, "acme", url)
    globex = owner(stage, room, broker, "globex", url, quiet=True)

    stage.chapter("A disk, and its key")
    passphrase = base64.b64encode(secrets.token_bytes(32))
    disk = room / "disk.img"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    done = stage.run(
        "cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2",
        "--pbkdf-force-iterations", "1000", "--key-file", "-", disk, stdin=passphrase,
    )  # fmt: skip
    stage.expect(done.returncode == 0, "a LUKS2 volume, its passphrase 32 random bytes made by the owner")
    done = stage.run("roomkey", "key", "put", KEY, stdin=passphrase, env=acme)
    stage.expect(done.returncode == 0, f"the broker keeps it as {KEY}, sealed")
    stage.run("roomkey", "key", "generate", OTHER_KEY, env=globex, quiet=True)

    stage.chapter("The machine boots, measured, and is enrolled")
    log = room / "eventlog"
    tpm.measure_boot(GOOD, log)
    stage.tell("Firmware, boot loader, kernel, initrd and command line are extended into the TPM, event by event.")
    evidence = room / "evidence.json"
    agent = ("--ca-file", ca, "--broker-keys", broker / "signing.pub.json", "--tpm", tpm.address, "--eventlog", log)
    done = stage.run("roomkey-agent", "evidence", *agent, "--output", evidence)
    stage.expect(done.returncode == 0, "the guest describes itself: TPM keys, PCRs, event log")
    ok = [
        stage.run("roomkey", "instance", "add", "web-1", "--from", evidence, env=acme),
        stage.run("roomkey", "image", "enrol", "debian-12", "--from", evidence, "--pcrs", PCRS, "--yes", env=acme,
                  after="image debian-12@"),
        stage.run("roomkey", "rule", "set", KEY, "--platform", "tpm", "--image", "debian-12", "--instance", "web-1",
                  env=acme),
    ]  # fmt: skip
    stage.expect(not any(step.returncode for step in ok), f"the owner's rule: {KEY} for web-1, if it runs debian-12")
    # Globex has the same image, approved for a machine of its own.
    stage.run(
        "roomkey", "image", "enrol", "debian-12", "--from", evidence, "--pcrs", PCRS, "--yes", env=globex, quiet=True
    )
    stage.run("roomkey", "rule", "set", OTHER_KEY, "--platform", "tpm", "--image", "debian-12", "--instance", "db-1",
              env=globex, quiet=True)  # fmt: skip

    stage.chapter("The guest attests and opens its disk")
    with Tap(port, broker / "tls") as tap:
        tapped = ("--broker", f"https://127.0.0.1:{tap.port}", *agent)
        done = stage.run("roomkey-agent", "unlock", disk, "--key", KEY, *tapped)
        stage.expect(done.returncode == 0, "the key opens the volume" + _how(done.stderr))
        _close(done.stderr)
        decision = _newest(stage, acme, "release")
        stage.expect(decision["verdict"] == "released", f"the ledger has it: decision {decision['id']}, released")

        stage.chapter("What the host sees")
        stage.tell("The disk image, the broker's whole folder, and the traffic with TLS taken off.")
        traffic = b"".join(message.everything() for message in tap.messages)
        stored = b"".join(path.read_bytes() for path in sorted(broker.rglob("*")) if path.is_file())
        for what, seen in (("disk image", disk.read_bytes()), ("broker's store", stored), ("traffic", traffic)):
            stage.expect(
                len(seen) > 0 and not any(form in seen for form in _forms(passphrase)),
                f"the key is not in the {what} ({len(seen):,} bytes searched)",
            )

        _refusals(room, stage, tpm, tap, acme, globex, tapped, disk, log)


def _refusals(
    room: Path, stage: Stage, tpm: SoftwareTpm, tap: Tap, acme: dict[str, str], globex: dict[str, str],
    tapped: tuple[object, ...], disk: Path, log: Path,
) -> None:  # fmt: skip
    unlock = ("roomkey-agent", "unlock", disk, "--key", KEY)

    stage.chapter("Refused: another kernel")
    recorded = tap.last("/kbs/v0/attest")
    asked = tap.last("/kbs/v0/auth")
    tpm.reset()
    tpm.measure_boot(TAMPERED, log)
    done = stage.run(*unlock, *map(str, tapped))
    shown = _explained(stage, done, acme, whole=True)
    stage.expect(done.returncode == DENIED, "the tampered guest gets nothing but a decision's number")
    stage.expect("vmlinuz-6.1.0-31.efi" in shown and "PCR 4" in shown, "the owner reads which boot event differs")

    stage.chapter("Refused: recorded evidence")
    stage.tell("The host plays the good guest's messages again, first to the same session.")
    again = tap.send("POST", recorded.path, recorded.headers, recorded.body)
    stage.show(f"{again.status} {again.answer.decode()}")
    stage.expect(again.status == 401, "the challenge was burnt by its first use")
    stage.tell("Then it opens a new session, and sends the old evidence there.")
    fresh = tap.send("POST", asked.path, asked.headers, asked.body)
    again = tap.send("POST", recorded.path, with_cookie_of(fresh, recorded), recorded.body)
    stage.show(f"{again.status} {again.answer.decode()}")
    shown = _explain(stage, decision_in(again.answer.decode()), acme)
    stage.expect(again.status == 401 and "nonce" in shown, "old evidence does not answer a new challenge")
    stage.tell("At last it writes the new nonce beside the old quote.")
    fresh = tap.send("POST", asked.path, asked.headers, asked.body)
    message = json.loads(recorded.body)
    message["runtime-data"]["nonce"] = json.loads(fresh.answer)["nonce"]
    again = tap.send("POST", recorded.path, with_cookie_of(fresh, recorded), json.dumps(message).encode())
    shown = _explain(stage, decision_in(again.answer.decode()), acme)
    stage.expect(again.status == 401 and "extraData" in shown, "the TPM signed the old nonce, and nothing else counts")

    stage.chapter("Refused: another machine in the same state")
    other_log = room / "other-eventlog"
    set_up_with_swtpm_setup(room / "other-tpm", room / "tpm-maker")
    with SoftwareTpm(room / "other-tpm") as other:
        other.measure_boot(GOOD, other_log)
        words = [str(word) for word in tapped]
        words[words.index(tpm.address)] = other.address
        words[words.index(str(log))] = str(other_log)
        done = stage.run(*unlock, *words)
    shown = _explained(stage, done, acme)
    stage.expect(done.returncode == DENIED, "same maker, same PCRs, another TPM: no key")
    stage.expect("instance" in shown, "the owner reads that the machine is not enrolled")

    stage.chapter("Refused: another owner's key")
    tpm.reset()
    tpm.measure_boot(GOOD, log)
    done = stage.run("roomkey-agent", "get", OTHER_KEY, *map(str, tapped))
    shown = _explained(stage, done, globex)
    stage.expect(done.returncode == DENIED and done.stdout == "", "acme's machine gets nothing of globex")
    missing = stage.run("roomkey", "decision", "show", decision_in(done.stderr), env=acme)
    stage.expect(missing.returncode != 0, "and acme cannot even read that decision: it is globex's")

    stage.chapter("And the good guest still starts")
    done = stage.run(*unlock, *map(str, tapped))
    stage.expect(done.returncode == 0, "after all this the enrolled machine unlocks its disk as before")
    _close(done.stderr)

    stage.chapter("An update: refused, explained, mended")
    stage.tell("The owner's own machine has a new kernel. The broker cannot know that it is a good one.")
    tpm.reset()
    tpm.measure_boot(UPDATED, log)
    done = stage.run(*unlock, *map(str, tapped))
    shown = _explained(stage, done, acme)
    stage.expect(done.returncode == DENIED, "with another kernel than the approved one it gets no key")
    mend = f"roomkey image enrol {IMAGE} --from"
    stage.expect(mend in shown, "the owner reads which command would approve it")
    stage.tell("The owner knows this update, has the machine describe itself, and does as it says.")
    evidence = room / "updated.json"
    stage.run("roomkey-agent", "evidence", *map(str, tapped[2:]), "--output", evidence)
    done = stage.run(*mend.split(), evidence, "--pcrs", PCRS, "--yes", env=acme, after=f"image {IMAGE}@")
    stage.expect(done.returncode == 0, "what it runs now is the image's second version")
    done = stage.run(*unlock, *map(str, tapped))
    stage.expect(done.returncode == 0, "the updated guest unlocks its disk")
    _close(done.stderr)
    stage.run("roomkey", "decision", "list", env=acme)


def _newest(stage: Stage, env: dict[str, str], kind: str) -> dict[str, str]:
    listed = stage.run("roomkey", "decision", "list", "--json", env=env, quiet=True)
    decisions: list[dict[str, str]] = json.loads(listed.stdout)["decisions"]
    return next(decision for decision in decisions if decision["kind"] == kind)


def _explained(
    stage: Stage, done: subprocess.CompletedProcess[str], env: dict[str, str], *, whole: bool = False
) -> str:
    return _explain(stage, decision_in(done.stderr), env, whole=whole)


def _explain(stage: Stage, decision: str, env: dict[str, str], *, whole: bool = False) -> str:
    """What the owner reads about a decision; printed from its summary on, or whole."""
    return stage.run("roomkey", "decision", "show", decision, env=env, after="" if whole else "What differs").stdout


def _how(said: str) -> str:
    if "NOT opened" in said:
        return " (this kernel has no device-mapper: cryptsetup tried the key on the volume, without a mapping)"
    return ""


def _close(said: str) -> None:
    opened = re.search(r"as /dev/mapper/(\S+)", said)
    if opened is not None:
        subprocess.run(["cryptsetup", "close", opened[1]], check=True, capture_output=True)


def _forms(passphrase: bytes) -> tuple[bytes, ...]:
    """The key as it could stand somewhere: itself, the bytes in it, hex, and base64 of either."""
    raw = base64.b64decode(passphrase)
    return (
        passphrase,
        raw,
        raw.hex().encode(),
        passphrase.hex().encode(),
        base64.b64encode(passphrase).rstrip(b"="),
        base64.urlsafe_b64encode(raw).rstrip(b"="),
    )


if __name__ == "__main__":
    sys.exit(main())
