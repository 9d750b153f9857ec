# SPDX-License-Identifier: Apache-2.0
"""What `roomkey rule try` and `roomkey image try` print: for each guest what would become of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from broker.cli.options import as_owner, json_flag, read_text
from broker.owner_client import Caller, path_of
from broker.terminal import next_step, print_json, table, when

days = click.option(
    "--days", type=click.IntRange(1, 366), default=30, show_default=True, help="How far back requests are looked at."
)

TRUNCATED = "Note: there were more requests than one report looks at; these are the newest. Take fewer --days."


@click.command("try")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@days
@json_flag
@as_owner
def image_try(client: Caller, name: str, file: Path, days: int, as_json: bool) -> None:
    """Say who would newly be refused or let in if FILE were the newest version of the image NAME.

    Nothing is stored: the recorded requests for keys whose rules name the image are judged again.

    \b
    Example:
      roomkey image try debian-12 debian-12.toml --days 90
    """
    report = client.call("POST", path_of("images", name, "try"), {"toml": read_text(file), "days": days})
    print_report(report, as_json=as_json)


def print_report(report: dict[str, Any], *, as_json: bool) -> None:
    """One line a guest and key; `--json` has every decision."""
    if as_json:
        print_json(report)
        return
    click.echo(f"{report['looked_at']} requests in that time, {report['judged']} of them for keys that this touches.")
    print_turned(report)


def print_turned(report: dict[str, Any]) -> None:
    """Who would newly be refused or let in."""
    _group("Newly refused", report["refused"], "Nobody would newly be refused.")
    _group("Newly let in", report["let_in"], "Nobody would newly be let in.")
    if report["truncated"]:
        next_step("\n" + TRUNCATED)


def _group(heading: str, turned: Sequence[dict[str, Any]], nobody: str) -> None:
    counts = Counter((one["guest"], one["key"]) for one in turned)
    newest = {(one["guest"], one["key"]): one for one in reversed(turned)}  # they come newest first
    if not counts:
        click.echo(f"\n{nobody}")
        return
    click.secho(f"\n{heading} ({len(counts)} guest{'s' if len(counts) > 1 else ''})", bold=True)
    table(
        ("guest", "key", "requests", "last", "because"),
        [
            (guest, key, count, when(newest[guest, key]["at"]), newest[guest, key]["reason"])
            for (guest, key), count in counts.items()
        ],
        empty="",
    )
