# SPDX-License-Identifier: Apache-2.0
"""`roomkey decision`: what the broker decided, and why."""

from __future__ import annotations

from urllib.parse import urlencode

import click

from broker.cli.decision_bundle import export, replay_
from broker.cli.decision_show import show
from broker.cli.options import as_owner, json_flag
from broker.ledger import ATTEST, CHANGE, READMIT, RELEASE
from broker.owner_client import Caller, path_of
from broker.terminal import next_step, print_json, table, when


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
decision.add_command(show)


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
