# SPDX-License-Identifier: Apache-2.0
"""`roomkey rule`: for each key, who may have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from broker.appraisal.rules import ANY, CLONES, ENROLLED, parse_rule
from broker.cli.options import as_owner, json_flag, key_path, read_text, why
from broker.cli.try_report import days, print_report
from broker.owner_client import Caller, path_of
from broker.terminal import fields, next_step, print_json, table, when
from keys.errors import NotFound, ProtocolError
from keys.messages import ResourcePath
from keys.tee import Tee

LISTS = ("images", "platforms", "instances")
OPTIONS = ("clones", "lease_s", "sticky_failure", "unsafe_first_use")


named_images = click.option(
    "--image",
    "images",
    multiple=True,
    metavar="NAME[@VERSION]",
    help="An image that may have the key; without a version the newest active one, and those that retire. [repeatable]",
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


@click.group()
def rule() -> None:
    """Release rules: a key goes to the images, platforms and instances that its rule names, and to nobody else.

    \b
    Example:
      roomkey rule set acme/disk/web-root --image debian-12 --instance web-1
    """


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
    body = _body(client, images, instances, platforms, file)
    stored = client.call("PUT", _path(path), body | {"why": why})
    click.echo(f"rule of {path}, version {stored['version']}")
    _print(stored)
    if ANY in stored["instances"]:
        next_step("Note: `any` means every machine in the world that boots one of these images on trusted hardware.")
    for kind in ("images", "instances"):
        _note_unknown(client, kind, stored[kind])


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
    body = _body(client, images, instances, platforms, file)
    print_report(client.call("POST", _path(path) + "/try", body | {"days": days}), as_json=as_json)


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
    _print(shown)


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


def _body(
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


def _note_unknown(client: Caller, kind: str, named: list[str]) -> None:
    """A rule may come before what it names; a name that was mistyped would deny without a word, so say it."""
    known = {item["name"] for item in client.call("GET", path_of(kind))[kind]} | {ANY, ENROLLED}
    unknown = [name for name in named if name.partition("@")[0] not in known]
    if unknown:
        next_step(f"Note: you have no {kind} named {', '.join(unknown)} yet; until then they let nobody in.")


def _path(path: ResourcePath) -> str:
    return path_of("rules", *path)


def _print(rule: dict[str, Any]) -> None:
    options = {name: rule[name] for name in OPTIONS if rule[name] not in (False, CLONES[0])}
    if rule["clones"] == CLONES[0]:
        options.pop("lease_s")
    fields([*((name, ", ".join(rule[name])) for name in LISTS), *options.items()], indent=2)
