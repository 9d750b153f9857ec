# SPDX-License-Identifier: Apache-2.0
"""`roomkey image`: what a good guest has booted, in its owner's words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from broker.appraisal.enrol import enrol_image
from broker.cli.evidence import read_evidence
from broker.cli.image_diff import diff
from broker.cli.image_evidence import claims_in, proof, store_image
from broker.cli.image_life import approve, history, retire, revoke, state_of
from broker.cli.image_measure import measure
from broker.cli.image_update import update
from broker.cli.options import (
    as_owner,
    confirmed,
    endorsement_files,
    floors_file,
    json_flag,
    read_text,
    why,
)
from broker.cli.try_report import image_try
from broker.owner_client import Caller, path_of
from broker.terminal import next_step, print_json, printable, table, when
from keys.tee import Tee

PCRS = range(24)
ALWAYS = (0, 2, 4, 7)  # firmware, option ROMs, boot applications, Secure Boot
IF_EXTENDED = (8, 9, 14)  # GRUB's command line and files, shim's MOK lists
WITH_UKI = (11, 12, 13)  # systemd-stub's; a 12 that stays zero keeps added command lines out


class PcrList(click.ParamType[tuple[int, ...]]):
    """Numbers of PCRs, separated by commas."""

    name = "pcrs"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        numbers = str(value).split(",")
        if not all(number.isascii() and number.isdecimal() and len(number) < 3 for number in numbers):
            self.fail(f"{value!r} is no list of PCRs, like 0,2,4,7", param, ctx)
        return tuple(int(number) for number in numbers)


@click.group()
def image() -> None:
    """Images: named, versioned sets of the measurements that a good guest shows.

    \b
    Example:
      roomkey image enrol debian-12 --from guest.json
    """


image.add_command(measure)
image.add_command(update)
image.add_command(diff)
image.add_command(image_try)
for command in (approve, retire, revoke, history):
    image.add_command(command)


@image.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--propose", is_flag=True, help="Let nobody in with it before it is approved.")
@why
@as_owner
def put(client: Caller, name: str, file: Path, propose: bool, why: str) -> None:
    """Store the image in FILE (TOML, - for standard input) as the next version of NAME.

    A rule that names the image without a version means the newest: guests of older versions are then denied.
    With --propose, or signed with a key that may only propose, it counts once `roomkey image approve` lets it.

    \b
    Example:
      roomkey image put debian-12 debian-12.toml --why "kernel 6.1.0-31"
    """
    store_image(client, name, read_text(file), why, propose=propose)


@image.command()
@click.argument("name")
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="EVIDENCE.json",
    help="What `roomkey-agent evidence` wrote in the guest, - for standard input.",
)
@click.option(
    "--pcrs",
    type=PcrList(),
    default=None,
    metavar="N,N,...",
    help="Which PCRs the image names. [default: 0,2,4,7, and 8 to 14 as far as this boot uses them]",
)
@click.option(
    "--once-per-boot",
    is_flag=True,
    help="Let a guest in only before `roomkey-agent cap`, or `unlock --cap`, in each boot: PCR 15 must be zero.",
)
@endorsement_files
@floors_file
@click.option("--draft", is_flag=True, help="Print the draft and stop.")
@confirmed
@why
@as_owner
def enrol(
    client: Caller, name: str, file: Path, pcrs: tuple[int, ...] | None, once_per_boot: bool,
    endorsements: tuple[Path, ...], floors: Path | None, draft: bool, yes: bool, why: str,
) -> None:  # fmt: skip
    """Make an image of what one guest has booted, and store it as the next version of NAME once you say yes.

    \b
    Example:
      roomkey image enrol debian-12 --from guest.json --why "kernel 6.1.0-31"
    """
    evidence = read_evidence(file)
    if evidence.tee is Tee.SNP and (pcrs is not None or once_per_boot):
        raise click.UsageError("An SEV-SNP report has no PCRs: leave --pcrs and --once-per-boot out.")
    claims = claims_in(evidence, endorsements, floors)
    chosen = default_pcrs(claims.measurements) if pcrs is None else pcrs
    text = enrol_image(claims, chosen, description=f"enrolled from {file.name}", once_per_boot=once_per_boot)
    for line in text.splitlines():
        click.echo(printable(line))
    if draft:
        return
    next_step("\n" + proof(evidence, claims))
    if not yes:
        click.confirm(f"\nStore it as the next version of {name}?", abort=True, err=True)
    store_image(client, name, text, why)


@image.command("list")
@json_flag
@as_owner
def list_(client: Caller, as_json: bool) -> None:
    """List your images, the newest version of each.

    \b
    Example:
      roomkey image list
    """
    images = client.call("GET", path_of("images"))["images"]
    if as_json:
        print_json(images)
        return
    table(
        ("image", "version", "state", "platform", "created", "description"),
        [
            (i["name"], i["version"], state_of(i["life"]), i["platform"], when(i["created_at"]), i["description"])
            for i in images
        ],
        empty="No images yet, so nothing is released. Make one: roomkey image enrol NAME --from EVIDENCE.json",
    )


@image.command()
@click.argument("name", metavar="NAME[@VERSION]")
@json_flag
@as_owner
def show(client: Caller, name: str, as_json: bool) -> None:
    """Show an image as its owner wrote it, the newest version or the one that you name.

    \b
    Example:
      roomkey image show debian-12@3 > debian-12.toml
    """
    bare, _, version = name.partition("@")
    path = path_of("images", bare)
    if version and not (version.isascii() and version.isdecimal()):
        raise click.BadParameter(f"{version!r} is no version", param_hint="NAME[@VERSION]")
    shown = client.call("GET", f"{path}?version={version}" if version else path)
    if as_json:
        print_json(shown)
        return
    next_step(
        f"{bare}@{shown['version']}, {when(shown['created_at'])}, by {shown['created_by']}; {state_of(shown['life'])}"
    )
    for line in shown["toml"].splitlines():
        click.echo(printable(line))


def default_pcrs(measurements: Mapping[str, str]) -> list[int]:
    """The PCRs that say what booted, for the way in which this guest booted: with GRUB, with a UKI, with both."""

    def extended(index: int) -> bool:
        return set(measurements.get(f"sha256:{index}", "0")) != {"0"}

    return sorted({
        *ALWAYS,
        *(index for index in IF_EXTENDED if extended(index)),
        *(WITH_UKI if extended(WITH_UKI[0]) else ()),
    })  # fmt: skip
