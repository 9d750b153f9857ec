# SPDX-License-Identifier: Apache-2.0
"""The real broker over TLS: many at once, too long, too slow, killed."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from broker import serve
from broker.app import build_services
from broker.config import Config, load
from broker.http.bridge import Bridge
from broker.owner_client import OwnerClient
from broker.store.sqlite import SqliteStore
from keys import b64
from keys.errors import ConfigError, NotFound, RoomkeyError
from keys.messages import MAX_BODY_BYTES
from keys.tee import Tee
from tests.fakes.boot import Boot
from tests.fakes.broker_server import BrokerServer
from tests.fakes.ek_ca import EkCa
from tests.fakes.house import draft
from tests.fakes.kbs_client import KbsClient
from tests.fakes.tpm_guest import FakeTpm, Guest

PATH = "acme/disk/root"
SECRET = b"correct horse battery staple 32."
USES = 50
STALLED = 400


def booted(ca: EkCa) -> FakeTpm:
    tpm = FakeTpm(ca)
    tpm.boot(Boot())
    return tpm


def provision(owner: OwnerClient, tpm: FakeTpm) -> None:
    """A key at PATH for every certified machine that boots what `tpm` has booted."""
    owner.call("PUT", f"/v1/keys/{PATH}", {"key": b64.std(SECRET)})
    owner.call("PUT", "/v1/images/debian", {"toml": draft(tpm)})
    rule = {"images": ["debian"], "platforms": ["tpm"], "instances": ["any"]}
    owner.call("PUT", f"/v1/rules/{PATH}", rule)


@pytest.fixture(scope="module")
def ca() -> EkCa:
    return EkCa()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ca: EkCa) -> Iterator[BrokerServer]:
    directory = tmp_path_factory.mktemp("broker")
    with BrokerServer(directory, workers=2, roots=[ca.root], intermediates=[ca.intermediate]) as server:
        yield server


@pytest.fixture(scope="module")
def owner(server: BrokerServer, ca: EkCa) -> OwnerClient:
    owner = server.owner("acme")
    provision(owner, booted(ca))
    return owner


@pytest.fixture
def client(server: BrokerServer) -> Iterator[KbsClient]:
    client = KbsClient(server)
    yield client
    client.close()


def test_key_over_tls(owner: OwnerClient, client: KbsClient, ca: EkCa) -> None:
    """A guest gets its key from the real server, by cookie and by token, for each kind of guest key."""
    assert client.flow(Guest(booted(ca), declare=True), PATH) == SECRET
    tpm = booted(ca)
    owner.call("PUT", "/v1/instances/stock", {"ak_public": b64.std(tpm.ak_public)})
    keys: tuple[Any, ...] = (ec.generate_private_key(ec.SECP521R1()), rsa.generate_private_key(65537, 2048))
    rule = {"images": ["debian"], "platforms": ["tpm"], "instances": ["stock"]}
    owner.call("PUT", f"/v1/keys/{PATH}-2", {"key": b64.std(SECRET)})
    owner.call("PUT", f"/v1/rules/{PATH}-2", rule)
    for key in keys:
        guest = Guest(tpm, stock=True, key=key)
        cookie, token = client.attest(guest)
        assert guest.open(client.fetch(f"{PATH}-2", cookie=cookie).json) == SECRET
        assert guest.open(client.fetch(f"{PATH}-2", token=token).json) == SECRET


def test_challenge_is_judged_once(owner: OwnerClient, server: BrokerServer, ca: EkCa) -> None:
    """Of fifty uses of one challenge at the same time, over two processes, exactly one is judged."""
    tpm = booted(ca)
    guest = Guest(tpm, declare=True)
    first = KbsClient(server)
    cookie, challenge = first.auth(guest, PATH)
    first.close()
    body = json.dumps(guest.attestation(challenge).to_json())
    together = threading.Barrier(USES)

    def use(_: int) -> int:
        client = KbsClient(server)
        client.connection.connect()
        together.wait(30)
        try:
            return client.send("POST", "/kbs/v0/attest", body, cookie).status
        finally:
            client.close()

    with ThreadPoolExecutor(USES) as pool:
        assert Counter(pool.map(use, range(USES))) == {200: 1, 401: USES - 1}
    page = owner.call("GET", "/v1/decisions?kind=attest&limit=100")["decisions"]
    machine = f"tpm-ak:{tpm.ak_name.hex()}"
    verdicts = Counter(
        line["verdict"]
        for line in page
        if machine in owner.call("GET", f"/v1/decisions/{line['id']}")["body"]["instances"]
    )
    assert verdicts == {"genuine": 1, "refused": USES - 1}


def test_body_that_is_too_long(client: KbsClient, server: BrokerServer, ca: EkCa) -> None:
    """A body beyond the limit, announced or in chunks, is refused unread, and the challenge is good afterwards."""
    guest = Guest(booted(ca), declare=True)
    cookie, challenge = client.auth(guest)
    for head in (f"Content-Length: {1 << 40}", f"Content-Length: {MAX_BODY_BYTES + 1}"):
        with _connected(server) as raw:
            raw.sendall(f"POST /kbs/v0/attest HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n{head}\r\n\r\n".encode())
            assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")
    with _connected(server) as raw:
        raw.sendall(b"POST /kbs/v0/attest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        raw.sendall(chunk * (MAX_BODY_BYTES // 65536) + b"1\r\nx\r\n")  # and still not its end
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")
    body = json.dumps(guest.attestation(challenge).to_json())
    assert client.send("POST", "/kbs/v0/attest", body, cookie).status == 200


def test_chunked_body(client: KbsClient, ca: EkCa) -> None:
    """A body in chunks is as good as one with a length."""
    guest = Guest(booted(ca), declare=True)
    cookie, challenge = client.auth(guest)
    body = json.dumps(guest.attestation(challenge).to_json()).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:100], body[100:])) + b"0\r\n\r\n"
    answer = client.send("POST", "/kbs/v0/attest", chunks, cookie, headers={"Transfer-Encoding": "chunked"})
    assert answer.status == 200


def test_stalled_clients_stop_nobody(server: BrokerServer, client: KbsClient, owner: OwnerClient, ca: EkCa) -> None:
    """With hundreds of clients that never send their bodies, others are served at once, health and keys."""
    stalled = [_connected(server) for _ in range(STALLED)]
    try:
        for raw in stalled:
            raw.sendall(b"POST /kbs/v0/attest HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        began = time.monotonic()
        assert client.send("GET", "/healthz").status == 200
        assert client.flow(Guest(booted(ca), declare=True), PATH) == SECRET
        assert time.monotonic() - began < 15
    finally:
        for raw in stalled:
            raw.close()


def test_clients_that_go_away(server: BrokerServer, client: KbsClient) -> None:
    """Clients that leave in the middle of a body leave no exception behind."""
    for _ in range(20):
        with _connected(server) as raw:
            raw.sendall(b"POST /kbs/v0/attest HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    assert client.send("GET", "/readyz").status == 200
    assert "Traceback" not in server.log_file.read_text()


def test_tls_versions(server: BrokerServer) -> None:
    """TLS 1.3 is spoken, TLS 1.2 is refused."""
    context = server.context
    with _connected(server) as raw:
        assert raw.version() == "TLSv1.3"
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError), _connected(server, context):
        pass


def test_plain_http_on_the_tls_port(server: BrokerServer) -> None:
    """A client without TLS gets nothing of HTTP."""
    with socket.create_connection((server.host, server.port), timeout=10) as raw:
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            answer = raw.recv(4096)
        except ConnectionResetError:
            answer = b""
    assert not answer.startswith(b"HTTP/")


def test_log_names_decisions_and_no_secrets(
    server: BrokerServer, owner: OwnerClient, client: KbsClient, ca: EkCa
) -> None:
    """Every decision has its line in the log: kind, id, verdict, owner; the key is in no spelling of it."""
    assert client.flow(Guest(booted(ca), declare=True), PATH) == SECRET
    released = owner.call("GET", "/v1/decisions?kind=release&limit=1")["decisions"][0]
    log = server.log_file.read_text()
    assert f"INFO roomkey.decision release {released['id']} released owner=acme" in log
    for spelling in (SECRET.decode(), SECRET.hex(), b64.std(SECRET), b64.url(SECRET)):
        assert spelling not in log


def test_kill_during_releases(tmp_path: Path, ca: EkCa) -> None:
    """After kill -9 in the middle of releases every key that a guest was given has its line in an unbroken ledger."""
    server = BrokerServer(tmp_path, workers=2, roots=[ca.root], intermediates=[ca.intermediate])
    server.start()
    machines = [booted(ca) for _ in range(4)]
    owner = server.owner("acme")
    provision(owner, machines[0])
    owner.close()
    given: Counter[bytes] = Counter()

    def guests(tpm: FakeTpm) -> None:
        client = KbsClient(server)
        try:
            while True:
                assert client.flow(Guest(tpm, declare=True), PATH) == SECRET
                given[tpm.ak_name] += 1
        except (OSError, HTTPException, AssertionError, ValueError, RoomkeyError):
            pass  # the broker is gone, in whatever state the connection was
        finally:
            client.close()

    for target in (5, 12):  # rounds: killed once so many keys were given
        threads = [threading.Thread(target=guests, args=(tpm,)) for tpm in machines]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while sum(given.values()) < target and time.monotonic() < deadline:
            time.sleep(0.005)
        server.kill()
        for thread in threads:
            thread.join(30)
        server.start()
    server.stop()
    store = SqliteStore(server.store_file)
    try:
        lines = store.entries("acme", kinds=["release"], limit=10_000)
        recorded = Counter(
            bytes.fromhex(id_.removeprefix("tpm-ak:"))
            for line in lines
            if line.verdict == "released"
            for id_ in line.body["instances"]
            if id_.startswith("tpm-ak:")
        )
        assert sum(given.values()) >= 12
        assert all(recorded[name] >= count for name, count in given.items())
        assert store.verify_chain() >= len(lines)
    finally:
        store.close()


def test_stop_on_request(tmp_path: Path) -> None:
    """SIGTERM ends the broker, with status 0 and nothing left on its port."""
    server = BrokerServer(tmp_path, workers=1)
    server.start()
    process = server._process
    assert process is not None
    assert _limit(process.pid) == ["0", "0"]
    server.stop()
    assert process.returncode == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((server.host, server.port), timeout=2).close()


# --- what is wrong with the settings is said before anything listens ---


@pytest.fixture
def unstarted(tmp_path: Path, ca: EkCa) -> BrokerServer:
    return BrokerServer(tmp_path, roots=[ca.root], intermediates=[ca.intermediate])


def config_of(server: BrokerServer) -> Config:
    return load(server.config_file, {})


def test_services_of_a_config(unstarted: BrokerServer, ca: EkCa) -> None:
    """The services are what the config says: roots, lifetimes, audience, keys."""
    services = build_services(config_of(unstarted))
    try:
        assert services.trusted[Tee.TPM].roots == (ca.root,)
        assert services.trusted[Tee.TPM].certificates == (ca.intermediate,)
        assert services.audience == services.tokens.audience == services.tokens.issuer == unstarted.url
        assert services.challenge_lifetime_ms == 300_000
        with pytest.raises(NotFound):
            services.store.key("a", "b", "c")
    finally:
        services.store.close()


def test_root_in_der(unstarted: BrokerServer, ca: EkCa) -> None:
    """A root certificate may be DER as well."""
    (unstarted.directory / "roots.der").write_bytes(ca.root.public_bytes(Encoding.DER))
    text = unstarted.config_file.read_text().replace("roots.pem", "roots.der")
    unstarted.config_file.write_text(text)
    services = build_services(config_of(unstarted))
    services.store.close()
    assert services.trusted[Tee.TPM].roots == (ca.root,)


@pytest.mark.parametrize(
    ("name", "content", "mode", "why"),
    [
        ("roots.pem", b"rubbish", 0o400, "holds no certificate"),
        ("roots.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0o400, "holds no certificate"),
        ("roots.pem", bytes(256 * 1024 + 1), 0o400, "too long"),
        ("roots.pem", None, 0, "cannot be read"),
        ("token.key", None, 0, "cannot be read"),
        ("token.key", b"rubbish", 0o400, "not an unencrypted PEM private key"),
        ("token.key", b"rubbish", 0o440, "can be read by others"),
        ("signing.key", None, 0, "cannot be read"),
        ("signing.key", b"rubbish", 0o400, "the signing key is not an unencrypted PEM private key"),
        ("signing.key", b"rubbish", 0o440, "can be read by others"),
        ("tls/127.0.0.1.key", b"-----BEGIN EC PRIVATE KEY-----", 0o400, "PKCS #8"),
        ("tls/127.0.0.1.key", None, 0, "cannot be read"),
        ("kek", None, 0, "KEK"),
    ],
)
def test_file_that_cannot_be_used(
    unstarted: BrokerServer, name: str, content: bytes | None, mode: int, why: str
) -> None:
    """A missing, broken or open file stops the broker before it listens, and is named."""
    path = unstarted.directory / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=why) as caught:
        serve.serve(unstarted.config_file)
    assert path.name in str(caught.value)


def test_what_the_server_is_told(unstarted: BrokerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS 1.3 at least, HTTP/1.1 only, no core files; each worker makes its own application."""
    told: dict[str, Any] = {}
    limits: list[tuple[int, tuple[int, int]]] = []

    class Server:
        def __init__(self, target: str, **settings: Any) -> None:
            told.update(settings, target=target)

        def serve(self, **settings: Any) -> None:
            told.update(settings)

    monkeypatch.setattr(serve, "Server", Server)
    monkeypatch.setattr(os, "environ", {"ROOMKEY_LISTEN_WORKERS": "3"})
    # Both would hold for the process of the tests.
    monkeypatch.setattr(serve, "forbid_core_dumps", lambda: limits.append((resource.RLIMIT_CORE, (0, 0))))
    tied: list[int] = []
    monkeypatch.setattr(serve, "_end_with", tied.append)
    serve.serve(unstarted.config_file)
    assert limits == [(resource.RLIMIT_CORE, (0, 0))]
    assert told["workers"] == 3
    assert told["ssl_protocol_min"] == "tls1.3"
    assert told["http"] == "1"
    assert not told["websockets"]
    application = told["target_loader"]()
    assert isinstance(application, Bridge)
    application._on_stop()
    assert tied == [os.getpid()]
    assert len(limits) == 2


def test_plain_http_on_loopback(unstarted: BrokerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the unsafe switch, on loopback only, the broker does without TLS files."""
    text = (
        unstarted.config_file.read_text()
        .replace("tls_", "# tls_")
        .replace("[store]", "unsafe_plain_http = true\n[store]")
    )
    unstarted.config_file.write_text(text)
    told: dict[str, Any] = {}

    class Server:
        def __init__(self, _target: str, **settings: Any) -> None:
            told.update(settings)

        def serve(self, **_: Any) -> None:
            pass

    monkeypatch.setattr(serve, "Server", Server)
    monkeypatch.setattr(serve, "forbid_core_dumps", lambda: None)
    serve.serve(unstarted.config_file)
    assert told["ssl_cert"] is None


def _connected(server: BrokerServer, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
    raw = socket.create_connection((server.host, server.port), timeout=20)
    try:
        return (context or server.context).wrap_socket(raw, server_hostname=server.host)
    except BaseException:
        raw.close()
        raise


def _limit(pid: int) -> list[str]:
    """Soft and hard limit on core files of a process."""
    text = Path(f"/proc/{pid}/limits").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("Max core file size")]
    return line.split()[4:6]


def test_workers_end_with_the_main_process(tmp_path: Path) -> None:
    """If the main process alone is killed, its workers do not go on without anybody to look after them."""
    server = BrokerServer(tmp_path, workers=2)
    server.start()
    try:
        os.kill(server.group, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while (left := _running(server.group)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == []
    finally:
        server.kill()


def _running(group: int) -> list[int]:
    """The processes of a process group that are not dead."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, of_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize(("result", "parent"), [(0, 1 << 30), (-1, os.getppid())])
def test_a_worker_that_nobody_looks_after_does_not_start(
    monkeypatch: pytest.MonkeyPatch, result: int, parent: int
) -> None:
    """A worker whose main process has ended meanwhile, or that the kernel will not tie to it, stops at once."""

    class Library:
        def __init__(self, *_: object) -> None: ...

        def prctl(self, *_: int) -> int:
            return result

    monkeypatch.setattr("ctypes.CDLL", Library)
    with pytest.raises(ConfigError, match="main process"):
        serve._end_with(parent)
