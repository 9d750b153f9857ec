# SPDX-License-Identifier: Apache-2.0
"""Between the server's event loop (RSGI, granian) and the application (WSGI): whole requests only.

A WSGI application reads a body in the thread that judges it, and a few hundred clients that send their bytes slowly
would take every thread. Here bodies are read by the event loop, up to the limit and within a deadline, and nothing that
runs afterwards ever waits for a client.

A guest's request is judged right there, between two turns of the loop: it is a few milliseconds of Python, which no
other thread could run beside it, and handing it to one costs half as much again. An owner's request may take long
(erasing a key rewrites a table) and goes to a thread; when too many wait for one, the next is told to come again.

A guest's request for which something must be fetched says so instead of waiting (`broker.http.edge`), and is answered
by threads that do nothing else: a vendor that is slow delays neither other guests nor owners.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from granian.rsgi import ProtocolClosed, ProtocolError  # type: ignore[attr-defined]  # it imports them to be imported

from broker.http import errors
from broker.http.edge import LOOP, THREAD, TURN, WANTS_THREAD

BODY_SECONDS = 10.0  # to send a body in
MAX_WAITING = 256  # complete requests that wait for a thread of this process, or are in one
MAX_FETCHING = 32  # guests' requests that wait for something to be fetched, or for a thread to fetch it in
FETCHING_THREADS = 8
GUESTS = "/kbs/"  # the paths that are served without a thread, as long as nothing must be fetched

Headers = list[tuple[str, str]]
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Answer = tuple[int, Headers, bytes]


class Scope(Protocol):
    """What granian says of a request. `path` is decoded."""

    http_version: str
    server: str
    client: str
    scheme: str
    method: str
    path: str
    query_string: str
    headers: Any


class Exchange(Protocol):
    """granian's other half of a request."""

    async def __call__(self) -> bytes: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None: ...


class _Pool:
    """A few threads, and at most so many requests at once for them. `waiting` are those that are not answered yet."""

    def __init__(self, threads: int, most: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most = most
        self.waiting = 0

    @property
    def is_full(self) -> bool:
        return self.waiting >= self._most

    async def run(self, application: Application, environ: dict[str, Any]) -> Answer:
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, _run, application, environ)
        finally:
            self.waiting -= 1

    def shutdown(self) -> None:
        self._executor.shutdown(wait=True)


class Bridge:
    """An RSGI application around `application`; `on_stop` is called when the server stops."""

    def __init__(
        self, application: Application, *, threads: int, body_bytes: int, on_stop: Callable[[], None] = lambda: None
    ) -> None:
        self._application = application
        self._body_bytes = body_bytes
        self._on_stop = on_stop
        self._pool = _Pool(threads, MAX_WAITING, "roomkey")
        self._fetching = _Pool(FETCHING_THREADS, MAX_FETCHING, "roomkey-wait")

    def __rsgi_del__(self, _loop: asyncio.AbstractEventLoop) -> None:
        self._pool.shutdown()
        self._fetching.shutdown()
        self._on_stop()

    async def __rsgi__(self, scope: Scope, exchange: Exchange) -> None:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                length, body = await self._body(scope.headers, exchange)
        except TimeoutError:
            exchange.response_bytes(*_early(scope.path, 408, "the body did not come in time"))
            return
        except (ProtocolClosed, ProtocolError):
            return  # the client is gone, and nobody is there to be answered
        environ = _environ(scope, length, body)
        pool = self._pool
        if scope.path.startswith(GUESTS):
            environ[TURN] = LOOP
            answer = _run(self._application, environ)
            if WANTS_THREAD not in environ:
                exchange.response_bytes(*answer)
                return
            environ = _environ(scope, length, body)
            environ[TURN] = THREAD
            pool = self._fetching
        if pool.is_full:
            exchange.response_bytes(*_early(scope.path, 503, "the broker is busy, try again later"))
            return
        exchange.response_bytes(*await pool.run(self._application, environ))

    async def _body(self, headers: Mapping[str, str], exchange: Exchange) -> tuple[int, bytes]:
        """Its length and the body. One that is too long is not read: its length alone makes the application refuse."""
        declared = headers.get("content-length")
        if declared is not None:
            length = int(declared)  # the server has checked that it is a number
            return length, await exchange() if length <= self._body_bytes else b""
        if "transfer-encoding" not in headers:
            return 0, b""
        body = bytearray()
        async for chunk in exchange:
            body += chunk
            if len(body) > self._body_bytes:
                return len(body), b""
        return len(body), bytes(body)


def _early(path: str, status: int, words: str) -> Answer:
    headers = [("content-type", "application/json"), ("retry-after", errors.RETRY_AFTER_S), ("connection", "close")]
    return status, headers, errors.early(path, status, words)


def _environ(scope: Scope, length: int, body: bytes) -> dict[str, Any]:
    """PEP 3333. Of headers that come twice the application sees both, joined, and so believes neither."""
    host, _, port = scope.server.rpartition(":")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": scope.path.encode("utf-8", "surrogateescape").decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": host,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": scope.client.rpartition(":")[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope.headers.items():
        if "_" in name:
            continue  # would be taken for the header with a hyphen
        variable = "HTTP_" + name.upper().replace("-", "_")
        separator = "; " if name == "cookie" else ", "
        environ[variable] = f"{environ[variable]}{separator}{value}" if variable in environ else value
    environ["CONTENT_TYPE"] = environ.pop("HTTP_CONTENT_TYPE", "")
    environ.pop("HTTP_CONTENT_LENGTH", None)
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    environ["CONTENT_LENGTH"] = str(length)
    return environ


def _run(application: Application, environ: dict[str, Any]) -> Answer:
    started: list[Any] = []

    def start_response(status: str, headers: Headers, _exc_info: object = None) -> None:
        started[:] = (int(status[:3]), headers)

    chunks = application(environ, start_response)
    try:
        body = b"".join(chunks)
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    status, headers = started
    return status, headers, body
