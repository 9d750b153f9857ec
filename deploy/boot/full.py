# SPDX-License-Identifier: Apache-2.0
"""`make boot-demo-full`: a whole Debian whose root is on LUKS2, with the agent's package, in a measured VM.

Its initramfs comes from initramfs-tools, then from dracut; a second disk is opened by systemd through the key socket.
In the same VM clevis opens a copy of that disk with tang, for comparison. As root: it makes a Debian in a folder.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from demo.parts import decision_in, free_port, owner, running_broker
from demo.stage import Stage
from deploy.boot import disk, vm
from deploy.boot.story import BASE, init_broker, settings, told
from tests.fakes.swtpm import SoftwareTpm, set_up_with_swtpm_setup

ROOT_KEY, DATA_KEY = "acme/disk/root", "acme/disk/data"
IMAGE, MACHINE = "debian", "db-1"
MEMORY_MIB = 768
APPEND = (
    "console=ttyS0 panic=-1 quiet root=/dev/mapper/root ro net.ifnames=0 ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:off"
)
SECONDS = 240.0  # of one boot; some 50 are usual
PACKAGES = ("systemd-sysv", "cryptsetup", "initramfs-tools", "linux-image-cloud-amd64", "python3-cryptography", "udev",
            "zstd", "busybox", "iproute2", "e2fsprogs", "clevis-luks", "dracut-core")  # fmt: skip
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "ext4", "crc32c_generic")

REPORT = """#!/bin/sh
# What the booted system says of itself, on the console.
exec >/dev/console 2>&1
echo "full: root is $(findmnt -no SOURCE /)"
echo "full: data is $(findmnt -no SOURCE /data), $(cat /data/proof)"
roomkey-agent get {key} --output /run/again >/dev/null 2>&1
echo "full: asked again, status $?"
milliseconds() {{
    began=$(date +%s%N)
    "$@" >/dev/null 2>&1 || echo "full: $1 failed" >/dev/console
    echo $((($(date +%s%N) - began) / 1000000))
}}
for round in 1 2 3; do
    clevis=$(milliseconds clevis luks unlock -d /dev/vdc -n compared)
    cryptsetup close compared
    agent=$(milliseconds roomkey-agent unlock /dev/vdd --key {compared} --name compared)
    cryptsetup close compared
    echo "full: compared: clevis with tang $clevis ms, roomkey-agent $agent ms"
done
systemctl poweroff
"""
UNIT = """[Unit]
Description=Say what was booted
After=data.mount
Wants=data.mount

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/report
"""


def _story(room: Path, stage: Stage) -> None:
    stage.chapter("A broker, a machine with a TPM, and a tang server to compare with")
    set_up_with_swtpm_setup(room / MACHINE, room / "tpm-maker")
    port, broker, tang_port = free_port(), room / "broker", free_port()
    init_broker(stage, broker, port, room)
    (room / "tang").mkdir()
    _run("/usr/libexec/tangd-keygen", room / "tang")
    serve = [
        "socat",
        f"TCP-LISTEN:{tang_port},fork,reuseaddr,bind=127.0.0.1",
        f"EXEC:/usr/libexec/tangd {room / 'tang'}",
    ]
    with (
        running_broker(broker / "broker.toml", port, broker / "tls" / "ca.pem"),
        subprocess.Popen(serve, stderr=subprocess.DEVNULL) as tang,
    ):
        try:
            acme = owner(stage, room, broker, "acme", f"https://localhost:{port}")
            _tell(room, stage, broker, acme, port, tang_port)
        finally:
            tang.terminate()


def _tell(room: Path, stage: Stage, broker: Path, acme: dict[str, str], port: int, tang_port: int) -> None:
    stage.chapter("A whole Debian, with the agent's package")
    tree = _debian(room, broker)
    stage.expect(True, "installed: roomkey-agent.deb, a table of volumes, a line in crypttab")
    keys = {name: base64.b64encode(secrets.token_bytes(32)) for name in (ROOT_KEY, DATA_KEY)}
    data, clevis = room / "data.img", room / "clevis.img"
    disk.make(data, "only inside the second disk", keys[DATA_KEY])
    shutil.copyfile(data, clevis)
    _bind(tree, clevis, keys[DATA_KEY], tang_port)
    initrds = _initrds(room, tree)
    root = room / "root.img"
    disk.encrypt_tree(root, tree, keys[ROOT_KEY])
    shutil.rmtree(tree)
    for name, passphrase in keys.items():
        stage.run("roomkey", "key", "put", name, stdin=passphrase, env=acme, quiet=True)
    stage.expect(
        True, f"root and data on LUKS2; an initramfs of {initrds['initramfs-tools'].stat().st_size / 1e6:.0f} MB"
    )

    stage.chapter("What will boot, predicted")
    with SoftwareTpm(room / MACHINE) as tpm:
        evidence = room / "machine.json"
        stage.run("roomkey-agent", "evidence", "--tpm", tpm.address, "--eventlog", "", "--output", evidence, quiet=True)
    stage.run("roomkey", "instance", "add", MACHINE, "--from", evidence, env=acme, quiet=True)
    machine = vm.Machine(
        room / MACHINE, next(room.glob("vmlinuz-*")), initrds["initramfs-tools"], APPEND, root, port,
        memory=MEMORY_MIB, more=(data, clevis, data), tang=tang_port, seconds=SECONDS,
    )  # fmt: skip
    for name, initrd in initrds.items():
        measure = ("roomkey", "image", "measure", "tpm", "--kernel", machine.kernel, "--initrd", initrd,
                   "--append", APPEND, "--memory", str(MEMORY_MIB))  # fmt: skip
        stage.run(*measure, "--once-per-boot", "--put", f"{IMAGE}-{name}", env=acme, quiet=True)
        stage.run(*measure, "--put", f"{IMAGE}-{name}-late", env=acme, quiet=True)
    for key, late in ((ROOT_KEY, ""), (DATA_KEY, "-late")):
        images = [word for name in initrds for word in ("--image", f"{IMAGE}-{name}{late}")]
        stage.run(
            "roomkey", "rule", "set", key, "--platform", "tpm", "--instance", MACHINE, *images, env=acme, quiet=True
        )
    stage.expect(True, "the root's key once in a boot, from the initramfs; the data's key also later")

    for name in initrds:
        stage.chapter(f"It boots, with an initramfs of {name}")
        booted = vm.boot(machine._replace(initrd=initrds[name]), room / f"vm-{name}")
        _show(stage, booted)
        stage.expect("full: root is /dev/mapper/root" in booted.console, f"the root is open ({booted.seconds:.0f} s)")
        stage.expect(
            "only inside the second disk" in booted.console, "systemd has opened the second disk with the socket's key"
        )
        stage.expect("full: asked again, status 14" in booted.console, "the root's key is not released a second time")
        _compare(stage, booted.console)

    stage.chapter("A root file system that the host has damaged")
    broken = room / "broken.img"
    shutil.copyfile(root, broken)
    described = stage.run("roomkey-agent", "luks", "check", broken, "--json", quiet=True).stdout
    with broken.open("r+b") as file:
        file.seek(json.loads(described)["offset"])
        file.write(secrets.token_bytes(1 << 20))
    for name in initrds:
        booted = vm.boot(
            machine._replace(initrd=initrds[name], disk=broken, seconds=SECONDS / 2), room / f"vm-broken-{name}"
        )
        _show(stage, booted)
        opened = "opened /dev/vda" in booted.console
        shell = re.search(r"\(initramfs\)|emergency mode|built-in shell|Give root password", booted.console)
        stage.expect(opened and shell is None and "full: root" not in booted.console,
                     f"{name}: opened, not mounted, and no shell for whoever has the console")  # fmt: skip

    stage.chapter("What a host changes")
    for what, changed in (
        ("command line", machine._replace(append=f"{APPEND} init=/bin/sh")),
        ("dracut's command line", machine._replace(initrd=initrds["dracut"], append=f"{APPEND} rd.break")),
    ):
        booted = vm.boot(changed, room / f"vm-{re.sub(r'[^a-z]', '-', what)}")
        _show(stage, booted)
        opened = "full: root" in booted.console
        stage.expect(not opened and "root stays closed" in booted.console, f"{what}: no key, no prompt and no shell")
        shown = stage.run("roomkey", "decision", "show", decision_in(booted.console), env=acme, quiet=True).stdout
        stage.expect("command line" in shown, "the owner reads: command line")


def _debian(room: Path, broker: Path) -> Path:
    """A Debian in a folder, with the agent's package and its settings."""
    base, tree = BASE / "boot" / "debian.tar", room / "tree"
    if not base.exists():
        _run("mmdebstrap", "--variant=apt", f"--include={','.join(PACKAGES)}", "bookworm", base)
    tree.mkdir()
    _run("tar", "-xf", base, "-C", tree)
    package = tree / "roomkey-agent.deb"
    _run(Path(__file__).parent.parent / "package/build", package)
    for name, contents in settings(broker, ROOT_KEY).items():
        if not name.endswith("/key"):
            (tree / name).parent.mkdir(exist_ok=True)
            (tree / name).write_bytes(contents)
    options = "initramfs"
    (tree / "etc/roomkey/volumes").write_text(f"root /dev/vda {ROOT_KEY} {options}\ndata /dev/vdb {DATA_KEY} socket\n")
    (tree / "etc/crypttab").write_text(
        "data /dev/vdb /run/roomkey/key.sock luks,header=/run/roomkey/data.hdr,headless=yes,tries=1\n"
    )
    (tree / "etc/fstab").write_text("/dev/mapper/root / ext4 ro 0 0\n/dev/mapper/data /data ext4 ro,nofail 0 0\n")
    (tree / "data").mkdir()
    (tree / "etc/initramfs-tools/initramfs.conf").write_text("MODULES=list\nBUSYBOX=y\nCOMPRESS=zstd\n")
    (tree / "etc/initramfs-tools/modules").write_text("\n".join(MODULES) + "\n")
    (tree / "usr/local/sbin/report").write_text(REPORT.format(key=ROOT_KEY, compared=DATA_KEY))
    (tree / "usr/local/sbin/report").chmod(0o755)
    (tree / "etc/systemd/system/report.service").write_text(UNIT)
    wants = tree / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / "report.service").symlink_to("../report.service")
    _inside(tree, "dpkg", "--force-confold", "-i", "/roomkey-agent.deb")
    _inside(tree, "systemctl", "enable", "roomkey-key.socket", "roomkey-header@data.service")
    package.unlink()
    return tree


def _bind(tree: Path, image: Path, passphrase: bytes, tang_port: int) -> None:
    """Let clevis open `image` with tang."""
    adv = subprocess.run(["curl", "-sf", f"http://127.0.0.1:{tang_port}/adv"], check=True, capture_output=True).stdout
    (tree / "adv.jws").write_bytes(adv)
    (tree / "key").write_bytes(passphrase)
    shutil.move(image, tree / "disk.img")
    address, port = vm.TANG
    config = f'{{"url":"http://{address}:{port}","adv":"/adv.jws"}}'
    _inside(tree, "clevis", "luks", "bind", "-y", "-k", "/key", "-d", "/disk.img", "tang", config)
    shutil.move(tree / "disk.img", image)
    for name in ("adv.jws", "key"):
        (tree / name).unlink()


def _initrds(room: Path, tree: Path) -> dict[str, Path]:
    """One initramfs of each kind, by its generator's name; the kernel is put beside them."""
    version = next((tree / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")
    _inside(tree, "update-initramfs", "-u", "-k", version)
    _inside(tree, "dracut", "--force", "--no-hostonly", "--zstd", "--omit", "clevis plymouth nfs iscsi",
         "--add-drivers", " ".join(MODULES), "/boot/dracut.img", version)  # fmt: skip
    found = {"initramfs-tools": tree / "boot" / f"initrd.img-{version}", "dracut": tree / "boot/dracut.img"}
    shutil.copy(tree / "boot" / f"vmlinuz-{version}", room)
    for name, path in found.items():
        shutil.copy(path, room / f"{name}.img")
        path.unlink()
    return {name: room / f"{name}.img" for name in found}


def _compare(stage: Stage, console: str) -> None:
    rounds = [
        (int(a), int(b)) for a, b in re.findall(r"clevis with tang ([0-9]+) ms, roomkey-agent ([0-9]+) ms", console)
    ]
    clevis, agent = (sorted(column)[len(rounds) // 2] for column in zip(*rounds, strict=True)) if rounds else (0, 0)
    stage.expect(
        0 < agent <= clevis, f"from the start to the open volume: clevis with tang {clevis} ms, roomkey-agent {agent}"
    )


def _show(stage: Stage, booted: vm.Booted) -> None:
    lines = [line.strip() for line in booted.console.splitlines()]
    stage.show("\n".join(line for line in lines if re.search(r"roomkey(-agent)?(\[[0-9]+\])?:|full:", line)))


def _inside(tree: Path, *command: object) -> None:
    """Run something in the Debian of a folder, with a /proc that is gone afterwards."""
    enter = 'mount --bind /proc "$0/proc" && exec chroot "$0" "$@"'
    _run("unshare", "--mount", "sh", "-c", enter, tree, *command)


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL)  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{command} failed: {(done.stdout + done.stderr)[-2000:]}")


if __name__ == "__main__":
    sys.exit(told("full", _story))
