# SPDX-License-Identifier: Apache-2.0
"""`roomkey endorsements`: what vendors vouch for, fetched ahead, and carried to where there is no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from broker.claims import EndorsementRequest, Trusted
from broker.cli.operator import opened
from broker.cli.options import config_file, json_flag, read_input
from broker.endorsements.bundle import MAX_BUNDLE_BYTES, is_bundle, read_bundle, write_bundle
from broker.endorsements.setup import amd_trusted, endorsement_service
from broker.owner_identity import write_new
from broker.services import now_ms
from broker.store.protocols import StoredEndorsement
from broker.terminal import next_step, print_json, table, when
from broker.verifiers.registry import verifier_for
from broker.verifiers.snp_endorsements import Vcek, name_of, read_name
from keys import strictjson
from keys.errors import ConfigError, NotFound, ProtocolError, RoomkeyError
from keys.tee import Tee

MAX_EVIDENCE_BYTES = 512 * 1024
BUNDLE_MODE = 0o644  # nothing in it is secret
SHORT_CHIP_CHARS = 16  # of a chip's id, where people read it

_file = click.Path(path_type=Path)


@click.group()
def endorsements() -> None:
    """AMD's certificates and revocation lists, as this broker keeps them.

    The broker fetches by itself what it needs, where snp.kds_url lets it. Where it has no network, carry it there:

    \b
      roomkey endorsements fetch guest.json     (on a machine with a network: a scratch broker made by roomkey init)
      roomkey endorsements export amd.json
      roomkey endorsements import amd.json      (on the broker)
    """


@endorsements.command("list")
@config_file
@json_flag
def list_(config_path: Path, as_json: bool) -> None:
    """List what is stored.

    \b
    Example:
      roomkey endorsements list --config broker.toml
    """
    with opened(config_path) as (_, store):
        stored = store.all_endorsements()
    if as_json:
        print_json([_json(one) for one in stored])
        return
    table(
        ("what", "line", "chip", "tcb", "from", "stored", "fetched again"),
        [_row(one) for one in stored],
        empty="Nothing is stored yet. The broker fetches what guests need, or: roomkey endorsements import FILE",
    )


@endorsements.command()
@click.argument("evidence", type=_file)
@config_file
def fetch(evidence: Path, config_path: Path) -> None:
    """Fetch what the evidence file EVIDENCE needs beside what it brings, and its revocation list, into the store.

    \b
    Example:
      roomkey endorsements fetch guest.json --config broker.toml
    """
    request = _needed(evidence)
    with opened(config_path) as (config, store):
        if not config.snp.kds_url:
            raise ConfigError("snp.kds_url is empty, so nothing is fetched", mend="set it, or import a bundle")
        found = endorsement_service(config, store).look_up(request, now_ms(), may_wait=True)
    if not request.required:
        click.echo("the evidence brings its own certificate, or is of a kind that AMD gives none out for")
    for name in (*request.required, *request.helpful):
        click.echo(f"{'stored' if name in found else 'not to be had'}  {name}")
    if missing := [name for name in request.required if name not in found]:
        raise NotFound("AMD's KDS knows no such certificate", found=missing[0])
    next_step(f"\nTo carry it to another broker:\n  roomkey endorsements export amd.json --config {config_path}")


@endorsements.command()
@click.argument("file", type=_file)
@config_file
def export(file: Path, config_path: Path) -> None:
    """Write all that is stored to the bundle FILE. Nothing is overwritten.

    \b
    Example:
      roomkey endorsements export amd.json --config broker.toml
    """
    with opened(config_path) as (_, store):
        stored = store.all_endorsements()
    try:
        write_new(file, write_bundle(stored), BUNDLE_MODE)
    except OSError as error:
        raise ConfigError("cannot write the bundle", found=str(error)) from None
    click.echo(f"{len(stored)} endorsements  {file}")
    next_step(f"\nOn the other broker:\n  roomkey endorsements import {file.name} --config broker.toml")


@endorsements.command("import")
@click.argument("files", type=_file, nargs=-1, required=True, metavar="FILE...")
@config_file
def import_(files: tuple[Path, ...], config_path: Path) -> None:
    """Store bundles, VCEK certificates and revocation lists (DER or PEM), all of them or, if one is not genuine, none.

    What was imported is never dropped to make room. A running broker uses it at once.

    \b
    Example:
      roomkey endorsements import amd.json vcek.der --config broker.toml
    """
    with opened(config_path) as (config, store):
        entries = [entry for file in files for entry in _entries(file, amd_trusted(config))]
        stored = endorsement_service(config, store).keep(entries, now_ms())
    for name, is_new in stored.items():
        click.echo(f"{'stored' if is_new else 'a newer issue is stored already'}  {name}")
    next_step("\nTo see all of them:\n  roomkey endorsements list")


def _needed(path: Path) -> EndorsementRequest:
    """What the evidence file in `path` needs. Raises ConfigError."""
    raw = read_input(path, max_bytes=MAX_EVIDENCE_BYTES)
    try:
        document = strictjson.loads(raw, name="the file", max_bytes=MAX_EVIDENCE_BYTES)
        if not isinstance(document, dict) or not {"tee", "evidence"} <= document.keys():
            raise ProtocolError("it has no tee and evidence")
        if document["tee"] not in list(Tee):
            raise ProtocolError("it is of an unknown platform", found=str(document["tee"])[:64])
        verifier = verifier_for(Tee(document["tee"]))
        return verifier.needs(verifier.decode(document["evidence"]))
    except RoomkeyError as error:
        raise ConfigError(
            f"{path} is not an evidence file: {error.message}",
            expected=error.expected,
            found=error.found,
            mend="make one in the guest: roomkey-agent evidence > guest.json",
        ) from None


def _entries(path: Path, trusted: Trusted) -> list[tuple[str, bytes]]:
    data = read_input(path, max_bytes=MAX_BUNDLE_BYTES)
    try:
        return read_bundle(data) if is_bundle(data) else [(name_of(data, trusted), data)]
    except RoomkeyError as error:
        raise ConfigError(
            f"{path} is neither a bundle nor AMD's: {error.message}", expected=error.expected, found=error.found
        ) from None


def _row(one: StoredEndorsement) -> tuple[str, ...]:
    said = read_name(one.name)
    origin, stored = "import" if one.kept else "fetch", when(one.stored_at)
    if isinstance(said, Vcek):
        tcb = " ".join(f"{component}={spl}" for component, spl in said.tcb.items())
        return "VCEK", said.line, said.hw_id.hex()[:SHORT_CHIP_CHARS] + "…", tcb, origin, stored, ""
    return "CRL", said.line, "", "", origin, stored, when(one.fresh_until or 0)


def _json(one: StoredEndorsement) -> dict[str, Any]:
    return {"name": one.name, "imported": one.kept, "stored_at": one.stored_at, "fresh_until": one.fresh_until}
