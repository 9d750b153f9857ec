# SPDX-License-Identifier: Apache-2.0
"""`roomkey decision`: what the broker decided, and why."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import click

from broker.cli.decision_bundle import export, replay_
from broker.cli.options import as_owner, json_flag, verbose_flag
from broker.ledger import ATTEST, CHANGE, READMIT, RELEASE
from broker.owner_client import Caller, path_of
from broker.terminal import fields, next_step, print_json, table, trace, verdict, when

# What of a line's body is shown above the trace, and under which name; --json has all of it.
_BODY = {
    "version": "key version",
    "image": "image",
    "names": "instance",
    "instances": "ids",
    "tee": "platform",
    "evidence": "evidence's SHA-256",
    "who": "by",
    "why": "why",
}


@click.group()
def decision() -> None:
    """Decisions: every attempt to attest or to get a key, and every change, with all checks.

    A guest that was refused shows a decision id, like d-mfrggzdfmztwq2lknnwg. Nothing else: the reasons are here.

    \b
    Example:
      roomkey decision show d-mfrggzdfmztwq2lknnwg
    """


decision.add_command(export)
decision.add_command(replay_)


@decision.command("list")
@click.option("--kind", type=click.Choice([ATTEST, RELEASE, READMIT, CHANGE]), help="Only these.")
@click.option("--subject", help="Only about this instance id or thing.")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="How many.")
@click.option("--before", type=click.IntRange(1), help="Go on from here: the `next` of an earlier answer.")
@json_flag
@as_owner
def list_(client: Caller, kind: str | None, subject: str | None, limit: int, before: int | None, as_json: bool) -> None:
    """List decisions, the newest first.

    \b
    Example:
      roomkey decision list --kind release
    """
    query = {"kind": kind, "subject": subject, "before": before, "limit": limit}
    page = client.call(
        "GET", path_of("decisions") + "?" + urlencode({name: value for name, value in query.items() if value})
    )
    if as_json:
        print_json(page)
        return
    table(
        ("id", "at", "kind", "verdict", "key", "subject"),
        [(d["id"], when(d["at"]), d["kind"], d["verdict"], d["key"] or "", d["subject"]) for d in page["decisions"]],
        empty="No decisions.",
    )
    if page["next"] is not None:
        next_step(f"More: --before {page['next']}")


@decision.command()
@click.argument("id_", metavar="ID")
@verbose_flag
@json_flag
@as_owner
def show(client: Caller, id_: str, verbose: bool, as_json: bool) -> None:
    """Show one decision: every check in order, and at the end what failed and what mends it.

    \b
    Example:
      roomkey decision show d-mfrggzdfmztwq2lknnwg
    """
    shown = client.call("GET", path_of("decisions", id_))
    if as_json:
        print_json(shown)
        return
    body: dict[str, Any] = shown["body"]
    click.echo(f"{shown['kind']}  {verdict(shown['verdict'])}")
    fields(
        [
            ("decision", shown["id"]),
            ("at", when(shown["at"])),
            ("key", shown["key"]),
            ("subject", shown["subject"]),
            *((label, _words(body.get(name))) for name, label in _BODY.items()),
        ],
        indent=2,
    )
    trace(body.get("trace", []), verbose=verbose)


def _words(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(value) if isinstance(value, list) else str(value)
