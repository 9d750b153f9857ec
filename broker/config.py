# SPDX-License-Identifier: Apache-2.0
"""The operator's settings: one TOML file, read once into frozen objects, with an overlay from the environment.

Every key of every section can be set as ROOMKEY_<SECTION>_<KEY>, which wins over the file; a list of files is separated
by colons there, a list of texts by commas. Relative paths are relative to the config file, wherever they stand. A key
that does not exist is an error, in the file and in the environment. Secrets are never values here, only files.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NewType, TypeVar, get_type_hints
from urllib.parse import urlsplit

from broker.store import SQLITE_SCHEME
from broker.verifiers.snp_floors import NAMES, NOTHING, Floors, parse_floors
from keys.errors import ConfigError, ProtocolError
from keys.messages import MAX_BODY_BYTES

MAX_FILE_BYTES = 64 * 1024
MAX_TEXT_CHARS = 512  # of one string
MAX_LIFETIME_S = 300  # of challenges and tokens
ENVIRONMENT_PREFIX = "ROOMKEY_"

StoreUrl = NewType("StoreUrl", str)
FetchUrl = NewType("FetchUrl", str)
Section = TypeVar("Section")


def _bounded(default: int, low: int, high: int) -> int:
    number: int = field(default=default, metadata={"range": range(low, high + 1)})
    return number


def _floor(name: str) -> Any:
    return field(default=getattr(Floors(), name), metadata={"floor": True})


@dataclass(frozen=True, slots=True)
class Broker:
    """`audience`: what owners' requests and attestation results must name; the broker's own URL is a good one."""

    audience: str


@dataclass(frozen=True, slots=True)
class Listen:
    """`threads` for owners' requests in each worker process. Without TLS files the broker refuses to start, unless
    `unsafe_plain_http` says so and `host` is a loopback address.
    """

    host: str = "127.0.0.1"
    port: int = _bounded(8443, 1, 65535)
    tls_certificate_file: Path | None = None
    tls_key_file: Path | None = None
    workers: int = _bounded(2, 1, 64)
    threads: int = _bounded(4, 1, 256)
    unsafe_plain_http: bool = False

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True, slots=True)
class Store:
    """`url`: `sqlite:PATH`; once loaded, PATH is absolute."""

    url: StoreUrl = StoreUrl("sqlite:roomkey.db")


@dataclass(frozen=True, slots=True)
class Custody:
    """`kek_file` seals, all of them open (see `keys.custody.local`)."""

    kek_file: Path
    old_kek_files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """`key_file` signs attestation results, all of them verify. `issuer` is the audience where it is not set."""

    key_file: Path
    old_key_files: tuple[Path, ...] = ()
    lifetime_s: int = _bounded(MAX_LIFETIME_S, 1, MAX_LIFETIME_S)
    issuer: str | None = None


@dataclass(frozen=True, slots=True)
class Signing:
    """`key_file` signs what agents and owners read of a decision; they have pinned its public half."""

    key_file: Path


@dataclass(frozen=True, slots=True)
class Challenge:
    lifetime_s: int = _bounded(MAX_LIFETIME_S, 1, MAX_LIFETIME_S)


@dataclass(frozen=True, slots=True)
class Tpm:
    """Certificates, PEM or DER: `ek_root_files` are trusted, `ek_intermediate_files` only complete chains."""

    ek_root_files: tuple[Path, ...] = ()
    ek_intermediate_files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Snp:
    """AMD SEV-SNP. `kds_url` is where AMD's endorsements are fetched, "" if nowhere. All others are the operator's
    floors, `broker.verifiers.snp_floors.Floors`.
    """

    kds_url: FetchUrl = FetchUrl("https://kdsintf.amd.com")
    unsafe_debug: bool = _floor("unsafe_debug")
    min_report_version: int = _floor("min_report_version")
    products: tuple[str, ...] = _floor("products")
    named_only: tuple[str, ...] = _floor("named_only")
    max_vmpl: int = _floor("max_vmpl")
    policy_forbidden: tuple[str, ...] = _floor("policy_forbidden")
    policy_required: tuple[str, ...] = _floor("policy_required")
    min_abi: str = _floor("min_abi")
    platform_forbidden: tuple[str, ...] = _floor("platform_forbidden")
    platform_required: tuple[str, ...] = _floor("platform_required")
    min_reported_tcb: tuple[str, ...] = _floor("min_reported_tcb")
    min_current_tcb: tuple[str, ...] = _floor("min_current_tcb")
    min_committed_tcb: tuple[str, ...] = _floor("min_committed_tcb")
    min_launch_tcb: tuple[str, ...] = _floor("min_launch_tcb")
    committed_is_current: bool = _floor("committed_is_current")
    min_firmware: tuple[str, ...] = _floor("min_firmware")
    launch_mitigations: int = _floor("launch_mitigations")
    current_mitigations: int = _floor("current_mitigations")
    masked_chip_id: bool = _floor("masked_chip_id")
    chip_ids: tuple[str, ...] = _floor("chip_ids")
    denied_chip_ids: tuple[str, ...] = _floor("denied_chip_ids")
    csp_ids: tuple[str, ...] = _floor("csp_ids")
    id_key_digests: tuple[str, ...] = _floor("id_key_digests")
    author_key_digests: tuple[str, ...] = _floor("author_key_digests")
    min_guest_svn: int = _floor("min_guest_svn")
    host_data: tuple[str, ...] = _floor("host_data")
    require_crl: bool = _floor("require_crl")

    @property
    def floors(self) -> Floors:
        return Floors(**{name: getattr(self, name) for name in NAMES})


@dataclass(frozen=True, slots=True)
class Decisions:
    """`evidence_days`: how long the evidence behind decisions is kept, 0 for not at all; the ledger stays."""

    evidence_days: int = _bounded(30, 0, 36_500)


@dataclass(frozen=True, slots=True)
class Limits:
    """`body_bytes` of one request; `challenges_per_minute` from one client address (IPv6: one /64), and as many of each
    other call of the guests' protocol.
    """

    body_bytes: int = _bounded(MAX_BODY_BYTES, 4096, MAX_BODY_BYTES)
    challenges_per_minute: int = _bounded(6000, 1, 1_000_000)


@dataclass(frozen=True, slots=True)
class Config:
    broker: Broker
    listen: Listen
    store: Store
    custody: Custody
    token: Token
    signing: Signing
    challenge: Challenge
    tpm: Tpm
    snp: Snp
    decisions: Decisions
    limits: Limits

    @property
    def issuer(self) -> str:
        return self.token.issuer or self.broker.audience

    @property
    def unsafe(self) -> tuple[str, ...]:
        """The development switches that are on, by their paths."""
        switches = {
            "listen.unsafe_plain_http": self.listen.unsafe_plain_http,
            "snp.unsafe_debug": self.snp.unsafe_debug,
        }
        return tuple(path for path, on in switches.items() if on)


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """The settings in the TOML file `path` under those in `environ`. Raises ConfigError, naming the key."""
    given = _file(path)
    sections = get_type_hints(Config)
    _refuse_unknown(given.keys(), sections.keys(), "")
    _refuse_unknown_variables(environ, sections)
    folder = path.absolute().parent
    parts = {name: _section(kind, name, given.get(name, {}), environ, folder) for name, kind in sections.items()}
    config = Config(**parts)
    _check_transport(config.listen)
    _check_snp(config)
    return config


def _file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the config file {path} cannot be read", found=str(error.strerror)) from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"the config file {path} is too long", expected=f"at most {MAX_FILE_BYTES} bytes")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the config file {path} is not TOML", found=str(error)) from None


def _section(kind: type[Section], name: str, given: object, environ: Mapping[str, str], folder: Path) -> Section:
    if not isinstance(given, dict):
        raise ConfigError(f"{name} must be a section", expected=f"[{name}]")
    members = {member.name: member for member in fields(kind)}  # type: ignore[arg-type]  # all sections are dataclasses
    _refuse_unknown(given.keys(), members.keys(), f"{name}.")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, member in members.items():
        path, variable, hint = f"{name}.{key}", _variable(name, key), hints[key]
        value = given.get(key, member.default)
        if variable in environ:
            path, value = variable, _from_text(hint, environ[variable])
        if value is MISSING:
            raise ConfigError(f"{path} is not set", mend=f"set it in [{name}], or as {variable}")
        raw = _Value(path, value, folder, member.metadata.get("range", range(0)))
        values[key] = raw.floor(key) if "floor" in member.metadata else _CONVERTERS[hint](raw)
    return kind(**values)


def _from_text(hint: object, text: str) -> object:
    """The TOML value that `text` of an environment variable stands for; itself where it stands for none."""
    if hint is bool:
        return {"true": True, "false": False}.get(text, text)
    if hint is int:
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 11 else text
    if hint == tuple[Path, ...]:
        return text.split(os.pathsep) if text else []
    if hint == tuple[str, ...]:
        return [entry.strip() for entry in text.split(",")] if text else []
    return text


@dataclass(frozen=True, slots=True)
class _Value:
    """One value on its way from TOML to its type. `path` names it in errors."""

    path: str
    value: object
    folder: Path
    allowed: range

    def text(self) -> str:
        if not isinstance(self.value, str) or not 0 < len(self.value) <= MAX_TEXT_CHARS or not self.value.isprintable():
            raise ConfigError(f"{self.path} must be a text", expected=f"1 to {MAX_TEXT_CHARS} printable characters")
        return self.value

    def number(self) -> int:
        if type(self.value) is not int or self.value not in self.allowed:
            expected = f"{self.allowed.start} to {self.allowed.stop - 1}"
            raise ConfigError(f"{self.path} must be a whole number", expected=expected, found=str(self.value)[:64])
        return self.value

    def switch(self) -> bool:
        if not isinstance(self.value, bool):
            raise ConfigError(f"{self.path} must be true or false")
        return self.value

    def file(self) -> Path:
        return self.folder / self.text()

    def files(self) -> tuple[Path, ...]:
        if not isinstance(self.value, list | tuple):
            raise ConfigError(f"{self.path} must be a list of files")
        return tuple(replace(self, value=item).file() for item in self.value)

    def store_url(self) -> StoreUrl:
        text = self.text()
        if not text.startswith(SQLITE_SCHEME) or text == SQLITE_SCHEME:
            raise ConfigError(f"{self.path} names no kind of store", expected="sqlite:PATH")
        return StoreUrl(SQLITE_SCHEME + str(self.folder / text.removeprefix(SQLITE_SCHEME)))

    def fetch_url(self) -> FetchUrl:
        if self.value == "":
            return FetchUrl("")
        text = self.text()
        try:
            parts = urlsplit(text)
            good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or "@" in parts.netloc or parts.query or parts.fragment or " " in text or not text.isascii():
            raise ConfigError(f"{self.path} is not a URL", expected='http(s)://HOST[:PORT][/PATH], or ""', found=text)
        return FetchUrl(text)

    def floor(self, name: str) -> object:
        """One of `Floors`, by itself; one by line over its default."""
        base = replace(NOTHING, **{name: getattr(Floors(), name)})
        try:
            return getattr(parse_floors({name: self.value}, base), name)
        except ProtocolError as error:
            raise _floor_error(self.path, error) from None


_CONVERTERS: dict[object, Callable[[_Value], object]] = {
    str: _Value.text,
    int: _Value.number,
    bool: _Value.switch,
    Path: _Value.file,
    tuple[Path, ...]: _Value.files,
    StoreUrl: _Value.store_url,
    FetchUrl: _Value.fetch_url,
    str | None: lambda value: None if value.value is None else value.text(),
    Path | None: lambda value: None if value.value is None else value.file(),
}


def _variable(section: str, key: str) -> str:
    return f"{ENVIRONMENT_PREFIX}{section}_{key}".upper()


def _refuse_unknown(given: Iterable[str], known: Iterable[str], prefix: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{prefix}{key} is no setting", mend=_nearest(prefix + key, [prefix + k for k in known]))


def _refuse_unknown_variables(environ: Mapping[str, str], sections: Mapping[str, Any]) -> None:
    """Other programs of ours have variables too (ROOMKEY_IDENTITY); what begins like a section must be one of its."""
    known = [_variable(name, member.name) for name, kind in sections.items() for member in fields(kind)]
    prefixes = tuple(_variable(name, "") for name in sections)
    for variable in environ:
        if variable.startswith(prefixes) and variable not in known:
            raise ConfigError(f"{variable} is no setting", mend=_nearest(variable, known))


def _nearest(name: str, known: list[str]) -> str | None:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else None


def _check_transport(listen: Listen) -> None:
    if (listen.tls_certificate_file is None) != (listen.tls_key_file is None):
        raise ConfigError("listen.tls_certificate_file and listen.tls_key_file go together")
    if listen.unsafe_plain_http and not listen.is_loopback:
        raise ConfigError(
            "listen.unsafe_plain_http is for loopback only",
            expected="a loopback address as listen.host",
            found=listen.host,
            mend="remove the switch and set the TLS files",
        )
    if listen.tls_key_file is None and not listen.unsafe_plain_http:
        raise ConfigError("no TLS", mend="set listen.tls_certificate_file and listen.tls_key_file")


def _check_snp(config: Config) -> None:
    try:
        parse_floors({name: getattr(config.snp, name) for name in NAMES}, NOTHING)
    except ProtocolError as error:
        raise _floor_error("snp", error) from None
    if config.snp.unsafe_debug and not config.listen.is_loopback:
        raise ConfigError(
            "snp.unsafe_debug is for loopback only",
            expected="a loopback address as listen.host",
            found=config.listen.host,
            mend="remove the switch: the host of a debug guest reads its memory, and its keys",
        )


def _floor_error(path: str, error: ProtocolError) -> ConfigError:
    return ConfigError(f"{path}: {error.message}", expected=error.expected, found=error.found, mend=error.mend)
