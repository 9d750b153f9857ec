# SPDX-License-Identifier: Apache-2.0
"""`roomkey init`: a new broker's folder, whole or not at all."""

from __future__ import annotations

import ipaddress
import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric import ec

from broker.cli.pki import certificate_pem, key_pem, make_ca, make_server
from broker.owner_identity import write_new
from broker.signing import Signer, published
from broker.store import SQLITE_SCHEME, open_store
from broker.terminal import fields, next_step
from keys import b64, strictjson
from keys.custody.local import KEK_BYTES, KEK_FILE_MODE
from keys.errors import ConfigError, Conflict

SIGNING_KEY = "signing.key"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
CONFIG = """\
# Roomkey broker. Paths are relative to this file. Check it with: roomkey doctor --config broker.toml

[broker]
audience = "{audience}"     # what owners' requests and tokens are for

[listen]
host = "{address}"
port = {port}
tls_certificate_file = "tls/broker.pem"
tls_key_file = "tls/broker.key"

[store]
url = "sqlite:roomkey.db"

[custody]
kek_file = "kek"            # seals the owners' keys: back it up, apart from the store
old_kek_files = []

[token]
key_file = "token.key"      # signs attestation results

[signing]
key_file = "signing.key"    # signs what agents and owners read; they pin signing.pub.json

[tpm]
ek_root_files = []          # TPM makers' root certificates; with none, only enrolled TPMs are trusted
ek_intermediate_files = []

[snp]
kds_url = "https://kdsintf.amd.com"   # AMD hands out processors' certificates there; "" never asks
"""


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--host", "hosts", multiple=True, help="A name or address of this broker, for its certificate. [repeatable]"
)
@click.option("--listen", "address", help="Address to listen on. [default: 127.0.0.1, or 0.0.0.0 with --host]")
@click.option("--port", type=click.IntRange(1, 65535), default=8443, show_default=True)
def init(folder: Path, hosts: tuple[str, ...], address: str | None, port: int) -> None:
    """Make a new broker's folder DIR: config, KEK, token key, signing key, CA and TLS certificate, empty
    store.

    Nothing is overwritten: DIR must not exist, or be empty. The new broker denies everything until its owners have
    put keys, images and rules.

    \b
    Example:
      roomkey init broker/ --host broker.example --host 192.0.2.7
    """
    listen = address or ("0.0.0.0" if hosts else "127.0.0.1")  # noqa: S104  the guests are on other machines
    names = hosts or LOOPBACK_HOSTS
    audience = f"https://{_bracketed(names[0])}:{port}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise Conflict("there is something already", found=str(folder), mend="name a new folder")
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _fill(made, names, CONFIG.format(audience=audience, address=listen, port=port))
            made.rename(folder)  # replaces an empty folder, fails on any other
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError("cannot make the broker's folder", found=str(error)) from None
    _report(folder, audience, listen, names)


def _fill(folder: Path, hosts: tuple[str, ...], config: str) -> None:
    now = datetime.now(UTC)
    ca, ca_key = make_ca(f"Roomkey {hosts[0]}", now)
    server, server_key = make_server(ca, ca_key, hosts, now)
    signing_key = ec.generate_private_key(ec.SECP256R1())
    public = strictjson.canonical(Signer(signing_key).jwks()) + b"\n"
    (folder / "tls").mkdir(mode=0o700)
    for name, data, mode in (
        ("broker.toml", config.encode(), 0o644),
        ("kek", b64.std(os.urandom(KEK_BYTES)).encode() + b"\n", KEK_FILE_MODE),
        ("token.key", key_pem(ec.generate_private_key(ec.SECP256R1())), 0o400),
        (SIGNING_KEY, key_pem(signing_key), 0o400),
        (published(Path(SIGNING_KEY)).name, public, 0o644),
        ("tls/ca.pem", certificate_pem(ca), 0o644),
        ("tls/ca.key", key_pem(ca_key), 0o400),
        ("tls/broker.pem", certificate_pem(server), 0o644),
        ("tls/broker.key", key_pem(server_key), 0o400),
    ):
        write_new(folder / name, data, mode)
    open_store(f"{SQLITE_SCHEME}{folder / 'roomkey.db'}").close()


def _bracketed(host: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host


def _report(folder: Path, audience: str, listen: str, hosts: tuple[str, ...]) -> None:
    fields(
        [
            ("config", folder / "broker.toml"),
            ("broker", audience),
            ("listens on", listen),
            ("certificate for", ", ".join(hosts)),
            ("for guests and owners", f"{folder / 'tls/ca.pem'}  (pin it: the only CA that they trust)"),
            ("for them, too", f"{published(folder / SIGNING_KEY)}  (pin it: whose word they take)"),
            ("for a safe", f"{folder / 'kek'}  (without it the store is noise)"),
            ("to be moved away", f"{folder / 'tls/ca.key'}  (only needed to issue the next certificate)"),
        ]
    )
    config = folder / "broker.toml"
    next_step(
        "\nNext:\n"
        f"  roomkey serve --config {config}\n"
        f"  roomkey identity new OWNER --broker {audience} --ca {folder / 'tls/ca.pem'}     (on the owner's machine)\n"
        f"  roomkey owner add OWNER --key identity.public.jwk --config {config}"
    )
