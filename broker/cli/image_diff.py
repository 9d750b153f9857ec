# SPDX-License-Identifier: Apache-2.0
"""`roomkey image diff`: what changed between two images, like a change log. A part that lets in more is marked.

The images are parsed here from their owner's text, so a draft in a file is compared before it is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import click

from broker.appraisal.change import FLOORS, IMAGE, Change
from broker.appraisal.difference import DIGEST_CHARS
from broker.appraisal.image_changes import changes, unchanged
from broker.appraisal.images import Image, parse_image
from broker.appraisal.registers import title
from broker.cli.options import identity_at, identity_file, json_flag, read_text
from broker.owner_client import OwnerClient, path_of
from broker.terminal import print_json, printable, when

_HEX = re.compile(r"\b[0-9a-f]{32,}\b")
_KIND_WIDTH = len("removed")


class _Side(NamedTuple):
    """One image: what it is called, when and by whom it was stored ("" of a file), and what it says."""

    name: str
    stored: str
    image: Image


@click.command()
@click.argument("old", metavar="A")
@click.argument("new", metavar="B")
@json_flag
@identity_file
def diff(old: str, new: str, as_json: bool, identity_path: Path | None) -> None:
    """Tell what changed from image A to image B: NAME@VERSION, NAME (its newest version), or a TOML file.

    A text with a slash or that ends with .toml is a file, and - is standard input. "(allows more)" stands where the
    newer image lets in what the older one refused, and refuses nothing for it.

    \b
    Example:
      roomkey image diff debian-12@3 debian-12
      roomkey image diff debian-12 ./debian-12.toml
    """
    before, after = (_file(text) if _is_file(text) else _stored(text, identity_path) for text in (old, new))
    found = changes(before.image, after.image)
    same = unchanged(before.image, after.image, found)
    if as_json:
        sides = {"from": before.name, "to": after.name}
        print_json(sides | {"changes": [change.to_json() for change in found], "unchanged": same})
        return
    _show(before, after, found, same)


def _is_file(text: str) -> bool:
    return "/" in text or text.endswith(".toml") or text == "-"


def _file(text: str) -> _Side:
    return _Side(text, "", parse_image(read_text(Path(text))))


def _stored(text: str, identity_path: Path | None) -> _Side:
    name, _, version = text.partition("@")
    if version and not (version.isascii() and version.isdecimal()):
        raise click.BadParameter(f"{version!r} is no version", param_hint="NAME[@VERSION]")
    path = path_of("images", name)
    client = OwnerClient(identity_at(identity_path))
    try:
        shown = client.call("GET", f"{path}?version={version}" if version else path)
    finally:
        client.close()
    stored = f"{when(shown['created_at'])} by {shown['created_by']}"
    return _Side(f"{name}@{shown['version']}", stored, parse_image(shown["toml"]))


def _show(before: _Side, after: _Side, found: Sequence[Change], same: Sequence[str]) -> None:
    description = f'"{after.image.description}"' if after.image.description else ""
    about = ", ".join(part for part in (after.stored, description) if part)
    heading = f"{before.name} -> {after.name}" + (f"   ({about})" if about else "")
    click.secho(printable(heading), bold=True)
    for where, group in groupby(found, key=lambda change: change.where):
        click.secho(printable(where), bold=True)
        for change in group:
            mark = click.style("   (allows more)", fg="yellow") if change.weaker else ""
            click.echo(f"  {change.kind.ljust(_KIND_WIDTH)}  {printable(_words(change))}{mark}")
    if not found:
        click.echo("no difference")
    if same:
        click.echo(f"not changed: {printable(_listed(same))}")


def _words(change: Change) -> str:
    before, after = (_HEX.sub(_short, value) for value in (change.before, change.after))
    if change.where == IMAGE and change.what == "description":
        before, after = f'"{before}"', f'"{after}"'
    values = f"{before} -> {after}" if before and after else before or after
    if change.where in {IMAGE, FLOORS} or change.what == "value":
        return f"{change.what} {values}".rstrip()
    if change.kind == "changed" and _HEX.fullmatch(change.after):
        return f"{change.what}     digest {values}"
    return f"{change.what}     {values}".rstrip()


def _short(digest: re.Match[str]) -> str:
    return f"{digest[0][:DIGEST_CHARS]}…"


def _listed(names: Iterable[str]) -> str:
    """ "PCR 0, 2, 7, MEASUREMENT"."""
    short = [title(name).partition(" (")[0] for name in names]
    pcrs = [name.removeprefix("PCR ") for name in short if name.startswith("PCR ")]
    others = [name for name in short if not name.startswith("PCR ")]
    return ", ".join(([f"PCR {', '.join(pcrs)}"] if pcrs else []) + others)
