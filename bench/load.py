# SPDX-License-Identifier: Apache-2.0
"""Guests at work: complete flows through the real server, over connections that stay open.

One flow is what an agent does: a new ephemeral key, /auth with EK certificate and AK, the credential opened, a quote
over nonce and key, /attest with the event log, /resource, the key unwrapped and compared. Each connection has a TPM of
its own, made of keys in memory, so that the client costs little; its cost is in the figures all the same, on the same
cores.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from bench.setting import KEY, PLAINTEXT
from keys import strictjson
from keys.messages import Challenge, ResourcePath
from tests.fakes.boot import Boot
from tests.fakes.broker_server import BrokerServer
from tests.fakes.ek_ca import EkCa
from tests.fakes.tpm_guest import FakeTpm, Guest

WARM_UP_FLOWS = 20  # of each connection, not counted
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """`latencies` of flows in seconds, sorted; CPU in seconds for each flow."""

    seconds: float
    latencies: list[float]
    broker_cpu: float
    client_cpu: float

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        return self.latencies[min(int(share * len(self.latencies)), len(self.latencies) - 1)]


def run(server: BrokerServer, ca: EkCa, *, connections: int, seconds: float) -> Load:
    """As many flows as go through in `seconds`. Any answer but the right key ends the measurement with an error."""
    start, stop = threading.Barrier(connections + 1), threading.Event()
    latencies: list[float] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            guests = Connection(server, ca)
            for _ in range(WARM_UP_FLOWS):
                guests.flow()
            start.wait()
            while not stop.is_set():
                latencies.append(guests.flow())
        except BaseException as error:  # noqa: BLE001  it is raised again below
            errors.append(error)
            start.abort()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(connections)]
    for thread in threads:
        thread.start()
    try:
        start.wait()
    except threading.BrokenBarrierError:
        raise errors[0] from None
    began, broker_before, client_before = time.perf_counter(), _group_cpu(server), time.process_time()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if errors:
        raise errors[0]
    flows = len(latencies)
    return Load(
        took,
        sorted(latencies),
        (_group_cpu(server) - broker_before) / flows,
        (time.process_time() - client_before) / flows,
    )


class Connection:
    """One kept-open TLS connection, and the guest behind it."""

    def __init__(self, server: BrokerServer, ca: EkCa) -> None:
        self.tpm = FakeTpm(ca)
        self.tpm.boot(Boot())
        plain = socket.create_connection((server.host, server.port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls: ssl.SSLSocket = server.context.wrap_socket(plain, server_hostname=server.host)
        self._host = f"{server.host}:{server.port}"
        self._path = ResourcePath(*KEY)

    def flow(self) -> float:
        """The time of one complete flow in seconds."""
        began = time.perf_counter()
        guest, cookie = self.attest()
        _, body = self._call("GET", f"/kbs/v0/resource/{self._path}", b"", cookie)
        if guest.open(strictjson.loads(body, name="the key", max_bytes=65536)) != PLAINTEXT:
            raise RuntimeError("the broker released another key")
        return time.perf_counter() - began

    def attest(self) -> tuple[Guest, str]:
        """The guest with a new key, and the cookie of its attested session."""
        guest = Guest(self.tpm, declare=True)
        head, body = self._call("POST", "/kbs/v0/auth", strictjson.compact(guest.request(self._path).to_json()))
        cookie = _cookie(head)
        attestation = guest.attestation(Challenge.from_bytes(body))
        self._call("POST", "/kbs/v0/attest", strictjson.compact(attestation.to_json()), cookie)
        return guest, cookie

    def may_have_key(self, cookie: str) -> bool:
        """Whether the key is released to the attested session. Raises RuntimeError on any other answer."""
        head, rest = self._answer("GET", f"/kbs/v0/resource/{self._path}", b"", cookie)
        status = head.split(None, 2)[1]
        if status not in {b"200", b"403"}:
            raise RuntimeError(f"{head.splitlines()[0].decode()} {rest.decode()}")
        return status == b"200"

    def close(self) -> None:
        self._tls.close()

    def _call(self, method: str, path: str, body: bytes, cookie: str = "") -> tuple[bytes, bytes]:
        head, rest = self._answer(method, path, body, cookie)
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{method} {path}: {head.splitlines()[0].decode()} {rest.decode()}")
        return head, rest

    def _answer(self, method: str, path: str, body: bytes, cookie: str) -> tuple[bytes, bytes]:
        lines = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n"
        self._tls.sendall((lines + (f"Cookie: {cookie}\r\n" if cookie else "") + "\r\n").encode() + body)
        head, _, rest = self._until(b"\r\n\r\n").partition(b"\r\n\r\n")
        length = int(_header(head, b"content-length"))
        while len(rest) < length:
            rest += self._receive()
        return head, rest

    def _until(self, mark: bytes) -> bytes:
        data = b""
        while mark not in data:
            data += self._receive()
        return data

    def _receive(self) -> bytes:
        piece = self._tls.recv(65536)
        if not piece:
            raise RuntimeError("the broker closed the connection")
        return piece


def _header(head: bytes, name: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        found, _, value = line.partition(b":")
        if found.lower() == name:
            return value.strip()
    raise RuntimeError(f"no {name.decode()} in the answer")


def _cookie(head: bytes) -> str:
    return _header(head, b"set-cookie").partition(b";")[0].decode()


def _group_cpu(server: BrokerServer) -> float:
    """Seconds of CPU that all processes of the broker have used."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # a process that ended meanwhile
            continue
        if int(fields[2]) == server.group:
            total += int(fields[11]) + int(fields[12])
    return total / TICKS
