# SPDX-License-Identifier: Apache-2.0
"""`roomkey ledger`: whether the record of decisions is whole."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli.operator import opened
from broker.cli.options import config_file, json_flag
from broker.terminal import print_json


@click.group()
def ledger() -> None:
    """The append-only record of all decisions and changes.

    \b
    Example:
      roomkey ledger verify --config broker.toml
    """


@ledger.command()
@config_file
@json_flag
def verify(config_path: Path, as_json: bool) -> None:
    """Recompute the chain of hashes over every line of the ledger.

    An unbroken chain shows that no line was changed, removed or put in between by anybody who did not also compute all
    later lines anew.

    \b
    Example:
      roomkey ledger verify --config broker.toml
    """
    with opened(config_path) as (_, store):
        lines = store.verify_chain()
    if as_json:
        print_json({"lines": lines, "chained": True})
    else:
        click.echo(f"{lines} lines, one unbroken chain")
