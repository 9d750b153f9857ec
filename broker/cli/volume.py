# SPDX-License-Identifier: Apache-2.0
"""`roomkey volume`: which volume a key is for."""

from __future__ import annotations

import click

from broker.cli.options import as_owner, json_flag, key_path, why
from broker.owner_client import Caller, path_of
from broker.terminal import next_step, print_json, table, when
from keys.messages import ResourcePath


@click.group()
def volume() -> None:
    """Pin the LUKS2 volume that a key is for: its agent opens no other one with it.

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


@volume.command("list")
@json_flag
@as_owner
def list_(client: Caller, as_json: bool) -> None:
    """List pinned volumes.

    \b
    Example:
      roomkey volume list
    """
    volumes = client.call("GET", path_of("volumes"))["volumes"]
    if as_json:
        print_json(volumes)
        return
    table(
        ("key", "pin", "since"),
        [(one["path"], one["pin"], when(one["created_at"])) for one in volumes],
        empty="No volume is pinned: roomkey volume pin OWNER/TYPE/TAG PIN",
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
