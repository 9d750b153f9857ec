# SPDX-License-Identifier: Apache-2.0
"""`roomkey signing-key`: the public half of the broker's signing key, for agents and owners to pin."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli.operator import load_config
from broker.cli.options import config_file
from broker.signing import load_signer, read_signer
from broker.terminal import next_step, print_json
from keys.envelope import MAX_KEYS
from keys.errors import ConfigError


@click.command("signing-key")
@click.option(
    "--with", "others", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="A further private key (PEM): the one that will sign next. [repeatable]",
)  # fmt: skip
@config_file
def signing_key(others: tuple[Path, ...], config_path: Path) -> None:
    """Print the public half of the signing key, as a JWK set: the file that agents and owners pin.

    \b
    The way from one signing key to the next:
      1. openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out signing-2.key; chmod 400 signing-2.key
      2. roomkey signing-key --with signing-2.key > broker-keys.json; put it on every guest
      3. in broker.toml: signing.key_file = "signing-2.key"; restart the broker
      4. roomkey signing-key > broker-keys.json; put it on every guest, which forgets the old key

    \b
    Example:
      roomkey signing-key --config broker.toml > broker-keys.json
    """
    signers = [load_signer(load_config(config_path)), *map(read_signer, others)]
    keys = list({signer.kid: signer.jwk for signer in signers}.values())
    if len(keys) > MAX_KEYS:
        raise ConfigError("too many keys for one set", expected=f"at most {MAX_KEYS}", found=str(len(keys)))
    print_json({"keys": keys})
    next_step("Agents have it as /etc/roomkey/broker-keys.json, or where broker_keys says.")
