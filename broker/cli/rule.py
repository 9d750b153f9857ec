# SPDX-License-Identifier: Apache-2.0
"""`roomkey rule`: for each key, who may have it."""

from __future__ import annotations

from pathlib import Path

import click

from broker.appraisal.rules import ANY, ENROLLED
from broker.cli.options import as_owner, json_flag, key_path, why
from broker.cli.rule_lint import lint
from broker.cli.rule_options import LISTS, body, named_images, named_instances, named_platforms, print_rule, whole_file
from broker.cli.rule_shadow import shadow
from broker.cli.try_report import days, print_report
from broker.owner_client import Caller, path_of
from broker.terminal import fields, next_step, print_json, table, when
from keys.messages import ResourcePath


@click.group()
def rule() -> None:
    """Release rules: a key goes to the images, platforms and instances that its rule names, and to nobody else.

    \b
    Example:
      roomkey rule set acme/disk/web-root --image debian-12 --instance web-1
    """


rule.add_command(lint)
rule.add_command(shadow)


@rule.command("set")
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
    """Set the rule of a key; it replaces the one before.

    \b
    Examples:
      roomkey rule set acme/disk/web-root --image debian-12 --instance web-1 --instance web-2
      roomkey rule set acme/disk/web-root --image old --instance rack-3 --platform sev
      roomkey rule set acme/disk/web-root --file rule.toml
    """
    given = body(client, images, instances, platforms, file)
    stored = client.call("PUT", _path(path), given | {"why": why})
    click.echo(f"rule of {path}, version {stored['version']}")
    print_rule(stored)
    if ANY in stored["instances"]:
        next_step("Note: `any` means every machine in the world that boots one of these images on trusted hardware.")
    for kind in ("images", "instances"):
        _note_unknown(client, kind, stored[kind])
    next_step(f"Does it let in whom it should not? roomkey rule lint {path}")


@rule.command("try")
@key_path
@named_images
@named_instances
@named_platforms
@whole_file
@days
@json_flag
@as_owner
def try_(
    client: Caller, path: ResourcePath, images: tuple[str, ...], instances: tuple[str, ...],
    platforms: tuple[str, ...], file: Path | None, days: int, as_json: bool,
) -> None:  # fmt: skip
    """Say who would newly be refused or let in by a rule, without setting it: the recorded requests for the key are
    judged again.

    \b
    Example:
      roomkey rule try acme/disk/web-root --image debian-12 --instance enrolled --days 90
    """
    given = body(client, images, instances, platforms, file)
    print_report(client.call("POST", _path(path) + "/try", given | {"days": days}), as_json=as_json)


@rule.command()
@key_path
@json_flag
@as_owner
def show(client: Caller, path: ResourcePath, as_json: bool) -> None:
    """Show the rule of a key.

    \b
    Example:
      roomkey rule show acme/disk/web-root
    """
    shown = client.call("GET", _path(path))
    if as_json:
        print_json(shown)
        return
    fields([("rule of", shown["path"]), ("version", shown["version"]), ("set", when(shown["created_at"]))])
    print_rule(shown)


@rule.command("list")
@json_flag
@as_owner
def list_(client: Caller, as_json: bool) -> None:
    """List the rules of all your keys.

    \b
    Example:
      roomkey rule list
    """
    rules = client.call("GET", path_of("rules"))["rules"]
    if as_json:
        print_json(rules)
        return
    table(
        ("key", *LISTS, "version", "set"),
        [(r["path"], *(", ".join(r[name]) for name in LISTS), r["version"], when(r["created_at"])) for r in rules],
        empty="No rules yet, so nothing is released. Set one: roomkey rule set OWNER/TYPE/TAG --image IMAGE ...",
    )


@rule.command()
@key_path
@why
@as_owner
def delete(client: Caller, path: ResourcePath, why: str) -> None:
    """Delete the rule of a key: nobody gets the key any more.

    \b
    Example:
      roomkey rule delete acme/disk/web-root --why "web-1 was stolen"
    """
    client.call("DELETE", _path(path), {"why": why})
    click.echo(f"rule of {path} deleted: nobody gets the key now")


def _note_unknown(client: Caller, kind: str, named: list[str]) -> None:
    """A rule may come before what it names; a name that was mistyped would deny without a word, so say it."""
    known = {item["name"] for item in client.call("GET", path_of(kind))[kind]} | {ANY, ENROLLED}
    unknown = [name for name in named if name.partition("@")[0] not in known]
    if unknown:
        next_step(f"Note: you have no {kind} named {', '.join(unknown)} yet; until then they let nobody in.")


def _path(path: ResourcePath) -> str:
    return path_of("rules", *path)
