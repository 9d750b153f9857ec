# SPDX-License-Identifier: Apache-2.0
"""`roomkey decision export` and `replay`: a decision is taken along, and judged again without a broker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from broker.bundle import MAX_BUNDLE_BYTES
from broker.cli.options import as_owner, json_flag, read_input, verbose_flag
from broker.owner_client import Caller, path_of
from broker.replay import Replay, replay
from broker.terminal import fields, next_step, print_json, printable, trace, verdict, when
from keys.envelope import load_keys
from keys.errors import ConfigError, ProtocolError

SAME, ANOTHER = 0, 1  # exit statuses


@click.command()
@click.argument("id_", metavar="ID")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Where to write it. [default: ID.bundle]",
)  # fmt: skip
@as_owner
def export(client: Caller, id_: str, output: Path | None) -> None:
    """Write a decision about a guest to a file, with all that it stood on, signed by the broker.

    The file holds evidence, endorsements, floors, image, rule, case and verdict; no key and no other secret. It can be
    judged again offline, for as long as you keep it.

    \b
    Example:
      roomkey decision export d-mfrggzdfmztwq2lknnwg
    """
    bundle = client.call("GET", path_of("decisions", id_, "bundle"))["bundle"]
    path = output or Path(f"{id_}.bundle")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written", found=str(error.strerror), mend="--output FILE") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(bundle + "\n")
    click.echo(f"{path}  {len(bundle) + 1} bytes")
    next_step(f"Judge it again, anywhere: roomkey decision replay {path} --broker-keys FILE")


@click.command("replay")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--broker-keys", required=True, type=click.Path(path_type=Path), metavar="FILE",
    help="The broker's public signing key, as `roomkey signing-key` prints it.",
)  # fmt: skip
@verbose_flag
@json_flag
@click.pass_context
def replay_(ctx: click.Context, file: Path, broker_keys: Path, verbose: bool, as_json: bool) -> None:
    """Judge an exported decision again, offline: FILE is what `decision export` wrote (- for standard input).

    The evidence is verified as of its own time, against what was trusted at that time, and appraised again. Exit status
    0: the same verdict and the same trace, byte for byte. 1: something is another now. Else FILE is no bundle that this
    broker has signed.

    \b
    Example:
      roomkey decision replay d-mfrggzdfmztwq2lknnwg.bundle --broker-keys broker-keys.json
    """
    keys = load_keys(read_input(broker_keys))
    data = read_input(file, max_bytes=MAX_BUNDLE_BYTES)
    try:
        # One newline at the end is what `export` writes; every other change makes another text of it.
        text = data.decode("ascii").removesuffix("\n")
    except UnicodeDecodeError:
        raise ProtocolError(f"{file} is no bundle") from None
    found = replay(text, keys)
    if as_json:
        print_json(_json(found))
    else:
        _show(found, verbose=verbose)
    ctx.exit(ANOTHER if found.differences else SAME)


def _json(found: Replay) -> dict[str, Any]:
    return {
        "same": not found.differences,
        "verified": found.verified,
        "verdict": found.verdict,
        "differences": [difference._asdict() for difference in found.differences],
        "line": found.line,
        "trace": found.trace.to_json(),
        "roomkey": found.roomkey,
    }


def _show(found: Replay, *, verbose: bool) -> None:
    line = found.line
    evidence = line["body"]["evidence"]
    if not found.verified:
        evidence = "of a launch, whose keys are not kept: only the appraisal is repeated"
    click.echo(f"{line['kind']}  {verdict(found.verdict)}")
    fields(
        [
            ("decision", line["id"]),
            ("at", when(line["at"])),
            ("key", line["body"]["key"]),
            ("subject", line["subject"]),
            ("evidence", evidence),
            ("decided by", f"roomkey {found.roomkey}"),
        ],
        indent=2,
    )
    trace(found.trace.to_json(), verbose=verbose)
    if not found.differences:
        again = "verified and appraised" if found.verified else "appraised"
        click.echo(f"\nThe same: {again} again, the verdict and all {len(found.trace.checks)} checks are as recorded.")
        return
    click.echo("\nNot the same:")
    for difference in found.differences:
        click.echo(f"  {printable(difference.what)}")
        fields([("recorded", difference.recorded), ("now", difference.now)], indent=4)
    next_step(f"Another version of roomkey may judge or word things differently: it was {found.roomkey}.")
