# SPDX-License-Identifier: Apache-2.0
"""One boot of a measured VM: QEMU with OVMF, a software TPM, a kernel given by the host, a disk, and one address.

The guest reaches BROKER and nothing else: each connection to it is a pipe to a port of this machine's loopback.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

BROKER = ("10.0.2.100", 8443)  # as the guest sees it
TANG = ("10.0.2.101", 80)  # another key server, to compare with
MEMORY_MIB = 512
FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
BOOT_SECONDS = 90.0  # then QEMU is killed: a firmware that refuses waits for ever


class Machine(NamedTuple):
    """What the host chooses. `tpm`: the folder of the TPM's state. `port`: where BROKER leads; 0: nowhere. `esp`: a
    disk to boot from, instead of a kernel that is handed over. `keeps`: what the guest writes stays on its disk.
    `more`: further disks. `tang`: where TANG leads; 0: nowhere. After `seconds` it is switched off.
    `variables`: what the firmware starts with, for one that keeps them where only it can write; the usual ones if None.
    `ends`: words on the console after which nothing more will come.
    """

    tpm: Path
    kernel: Path
    initrd: Path
    append: str
    disk: Path
    port: int
    firmware: Path = FIRMWARE
    memory: int = MEMORY_MIB
    esp: Path | None = None
    keeps: bool = False
    more: tuple[Path, ...] = ()
    tang: int = 0
    seconds: float = BOOT_SECONDS
    variables: Path | None = None
    ends: str = ""


class Booted(NamedTuple):
    """`console`: all that the serial console showed. `seconds` from power-on to power-off."""

    console: str
    seconds: float


def accelerator(cpuinfo: str, kvm: Path = Path("/dev/kvm")) -> tuple[str, ...]:
    """KVM only where the processor has virtualization and the device opens; a device alone may be of a KVM in software,
    under which no firmware runs.
    """
    words = set(cpuinfo.split())
    if words & {"svm", "vmx"} and os.access(kvm, os.R_OK | os.W_OK):
        return ("-accel", "kvm", "-cpu", "host")
    return ("-accel", "tcg,thread=multi", "-cpu", "max")


def boot(machine: Machine, room: Path) -> Booted:
    """Power on, wait for power-off. `room`: a new folder for this boot's files. Raises RuntimeError."""
    room.mkdir()
    variables = room / "vars.fd"
    shutil.copyfile(machine.variables or str(machine.firmware).replace("_CODE", "_VARS"), variables)
    control = room / "tpm"
    began = time.monotonic()
    with subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={machine.tpm}", "--ctrl", f"type=unixio,path={control}",
         "--terminate"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as swtpm:  # fmt: skip
        try:
            _wait_for(control, swtpm)
            console = _qemu(command(machine, variables, control), room / "console", machine)
        finally:
            swtpm.terminate()
    return Booted(console, time.monotonic() - began)


def command(machine: Machine, variables: Path, control: Path) -> list[str]:
    """QEMU's command line."""
    relays = "".join(
        f",guestfwd=tcp:{address}:{port}-cmd:/bin/busybox nc 127.0.0.1 {target}"
        for (address, port), target in ((BROKER, machine.port), (TANG, machine.tang))
        if target
    )
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", *_platform(machine),
        *accelerator(Path("/proc/cpuinfo").read_text()), "-m", str(machine.memory), "-smp", "1",
        "-display", "none", "-serial", "stdio", "-no-reboot",
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={machine.firmware}",
        "-drive", f"if=pflash,unit=1,format=raw,file={variables}",
        "-chardev", f"socket,id=tpm,path={control}", "-tpmdev", "emulator,id=tpm,chardev=tpm",
        "-device", "tpm-crb,tpmdev=tpm",
        "-drive", f"if=none,id=disk,format=raw,file={machine.disk}{'' if machine.keeps else ',snapshot=on'}",
        "-device", "virtio-blk-pci,drive=disk",
        "-netdev", f"user,id=net,restrict=on{relays}", "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-rng-pci",
        *(
            word
            for at, path in enumerate(machine.more)
            for word in ("-drive", f"if=none,id=more{at},format=raw,file={path},snapshot=on",
                         "-device", f"virtio-blk-pci,drive=more{at}")
        ),
        *_start(machine),
    ]  # fmt: skip


def _platform(machine: Machine) -> list[str]:
    """With system management mode, behind which Secure Boot's variables are out of the guest's reach, or without."""
    if machine.variables is None:
        return ["-machine", "q35"]
    return ["-machine", "q35,smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on"]


def _start(machine: Machine) -> list[str]:
    """What the firmware starts; the encrypted disk stays the first one either way."""
    if machine.esp is None:
        return ["-kernel", str(machine.kernel), "-initrd", str(machine.initrd), "-append", machine.append]
    drive = f"if=none,id=esp,format=raw,file={machine.esp},snapshot=on"
    return ["-drive", drive, "-device", "virtio-blk-pci,drive=esp,bootindex=0"]


def _qemu(words: list[str], console: Path, machine: Machine) -> str:
    with console.open("wb") as output:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            end = time.monotonic() + machine.seconds
            while process.poll() is None and time.monotonic() < end:  # then what the console shows is the result
                time.sleep(0.1)
                if machine.ends and machine.ends in console.read_text("utf-8", "replace"):
                    break
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = console.read_text("utf-8", "replace")
    if process.returncode not in {0, -signal.SIGKILL}:
        raise RuntimeError(f"QEMU ended with {process.returncode}: {text[-500:]}")
    return text


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 10
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError("swtpm does not start")
        time.sleep(0.01)
