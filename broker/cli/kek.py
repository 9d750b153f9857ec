# SPDX-License-Identifier: Apache-2.0
"""`roomkey kek`: a new key-encryption key, without a moment's downtime."""

from __future__ import annotations

import os
from pathlib import Path

import click

from broker.cli.operator import opened
from broker.cli.options import config_file
from broker.owner_identity import write_new
from broker.rotate import rewrap_all
from broker.terminal import next_step
from keys import b64
from keys.custody.local import KEK_BYTES, KEK_FILE_MODE, LocalCustody
from keys.errors import ConfigError


@click.group()
def kek() -> None:
    """Rotate the key-encryption key (KEK), which seals every owner's keys.

    \b
    The way from one KEK to the next:
      1. roomkey kek new kek-2027
      2. in broker.toml: kek_file = "kek-2027", old_kek_files = ["kek"]; restart the broker
      3. roomkey kek rotate
      4. once backups of the store are made anew: empty old_kek_files, destroy the old file
    """


@kek.command()
@click.argument("file", type=click.Path(path_type=Path))
def new(file: Path) -> None:
    """Write a new random KEK to FILE, mode 0400. Nothing is overwritten.

    \b
    Example:
      roomkey kek new kek-2027
    """
    try:
        write_new(file, b64.std(os.urandom(KEK_BYTES)).encode() + b"\n", KEK_FILE_MODE)
    except OSError as error:
        raise ConfigError("cannot write the new KEK", found=str(error)) from None
    click.echo(f"new KEK  {file}")
    next_step(
        "\nBack it up, apart from the store. Then, in broker.toml under [custody]:\n"
        f'  kek_file = "{file.absolute()}"\n'
        "  old_kek_files = [the file that was kek_file before]\n"
        "restart the broker, and run: roomkey kek rotate"
    )


@kek.command()
@config_file
def rotate(config_path: Path) -> None:
    """Seal every key anew under the current KEK. It can be stopped and started again at any point.

    \b
    Example:
      roomkey kek rotate --config broker.toml
    """
    with opened(config_path) as (config, store):
        custody = LocalCustody.from_files(config.custody.kek_file, config.custody.old_kek_files)
        done = rewrap_all(
            store, custody, lambda so_far: next_step(f"  {so_far.seen} seen, {so_far.rewrapped} sealed anew")
        )
    click.echo(f"{done.seen} key versions, {done.rewrapped} sealed anew under {config.custody.kek_file}")
    if done.changed_meanwhile:
        next_step(f"{done.changed_meanwhile} changed meanwhile: run it once more.")
    elif config.custody.old_kek_files:
        old = ", ".join(str(file) for file in config.custody.old_kek_files)
        next_step(
            "\nNo key in the store needs the old KEK any more. Backups of the store still do: make a new one, then\n"
            f"empty old_kek_files in {config_path}, restart the broker, and destroy {old}."
        )
