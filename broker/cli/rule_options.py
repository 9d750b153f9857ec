# SPDX-License-Identifier: Apache-2.0
"""How a rule is given on the command line, and how it is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from broker.appraisal.rules import CLONES, parse_rule
from broker.cli.options import read_text
from broker.owner_client import Caller, path_of
from broker.terminal import fields
from keys.errors import NotFound, ProtocolError
from keys.tee import Tee

LISTS = ("images", "platforms", "instances")
OPTIONS = ("clones", "lease_s", "sticky_failure", "unsafe_first_use")


named_images = click.option(
    "--image",
    "images",
    multiple=True,
    metavar="NAME[@VERSION]",
    help="An image that may have the key; without a version the newest, if it is active, and those that retire. "
    "[repeatable]",
)
named_instances = click.option(
    "--instance",
    "instances",
    multiple=True,
    metavar="NAME",
    help="An enrolled instance; `enrolled`: each that you enrolled for this key; `any`: every guest whose hardware's "
    "maker the broker trusts. [repeatable]",
)
named_platforms = click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="TEE",
    help="A platform. [repeatable; default: those of the images, but never sev; tpm where an image is not there yet]",
)
whole_file = click.option(
    "--file", type=click.Path(path_type=Path), help="The whole rule as TOML, instead of the options above."
)


def body(
    client: Caller, images: tuple[str, ...], instances: tuple[str, ...], platforms: tuple[str, ...], file: Path | None
) -> dict[str, Any]:
    """The rule as it is sent. Raises click.UsageError."""
    if file is not None:
        if images or instances or platforms:
            raise click.UsageError("--file holds the whole rule: leave the other options out.")
        return parse_rule(read_text(file)).to_body()
    if not images or not instances:
        raise click.UsageError("A rule names at least one --image and one --instance: what it leaves out is denied.")
    return {"images": [*images], "platforms": [*platforms] or _platforms(client, images), "instances": [*instances]}


def _platforms(client: Caller, images: tuple[str, ...]) -> list[str]:
    """The platforms of the images, if all are there. SEV is weaker than all others, so it is never chosen unnamed."""
    found = set()
    for image in images:
        name, _, version = image.partition("@")
        path = path_of("images", name)
        try:
            found.add(client.call("GET", f"{path}?{urlencode({'version': version})}" if version else path)["platform"])
        except (NotFound, ProtocolError):  # not there, or no name, which the broker says when it is given the rule
            return [str(Tee.TPM)]
    if str(Tee.SEV) in found:
        raise click.UsageError("An image is for sev, the weakest platform: say so with --platform sev.")
    return sorted(found)


def print_rule(rule: dict[str, Any]) -> None:
    options = {name: rule[name] for name in OPTIONS if rule[name] not in (False, CLONES[0])}
    if rule["clones"] == CLONES[0]:
        options.pop("lease_s")
    fields([*((name, ", ".join(rule[name])) for name in LISTS), *options.items()], indent=2)
