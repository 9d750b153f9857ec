# SPDX-License-Identifier: Apache-2.0
"""`roomkey floors`: what the operator demands of SEV-SNP machines, tried before it is in force."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from broker import tomltext
from broker.cli.operator import opened
from broker.cli.options import config_file, json_flag, read_text
from broker.cli.try_report import TRUNCATED, days
from broker.requests import DAY_MS
from broker.services import now_ms
from broker.terminal import next_step, print_json, table, when
from broker.verifiers.snp_floors import parse_floors
from broker.what_if_floors import Turned, try_floors


@click.group()
def floors() -> None:
    """The operator's floors for SEV-SNP: what every guest must show, whatever its image says.

    \b
    Example:
      roomkey floors try new-floors.toml --config broker.toml
    """


@floors.command("try")
@click.argument("file", type=click.Path(path_type=Path))
@days
@config_file
@json_flag
def try_(file: Path, days: int, config_path: Path, as_json: bool) -> None:
    """Say whose evidence would newly be refused or taken if the settings in FILE (TOML, as in [snp]) replaced those of
    the config. Nothing is changed; the recorded attempts of all owners' guests are judged again.

    \b
    Example:
      roomkey floors try new-floors.toml --days 90 --config broker.toml
    """
    with opened(config_path) as (config, store):
        live = config.snp.floors
        candidate = parse_floors(tomltext.loads(read_text(file), name=str(file)), live)
        report = try_floors(live, candidate, store, since=now_ms() - days * DAY_MS)
    if as_json:
        print_json(asdict(report) | {name: [one._asdict() for one in getattr(report, name)]
                                     for name in ("refused", "let_in")})  # fmt: skip
        return
    click.echo(f"{report.judged} attempts of genuine SEV-SNP guests in that time.")
    _group("Newly refused", report.refused, "Nobody would newly be refused.")
    _group("Newly taken", report.let_in, "Nobody would newly be taken.")
    if report.truncated:
        next_step("\n" + TRUNCATED)
    next_step("\nTo put them in force, write them into [snp] of the config and restart the broker.")


def _group(heading: str, turned: list[Turned], nobody: str) -> None:
    newest: dict[tuple[str, str, str], Turned] = {}
    for one in turned:  # the newest first
        newest.setdefault((one.owner, one.guest, one.key), one)
    if not newest:
        click.echo(f"\n{nobody}")
        return
    click.secho(f"\n{heading} ({len(newest)} guest{'s' if len(newest) > 1 else ''})", bold=True)
    table(
        ("owner", "guest", "key", "last", "because"),
        [(one.owner, one.guest, one.key, when(one.at), one.reason) for one in newest.values()],
        empty="",
    )
