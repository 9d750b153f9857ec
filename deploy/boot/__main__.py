# SPDX-License-Identifier: Apache-2.0
"""`make boot-demo`: a measured VM unlocks its own disk; what the host does to it, or to its disk, is refused.

Real parts only: QEMU, OVMF, a TPM with its maker's certificates, Debian's kernel, the agent in an initramfs, a broker
on this machine's loopback. The image is predicted from the files before the first boot. Exits non-zero if anything
comes out otherwise than told.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import NamedTuple

from demo.parts import decision_in, free_port, owner, running_broker, with_cookie_of
from demo.stage import Stage
from demo.tap import Tap
from deploy.boot import disk, initramfs, uki, vm
from deploy.boot.cpio import archive, regular
from deploy.boot.story import BASE, init_broker, settings, told
from tests.fakes.luks import rewrite
from tests.fakes.swtpm import SoftwareTpm, set_up_with_swtpm_setup

KEY, NEW_KEY = "acme/disk/root", "acme/disk/new"
IMAGE, UNIFIED, CHECKED, NEW_IMAGE = "web", "web-uki", "web-checked", "web-new"
APPEND = "console=ttyS0 panic=-1 quiet"
OTHER_FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE.fd")
CHECKING = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")  # checks what it starts, by the keys in its variables
KEYS, NO_KEYS = (Path(f"/usr/share/OVMF/OVMF_VARS_4M{name}.fd") for name in (".snakeoil", ""))
NAMES = ("web-1", "web-2")  # the owner's machines; as many run at a time
NEW = "web-3"  # another one, with an empty disk
STRANGER = "web-9"
KERNEL = BASE / "boot/kernel"


class Try(NamedTuple):
    """What the host does, and what must come of it. `said`: on the console. `differs`: what the owner reads."""

    name: str
    machine: vm.Machine
    said: str
    differs: str = ""


def _story(room: Path, stage: Stage) -> None:
    stage.chapter("Machines with a TPM, and a broker")
    maker = room / "tpm-maker"
    for name in (*NAMES, NEW, STRANGER):
        set_up_with_swtpm_setup(room / name, maker)
    stage.expect(True, "TPMs with EK certificates of their maker's CA")
    port, broker = free_port(), room / "broker"
    init_broker(stage, broker, port, room)
    with running_broker(broker / "broker.toml", port, broker / "tls" / "ca.pem"), Tap(port, broker / "tls") as tap:
        stage.expect(True, f"a broker on this machine's loopback; the VMs know it as {':'.join(map(str, vm.BROKER))}")
        acme = owner(stage, room, broker, "acme", f"https://localhost:{port}")
        _tell(room, stage, broker, tap, acme)


def _tell(room: Path, stage: Stage, broker: Path, tap: Tap, acme: dict[str, str]) -> None:
    stage.chapter("A disk, and its key")
    passphrase, proof = base64.b64encode(secrets.token_bytes(32)), f"only inside: {secrets.token_hex(16)}"
    root = room / "root.img"
    disk.make(root, proof, passphrase)
    stage.run("roomkey", "key", "put", KEY, stdin=passphrase, env=acme)
    checked = json.loads(stage.run("roomkey-agent", "luks", "check", root, "--json", quiet=True).stdout)
    done = stage.run("roomkey", "volume", "pin", KEY, checked["pin"], env=acme)
    stage.expect(done.returncode == 0, "a LUKS2 disk; the broker keeps its key, and which volume it is for")

    stage.chapter("What will boot, predicted")
    kernel = next((KERNEL / "boot").glob("vmlinuz-*"))
    initrd = room / "initrd.zst"
    stage.tell("The initramfs: busybox, cryptsetup, the kernel's modules, the agent with its Python and settings.")
    new_files = {**settings(broker, NEW_KEY), "etc/roomkey/mkfs": b"ext4"}
    with ThreadPoolExecutor(2) as pool:  # compressing them takes longest
        new_built = pool.submit(initramfs.build, KERNEL, new_files, mkfs=True)
        built = pool.submit(initramfs.build, KERNEL, settings(broker, KEY))
        rest = pool.submit(initramfs.build, KERNEL, settings(broker, KEY), agent=False)
        initrd.write_bytes(built.result())
        (room / "initrd.new").write_bytes(new_built.result())
        sizes = [len(future.result()) / 1e6 for future in (built, rest)]
    stage.expect(True, f"an initramfs of {sizes[0]:.1f} MB; the agent and its Python are {sizes[0] - sizes[1]:.1f}")
    good = vm.Machine(room / NAMES[0], kernel, initrd, APPEND, root, tap.port)
    checking = _checking(room, good, "record", f"{APPEND} roomkey.record", signed=True)
    with ThreadPoolExecutor(2) as pool:
        recorded = [
            pool.submit(_boot, room, "record", good._replace(append=f"{APPEND} roomkey.record")),
            pool.submit(_boot, room, "record-checking", checking),
        ]
        pcr0, pcr0_checking = (_pcr0(future.result().console) for future in recorded)
    stage.expect(pcr0 != "" != pcr0_checking, "PCR 0 recorded once, for each firmware and this shape of VM")
    done = stage.run(
        "roomkey", "image", "measure", "tpm", "--kernel", kernel, "--initrd", initrd, "--append", APPEND, "--memory",
        str(vm.MEMORY_MIB), "--pcr0", pcr0, "--once-per-boot", "--put", IMAGE, env=acme,
    )  # fmt: skip
    stage.expect(done.returncode == 0, "the image: all other PCRs computed from the files")
    for name in (*NAMES, NEW):
        evidence = room / f"{name}.json"
        with SoftwareTpm(room / name) as tpm:
            stage.run(
                "roomkey-agent", "evidence", "--tpm", tpm.address, "--eventlog", "", "--output", evidence, quiet=True
            )
        stage.run("roomkey", "instance", "add", name, "--from", evidence, env=acme, quiet=True)
    shutil.copytree(room / NAMES[0], room / "tpm-before", ignore=_only_state)
    instances = [word for name in NAMES for word in ("--instance", name)]
    done = stage.run("roomkey", "rule", "set", KEY, "--platform", "tpm", "--image", IMAGE, *instances, env=acme)
    stage.expect(done.returncode == 0, f"the rule: {KEY} for these two, if they boot this image")

    with ThreadPoolExecutor(1) as pool:
        new = _new_machine(room, stage, good, pcr0, acme, pool)
        stage.chapter("The first boot")
        booted = _boot(room, "good", good)
        _show(stage, booted)
        stage.expect(proof in booted.console, f"let in by the prediction, opened, mounted: its secret line is here "
                     f"({booted.seconds:.0f} s from power-on to power-off)")  # fmt: skip
        stage.expect(
            "boot: asked again, status 14" in booted.console, "the same question later in the same boot gets no answer"
        )
        _replayed(stage, tap, acme)
        _unified(room, stage, good, pcr0, instances, acme)
        _secure_boot(room, stage, good, pcr0_checking, instances, acme)
        _refused(room, stage, good, passphrase, acme)
        _new_machine_booted(room, stage, new, acme)


def _replayed(stage: Stage, tap: Tap, acme: dict[str, str]) -> None:
    """The host plays the good boot's evidence again, after that VM is gone."""
    recorded = next(message for message in tap.messages if message.path.endswith("/attest") and message.status == 200)
    asked = next(message for message in tap.messages if message.path.endswith("/auth"))
    fresh = tap.send("POST", asked.path, asked.headers, asked.body)
    again = tap.send("POST", recorded.path, with_cookie_of(fresh, recorded), recorded.body)
    shown = _read(stage, decision_in(again.answer.decode()), acme)
    stage.expect(again.status == 401 and "nonce" in shown, "its recorded traffic, replayed: refused, the nonce is old")


def _unified(
    room: Path, stage: Stage, good: vm.Machine, pcr0: str, instances: Sequence[str], acme: dict[str, str]
) -> None:  # fmt: skip
    stage.chapter("The same as a unified kernel image, from a disk")
    machines = []
    for name, line in (("web", APPEND), ("other", f"{APPEND} init=/bin/sh")):
        image, esp = room / f"{name}.efi", room / f"{name}.esp"
        uki.build(image, good.kernel, good.initrd, line)
        uki.disk(esp, image)
        machines.append(good._replace(esp=esp))
    done = stage.run(
        "roomkey", "image", "measure", "tpm", "--uki", room / "web.efi", "--pcr0", pcr0, "--once-per-boot", "--put",
        UNIFIED, env=acme,
    )  # fmt: skip
    stage.expect(done.returncode == 0, "predicted too: an image of its own")
    rule = ("roomkey", "rule", "set", KEY, "--platform", "tpm", *instances, "--image")
    stage.run(*rule, UNIFIED, env=acme, quiet=True)
    _judge(room, stage, acme, [
        Try("the unified kernel image: opens", machines[0], "boot: opened"),
        Try("another command line in it", machines[1], "does not release the key", ".cmdline"),
    ])  # fmt: skip
    stage.run(*rule, IMAGE, env=acme, quiet=True)


def _checking(room: Path, good: vm.Machine, name: str, line: str, *, signed: bool) -> vm.Machine:
    """A machine whose firmware checks what it starts, with a unified kernel image of that command line."""
    image, esp = room / f"checked-{name}.efi", room / f"checked-{name}.esp"
    uki.build(image, good.kernel, good.initrd, line)
    if signed:
        uki.sign(image, room / f"checked-{name}-signed.efi")
        image = room / f"checked-{name}-signed.efi"
    uki.disk(esp, image)
    return good._replace(firmware=CHECKING, variables=KEYS, esp=esp)


def _secure_boot(
    room: Path, stage: Stage, good: vm.Machine, pcr0: str, instances: Sequence[str], acme: dict[str, str]
) -> None:  # fmt: skip
    stage.chapter("Under Secure Boot: a signed one")
    signed, unsigned = (_checking(room, good, name, APPEND, signed=name == "signed") for name in ("signed", "unsigned"))
    done = stage.run(
        "roomkey", "image", "measure", "tpm", "--uki", room / "checked-signed-signed.efi", "--vars", KEYS,
        "--pcr0", pcr0, "--once-per-boot", "--put", CHECKED, env=acme,
    )  # fmt: skip
    stage.expect(done.returncode == 0, "predicted from the firmware's keys and the image's signature")
    rule = ("roomkey", "rule", "set", KEY, "--platform", "tpm", *instances, "--image")
    stage.run(*rule, CHECKED, env=acme, quiet=True)
    refused = "Access Denied"
    _judge(room, stage, acme, [
        Try("the signed image: opens", signed, "boot: opened"),
        Try("an unsigned one", unsigned._replace(ends=refused), refused),
        Try("the signed one, Secure Boot off", signed._replace(variables=NO_KEYS), "does not release the key", "PCR 7"),
    ])  # fmt: skip
    stage.run(*rule, IMAGE, env=acme, quiet=True)


def _refused(room: Path, stage: Stage, good: vm.Machine, passphrase: bytes, acme: dict[str, str]) -> None:
    stage.chapter(f"What a host can do, {len(NAMES)} machines at a time")
    impostor = room / "impostor"
    init_broker(stage, impostor, other := free_port(), room)
    with running_broker(impostor / "broker.toml", other, impostor / "tls" / "ca.pem"):
        _judge(room, stage, acme, list(_host(room, good, passphrase, other)))

    stage.chapter("A disk from before its key was changed")
    changed = base64.b64encode(secrets.token_bytes(32))
    rotated = _copy(good.disk, room / "rotated.img")
    disk.change_key(rotated, passphrase, changed)
    stage.run("roomkey", "key", "put", KEY, stdin=changed, env=acme)
    _judge(room, stage, acme, [
        Try("the disk with its new key: opens", good._replace(disk=rotated), "boot: opened"),
        Try("the disk rolled back", good, "the key does not open this volume"),
    ])  # fmt: skip


class _New(NamedTuple):
    """A machine that makes its volume, and its boots so far, which run beside everything else."""

    machine: vm.Machine
    boots: Future[Sequence[vm.Booted]]


def _new_machine(
    room: Path, stage: Stage, good: vm.Machine, pcr0: str, acme: dict[str, str], pool: ThreadPoolExecutor
) -> _New:
    stage.chapter("A new machine, with an empty disk")
    initrd, empty = room / "initrd.new", room / "new.img"
    disk.empty(empty)
    machine = good._replace(initrd=initrd, disk=empty, tpm=room / NEW, keeps=True)
    stage.run(
        "roomkey", "image", "measure", "tpm", "--kernel", machine.kernel, "--initrd", initrd, "--append", APPEND,
        "--memory", str(vm.MEMORY_MIB), "--pcr0", pcr0, "--once-per-boot", "--put", NEW_IMAGE, env=acme, quiet=True,
    )  # fmt: skip
    done = stage.run("roomkey", "volume", "provision", NEW_KEY, env=acme)
    stage.run("roomkey", "rule", "set", NEW_KEY, "--platform", "tpm", "--image", NEW_IMAGE, "--instance", NEW,
              env=acme, quiet=True)  # fmt: skip
    stage.expect(done.returncode == 0, "the owner orders a volume; the broker makes its key. The machine boots")

    def boots() -> Sequence[vm.Booted]:
        first = _boot(room, "new-1", machine)
        stage.run("roomkey", "key", "rotate", NEW_KEY, "--why", "yearly", env=acme, silent=True)
        return [first, _boot(room, "new-2", machine), _boot(room, "new-3", machine)]

    return _New(machine, pool.submit(boots))


def _new_machine_booted(room: Path, stage: Stage, new: _New, acme: dict[str, str]) -> None:
    stage.chapter("The new machine has made its own volume, and changed its key")
    first, second, third = new.boots.result()
    _show(stage, first)
    stage.expect("has seen 1 boots" in first.console, "its first boot made the volume, and the broker knows it")
    stage.tell("Then its owner said: roomkey key rotate.")
    _show(stage, second)
    stage.expect(
        "has seen 2 boots" in second.console and "older version of the key opens the volume no more" in second.console,
        "the next boot opened it, and the new key took the old one's place",
    )
    _show(stage, third)
    stage.expect("has seen 3 boots" in third.console, "and so it opens from then on")
    disk.empty(new.machine.disk)
    _judge(room, stage, acme, [
        Try("the host empties the disk", new.machine, "does not release the key", "an empty disk"),
    ])  # fmt: skip


def _host(room: Path, good: vm.Machine, passphrase: bytes, impostor: int) -> Sequence[Try]:
    """What the host changes, one thing a boot."""
    another = room / "another.img"
    disk.make(another, "the host's own", passphrase)  # even with the right key: it is not this volume
    null = _copy(good.disk, room / "null.img")
    rewrite(null, lambda header: header["segments"]["0"].update(encryption="cipher_null-ecb"))
    backdoor = room / "initrd.backdoor"
    data = good.initrd.read_bytes()
    backdoor.write_bytes(data + bytes(-len(data) % 4) + archive([regular("etc/profile", b"a back door\n")]))
    kernel = bytearray(good.kernel.read_bytes())
    version = 0x200 + int.from_bytes(kernel[0x20E:0x210], "little")
    kernel[version] ^= 1  # its version's text: the smallest other kernel
    patched = room / "vmlinuz.patched"
    patched.write_bytes(kernel)
    denied = "does not release the key"
    return (
        Try("command line", good._replace(append=f"{APPEND} init=/bin/sh"), denied, "command line"),
        Try("initrd", good._replace(initrd=backdoor), denied, "initrd"),
        Try("kernel", good._replace(kernel=patched), denied, "kernel"),
        Try("firmware", good._replace(firmware=OTHER_FIRMWARE), denied, "PCR 0"),
        Try("another machine", good._replace(tpm=room / STRANGER), denied, "instance"),
        Try("the TPM's memory rolled back", good._replace(tpm=room / "tpm-before"), denied, "TPM's clock"),
        Try("disk swapped", good._replace(disk=another), denied, "the volume that the key is for"),
        Try("null cipher in the header", good._replace(disk=null), "cipher_null-ecb", "cipher_null-ecb"),
        Try("an impostor for a broker", good._replace(port=impostor), "certificate"),
        Try("no broker at all", good._replace(port=0), "did not answer in time"),
    )


def _pcr0(console: str) -> str:
    """What the console shows of it, "" if nothing."""
    found = re.search(r"boot: PCR 0 ([0-9A-F]{64})", console)
    return found[1] if found else ""


def _judge(room: Path, stage: Stage, acme: dict[str, str], tries: Sequence[Try]) -> None:
    """Boot them all, each machine one after the other, and read each as its owner would."""
    with ThreadPoolExecutor(len(NAMES)) as pool:
        running = []
        for at, one in enumerate(tries):
            machine = one.machine
            if machine.tpm.name in NAMES:
                machine = machine._replace(tpm=room / NAMES[at % len(NAMES)])
            running.append(pool.submit(_boot, room, re.sub(r"\W+", "-", one.name), machine))
        for one, future in zip(tries, running, strict=True):
            booted = future.result()
            print(f"   {one.name} ({booted.seconds:.0f} s)", flush=True)
            _show(stage, booted)
            opened = "boot: opened" in booted.console
            stage.expect(opened is one.said.startswith("boot: opened") and one.said in booted.console, _came(one))
            if one.differs:
                shown = _read(stage, decision_in(booted.console), acme)
                stage.expect(one.differs in shown, f"the owner reads: {one.differs}")


def _came(one: Try) -> str:
    if one.said.startswith("boot: opened"):
        return one.name
    if one.machine.ends:
        return f"{one.name}: the firmware refuses, and nobody asks for a key"
    return f"{one.name}: no key from the broker" if one.differs else f"{one.name}: the guest itself refuses"


def _read(stage: Stage, decision: str, acme: dict[str, str]) -> str:
    """What differs, as `decision show` says it."""
    shown = stage.run("roomkey", "decision", "show", decision, env=acme, quiet=True).stdout
    differs = shown[max(shown.find("What differs"), 0) :].partition("\n\n")[0]
    stage.show(differs)
    return differs


_ROOM = BoundedSemaphore(len(NAMES))  # machines at a time
_IN_USE: defaultdict[Path, Lock] = defaultdict(Lock)  # a TPM is in one machine at a time


def _boot(room: Path, name: str, machine: vm.Machine) -> vm.Booted:
    with _IN_USE[machine.tpm], _ROOM:
        return vm.boot(machine, room / f"vm-{name}")


def _only_state(_: str, names: list[str]) -> list[str]:
    """For a copy of a TPM: all but its memory is left out."""
    return [name for name in names if not name.endswith(".permall")]


def _copy(disk_file: Path, target: Path) -> Path:
    shutil.copyfile(disk_file, target)
    return target


def _show(stage: Stage, booted: vm.Booted) -> None:
    """The lines of the console that are for people."""
    lines = [line.strip() for line in booted.console.splitlines()]
    stage.show("\n".join(line for line in lines if re.match(r"boot:|roomkey-agent:|only inside:", line)))


if __name__ == "__main__":
    sys.exit(told("boot-demo", _story))
