# SPDX-License-Identifier: Apache-2.0
"""Options and arguments that many commands share, and how a command gets its client and its files."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from broker import tomltext
from broker.owner_client import OwnerClient
from broker.owner_identity import Identity, default_path, load
from broker.verifiers.snp_floors import Floors, parse_floors
from keys.errors import ConfigError, ProtocolError
from keys.messages import ResourcePath

MAX_INPUT_BYTES = 1024 * 1024  # of a file that a command reads

Command = Callable[..., Any]

json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
verbose_flag = click.option("-v", "--verbose", is_flag=True, help="Also the values of checks that passed.")
config_file = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("broker.toml"),
    envvar="ROOMKEY_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The broker's config file.",
)
identity_file = click.option(
    "--identity",
    "identity_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Your identity file. [env var: ROOMKEY_IDENTITY; default: ~/.config/roomkey/identity.toml]",
)
endorsement_files = click.option(
    "--endorsement",
    "endorsements",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="What vouches for it, and is not in it: a certificate (PEM, DER), a TPMT_PUBLIC, a revocation list. "
    "[repeatable]",
)
floors_file = click.option(
    "--floors",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Floors for SEV-SNP (TOML, as in the broker's [snp]), on top of the strict default.",
)
why = click.option("--why", default="", help="The reason, for the record.")
confirmed = click.option("--yes", is_flag=True, help="Do it without asking.")


class KeyPath(click.ParamType[ResourcePath]):
    """OWNER/TYPE/TAG."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ResourcePath:
        try:
            return ResourcePath.parse(value)
        except ProtocolError as error:
            self.fail(str(error), param, ctx)


key_path = click.argument("path", type=KeyPath(), metavar="OWNER/TYPE/TAG")


def identity_at(path: Path | None) -> Identity:
    """The identity in `path`, or in the default place. Raises ConfigError."""
    return load(path or default_path(os.environ))


def as_owner(command: Command) -> Command:
    """Give `command` a client that speaks for the owner as its first argument, and the option to name the identity."""

    @functools.wraps(command)
    def run(*args: Any, identity_path: Path | None, **kwargs: Any) -> Any:
        client = OwnerClient(identity_at(identity_path))
        try:
            return command(client, *args, **kwargs)
        finally:
            client.close()

    return identity_file(run)


def read_input(path: Path, *, max_bytes: int = MAX_INPUT_BYTES) -> bytes:
    """The bytes of a file, `-` for standard input, at most `max_bytes`. Raises ConfigError."""
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(max_bytes + 1)
        else:
            with path.open("rb") as file:
                data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError("cannot read the file", found=str(error)) from None
    if len(data) > max_bytes:
        raise ConfigError(f"{path} is too long", expected=f"at most {max_bytes} bytes")
    return data


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, `-` for standard input. Raises ConfigError."""
    try:
        return read_input(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None


def read_floors(path: Path | None) -> Floors | None:
    """The strict floors with the settings of a TOML file in their place, None without one. Raises ConfigError."""
    if path is None:
        return None
    try:
        return parse_floors(tomltext.loads(read_text(path), name=str(path)), Floors())
    except ProtocolError as error:
        raise ConfigError(
            f"{path}: {error.message}", expected=error.expected, found=error.found, mend=error.mend
        ) from None


def confirm_by_typing(word: str, *, act: str) -> None:
    """Let the user type `word` before `act`, which cannot be undone. Raises click.Abort."""
    if click.prompt(f"Type {word} to {act}", err=True, default="", show_default=False) != word:
        click.echo("Not the same. Nothing was done.", err=True)
        raise click.Abort
