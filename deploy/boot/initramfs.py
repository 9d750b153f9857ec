# SPDX-License-Identifier: Apache-2.0
"""An initramfs that does one thing: attest, open the volume, show what is on it. The same inputs give the same bytes.

busybox, cryptsetup, the kernel's modules in the order in which they need each other, the agent, and /init.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from deploy.boot.cpio import Entry, archive, directory, link, node, regular
from deploy.boot.runtime import agent_files, libraries, stripped

BUSYBOX = Path("/bin/busybox")
CRYPTSETUP = Path("/usr/sbin/cryptsetup")
MKE2FS = Path("/usr/sbin/mke2fs")
MKE2FS_CONF = Path("/etc/mke2fs.conf")
INIT = Path(__file__).with_name("init")
APPLETS = ("cat", "echo", "grep", "insmod", "ip", "mkdir", "mount", "poweroff", "sh", "sleep", "umount")
FOLDERS = ("dev", "mnt", "proc", "run", "sys", "tmp")
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "dm_mod", "dm_crypt", "xts", "aesni_intel", "af_alg",
           "algif_skcipher", "algif_hash")  # fmt: skip
ZSTD_LEVEL = 19

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def build(kernel: Path, settings: Mapping[str, bytes], *, agent: bool = True, mkfs: bool = False) -> bytes:
    """The initramfs for the unpacked kernel package `kernel`, compressed. `settings`: path in the image -> contents.
    Without `agent` it is what remains to compare sizes with. `mkfs`: with what makes an ext4.
    """
    entries = [
        regular("init", INIT.read_bytes(), executable=True),
        regular("bin/busybox", BUSYBOX.read_bytes(), executable=True),
        *(link(f"bin/{applet}", "busybox") for applet in APPLETS),
        *(directory(name) for name in FOLDERS),
        node("dev/console", 5, 1),
        node("dev/null", 1, 3),
        regular("usr/sbin/cryptsetup", stripped(CRYPTSETUP), executable=True),
        *libraries([CRYPTSETUP]),
        *modules(kernel),
        *(regular(name, data) for name, data in settings.items()),
    ]
    if mkfs:
        entries += [regular("usr/sbin/mkfs.ext4", stripped(MKE2FS), executable=True), *libraries([MKE2FS])]
        entries.append(regular("etc/mke2fs.conf", MKE2FS_CONF.read_bytes()))
    if agent:
        entries += agent_files()
    return compressed(archive(_merged(entries)))


def compressed(data: bytes) -> bytes:
    done = subprocess.run(
        ["zstd", f"-{ZSTD_LEVEL}", "--quiet", "--threads=1", "--stdout"], input=data, check=True, capture_output=True
    )
    return done.stdout


def modules(kernel: Path) -> list[Entry]:
    """The kernel's modules, numbered in the order in which they are loaded."""
    files = {path.stem.replace("-", "_"): path for path in sorted(kernel.rglob("*.ko"))}
    order: dict[str, bytes] = {}

    def need(name: str) -> None:
        if name in order or name not in files:  # not there: built into the kernel
            return
        data = files[name].read_bytes()
        found = _DEPENDS.search(data)
        for other in found[1].decode().split(",") if found else ():
            need(other.replace("-", "_"))
        order[name] = data

    for name in MODULES:
        need(name)
    return [regular(f"lib/modules/{at:02}-{name}.ko", data) for at, (name, data) in enumerate(order.items())]


def _merged(entries: Iterable[Entry]) -> list[Entry]:
    """One of each: cryptsetup and Python need some of the same libraries."""
    return list({entry.name: entry for entry in entries}.values())
