# SPDX-License-Identifier: Apache-2.0
"""The real broker on loopback: `broker.serve` with granian, TLS under a throw-away CA, and SQLite in a folder."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker.owner_client import OwnerClient
from broker.owner_identity import Identity, public_jwk
from broker.owners import parse_key, to_body
from broker.signing import Signer
from broker.store.protocols import Record, RecordKind
from broker.store.sqlite import SqliteStore
from keys import b64, strictjson
from tests.fakes.tls import TlsCa

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 20.0
STOP_SECONDS = 20.0
PROGRAM = "import sys, pathlib, broker.serve; broker.serve.serve(pathlib.Path(sys.argv[1]))"


class BrokerServer:
    """A broker in `directory`. `roots` and `intermediates` are those of TPM makers.

    It can be killed and started again on the same files. What it wrote to standard error is in `log_file`. Agents pin
    `keys_file`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        workers: int = 2,
        threads: int = 4,
        roots: Iterable[x509.Certificate] = (),
        intermediates: Iterable[x509.Certificate] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.log_file = directory / "broker.log"
        self.store_file = directory / "roomkey.db"
        self.config_file = directory / "broker.toml"
        self.host, self.port = "127.0.0.1", _free_port()
        self.url = f"https://{self.host}:{self.port}"
        ca = TlsCa(directory / "tls")
        self.ca_file = ca.ca_file
        certificate_file, key_file = ca.issue(self.host)
        self._write("kek", b64.std(os.urandom(32)).encode() + b"\n")
        for name in ("token.key", "signing.key"):
            key = ec.generate_private_key(ec.SECP256R1())
            self._write(name, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.keys_file = directory / "signing.pub.json"
        self._write(self.keys_file.name, strictjson.compact(Signer(key).jwks()))
        self._write("roots.pem", b"".join(root.public_bytes(Encoding.PEM) for root in roots))
        self._write("intermediates.pem", b"".join(c.public_bytes(Encoding.PEM) for c in intermediates))
        self.config_file.write_text(
            f'[broker]\naudience = "{self.url}"\n'
            f'[listen]\nhost = "{self.host}"\nport = {self.port}\nworkers = {workers}\nthreads = {threads}\n'
            f'tls_certificate_file = "{certificate_file}"\ntls_key_file = "{key_file}"\n'
            '[store]\nurl = "sqlite:roomkey.db"\n[custody]\nkek_file = "kek"\n[token]\nkey_file = "token.key"\n'
            '[signing]\nkey_file = "signing.key"\n'
            f"[tpm]\nek_root_files = {_list('roots.pem', roots)}\n"
            f"ek_intermediate_files = {_list('intermediates.pem', intermediates)}\n"
            "[limits]\nchallenges_per_minute = 1000000\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def group(self) -> int:
        """The process group of the broker and its workers."""
        if self._process is None:
            raise RuntimeError("the broker is not running")
        return self._process.pid

    @property
    def context(self) -> ssl.SSLContext:
        """For a client that trusts this broker's CA alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=self.ca_file)
        return context

    def start(self) -> None:
        """Returns once the broker is ready. Raises RuntimeError with its log if it does not come up."""
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(self.config_file)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its workers die with it: one group
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the broker does not start:\n{self.log_file.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask it to stop, as the service manager does; whatever is left after a while is killed."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._process = None

    def kill(self) -> None:
        """SIGKILL for all of its processes at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def owner(self, name: str, *, p256: bool = False) -> OwnerClient:
        """Register a new owner, as the operator does, and answer his client."""
        key = ec.generate_private_key(ec.SECP256R1()) if p256 else ed25519.Ed25519PrivateKey.generate()
        store = SqliteStore(self.store_file)
        try:
            body = to_body([parse_key(public_jwk(key))])
            version = store.newest_version(RecordKind.OWNER, "", name) + 1
            store.put_record(Record(RecordKind.OWNER, "", name, version, body, time.time_ns() // 1_000_000, "operator"))
        finally:
            store.close()
        return OwnerClient(Identity(name, self.url, self.url, self.ca_file, key))

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2, context=self.context) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _write(self, name: str, data: bytes) -> None:
        path = self.directory / name
        path.write_bytes(data)
        path.chmod(0o400)


def _list(name: str, certificates: Iterable[x509.Certificate]) -> str:
    return f'["{name}"]' if tuple(certificates) else "[]"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
