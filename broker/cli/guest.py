# SPDX-License-Identifier: Apache-2.0
"""`roomkey guest`: which machines may come, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from broker.cli.options import KeyPath, as_owner, confirm_by_typing, confirmed, json_flag, why
from broker.owner_client import Caller, path_of
from broker.owner_identity import write_new
from broker.terminal import next_step, print_json, table, when
from keys.messages import ResourcePath


@click.group()
def guest() -> None:
    """Guests: the machines that your keys go to, and those that wait for your word.

    \b
    Example:
      roomkey guest list
    """


@guest.command("list")
@click.option("--pending", is_flag=True, help="Only those that wait for your word.")
@json_flag
@as_owner
def list_(client: Caller, pending: bool, as_json: bool) -> None:
    """List the machines that you know, and where each stands.

    \b
    Example:
      roomkey guest list --pending
    """
    guests = client.call("GET", path_of("guests"))["guests"]
    if pending:
        guests = [one for one in guests if one["standing"] == "pending"]
    if as_json:
        print_json(guests)
        return
    table(
        ("guest", "standing", "since", "for key", "image", "id", "why"),
        [
            (g["name"], g["standing"], when(g["since"]), g["key"] or "all that name it", g["image"] or "", g["ids"][0],
             g["why"])
            for g in guests
        ],
        empty="No guests. Enrol one (roomkey instance add), or issue a ticket (roomkey guest ticket).",
    )  # fmt: skip


@guest.command()
@click.argument("name")
@click.option("--key", "path", type=KeyPath(), required=True, metavar="OWNER/TYPE/TAG", help="The key that it is for.")
@click.option("--image", required=True, metavar="NAME[@VERSION]", help="The image that the guest must run.")
@click.option("--hours", type=click.IntRange(1, 720), default=24, show_default=True, help="How long it is good.")
@click.option("--output", type=click.Path(path_type=Path), help="A new file for the ticket, mode 0600.")
@why
@as_owner
def ticket(
    client: Caller, name: str, path: ResourcePath, image: str, hours: int, output: Path | None, why: str
) -> None:
    """Issue a ticket: the one guest that shows it first is enrolled as NAME, for this key and image.

    The ticket goes to standard output, or into a file. Whoever has it can come in your guest's place, if he runs that
    image: bring it there by a way that you trust.

    \b
    Example:
      roomkey guest ticket web-3 --key acme/disk/web-root --image debian-12 --output web-3.ticket
    """
    body = {"guest": name, "key": str(path), "image": image, "lifetime_s": hours * 3600, "why": why}
    issued = client.call("POST", path_of("tickets"), body)
    if output is None:
        click.echo(issued["ticket"])
    else:
        write_new(output, issued["ticket"].encode() + b"\n", 0o600)
    next_step(f"Good for one guest until {when(issued['expires_at'])}. In the guest:")
    next_step(f"  roomkey-agent unlock DEVICE --key {path} --ticket FILE")
    next_step(f"The key's rule must name {name}, or `enrolled`: roomkey rule show {path}")


@guest.command()
@json_flag
@as_owner
def tickets(client: Caller, as_json: bool) -> None:
    """List tickets, used and unused. Their texts are kept nowhere.

    \b
    Example:
      roomkey guest tickets
    """
    found = client.call("GET", path_of("tickets"))["tickets"]
    if as_json:
        print_json(found)
        return
    table(
        ("ticket", "guest", "key", "image", "good until", "used by"),
        [(t["name"], t["guest"], t["key"], t["image"], when(t["expires_at"]), t["used_by"] or "") for t in found],
        empty="No tickets.",
    )


@guest.command("withdraw")
@click.argument("ticket")
@why
@as_owner
def withdraw(client: Caller, ticket: str, why: str) -> None:
    """Withdraw a ticket, by its name in `roomkey guest tickets`.

    \b
    Example:
      roomkey guest withdraw 5d41402abc4b2a76...
    """
    client.call("DELETE", path_of("tickets", ticket), {"why": why})
    click.echo("ticket withdrawn")


@guest.command()
@click.argument("name")
@click.option("--as", "new", metavar="NAME", help="What it is called from now on.")
@why
@as_owner
def approve(client: Caller, name: str, new: str | None, why: str) -> None:
    """Enrol a guest that waits, for the key and image that it asked with.

    \b
    Example:
      roomkey guest approve g-1f0c6a1e7d21 --as web-4
    """
    _say(client.call("POST", path_of("guests", name, "approve"), {"name": new, "why": why}))


@guest.command()
@click.argument("name")
@why
@as_owner
def deny(client: Caller, name: str, why: str) -> None:
    """Tell a guest that waits no. It does not wait again.

    \b
    Example:
      roomkey guest deny g-1f0c6a1e7d21 --why "not ours"
    """
    _say(client.call("POST", path_of("guests", name, "deny"), {"why": why}))


@guest.command()
@click.argument("name")
@confirmed
@why
@as_owner
def revoke(client: Caller, name: str, yes: bool, why: str) -> None:
    """Give a guest no key any more, under whatever rule, from its next request on. `readmit` undoes it.

    \b
    Example:
      roomkey guest revoke web-1 --why "stolen"
    """
    if not yes:
        rules = client.call("GET", path_of("rules"))["rules"]
        touched = [r["path"] for r in rules if {name, "enrolled", "any"} & set(r["instances"])]
        next_step(f"Keys whose rules could let it in: {', '.join(touched) or 'none'}")
        confirm_by_typing(name, act="revoke it")
    _say(client.call("POST", path_of("guests", name, "revoke"), {"why": why}))


@guest.command()
@click.argument("name")
@why
@as_owner
def readmit(client: Caller, name: str, why: str) -> None:
    """Let a guest in again that was revoked, failed or quarantined, or whose TPM shows an older clock than before.

    A clock goes back when the TPM was cleared, and when somebody restored the machine from a snapshot: find out which.

    \b
    Example:
      roomkey guest readmit web-1 --why "TPM cleared at the board's replacement"
    """
    _say(client.call("POST", path_of("guests", name, "readmit"), {"why": why}))
    next_step("It may start again from any clock.")


def _say(guest: dict[str, Any]) -> None:
    click.echo(f"guest {guest['name']} is {guest['standing']}")
