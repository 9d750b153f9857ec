# SPDX-License-Identifier: Apache-2.0
"""`roomkey key`: an owner's keys. Their bytes go in through a file or standard input, and never come out here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from broker.cli import recovery
from broker.cli.options import as_owner, confirm_by_typing, confirmed, json_flag, key_path, read_input, why
from broker.owner_client import Caller, path_of
from broker.terminal import next_step, print_json, table, when
from keys import b64
from keys.errors import ConfigError
from keys.jwe import MAX_PLAINTEXT_BYTES
from keys.messages import ResourcePath

MAX_RANDOM_BYTES = 1024  # of a key that the broker makes


@click.group()
def key() -> None:
    """Put, generate, list, rotate and destroy keys; make recovery passphrases.

    A key's path is OWNER/TYPE/TAG; OWNER is you. No key is released before it has a rule (roomkey rule set).

    \b
    Example:
      roomkey key generate acme/disk/web-root
    """


@key.command()
@key_path
@click.option("--from-file", "file", type=click.Path(path_type=Path), help="The key's bytes. [default: standard input]")
@why
@as_owner
def put(client: Caller, path: ResourcePath, file: Path | None, why: str) -> None:
    """Store bytes of yours as a key; the next version where the path has one already.

    \b
    Example:
      roomkey key put acme/disk/web-root --from-file disk.key
    """
    if file is None and _stdin_is_a_terminal():
        raise ConfigError("no key given", mend="use --from-file FILE, or pipe it in; a key is no argument")
    data = read_input(file or Path("-"), max_bytes=MAX_PLAINTEXT_BYTES)
    if not data:
        raise ConfigError("the key is empty")
    if data.endswith(b"\n"):
        next_step("Note: the key ends with a line feed, which is part of it.")
    _report(client.call("PUT", _path(path), {"key": b64.std(data), "why": why}), path)


@key.command()
@key_path
@click.option("--bytes", "size", type=click.IntRange(16, MAX_RANDOM_BYTES), default=32, show_default=True)
@why
@as_owner
def generate(client: Caller, path: ResourcePath, size: int, why: str) -> None:
    """Let the broker make a random key. Nobody sees it but the guests that its rule allows.

    \b
    Example:
      roomkey key generate acme/disk/web-root
    """
    _report(client.call("POST", _path(path, "generate"), {"bytes": size, "why": why}), path)


@key.command()
@key_path
@click.option("--now", is_flag=True, help="Do not wait for the volume's guest. A disk must be given the key by hand.")
@why
@as_owner
def rotate(client: Caller, path: ResourcePath, now: bool, why: str) -> None:
    """Replace a key by a new random one.

    Where the broker knows the key's volume, the new version waits for its guest: at its next boot it opens the volume
    with the old one, puts the new one into a keyslot, and takes the old one's away. Otherwise guests get the new
    version, of the same size, from now on.

    \b
    Example:
      roomkey key rotate acme/disk/web-root --why "yearly"
    """
    rotated = client.call("POST", _path(path, "rotate"), {"at_once": now, "why": why})
    if rotated["version"] is not None:
        _report(rotated, path)
        return
    click.echo(f"{path}: a new version waits for the guest")
    next_step("At its next boot the guest changes its volume to it. See: roomkey volume list")


@key.command("list")
@json_flag
@as_owner
def list_(client: Caller, as_json: bool) -> None:
    """List your keys. Their bytes are never shown.

    \b
    Example:
      roomkey key list --json
    """
    keys = client.call("GET", path_of("keys"))["keys"]
    if as_json:
        print_json(keys)
        return
    table(
        ("path", "version", "state", "created", "by"),
        [(k["path"], k["version"], k["state"], when(k["created_at"]), k["created_by"]) for k in keys],
        empty="No keys yet. Make one: roomkey key generate OWNER/TYPE/TAG",
    )


@key.command()
@key_path
@json_flag
@as_owner
def show(client: Caller, path: ResourcePath, as_json: bool) -> None:
    """Show a key's versions. Its bytes are never shown.

    \b
    Example:
      roomkey key show acme/disk/web-root
    """
    shown = client.call("GET", _path(path))
    if as_json:
        print_json(shown)
        return
    table(
        ("version", "state", "created", "by"),
        [(v["version"], v["state"], when(v["created_at"]), v["created_by"]) for v in shown["versions"]],
        empty="",
    )


@key.command()
@key_path
@confirmed
@why
@as_owner
def destroy(client: Caller, path: ResourcePath, yes: bool, why: str) -> None:
    """Erase all versions of a key, for ever. What it encrypts is lost unless another key opens it.

    \b
    Example:
      roomkey key destroy acme/disk/web-root --why "machine scrapped"
    """
    if not yes:
        confirm_by_typing(str(path), act="destroy it for ever")
    erased = client.call("DELETE", _path(path), {"why": why})
    click.echo(f"{path} destroyed: {erased['erased']} versions erased")


key.add_command(recovery.recovery)
key.add_command(recovery.recover)


def _stdin_is_a_terminal() -> bool:
    return sys.stdin.isatty()


def _path(path: ResourcePath, *more: str) -> str:
    return path_of("keys", *path, *more)


def _report(stored: dict[str, Any], path: ResourcePath) -> None:
    click.echo(f"{path} version {stored['version']} stored")
    next_step(f"Who may have it: roomkey rule show {path}")
