# SPDX-License-Identifier: Apache-2.0
"""`roomkey`: the command line of operators (who run a broker) and owners (whose keys it keeps).

A command's module is imported when it is called, so that `roomkey --help` answers at once. Errors are printed with
their cause and mend and end the process with the status of `keys.errors`.
"""

from __future__ import annotations

import os
from importlib import import_module

import click

from broker.terminal import show_error
from keys.errors import RoomkeyError

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {  # heading -> name -> module:object, one line of help
    "Running a broker": {
        "init": ("broker.cli.init:init", "Make a new broker's folder: config, keys, certificates, store."),
        "serve": ("broker.cli.serve:serve", "Run the broker."),
        "doctor": ("broker.cli.doctor:doctor", "Check a broker's set-up and say what mends it."),
        "owner": ("broker.cli.owner:owner", "Add and list owners."),
        "kek": ("broker.cli.kek:kek", "Rotate the key-encryption key."),
        "signing-key": ("broker.cli.signing_key:signing_key", "Print the key that agents and owners pin."),
        "endorsements": ("broker.cli.endorsements:endorsements", "Fetch, export and import what AMD vouches for."),
        "floors": ("broker.cli.floors:floors", "Try what SEV-SNP machines must show before it is in force."),
        "ledger": ("broker.cli.ledger:ledger", "Verify the record of decisions."),
    },
    "Owning keys": {
        "identity": ("broker.cli.identity:identity", "Make and show your identity."),
        "key": ("broker.cli.key:key", "Put, generate, list, rotate and destroy keys."),
        "volume": ("broker.cli.volume:volume", "Pin the volume that a key is for."),
        "image": ("broker.cli.image:image", "Approve images: what a good guest has booted."),
        "rule": ("broker.cli.rule:rule", "Say which images and instances may have a key."),
        "instance": ("broker.cli.instance:instance", "Enrol the guests' hardware identities."),
        "guest": ("broker.cli.guest:guest", "Tickets, approval, and guests that get no key any more."),
        "distrust": ("broker.cli.distrust:distrust", "What counts no more: a product line, a chip, an image."),
        "decision": ("broker.cli.decision:decision", "Read what was decided, and why."),
    },
    "Anywhere": {
        "verify": ("broker.cli.verify:verify", "Judge an evidence file, offline."),
        "openapi": ("broker.cli.openapi:openapi", "Print the API's OpenAPI document."),
    },
}
COMMANDS = {name: row for section in SECTIONS.values() for name, row in section.items()}


class Roomkey(click.Group):
    """The commands of the table above, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for heading, commands in SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()], col_max=12)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except RoomkeyError as error:
            show_error(error)
            ctx.exit(error.exit_status)


@click.group(cls=Roomkey, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="roomkey")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Roomkey hands a key only to a guest that has proved what it booted.

    \b
    Start here:
      roomkey init broker/ --host broker.example
      roomkey COMMAND --help
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False
