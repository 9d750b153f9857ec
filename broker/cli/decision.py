# SPDX-License-Identifier: Apache-2.0
"""`roomkey decision`: what the broker decided, and why."""

from __future__ import annotations

import click

from broker.cli.decision_bundle import export, replay_
from broker.cli.decision_list import follow, list_
from broker.cli.decision_show import show


@click.group()
def decision() -> None:
    """Decisions: every attempt to attest or to get a key, and every change, with all checks.

    A guest that was refused shows a decision id, like d-mfrggzdfmztwq2lknnwg. Nothing else: the reasons are here.

    \b
    Example:
      roomkey decision show d-mfrggzdfmztwq2lknnwg
    """


for _command in (list_, show, follow, export, replay_):
    decision.add_command(_command)
