# SPDX-License-Identifier: Apache-2.0
"""`roomkey image measure tpm`: what a boot will leave in the TPM's PCRs, from the files that will be booted.

The events are predicted by `broker.measure`; here are files, options, and the image that is made of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click

from broker.appraisal.image_tpm import BANKS
from broker.cli.image_evidence import store_image
from broker.cli.options import identity_at, identity_file, json_flag, read_input, why
from broker.measure.direct_boot import Event, events, value
from broker.measure.uki_boot import uki_events
from broker.measure.variables import secure_boot_variables
from broker.owner_client import OwnerClient
from broker.terminal import next_step, print_json, table
from keys.errors import ConfigError

MIB = 1 << 20
MAX_KERNEL_BYTES = 256 * MIB
MAX_INITRD_BYTES = 2048 * MIB
MAX_VARIABLES_BYTES = 8 * MIB
ONCE_PER_BOOT = 15  # the PCR that `roomkey-agent unlock --cap` extends

_file = click.Path(path_type=Path, dir_okay=False)


@click.command("tpm")
@click.option("--kernel", type=_file, help="The kernel that QEMU loads (-kernel).")
@click.option("--initrd", type=_file, help="Its initrd (-initrd).")
@click.option("--append", default="", help="Its command line (-append).")
@click.option("--memory", type=click.IntRange(min=1), metavar="MIB", help="The VM's memory (-m).")
@click.option("--uki", type=_file, help="Instead of all these: a unified kernel image, started from a disk.")
@click.option("--vars", "variables", type=_file, help="With --uki: the firmware's variables, with keys of Secure Boot.")
@click.option(
    "--phase", "phases", multiple=True, metavar="NAME", help="A phase that its systemd has measured by then; repeat it."
)
@click.option("--pcr0", metavar="HEX", help="PCR 0 as this firmware leaves it in a VM of this shape.")
@click.option("--once-per-boot", is_flag=True, help="For guests that unlock with --cap: let in before that only.")
@click.option("--bank", type=click.Choice(list(BANKS)), default="sha256", show_default=True)
@json_flag
@click.option("--toml", "as_toml", is_flag=True, help="Print an image with these events.")
@click.option("--put", "put_as", metavar="NAME", help="Store such an image as the next version of NAME.")
@why
@identity_file
def measure_tpm(
    kernel: Path | None, initrd: Path | None, append: str, memory: int | None, uki: Path | None, variables: Path | None,
    phases: tuple[str, ...], pcr0: str | None, once_per_boot: bool, bank: str,
    as_json: bool, as_toml: bool, put_as: str | None, why: str, identity_path: Path | None,
) -> None:  # fmt: skip
    """TPM: the PCRs after QEMU and OVMF (q35) boot a kernel, or a UKI from a disk.

    With --vars, the file of variables that the VM starts with, its firmware checks what it starts (Secure Boot);
    without, it has no keys to check by.

    \b
    PCR 0 cannot be computed: firmware measures itself as it runs, with the VM's memory and CPUs. Read it once from a
    VM of the same shape and firmware that you trust (/sys/class/tpm/tpm0/pcr-sha256/0), and give it with --pcr0.

    \b
    Example:
      roomkey image measure tpm --kernel vmlinuz --initrd initrd.img --append "console=ttyS0" --memory 512 --put web
      roomkey image measure tpm --uki web.efi --put web
      roomkey image measure tpm --uki web-signed.efi --vars OVMF_VARS.fd --put web
    """
    recorded = _recorded(pcr0, bank)
    if uki is not None:
        if kernel or initrd or append or memory:
            raise click.UsageError("A UKI has its kernel, initrd and command line in it: give --uki alone.")
        keys = None
        if variables is not None:
            keys = secure_boot_variables(read_input(variables, max_bytes=MAX_VARIABLES_BYTES))
        predicted = uki_events(read_input(uki, max_bytes=MAX_INITRD_BYTES), phases, bank, keys)
        description = f"predicted: unified kernel image {uki.name}"
    elif kernel is None or initrd is None or memory is None:
        raise click.UsageError("Give --kernel, --initrd and --memory, or --uki.")
    elif phases or variables is not None:
        raise click.UsageError("Phases, and keys of Secure Boot, go with a UKI only.")
    else:
        files = read_input(kernel, max_bytes=MAX_KERNEL_BYTES), read_input(initrd, max_bytes=MAX_INITRD_BYTES)
        predicted = events(*files, append, memory, bank)
        description = f"predicted: kernel {kernel.name}, initrd {initrd.name}, {memory} MiB"
    if recorded is None:
        next_step("Note: without --pcr0 the image does not say which firmware starts the kernel.")
    text = image_toml(predicted, bank, description[:400], recorded, once_per_boot=once_per_boot)
    if put_as is not None:
        client = OwnerClient(identity_at(identity_path))
        try:
            store_image(client, put_as, text, why)
        finally:
            client.close()
    elif as_json:
        pcrs = {str(index): value(sequence, bank).hex() for index, sequence in predicted.items()}
        print_json({"bank": bank, "pcrs": pcrs})
    elif as_toml:
        click.echo(text, nl=False)
        next_step("Store it: roomkey image put NAME FILE")
    else:
        table(
            ("PCR", bank, "events"),
            [
                (index, value(sequence, bank).hex(), ", ".join(event.what or event.type for event in sequence))
                for index, sequence in predicted.items()
            ],
            empty="",
        )
        next_step("Make an image of it: the same command with --toml, or with --put NAME")


def image_toml(
    predicted: Mapping[int, tuple[Event, ...]], bank: str, description: str, recorded: str | None, *,
    once_per_boot: bool,
) -> str:  # fmt: skip
    """An image that asks for these events, and for nothing where there are none."""
    zero = "0" * 2 * BANKS[bank]
    lines = ['platform = "tpm"', f"description = {_quoted(description)}", "", "[tpm]", f'bank = "{bank}"', ""]
    lines.append("[tpm.pcrs]")
    if recorded is not None:
        lines.append(f'0 = "{recorded}"  # recorded, not predicted')
    lines += [f'{index} = "{zero}"' for index, sequence in predicted.items() if not sequence]
    if once_per_boot:
        lines.append(f'{ONCE_PER_BOOT} = "{zero}"')
    for index, sequence in predicted.items():
        if not sequence:
            continue
        lines += ["", "[[tpm.events]]", f"pcr = {index}", "digests = ["]
        for event in sequence:
            what = f", what = {_quoted(event.what[:400])}" if event.what else ""
            lines.append(f'  {{ digest = "{event.digest.hex()}", type = "{event.type}"{what} }},')
        lines.append("]")
    return "\n".join(lines) + "\n"


def _recorded(pcr0: str | None, bank: str) -> str | None:
    if pcr0 is None:
        return None
    try:
        data = bytes.fromhex(pcr0)
    except ValueError:
        data = b""
    if len(data) != BANKS[bank] or not any(data):
        raise ConfigError("--pcr0 is no value of PCR 0", expected=f"{2 * BANKS[bank]} hex digits, not all zero")
    return data.hex()


def _quoted(text: str) -> str:
    """A TOML basic string of printable text."""
    return json.dumps("".join(character if character.isprintable() else "?" for character in text), ensure_ascii=False)
