# SPDX-License-Identifier: Apache-2.0
"""`roomkey volume`: which volume a key is for."""

from __future__ import annotations

from typing import Any

import click

from broker.cli.options import as_owner, json_flag, key_path, why
from broker.owner_client import Caller, path_of
from broker.terminal import next_step, print_json, table, when
from keys.messages import ResourcePath

_STATES = {"ordered": "(ordered)", "begun": "(a guest has begun it)"}
_STEPS = {"add": "adds the new key", "remove": "removes the old key", "recovery": "adds the recovery passphrase"}


def _waits(volume: dict[str, Any]) -> str:
    if volume["state"] != "known":
        return "makes it"
    return ", ".join(_STEPS[step] for step in volume["waits"])


@click.group()
def volume() -> None:
    """Order a new volume for a key, or pin the LUKS2 volume that a key is for: its agent opens no other one with it.

    The host owns the disk, and can put another volume in its place. A pin stays the same when passphrases come and go;
    it is printed by roomkey-agent, when it opens a volume that is not pinned, and by roomkey-agent luks check.

    \b
    Example:
      roomkey-agent luks check /dev/vdb
      roomkey volume pin acme/disk/web-root 5a0c...
    """


@volume.command()
@key_path
@click.argument("pin", metavar="PIN")
@why
@as_owner
def pin(client: Caller, path: ResourcePath, pin: str, why: str) -> None:
    """Say which volume the key at OWNER/TYPE/TAG is for.

    \b
    Example:
      roomkey volume pin acme/disk/web-root 5a0c...
    """
    client.call("PUT", path_of("volumes", *path), {"pin": pin, "why": why})
    click.echo(f"{path} is for the volume {pin}")
    next_step("From the next release on the guest's agent opens this one only.")


@volume.command()
@key_path
@click.option("--again", is_flag=True, help="Also where there is a key: what it opens, the new one does not.")
@why
@as_owner
def provision(client: Caller, path: ResourcePath, again: bool, why: str) -> None:
    """Order a new volume for a key: one guest, the first that the key's rule lets in, makes it and tells its pin.

    The broker makes the key. From then on an empty or another disk is no reason to make a new one, but refused.

    \b
    Example:
      roomkey volume provision acme/disk/web-1
    """
    client.call("POST", path_of("volumes", *path, "provision"), {"again": again, "why": why})
    click.echo(f"{path}: a new key, for a volume that is to be made")
    next_step(f"In the guest: roomkey-agent enroll DEVICE --key {path}")
    next_step(f"Who may have it: roomkey rule show {path}")


@volume.command("list")
@json_flag
@as_owner
def list_(client: Caller, as_json: bool) -> None:
    """List volumes: which ones are known or ordered, and what their guests will do to their keyslots.

    \b
    Example:
      roomkey volume list
    """
    volumes = client.call("GET", path_of("volumes"))["volumes"]
    if as_json:
        print_json(volumes)
        return
    table(
        ("key", "pin", "waits for its guest's next boot", "since"),
        [(one["path"], one["pin"] or _STATES[one["state"]], _waits(one), when(one["created_at"])) for one in volumes],
        empty="No volume is known: roomkey volume pin OWNER/TYPE/TAG PIN, or for a new one roomkey volume provision",
    )


@volume.command()
@key_path
@why
@as_owner
def unpin(client: Caller, path: ResourcePath, why: str) -> None:
    """Let the key at OWNER/TYPE/TAG open any sound volume again.

    \b
    Example:
      roomkey volume unpin acme/disk/web-root --why "encrypted anew"
    """
    client.call("DELETE", path_of("volumes", *path), {"why": why})
    click.echo(f"{path} is not for one volume any more")
