# SPDX-License-Identifier: Apache-2.0
"""A key distribution service of our own on loopback: genuine, throttling, broken, slow, or gone."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from broker.verifiers.snp_endorsements import PREFIX, crl_name, vcek_name
from tests.fakes.amd import Chip, FakeAmd


@dataclass
class Reply:
    """What is answered to one path, or to all. `gate` holds the answer back, `rest` all of the body but its first byte.

    `raw` is sent instead of everything else.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    gate: threading.Event | None = None
    rest: threading.Event | None = None
    raw: bytes | None = None


class FakeKds:
    """It knows what it was told; for everything else its answer is 404. `always` is answered to every request instead.

    `asked` are the paths of all requests, in order.
    """

    def __init__(self, *known: Chip | FakeAmd, tls: ssl.SSLContext | None = None) -> None:
        self.replies: dict[str, Reply] = {}
        self.always: Reply | None = None
        self.asked: list[str] = []
        self._gates: list[threading.Event] = []
        for one in known:
            self.know(one)
        kds = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                kds._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.port = self._server.server_address[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """From here on connections are refused. Who still waits at a gate is let go."""
        if self._thread.is_alive():
            for gate in self._gates:
                gate.set()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def know(self, one: Chip | FakeAmd) -> None:
        """A chip's certificate, or a line's revocation list."""
        if isinstance(one, FakeAmd):
            self.put(crl_name(one.line), one.crl())
        else:
            self.put(vcek_name(one.line, one.hw_id, one.tcb), one.vcek)

    def put(self, name: str, reply: Reply | bytes) -> Reply:
        """What is answered where `name` is asked for."""
        made = Reply(body=reply) if isinstance(reply, bytes) else reply
        self.replies[f"/{name.removeprefix(PREFIX)}"] = made
        return made

    def gate(self) -> threading.Event:
        """A gate for a `Reply`; opened at the latest when the service closes."""
        gate = threading.Event()
        self._gates.append(gate)
        return gate

    def times(self, name: str) -> int:
        """How often `name` was asked for."""
        return self.asked.count(f"/{name.removeprefix(PREFIX)}")

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(handler.path)
        reply = self.always or self.replies.get(handler.path) or Reply(404)
        _wait(reply.gate)
        handler.close_connection = True
        with suppress(OSError):  # whoever asked did not wait
            if reply.raw is not None:
                handler.wfile.write(reply.raw)
                return
            handler.send_response(reply.status)
            length = {} if "Transfer-Encoding" in reply.headers else {"Content-Length": str(len(reply.body))}
            for name, value in (length | reply.headers).items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(reply.body[:1])
            _wait(reply.rest)
            handler.wfile.write(reply.body[1:])


def _wait(gate: threading.Event | None) -> None:
    if gate is not None:
        gate.wait(20)


def names(chips: Iterable[Chip]) -> tuple[str, ...]:
    """Under what names the certificates of `chips` are looked up."""
    return tuple(vcek_name(chip.line, chip.hw_id, chip.tcb) for chip in chips)
