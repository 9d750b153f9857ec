# SPDX-License-Identifier: Apache-2.0
"""An owner's identity on their own machine: who they are, which broker they talk to, and the key that signs for them.

A folder with `identity.toml` and the files that it names: the private key (PKCS #8 PEM, mode 0600) and the broker's CA
certificate (PEM), copied in when the identity is made so that later changes elsewhere cannot redirect the owner.
"""

from __future__ import annotations

import ipaddress
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from broker.owners import parse_key
from keys import b64, strictjson
from keys.errors import ConfigError, Conflict, ProtocolError
from keys.messages import ResourcePath

OwnerKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

ALGORITHMS = ("ed25519", "es256")
MAX_KEY_FILE_BYTES = 64 * 1024
_MEMBERS = frozenset(("owner", "broker", "audience", "ca_file", "key_file"))


@dataclass(frozen=True, slots=True)
class Identity:
    """`broker` is `https://HOST[:PORT]`. `ca_file` is None only where the broker is plain HTTP on loopback."""

    owner: str
    broker: str
    audience: str
    ca_file: Path | None
    key: OwnerKey = field(repr=False)

    @property
    def jwk(self) -> dict[str, str]:
        return public_jwk(self.key)

    @property
    def kid(self) -> str:
        return parse_key(self.jwk).kid


def public_jwk(key: OwnerKey) -> dict[str, str]:
    """The public half of `key` as a JWK: OKP on Ed25519 (RFC 8037 section 2) or EC on P-256 (RFC 7518 section 6.2)."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": b64.url(key.public_key().public_bytes_raw())}
    numbers = key.public_key().public_numbers()
    x, y = (b64.url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y}


def endpoint(broker: str) -> tuple[str, str, int]:
    """Scheme, host and port of a broker's URL. Raises ConfigError; plain HTTP goes to loopback addresses only."""
    try:
        parts = urlsplit(broker)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if (
        host is None
        or parts.scheme not in ("https", "http")
        or parts.path not in ("", "/")
        or parts.query
        or "@" in broker
    ):
        raise ConfigError("not a broker's URL", expected="https://HOST[:PORT]", found=broker[:128])
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigError("plain HTTP is for loopback addresses only", expected="https", found=broker[:128])
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, even "localhost", can be made to point anywhere


def default_path(environ: Mapping[str, str]) -> Path:
    """ROOMKEY_IDENTITY, else `roomkey/identity.toml` under the user's configuration folder."""
    if named := environ.get("ROOMKEY_IDENTITY"):
        return Path(named)
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".config")
    return Path(base) / "roomkey" / "identity.toml"


def public_file(path: Path) -> Path:
    """Where the public key (JWK) of the identity in `path` is written, to be handed to the broker's operator."""
    return path.with_suffix(".public.jwk")


def create(
    path: Path, *, owner: str, broker: str, audience: str, ca_pem: bytes | None, algorithm: str = "ed25519"
) -> Identity:
    """Make a new key and write the identity. Raises Conflict if any of its files exists, ConfigError on bad input."""
    _checked(owner, broker, ca_pem is not None)
    if ca_pem is not None:
        _certificates(ca_pem)
    key: OwnerKey = (
        ed25519.Ed25519PrivateKey.generate() if algorithm == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    )
    key_file, ca_file = path.with_suffix(".key"), path.with_suffix(".ca.pem")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    values = {"owner": owner, "broker": broker, "audience": audience, "key_file": key_file.name}
    files = {key_file: (pem, 0o600), public_file(path): (strictjson.compact(public_jwk(key)) + b"\n", 0o644)}
    if ca_pem is not None:
        values["ca_file"] = ca_file.name
        files[ca_file] = (ca_pem, 0o644)
    files[path] = ("".join(f"{name} = {_quoted(value)}\n" for name, value in values.items()).encode(), 0o600)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if taken := [str(file) for file in files if os.path.lexists(file)]:
            raise Conflict("there is an identity already", found=", ".join(taken), mend="name another file: --identity")
        for file, (data, mode) in files.items():
            write_new(file, data, mode)
    except OSError as error:
        raise ConfigError("cannot write the identity", found=str(error)) from None
    return load(path)


def load(path: Path) -> Identity:
    """The identity in `path`. Raises ConfigError."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            "no owner identity on this machine",
            found=str(path),
            mend="make one: roomkey identity new OWNER --broker URL --ca FILE",
        ) from None
    except OSError as error:
        raise ConfigError("cannot read the identity", found=str(error)) from None
    try:
        values: dict[str, Any] = tomllib.loads(text.decode())
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML", found=str(error)) from None
    if unknown := sorted(values.keys() - _MEMBERS):
        raise ConfigError(f"{path} has an unknown setting", found=unknown[0])
    if missing := sorted(_MEMBERS - {"ca_file"} - values.keys()):
        raise ConfigError(f"{path} lacks a setting", expected=missing[0])
    if not all(isinstance(value, str) for value in values.values()):
        raise ConfigError(f"{path}: every setting is a string")
    ca_file = path.parent / values["ca_file"] if "ca_file" in values else None
    _checked(values["owner"], values["broker"], ca_file is not None)
    key = _private_key(path.parent / values["key_file"])
    return Identity(values["owner"], values["broker"], values["audience"], ca_file, key)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Create `path` with exactly `mode`; never through a link, never over something. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _quoted(value: str) -> str:
    # A JSON string of printable characters is a TOML basic string too (TOML 1.0, String).
    return strictjson.compact(value).decode()


def _private_key(path: Path) -> OwnerKey:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            pem = file.read(MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise ConfigError("cannot read the owner's key", found=str(error)) from None
    if mode & 0o077:
        raise ConfigError(
            "the owner's key can be read by others", expected="mode 0600", found=f"{mode:04o}", mend=f"chmod 600 {path}"
        )
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise ConfigError("the owner's key is not an unencrypted PEM private key", found=str(path)) from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ConfigError("the owner's key is of another kind", expected="Ed25519 or P-256", found=str(path))


def _checked(owner: str, broker: str, pinned: bool) -> None:
    try:
        ResourcePath.parse(f"{owner}/type/tag")
    except ProtocolError:
        raise ConfigError("not an owner's name", expected="letters, digits, '_', '-', '.'", found=owner[:64]) from None
    scheme, _, _ = endpoint(broker)
    if scheme == "https" and not pinned:
        raise ConfigError("a broker is trusted by its CA certificate alone", mend="name the file: --ca FILE")


def _certificates(pem: bytes) -> None:
    try:
        x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigError("the CA file holds no PEM certificate") from None
