# SPDX-License-Identifier: Apache-2.0
"""`roomkey image update`: an image that a machine fits before an update, after it, and in every state in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from broker.appraisal.component_names import Naming
from broker.appraisal.components import Combinations, Part
from broker.appraisal.images import Image, parse_image
from broker.appraisal.registers import title
from broker.appraisal.update import finished_image, updated_image
from broker.cli.evidence import read_evidence
from broker.cli.image_evidence import claims_in, proof, store_image
from broker.cli.options import as_owner, confirmed, endorsement_files, floors_file, why
from broker.owner_client import Caller, path_of
from broker.terminal import next_step, printable, table
from keys.errors import Conflict


class NamingType(click.ParamType[Naming]):
    """NAME=GLOB."""

    name = "naming"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Naming:
        component, _, glob = str(value).partition("=")
        if not component or not glob:
            self.fail(f"{value!r} is not NAME=GLOB, like kernel='*vmlinuz*'", param, ctx)
        return Naming(component, glob)


@click.command()
@click.argument("name")
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="EVIDENCE.json",
    help="What `roomkey-agent evidence` wrote in an updated guest, - for standard input.",
)
@click.option(
    "--component",
    "namings",
    type=NamingType(),
    multiple=True,
    metavar="NAME=GLOB",
    help="Events whose description or type matches are parts of this component. [repeatable; the first counts]",
)
@click.option("--finish", is_flag=True, help="The update is over: allow the newest release only.")
@endorsement_files
@floors_file
@click.option("--draft", is_flag=True, help="Print the image and stop.")
@confirmed
@why
@as_owner
def update(
    client: Caller, name: str, file: Path | None, namings: tuple[Naming, ...], finish: bool,
    endorsements: tuple[Path, ...], floors: Path | None, draft: bool, yes: bool, why: str,
) -> None:  # fmt: skip
    """Make the next version of image NAME, which guests fit before an update, after it and in between.

    With --from it is made of the newest version and of one guest that has been updated; with --finish of the newest
    version alone, once all guests have.

    \b
    Example:
      roomkey image update debian-12 --from updated.json --why "kernel 6.1.0-32"
      roomkey image update debian-12 --finish
    """
    if finish == (file is not None):
        raise click.UsageError("Give either --from EVIDENCE.json or --finish.")
    shown = client.call("GET", path_of("images", name))
    _check_active(name, shown)
    image = parse_image(shown["toml"])
    if file is None:
        text, proved = finished_image(image), ""
    else:
        evidence = read_evidence(file)
        claims = claims_in(evidence, endorsements, floors)
        text, proved = updated_image(image, claims, shown["version"], namings), proof(evidence, claims)
    if draft:
        for line in text.splitlines():
            click.echo(printable(line))
        return
    _show(parse_image(text), f"{name}@{shown['version']}")
    if proved:
        next_step("\n" + proved)
    if not yes:
        click.confirm(f"\nStore it as the next version of {name}?", abort=True, err=True)
    store_image(client, name, text, why)


def _check_active(name: str, shown: dict[str, Any]) -> None:
    """The new version allows what the newest does, so what is not approved of or was taken back must not be in it."""
    version, state = f"{name}@{shown['version']}", shown["life"]["state"]
    if state == "active":
        return
    put = f"put a version that is all right: roomkey image show {name}@OLDER, then roomkey image put {name} FILE"
    raise Conflict(
        f"an update goes on from the newest version, and {version} is {state}",
        expected="active",
        found=state,
        mend=put if state == "revoked" else f"roomkey image approve {version}; or {put}",
    )


def _show(image: Image, version: str) -> None:
    """What the new image allows; `version` is the one that it was made of."""
    if image.combinations is None:
        values = ((title(name), " ".join(register.values)) for name, register in image.registers.items())
        table(("register", "value"), values, empty="")
        return
    table(("component", "register", "event"), _parts(image.combinations), empty="")
    click.echo()
    table(("combination", "seen"), _combinations(image.combinations, version), empty="")


def _parts(joint: Combinations) -> Iterator[tuple[str, str, str]]:
    for at, (name, versions) in enumerate(joint.components):
        for register, steps in joint.steps.items():
            for step in steps:
                if isinstance(step, Part) and step.component == at:
                    yield f"{name} ({', '.join(versions)})", title(register), step.what or step.type


def _combinations(joint: Combinations, version: str) -> Iterator[tuple[str, str]]:
    """Each with where it was seen: releases were enrolled, the states between them are computed."""
    for combination in joint.all:
        seen = f"in {version}" if combination in joint.releases else "no, computed"
        yield joint.words(combination), "in this evidence" if combination == joint.releases[-1] else seen
