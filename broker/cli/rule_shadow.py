# SPDX-License-Identifier: Apache-2.0
"""`roomkey rule shadow`: a rule that is judged beside the one in force, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from broker.cli.options import as_owner, json_flag, key_path, why
from broker.cli.rule_options import body, named_images, named_instances, named_platforms, print_rule, whole_file
from broker.cli.try_report import days, print_turned
from broker.owner_client import Caller, path_of
from broker.terminal import next_step, print_json, when
from keys.messages import ResourcePath


@click.group()
def shadow() -> None:
    """Judge a rule beside the one in force, without ever changing a verdict.

    With each decision the broker notes what the shadow would have said. It may name an image version that is only
    proposed: so a new image is tried on the guests before it is approved.

    \b
    Example:
      roomkey rule shadow set acme/disk/web-root --image debian-12@5 --instance enrolled
    """


@shadow.command("set")
@key_path
@named_images
@named_instances
@named_platforms
@whole_file
@why
@as_owner
def set_(
    client: Caller, path: ResourcePath, images: tuple[str, ...], instances: tuple[str, ...],
    platforms: tuple[str, ...], file: Path | None, why: str,
) -> None:  # fmt: skip
    """Judge this rule beside the one in force, from the next request on.

    \b
    Example:
      roomkey rule shadow set acme/disk/web-root --image debian-12@5 --instance enrolled
    """
    stored = client.call("PUT", _path(path), body(client, images, instances, platforms, file) | {"why": why})
    click.echo(f"shadow of the rule of {path}, version {stored['version']}")
    print_rule(stored)
    next_step(f"What it would have said: roomkey rule shadow show {path}")


@shadow.command()
@key_path
@days
@json_flag
@as_owner
def show(client: Caller, path: ResourcePath, days: int, as_json: bool) -> None:
    """Show a shadow, and whom it would have refused or let in since it was set.

    \b
    Example:
      roomkey rule shadow show acme/disk/web-root --days 7
    """
    shown = client.call("GET", f"{_path(path)}?{urlencode({'days': days})}")
    if as_json:
        print_json(shown)
        return
    rule: dict[str, Any] = shown["rule"]
    click.echo(f"shadow of the rule of {path}, version {rule['version']}, set {when(rule['created_at'])}")
    print_rule(rule)
    click.echo(f"\njudged beside {shown['judged']} decisions" + _faults(shown["failed"]))
    print_turned(shown)
    next_step("\nTo put it in force, give its options to roomkey rule set; to end it: roomkey rule shadow delete")


@shadow.command()
@key_path
@why
@as_owner
def delete(client: Caller, path: ResourcePath, why: str) -> None:
    """Judge no shadow beside the rule any more.

    \b
    Example:
      roomkey rule shadow delete acme/disk/web-root
    """
    client.call("DELETE", _path(path), {"why": why})
    click.echo(f"the rule of {path} has no shadow any more")


def _path(path: ResourcePath) -> str:
    return path_of("rules", *path) + "/shadow"


def _faults(count: int) -> str:
    return f"; at {count} it could not be judged" if count else ""
