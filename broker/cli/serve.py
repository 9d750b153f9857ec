# SPDX-License-Identifier: Apache-2.0
"""`roomkey serve`."""

from __future__ import annotations

from pathlib import Path

import click

from broker import serve as server
from broker.cli.operator import load_config
from broker.cli.options import config_file


@click.command()
@config_file
def serve(config_path: Path) -> None:
    """Run the broker in the foreground, until it is told to stop (SIGTERM, Ctrl-C).

    \b
    Example:
      roomkey serve --config broker.toml
    """
    load_config(config_path)  # a file that is not there gets its own words
    server.serve(config_path)
