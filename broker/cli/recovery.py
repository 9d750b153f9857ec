# SPDX-License-Identifier: Apache-2.0
"""`roomkey key recovery`, `recover`: a break-glass passphrase for a volume, split so that no one person has it.

Shares are those of SLIP-0039: words on paper, each with its own checksum. Splitting and joining happen here, on the
owner's machine; the passphrase itself goes to the broker, sealed, until the guest has put it into a keyslot.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from broker.cli.options import as_owner, key_path, read_input, why
from broker.owner_client import Caller, path_of
from broker.owner_identity import write_new
from broker.terminal import next_step
from keys import b64
from keys.errors import ConfigError
from keys.messages import ResourcePath

SECRET_BYTES = 32
MAX_SHARES = 16  # what SLIP-0039 allows in a group
MAX_SHARE_BYTES = 4096  # of a file with a share's words


@click.command()
@key_path
@click.option("--shares", type=click.IntRange(1, MAX_SHARES), default=5, show_default=True, help="How many there are.")
@click.option("--threshold", type=click.IntRange(1, MAX_SHARES), default=3, show_default=True, help="How many open it.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="For the shares: a new folder.")
@why
@as_owner
def recovery(client: Caller, path: ResourcePath, shares: int, threshold: int, out: Path, why: str) -> None:
    """Give a key's volume a recovery passphrase, split into shares of which any THRESHOLD join to it.

    The guest puts it into a keyslot of its own at its next boot, in place of an earlier one. After that the broker has
    it no more, and the shares open the volume without broker and TPM.

    \b
    Example:
      roomkey key recovery acme/disk/web-root --shares 5 --threshold 3 --out shares/
    """
    from shamir_mnemonic import (  # type: ignore[import-untyped]  # noqa: PLC0415
        MnemonicError,
        generate_mnemonics,
    )

    secret = os.urandom(SECRET_BYTES)
    try:
        [words] = generate_mnemonics(1, [(threshold, shares)], secret)
    except (MnemonicError, ValueError) as error:
        raise ConfigError("the passphrase cannot be split so", found=str(error)) from None
    try:
        out.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(f"{out} cannot be made", found=error.strerror, mend="give a new folder's name") from None
    for number, share in enumerate(words, 1):
        write_new(out / f"share-{number}.txt", f"{share}\n".encode(), 0o600)
    # The shares are written first: a passphrase in a keyslot that nobody has would be worth nothing.
    client.call("PUT", path_of("keys", *path, "recovery"), {"passphrase": b64.std(_passphrase(secret)), "why": why})
    click.echo(f"{path}: {shares} shares in {out}, any {threshold} of them join to the passphrase")
    next_step("Give each to somebody else, on paper or offline, and remove the files here.")
    next_step("The guest's next boot makes the keyslot. See: roomkey volume list")


@click.command()
@click.argument("files", metavar="SHARE...", nargs=-1, required=True, type=click.Path(path_type=Path))
def recover(files: tuple[Path, ...]) -> None:
    """Join shares of a recovery passphrase and write it to standard output. Needs no broker and no network.

    \b
    Example:
      roomkey key recover share-1.txt share-4.txt share-5.txt | cryptsetup open --key-file - /dev/vdb root
    """
    from shamir_mnemonic import MnemonicError, combine_mnemonics  # noqa: PLC0415

    shares = [read_input(file, max_bytes=MAX_SHARE_BYTES) for file in files]
    try:
        secret = combine_mnemonics([" ".join(share.decode("ascii").split()) for share in shares])
    except (MnemonicError, ValueError) as error:  # UnicodeDecodeError is one
        raise ConfigError("these shares do not join", found=_without_words(error)) from None
    ending = b"\n" if sys.stdout.isatty() else b""
    sys.stdout.buffer.write(_passphrase(secret) + ending)
    sys.stdout.buffer.flush()


def _passphrase(secret: bytes) -> bytes:
    """As text, which a person can type and every way into cryptsetup takes."""
    return b64.std(secret).encode("ascii")


def _without_words(error: Exception) -> str:
    """What the library says, unless it may quote a share."""
    text = str(error)
    return "a word that is none, or another text" if isinstance(error, UnicodeDecodeError) or "'" in text else text
