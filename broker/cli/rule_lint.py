# SPDX-License-Identifier: Apache-2.0
"""`roomkey rule lint`: whom a rule would let in and should not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from broker.appraisal.registers import title
from broker.cli.options import as_owner, json_flag, key_path
from broker.cli.rule_options import body, named_images, named_instances, named_platforms, whole_file
from broker.owner_client import Caller, path_of
from broker.terminal import fields, next_step, print_json, printable
from keys.messages import ResourcePath

WEAK = 1  # exit status
MAX_CHANGES = 6  # that are shown of one guest
MAX_VALUE_CHARS = 24


@click.command()
@key_path
@named_images
@named_instances
@named_platforms
@whole_file
@json_flag
@as_owner
@click.pass_context
def lint(
    ctx: click.Context, client: Caller, path: ResourcePath, images: tuple[str, ...], instances: tuple[str, ...],
    platforms: tuple[str, ...], file: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Make up guests that the rule of a key lets in and should not: the rule in force, or one that you describe.

    Each is judged by the broker's own engine before it is shown; --json has all that it would show. Exit status 0: none
    was found, 1: some were. That none is found says nothing about what is not tried: docs/images.md.

    \b
    Examples:
      roomkey rule lint acme/disk/web-root
      roomkey rule lint acme/disk/web-root --image debian-12 --instance enrolled
    """
    target = path_of("rules", *path) + "/lint"
    if images or instances or platforms or file is not None:
        found = client.call("POST", target, body(client, images, instances, platforms, file))
    else:
        found = client.call("GET", target)
    if as_json:
        print_json(found)
    else:
        _show(found)
    ctx.exit(WEAK if found["weaknesses"] else 0)


def _show(found: dict[str, Any]) -> None:
    if not found["examined"]:
        click.echo("Nobody is let in by this rule yet, so there is nothing to say of it.")
        next_step("It needs an image that counts, and a machine that is enrolled (or `any`).")
        return
    for weakness in found["weaknesses"]:
        click.secho(f"\n{printable(weakness['image'])} on {weakness['platform']}: {weakness['kind']}", bold=True)
        click.echo(f"  lets in: {printable(weakness['what'])}")
        changes = weakness["changes"]
        fields([(_name(c["what"]), f"{_short(c['good'])} -> {_short(c['bad'])}") for c in changes[:MAX_CHANGES]],
               indent=4)  # fmt: skip
        if len(changes) > MAX_CHANGES:
            click.echo(f"    and {len(changes) - MAX_CHANGES} more values (--json has all)")
        click.echo(f"  to mend it: {printable(weakness['mend'])}")
    count = len(found["weaknesses"])
    summary = f"{count} weakness{'es' if count != 1 else ''} found" if count else "No weakness found"
    click.echo(f"\n{summary}; looked at {', '.join(map(printable, found['examined']))}.")


def _name(what: str) -> str:
    return title(what) if ":" in what else what


def _short(value: str) -> str:
    return value if len(value) <= MAX_VALUE_CHARS else value[: MAX_VALUE_CHARS - 1] + "…"
