# SPDX-License-Identifier: Apache-2.0
"""`roomkey doctor`: is this broker set up as it should be? It looks and says; it mends nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from broker.cli.operator import load_config
from broker.cli.options import config_file, json_flag
from broker.config import Config
from broker.endorsements.setup import amd_trusted
from broker.files import read_certificates, read_file
from broker.serve import PKCS8
from broker.signing import load_signer, published
from broker.store import open_store
from broker.store.protocols import RecordKind
from broker.terminal import fields, next_step, print_json, printable, verdict
from broker.tokens import load_signing_key
from broker.verifiers.snp_endorsements import check_endorsement, crl_name
from broker.verifiers.snp_floors import NAMES, Floors
from broker.verifiers.snp_report import Line
from keys.custody.local import LocalCustody
from keys.envelope import load_keys
from keys.errors import ConfigError, ProtocolError, RoomkeyError

EXPIRES_SOON = timedelta(days=30)
OK, WARN, FAIL = "ok", "warn", "fail"


class Finding(NamedTuple):
    """One line of the table. `mend` is empty where nothing is to be done."""

    check: str
    state: str
    found: str
    mend: str = ""


Check = Callable[[Config, datetime], Iterator[Finding]]


@click.command()
@config_file
@json_flag
@click.pass_context
def doctor(ctx: click.Context, config_path: Path, as_json: bool) -> None:
    """Check a broker's set-up: config, keys, certificates, store, owners. Ends with status 1 if anything fails.

    \b
    Example:
      roomkey doctor --config broker.toml
    """
    findings = list(_examine(config_path, datetime.now(UTC)))
    failed = [finding for finding in findings if finding.state == FAIL]
    if as_json:
        print_json({"ok": not failed, "checks": [finding._asdict() for finding in findings]})
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            click.echo(f"{verdict(finding.state, width=4)}  {finding.check.ljust(width)}  {printable(finding.found)}")
            fields([("to mend it", finding.mend)], indent=width + 8)
        next_step("" if not failed else f"\n{len(failed)} to be mended before this broker can serve.")
    ctx.exit(1 if failed else 0)


def _examine(path: Path, now: datetime) -> Iterator[Finding]:
    try:
        config = load_config(path)
    except RoomkeyError as error:
        yield _failed("config", error)
        return
    yield Finding("config", OK, str(path))
    for name, check in CHECKS.items():
        try:
            yield from check(config, now)
        except RoomkeyError as error:
            yield _failed(name, error)


def _failed(name: str, error: RoomkeyError) -> Finding:
    return Finding(name, FAIL, str(error), error.mend or "")


def _switches(config: Config, _: datetime) -> Iterator[Finding]:
    if config.unsafe:
        yield Finding("switches", WARN, ", ".join(config.unsafe), "remove it: it is for development on loopback")
    else:
        yield Finding("switches", OK, "no unsafe_ switch is on")


def _kek(config: Config, _: datetime) -> Iterator[Finding]:
    LocalCustody.from_files(config.custody.kek_file, config.custody.old_kek_files)
    yield Finding("KEK", OK, str(config.custody.kek_file))
    if old := config.custody.old_kek_files:
        yield Finding("old KEKs", WARN, f"{len(old)} listed", "after `roomkey kek rotate`, empty old_kek_files")


def _token_keys(config: Config, _: datetime) -> Iterator[Finding]:
    for file in (config.token.key_file, *config.token.old_key_files):
        load_signing_key(read_file(file, private=True))
        yield Finding("token key", OK, str(file))


def _signing_key(config: Config, _: datetime) -> Iterator[Finding]:
    signer = load_signer(config)
    yield Finding("signing key", OK, f"{config.signing.key_file}, kid {signer.kid}")
    file = published(config.signing.key_file)
    if not file.exists():
        return  # agents and owners may get it another way
    try:
        pinned = signer.kid in load_keys(read_file(file)).by_kid
    except ProtocolError:
        pinned = False
    if not pinned:
        mend = f"roomkey signing-key > {file}; put it where agents and owners pin it"
        yield Finding("signing key", WARN, f"{file} does not have it: who pins that file refuses this broker", mend)


def _tls(config: Config, now: datetime) -> Iterator[Finding]:
    certificate_file, key_file = config.listen.tls_certificate_file, config.listen.tls_key_file
    if certificate_file is None or key_file is None:
        yield Finding("TLS", WARN, "plain HTTP on loopback", "set tls_certificate_file and tls_key_file in [listen]")
        return
    try:
        certificate = read_certificates(certificate_file)[0]
        key = load_pem_private_key(read_file(key_file, private=True), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError("the TLS certificate or its key is not readable PEM", found=str(error)) from None
    if key.public_key() != certificate.public_key():
        raise ConfigError("the TLS key is not the certificate's", found=str(key_file), mend="set the pair in [listen]")
    if PKCS8 not in read_file(key_file):
        raise ConfigError("the TLS key is not PKCS #8", found=str(key_file), mend="openssl pkcs8 -topk8 -nocrypt")
    yield _validity(certificate, now)
    yield Finding("TLS names", OK, ", ".join(_names(certificate)))
    ca_key = certificate_file.with_name("ca.key")
    if ca_key.exists():
        yield Finding("CA key", WARN, f"{ca_key} is on this machine", "move it away: the broker never needs it")


def _validity(certificate: x509.Certificate, now: datetime) -> Finding:
    until = certificate.not_valid_after_utc
    words = f"valid until {until:%Y-%m-%d}"
    mend = "issue the next certificate with your CA"
    if not certificate.not_valid_before_utc <= now <= until:
        return Finding("TLS certificate", FAIL, f"not valid now: {words}", mend)
    return Finding("TLS certificate", WARN, words, mend) if until - now < EXPIRES_SOON else Finding(
        "TLS certificate", OK, words
    )  # fmt: skip


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ConfigError("the TLS certificate names no host", mend="issue one with subjectAltName") from None
    return [str(name.value) for name in names]


def _store(config: Config, _: datetime) -> Iterator[Finding]:
    path = Path(config.store.url.partition(":")[2])
    if not path.exists():
        raise ConfigError("there is no store", found=str(path), mend="start the broker once, or set store.url")
    store = open_store(config.store.url)
    try:
        store.ready()
        yield Finding("store", OK, str(path))
        owners = store.records(RecordKind.OWNER, "")
    finally:
        store.close()
    if owners:
        yield Finding("owners", OK, f"{len(owners)}")
    else:
        yield Finding("owners", WARN, "none: nobody can put a key here", "roomkey owner add OWNER --key FILE")


def _tpm_roots(config: Config, _: datetime) -> Iterator[Finding]:
    for file in (*config.tpm.ek_root_files, *config.tpm.ek_intermediate_files):
        read_certificates(file)
    if roots := config.tpm.ek_root_files:
        yield Finding("TPM roots", OK, f"{len(roots)} trusted")
    else:
        yield Finding(
            "TPM roots", WARN, "none: only TPMs that an owner enrolled are trusted", "list ek_root_files in [tpm]"
        )


def _snp(config: Config, now: datetime) -> Iterator[Finding]:
    changed = [name for name in NAMES if getattr(config.snp.floors, name) != getattr(Floors(), name)]
    yield Finding("SNP floors", OK, f"not as by default: {', '.join(changed)}" if changed else "the strict default")
    yield Finding("AMD's KDS", OK, config.snp.kds_url or "off: there is what guests bring, and what was imported")
    if not Path(config.store.url.partition(":")[2]).exists():
        return  # which the store's own check has said
    store = open_store(config.store.url)
    try:
        stored = {one.name: one for one in store.all_endorsements()}
    finally:
        store.close()
    yield Finding("endorsements", OK, f"{len(stored)} stored")
    if not config.snp.require_crl or config.snp.kds_url:
        return
    for line in config.snp.products or Line:
        name = crl_name(Line(line))
        crl = check_endorsement(name, stored[name].data, amd_trusted(config), now) if name in stored else None
        if crl is None or crl.next_update is None or crl.next_update <= now:
            found = f"{line}: none, so its guests are refused" if crl is None else f"{line}: past its time"
            yield Finding("revocation list", WARN, found, "roomkey endorsements import FILE, or set snp.kds_url")


CHECKS: dict[str, Check] = {
    "switches": _switches,
    "KEK": _kek,
    "token key": _token_keys,
    "signing key": _signing_key,
    "TLS": _tls,
    "store": _store,
    "TPM roots": _tpm_roots,
    "SNP": _snp,
}
