# SPDX-License-Identifier: Apache-2.0
"""A relay between guest and broker that keeps a copy of everything, TLS taken off.

It holds the broker's own TLS key, which a host never has: the story is told as if TLS had already been lost.
"""

from __future__ import annotations

import http.client
import ssl
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

TIMEOUT_SECONDS = 10.0
FORWARDED = ("Accept", "Content-Type", "Cookie", "Authorization")
RETURNED = ("Content-Type", "Set-Cookie", "Retry-After")


@dataclass(frozen=True)
class Message:
    """One call and its answer, as both travelled."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int
    answer_headers: dict[str, str]
    answer: bytes

    def everything(self) -> bytes:
        headers = repr((self.method, self.path, self.headers, self.answer_headers)).encode()
        return headers + self.body + self.answer


class Tap:
    """Listens on a loopback port of its own; `messages` grows with every call."""

    def __init__(self, broker_port: int, tls: Path) -> None:
        self.messages: list[Message] = []
        self._broker_port = broker_port
        self._client = ssl.create_default_context(cafile=str(tls / "ca.pem"))
        server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_side.minimum_version = ssl.TLSVersion.TLSv1_3
        server_side.load_cert_chain(tls / "broker.pem", tls / "broker.key")
        tap = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = TIMEOUT_SECONDS

            def do_POST(self) -> None:
                tap._relay(self)

            do_GET = do_POST  # noqa: N815  http.server's name

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  its signature
                """The story is printed elsewhere."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = server_side.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Message:
        """One call to the broker, recorded."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._broker_port, context=self._client, timeout=TIMEOUT_SECONDS
        )
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            message = Message(
                method, path, headers, body, answer.status, dict(answer.getheaders()), answer.read()
            )  # fmt: skip
        finally:
            connection.close()
        self.messages.append(message)
        return message

    def last(self, path: str) -> Message:
        return next(message for message in reversed(self.messages) if message.path == path)

    def _relay(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        headers = {name: handler.headers[name] for name in FORWARDED if name in handler.headers}
        message = self.send(handler.command, handler.path, headers, body)
        handler.send_response(message.status)
        lower = {name.lower(): value for name, value in message.answer_headers.items()}
        for name in RETURNED:
            if name.lower() in lower:
                handler.send_header(name, lower[name.lower()])
        handler.send_header("Content-Length", str(len(message.answer)))
        handler.end_headers()
        handler.wfile.write(message.answer)
