# SPDX-License-Identifier: Apache-2.0
"""`roomkey distrust`: what counts no more from the next request on, whatever the rules say."""

from __future__ import annotations

from typing import Any

import click

from broker.appraisal.distrust import KINDS
from broker.cli.options import as_owner, confirmed, json_flag, why
from broker.cli.try_report import TRUNCATED, days
from broker.owner_client import Caller, path_of
from broker.terminal import next_step, print_json, table, when


@click.group()
def distrust() -> None:
    """Distrust a platform, a product line, a processor, an old TCB or an image, for all your keys at once.

    \b
    Examples:
      roomkey distrust product milan --why "arXiv 2605.12990"
      roomkey distrust tcb-below "Genoa snp=24"
      roomkey distrust list
    """


def _put(client: Caller, kind: str, value: str, days: int, yes: bool, why: str) -> None:
    preview = client.call("POST", path_of("distrust-preview"), {"kind": kind, "value": value, "days": days})
    table(
        ("guest", "known as", "key", "image", "last released", "because it is"),
        [
            (a["guest"], ", ".join(a["names"]), a["key"], a["image"], when(a["at"]), a["found"])
            for a in preview["affected"]
        ],
        empty=f"Nobody who got a key in the last {days} days is touched.",
    )
    if preview["truncated"]:
        next_step(TRUNCATED)
    if not yes:
        click.confirm(f"\nDistrust {preview['name']}?", abort=True, err=True)
    stored = client.call("PUT", path_of("distrust"), {"kind": kind, "value": value, "why": why})
    click.echo(f"{stored['name']} is distrusted from now on")
    next_step(f"To undo it: roomkey distrust undo {stored['name']!r}")


def _command(kind: str) -> click.Command:
    @click.command(kind, short_help=f"Distrust a {kind}.")
    @click.argument("value")
    @days
    @confirmed
    @why
    @as_owner
    def run(client: Caller, value: str, days: int, yes: bool, why: str) -> None:
        _put(client, kind, value, days, yes, why)

    run.help = _HELP[kind]
    return run


_HELP = {
    "platform": "Distrust a platform, like sev.\n\n\b\nExample:\n  roomkey distrust platform sev",
    "product": "Distrust a line of processors.\n\n\b\nExample:\n  roomkey distrust product milan",
    "chip": "Distrust one processor, by its hardware id in hex.\n\n\b\nExample:\n  roomkey distrust chip 4d1c...",
    "tcb-below": "Distrust machines of a line whose reported TCB is lower in any component.\n\n\b\nExample:\n"
    '  roomkey distrust tcb-below "Genoa snp=24"',
    "image": "Distrust an image, or one version of it.\n\n\b\nExample:\n  roomkey distrust image debian-12@3",
}
for _kind in KINDS:
    distrust.add_command(_command(_kind))


@distrust.command("list")
@json_flag
@as_owner
def list_(client: Caller, as_json: bool) -> None:
    """List what is distrusted.

    \b
    Example:
      roomkey distrust list
    """
    found: list[dict[str, Any]] = client.call("GET", path_of("distrust"))["distrusted"]
    if as_json:
        print_json(found)
        return
    table(
        ("distrusted", "since", "by", "why"),
        [(d["name"], when(d["since"]), d["by"], d["why"]) for d in found],
        empty="Nothing is distrusted.",
    )


@distrust.command()
@click.argument("name", metavar="KIND:VALUE")
@why
@as_owner
def undo(client: Caller, name: str, why: str) -> None:
    """Trust it again, as far as the rules do.

    \b
    Example:
      roomkey distrust undo product:Milan --why "boards replaced"
    """
    client.call("DELETE", path_of("distrust", name), {"why": why})
    click.echo(f"{name} is no longer distrusted")
