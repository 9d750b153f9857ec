# SPDX-License-Identifier: Apache-2.0
"""`roomkey owner`: whom this broker keeps keys for. The operator's side, directly on the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from broker.cli.operator import OPERATOR, opened, recorded
from broker.cli.options import config_file, json_flag, read_input, why
from broker.owners import OwnerKey, Role, parse_key, registered_key, to_body
from broker.services import now_ms
from broker.store.protocols import Record, RecordKind, Store
from broker.terminal import next_step, print_json, table, when
from keys.errors import ConfigError, Conflict, NotFound, ProtocolError
from keys.messages import ResourcePath
from keys.strictjson import loads

MAX_KEY_FILE_BYTES = 4096

key_file = click.Path(path_type=Path)


@click.group()
def owner() -> None:
    """Owners: who may put keys here, each in a namespace of their own.

    \b
    Example:
      roomkey owner add acme --key identity.public.jwk --config broker.toml
    """


@owner.command()
@click.argument("name")
@click.option("--key", "file", type=key_file, required=True, help="The owner's public key (JWK), - for standard input.")
@config_file
@why
def add(name: str, file: Path, config_path: Path, why: str) -> None:
    """Register a new owner NAME by their public key. Make sure by another channel that the key is theirs.

    \b
    Example:
      roomkey owner add acme --key identity.public.jwk --config broker.toml
    """
    key = _read_key(file)
    try:
        ResourcePath.parse(f"{name}/type/tag")
    except ProtocolError:
        raise ConfigError("not an owner's name", expected="letters, digits, '_', '-', '.'", found=name[:64]) from None
    with opened(config_path) as (config, store):
        version = store.newest_version(RecordKind.OWNER, "", name)
        if version:
            raise Conflict(
                f"there is an owner {name} already", mend=f"for another key: roomkey owner keys {name} --add"
            )
        _put(store, name, version, [key], "created", why)
    click.echo(f"owner {name}, key id {key.kid}")
    next_step(
        "\nNext, the owner puts a key and says who may have it:\n"
        f"  roomkey key generate {name}/TYPE/TAG\n"
        f'  (with an identity that says audience = "{config.broker.audience}")'
    )


@owner.command("list")
@config_file
@json_flag
def list_(config_path: Path, as_json: bool) -> None:
    """List the owners.

    \b
    Example:
      roomkey owner list --json
    """
    with opened(config_path) as (_, store):
        owners: list[dict[str, Any]] = [
            {"owner": r.name, "keys": [key["kid"] for key in _keys(r)], "changed_at": r.created_at}
            for r in store.records(RecordKind.OWNER, "")
        ]
    if as_json:
        print_json(owners)
        return
    table(
        ("owner", "keys", "changed"),
        [(o["owner"], len(o["keys"]), when(o["changed_at"])) for o in owners],
        empty="No owners yet. Add one: roomkey owner add OWNER --key FILE",
    )


@owner.command()
@click.argument("name")
@click.option("--add", "file", type=key_file, help="Register one more public key (JWK).")
@click.option(
    "--role",
    type=click.Choice([str(role) for role in Role]),
    default=str(Role.OWNER),
    show_default=True,
    help="What the added key may do: everything, or only propose images, which count once you approve them.",
)
@click.option("--remove", "kid", help="Take a key away, by its key id.")
@config_file
@why
@json_flag
def keys(name: str, file: Path | None, role: str, kid: str | None, config_path: Path, why: str, as_json: bool) -> None:
    """Show the keys that may sign for owner NAME; add or remove one.

    To replace a key: add the new one, let the owner try it, remove the old one. The last key that may do everything
    cannot be removed.

    \b
    Example:
      roomkey owner keys acme --add new.public.jwk --remove 0Bx7...
      roomkey owner keys acme --add build.public.jwk --role propose
    """
    with opened(config_path) as (_, store):
        try:
            record = store.record(RecordKind.OWNER, "", name)
        except NotFound:
            raise NotFound(f"there is no owner {name[:64]}", mend="roomkey owner list") from None
        registered = [registered_key(entry) for entry in _keys(record)]
        if file is not None:
            registered.append(_read_key(file)._replace(role=Role(role)))
        if kid is not None:
            if kid not in {key.kid for key in registered}:
                raise NotFound(f"{name} has no such key", found=kid[:64], mend=f"roomkey owner keys {name}")
            registered = [key for key in registered if key.kid != kid]
        if file is not None or kid is not None:
            _put(store, name, record.version, registered, "changed", why)
    if as_json:
        print_json([{"kid": key.kid, "jwk": key.jwk, "role": str(key.role)} for key in registered])
    else:
        rows = [(key.kid, key.algorithm, key.role) for key in registered]
        table(("key id", "algorithm", "role"), rows, empty="")


def _keys(record: Record) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = (record.body or {})["keys"]
    return keys


def _read_key(file: Path) -> OwnerKey:
    data = read_input(file, max_bytes=MAX_KEY_FILE_BYTES)
    return parse_key(loads(data, name="the key's file", max_bytes=MAX_KEY_FILE_BYTES))


def _put(store: Store, name: str, version: int, keys: list[OwnerKey], verdict: str, why: str) -> None:
    body = to_body(keys)
    with recorded(store, owner=name, subject=f"owner/{name}", verdict=verdict, why=why):
        store.put_record(Record(RecordKind.OWNER, "", name, version + 1, body, now_ms(), OPERATOR))
