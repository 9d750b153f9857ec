# SPDX-License-Identifier: Apache-2.0
"""`roomkey openapi`."""

from __future__ import annotations

import click

from broker.http.openapi import document
from broker.terminal import print_json


@click.command()
def openapi() -> None:
    """Print the OpenAPI 3.1 document of the broker's interfaces: guests, owners, operations.

    \b
    Example:
      roomkey openapi > openapi.json
    """
    print_json(document())
