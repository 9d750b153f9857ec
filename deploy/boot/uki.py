# SPDX-License-Identifier: Apache-2.0
"""A unified kernel image, and a disk from which firmware starts it."""

from __future__ import annotations

import subprocess
from pathlib import Path

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
SNAKEOIL = Path("/usr/share/ovmf/PkKek-1-snakeoil.pem")
ESP_BYTES = 64 << 20
# Where in memory; the stub moves what it must. Far enough apart for a kernel of 240 MiB.
PLACES = {".osrel": 0x20000, ".cmdline": 0x30000, ".linux": 0x2000000, ".initrd": 0x11000000}


def build(uki: Path, kernel: Path, initrd: Path, command_line: str) -> None:
    """Write the UKI with these parts."""
    parts = {".linux": kernel, ".initrd": initrd}
    for name, text in ((".osrel", "ID=roomkey-boot-demo\n"), (".cmdline", command_line)):
        parts[name] = uki.with_suffix(name)
        parts[name].write_text(text)
    words = ["objcopy"]
    for name, place in PLACES.items():
        words += ["--add-section", f"{name}={parts[name]}", "--change-section-vma", f"{name}={place:#x}"]
    _run(*words, STUB, uki)


def sign(uki: Path, target: Path) -> None:
    """`uki`, signed with the key that Debian's OVMF has for trying."""
    key, certificate = (SNAKEOIL.with_suffix(suffix) for suffix in (".key", ".pem"))
    plain = target.with_suffix(".key")
    _run("openssl", "rsa", "-in", key, "-passin", "pass:snakeoil", "-out", plain)
    _run("sbsign", "--key", plain, "--cert", certificate, "--output", target, uki)
    plain.unlink()


def disk(path: Path, uki: Path) -> None:
    """An EFI system partition without a partition table, with the UKI where firmware looks for one."""
    with path.open("wb") as file:
        file.truncate(ESP_BYTES)
    _run("mformat", "-i", path, "-F", "-T", ESP_BYTES // 512, "::")
    _run("mmd", "-i", path, "::/EFI", "::/EFI/BOOT")
    _run("mcopy", "-i", path, uki, "::/EFI/BOOT/BOOTX64.EFI")


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")
