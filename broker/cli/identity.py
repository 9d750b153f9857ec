# SPDX-License-Identifier: Apache-2.0
"""`roomkey identity`: who this machine's owner is to the broker."""

from __future__ import annotations

import os
from pathlib import Path

import click

from broker.cli.options import identity_at, identity_file, json_flag, read_input
from broker.owner_identity import ALGORITHMS, Identity, create, default_path, public_file
from broker.terminal import fields, next_step, print_json


@click.group()
def identity() -> None:
    """Make and show your identity: the key that signs your requests, and the broker that it is for.

    \b
    Example:
      roomkey identity new acme --broker https://broker.example:8443 --ca ca.pem
    """


@identity.command()
@click.argument("owner")
@click.option("--broker", required=True, metavar="URL", help="The broker, https://HOST[:PORT].")
@click.option("--ca", type=click.Path(path_type=Path), help="The broker's CA certificate, PEM. It is copied in.")
@click.option("--audience", help="The broker's audience, where it is not its URL.")
@click.option("--algorithm", type=click.Choice(ALGORITHMS), default=ALGORITHMS[0], show_default=True)
@identity_file
def new(
    owner: str, broker: str, ca: Path | None, audience: str | None, algorithm: str, identity_path: Path | None
) -> None:
    """Make a signing key for OWNER. The private key never leaves this machine.

    The public key is written beside it: hand that file to the broker's operator.

    \b
    Example:
      roomkey identity new acme --broker https://broker.example:8443 --ca ca.pem
    """
    path = identity_path or default_path(os.environ)
    url = broker.rstrip("/")
    made = create(
        path,
        owner=owner,
        broker=url,
        audience=audience or url,
        ca_pem=None if ca is None else read_input(ca),
        algorithm=algorithm,
    )
    _print(made, path)
    next_step(
        "\nNext, the broker's operator registers the public key:\n"
        f"  roomkey owner add {made.owner} --key {public_file(path)}"
    )


@identity.command()
@identity_file
@json_flag
def show(identity_path: Path | None, as_json: bool) -> None:
    """Show your identity and its public key.

    \b
    Example:
      roomkey identity show --json
    """
    path = identity_path or default_path(os.environ)
    found = identity_at(path)
    if as_json:
        print_json({"owner": found.owner, "broker": found.broker, "audience": found.audience, "kid": found.kid,
                    "jwk": found.jwk})  # fmt: skip
    else:
        _print(found, path)


def _print(shown: Identity, path: Path) -> None:
    fields(
        [
            ("owner", shown.owner),
            ("broker", shown.broker),
            ("audience", shown.audience),
            ("key id", shown.kid),
            ("identity", path),
            ("public key", public_file(path)),
        ]
    )
