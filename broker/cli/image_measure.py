# SPDX-License-Identifier: Apache-2.0
"""`roomkey image measure`: the launch digest of an SEV-SNP, SEV-ES or SEV guest before there is one.

The digest is computed by sev-snp-measure (optional extra `measure`), which reads files by their paths and takes any
size; bounds and errors are ours. What a digest depends on: AMD 56860, 8.17; the order of pages is the VMM's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from broker.cli.image_evidence import store_image
from broker.cli.image_measure_tpm import measure_tpm
from broker.cli.options import Command, identity_at, identity_file, json_flag, read_input, why
from broker.owner_client import OwnerClient
from broker.terminal import next_step, print_json
from broker.verifiers.snp_id_key import key_digest, read_key
from keys.errors import ConfigError

MIB = 1024 * 1024
PAGE_BYTES = 4096
MAX_FIRMWARE_BYTES = 64 * MIB
MAX_KERNEL_BYTES = 256 * MIB
MAX_INITRD_BYTES = 2048 * MIB
MAX_SECTION_BYTES = 256 * MIB  # all memory that the firmware's SEV metadata name; each 4 KiB of it is one hash
MAX_APPEND_BYTES = 64 * 1024
MAX_VCPUS = 4096
MAX_FEATURES = (1 << 64) - 1  # SEV_FEATURES
MAX_SIGNATURE = (1 << 32) - 1  # CPUID Fn0000_0001_EAX

# What the library raises on firmware that it cannot read, and on values that do not fit.
_FOREIGN = (RuntimeError, LookupError, ValueError, AssertionError, TypeError, AttributeError, ArithmeticError, OSError)


class Mode(StrEnum):
    """What the launch is. The library's names are the same but for `sev-es`, which it takes too."""

    SNP = "snp"
    SEV_ES = "sev-es"
    SEV = "sev"


class Vmm(StrEnum):
    """Whose order of pages and first CPU state; the library's names."""

    QEMU = "QEMU"
    EC2 = "ec2"
    GCE = "gce"


@dataclass(frozen=True, slots=True)
class Launch:
    """All that a launch digest depends on. `kernel`, `initrd` and `append` are measured with direct kernel boot only.

    `vcpu_sig` is CPUID Fn0000_0001_EAX, for types that the library does not know; it goes before `vcpu_type`.
    `guest_features` is SEV_FEATURES as the guest runs (SNP only).
    """

    mode: Mode
    firmware: Path
    kernel: Path | None = None
    initrd: Path | None = None
    append: str | None = None
    vcpus: int = 1
    vcpu_type: str | None = None
    vcpu_sig: int | None = None
    guest_features: int = 0x1
    vmm: Vmm = Vmm.QEMU


def launch_digest(launch: Launch) -> bytes:
    """48 bytes for SEV-SNP (MEASUREMENT), 32 for SEV-ES and SEV. Raises ConfigError."""
    guest = _library("guest")
    if launch.kernel is None and (launch.initrd is not None or launch.append is not None):
        raise ConfigError("an initrd or a command line is measured with a kernel only", mend="name the kernel too")
    if not 1 <= launch.vcpus <= MAX_VCPUS:
        raise ConfigError("no such number of CPUs", expected=f"1 to {MAX_VCPUS}", found=str(launch.vcpus))
    if not 0 <= launch.guest_features <= MAX_FEATURES:
        raise ConfigError("SEV_FEATURES has 64 bits", found=f"{launch.guest_features:#x}"[:64])
    if launch.append is not None and len(launch.append.encode("utf-8", "surrogatepass")) > MAX_APPEND_BYTES:
        raise ConfigError("the command line is too long", expected=f"at most {MAX_APPEND_BYTES} bytes")
    signature = _signature(launch)
    for path, limit in (
        (launch.firmware, MAX_FIRMWARE_BYTES),
        (launch.kernel, MAX_KERNEL_BYTES),
        (launch.initrd, MAX_INITRD_BYTES),
    ):
        if path is not None:
            _check_file(path, limit)
    try:
        firmware = _library("ovmf").OVMF(str(launch.firmware))
        sections = firmware.metadata_items()
        if firmware.size() % PAGE_BYTES or (launch.mode is Mode.SNP and not sections):
            raise ValueError("no firmware, or none for this kind of guest")
        if sum(section.size for section in sections) > MAX_SECTION_BYTES:
            raise ValueError(f"the firmware's metadata name more than {MAX_SECTION_BYTES} bytes of memory")
        digest = guest.calc_launch_digest(
            _library("sev_mode").SevMode.from_str(launch.mode),
            launch.vcpus,
            signature,
            str(launch.firmware),
            None if launch.kernel is None else str(launch.kernel),
            None if launch.initrd is None else str(launch.initrd),
            launch.append,
            launch.guest_features,
            vmm_type=_library("vmm_types").VMMType[launch.vmm],
        )
    except _FOREIGN as error:
        raise ConfigError(
            "the launch cannot be measured",
            found=f"{type(error).__name__}: {error}"[:200],
            mend="is this the firmware (OVMF) that the guest starts with, built for SEV? With a kernel it is AmdSev",
        ) from error
    return bytes(digest)


def _library(module: str) -> ModuleType:
    """A module of sev-snp-measure. Raises ConfigError where it is not installed."""
    try:
        return import_module(f"sevsnpmeasure.{module}")
    except ImportError:
        raise ConfigError(
            "launch digests are computed by sev-snp-measure, which is not installed",
            mend="pip install 'roomkey[measure]'",
        ) from None


def _signature(launch: Launch) -> int | None:
    """The CPUID signature; it is measured in the first CPU state under QEMU only."""
    if launch.vcpu_sig is not None:
        if not 0 <= launch.vcpu_sig <= MAX_SIGNATURE:
            raise ConfigError("a CPUID signature has 32 bits", found=f"{launch.vcpu_sig:#x}"[:64])
        return launch.vcpu_sig
    known: dict[str, int] = _library("vcpu_types").CPU_SIGS
    if launch.vcpu_type is None:
        if launch.mode is not Mode.SEV and launch.vmm is Vmm.QEMU:
            raise ConfigError("the digest depends on the CPU's type", mend=f"--vcpu-type, one of {', '.join(known)}")
        return None
    if launch.vcpu_type not in known:
        raise ConfigError(
            "unknown CPU type",
            expected=", ".join(known),
            found=launch.vcpu_type[:64],
            mend="name the type that QEMU's -cpu has, or its CPUID signature with --vcpu-sig",
        )
    return known[launch.vcpu_type]


def _check_file(path: Path, limit: int) -> None:
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise ConfigError("cannot read the file", found=str(error)) from None
    if size is None:
        raise ConfigError(f"{path} is no file")
    if size > limit:
        raise ConfigError(f"{path} is too long", expected=f"at most {limit} bytes", found=str(size))


# --- commands -------------------------------------------------------------------------------------------------------

_file = click.Path(path_type=Path, dir_okay=False)


class Number(click.ParamType[int]):
    """A number, decimal or 0x and hex."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else int(str(value), 0)
        except ValueError:
            self.fail(f"{value!r} is no number, like 0x1", param, ctx)


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """The options that all three have, around those of their own."""
    before: tuple[Callable[[Command], Command], ...] = (
        click.option("--firmware", type=_file, required=True, help="The firmware (OVMF) that the guest starts with."),
        click.option("--kernel", type=_file, help="The kernel that QEMU loads (-kernel)."),
        click.option("--initrd", type=_file, help="Its initrd (-initrd)."),
        click.option("--append", help="Its command line (-append)."),
    )
    after: tuple[Callable[[Command], Command], ...] = (
        json_flag,
        click.option("--toml", "as_toml", is_flag=True, help="Print an image with this digest."),
        click.option("--put", "put_as", metavar="NAME", help="Store such an image as the next version of NAME."),
        why,
        identity_file,
    )

    def decorate(command: Command) -> Command:
        for option in reversed((*before, *options, *after)):
            command = option(command)
        return command

    return decorate


_vcpus = click.option("--vcpus", type=click.IntRange(1, MAX_VCPUS), required=True, help="The number of CPUs (-smp).")
_vcpu_type = click.option("--vcpu-type", metavar="TYPE", help="The CPU's type (-cpu), such as EPYC-Milan.")
_vcpu_sig = click.option("--vcpu-sig", type=Number(), help="Its CPUID signature instead, such as 0xa00f11.")


@click.group()
def measure() -> None:
    """Compute what a guest's evidence will show from its files, instead of copying it from a guest.

    \b
    Example:
      roomkey image measure snp --firmware OVMF.amdsev.fd --kernel vmlinuz --initrd initrd.img \\
          --append "root=/dev/mapper/root ro" --vcpus 4 --vcpu-type EPYC-Milan --put web
    """


measure.add_command(measure_tpm)


@measure.command()
@_options(
    _vcpus,
    _vcpu_type,
    _vcpu_sig,
    click.option(
        "--guest-features",
        type=Number(),
        default=0x1,
        show_default="0x1",
        help="SEV_FEATURES of the guest: 0x1 is SNP alone; kernels from 6.6 on may add 0x20, DebugSwap.",
    ),
    click.option(
        "--vmm", type=click.Choice([vmm.value for vmm in Vmm]), default="QEMU", show_default=True, help="Who starts it."
    ),
    click.option("--id-key", type=_file, help="Public half of the ID key: the image then asks for it too."),
    click.option("--author-key", type=_file, help="Public half of the author key, likewise."),
)
def snp(
    firmware: Path, kernel: Path | None, initrd: Path | None, append: str | None, vcpus: int, vcpu_type: str | None,
    vcpu_sig: int | None, guest_features: int, vmm: Vmm, id_key: Path | None, author_key: Path | None, **how: Any,
) -> None:  # fmt: skip
    """SEV-SNP: the MEASUREMENT that the guest's report will show.

    \b
    Example:
      roomkey image measure snp --firmware OVMF.amdsev.fd --vcpus 4 --vcpu-type EPYC-Milan --toml
    """
    launch = Launch(Mode.SNP, firmware, kernel, initrd, append, vcpus, vcpu_type, vcpu_sig, guest_features, Vmm(vmm))
    values = {"measurement": launch_digest(launch).hex()}
    for name, path in (("id_key_digest", id_key), ("author_key_digest", author_key)):
        if path is not None:
            values[name] = key_digest(read_key(read_input(path))).hex()
    if launch.vmm is Vmm.EC2:
        next_step("Note: projects disagree about the first CPU state on EC2. Compare with a report from there.")
    _answer(launch, values, **how)


@measure.command("sev-es")
@_options(_vcpus, _vcpu_type, _vcpu_sig)
def sev_es(
    firmware: Path, kernel: Path | None, initrd: Path | None, append: str | None, vcpus: int, vcpu_type: str | None,
    vcpu_sig: int | None, **how: Any,
) -> None:  # fmt: skip
    """SEV-ES: the launch digest that the platform will prove.

    \b
    Example:
      roomkey image measure sev-es --firmware OVMF.amdsev.fd --vcpus 4 --vcpu-type EPYC-Rome --toml
    """
    launch = Launch(Mode.SEV_ES, firmware, kernel, initrd, append, vcpus, vcpu_type, vcpu_sig)
    _answer(launch, {"launch_digest": launch_digest(launch).hex()}, **how)


@measure.command()
@_options()
def sev(firmware: Path, kernel: Path | None, initrd: Path | None, append: str | None, **how: Any) -> None:
    """SEV: the launch digest that the platform will prove.

    \b
    Example:
      roomkey image measure sev --firmware OVMF.amdsev.fd --toml
    """
    launch = Launch(Mode.SEV, firmware, kernel, initrd, append)
    _answer(launch, {"launch_digest": launch_digest(launch).hex()}, **how)


def image_toml(launch: Launch, values: dict[str, str]) -> str:
    """An image that asks for these values of the report, or of the launch."""
    parts = [f"firmware {launch.firmware.name}"]
    if launch.kernel is not None:
        parts.append(f"kernel {launch.kernel.name}")
    if launch.mode is not Mode.SEV:
        parts.append(f"{launch.vcpus} CPUs {launch.vcpu_type or ''}".rstrip())
    table = "snp" if launch.mode is Mode.SNP else "sev"
    lines = [
        f"platform = {_quoted(table)}",
        f"description = {_quoted(('measured: ' + ', '.join(parts))[:400])}",
        "",
        f"[{table}]",
        *(f"{name} = {_quoted(value)}" for name, value in values.items()),
    ]
    if launch.mode is Mode.SEV_ES:
        lines.append("es = true")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string. JSON's escapes are TOML's where all but ASCII is left as it is; a lone surrogate is not."""
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return json.dumps(printable, ensure_ascii=False)


def _answer(
    launch: Launch, values: dict[str, str], *, as_json: bool, as_toml: bool, put_as: str | None, why: str,
    identity_path: Path | None,
) -> None:  # fmt: skip
    """Print the digest, or store it, and say what to do next."""
    if launch.kernel is None:
        next_step("Note: without --kernel the digest says what the firmware is, and nothing of what it starts.")
    elif launch.vmm is Vmm.QEMU:
        next_step("Launch the guest with kernel-hashes=on at QEMU's sev object: without it the kernel is not measured.")
    text = image_toml(launch, values)
    if put_as is not None:
        client = OwnerClient(identity_at(identity_path))
        try:
            # The weaker kind of SEV is never chosen unnamed.
            store_image(client, put_as, text, why, options="" if launch.mode is Mode.SNP else " --platform sev")
        finally:
            client.close()
    elif as_json:
        print_json({"mode": launch.mode, **values})
    elif as_toml:
        click.echo(text, nl=False)
        next_step("Store it: roomkey image put NAME FILE")
    else:
        click.echo(next(iter(values.values())))
        next_step("Make an image of it: the same command with --toml, or with --put NAME")
