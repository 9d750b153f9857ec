# SPDX-License-Identifier: Apache-2.0
"""Between event loop and application: whole requests, limits, and one line a log entry."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
from granian.rsgi import ProtocolClosed, ProtocolError

from broker.http import bridge
from broker.http.bridge import Bridge
from broker.http.edge import LOOP, THREAD, TURN, WANTS_THREAD
from broker.logs import LineFormatter, log_config

LIMIT = 1000


class Headers(dict[str, str]):
    """Header fields; one name may come twice, as granian hands them out."""

    def __init__(self, *fields: tuple[str, str]) -> None:
        super().__init__(fields)
        self.fields = fields

    def items(self) -> Any:
        return self.fields


class Scope:
    http_version = "1.1"
    server = "127.0.0.1:8443"
    client = "192.0.2.7:50000"
    scheme = "https"
    query_string = "a=%41"

    def __init__(self, *headers: tuple[str, str], method: str = "POST", path: str = "/v1/x") -> None:
        self.headers = Headers(*headers)
        self.method = method
        self.path = path


class Exchange:
    """A client that sends `chunks`, and after them nothing more if it `stalls`."""

    def __init__(self, *chunks: bytes, stalls: bool = False, breaks: Exception | None = None) -> None:
        self.chunks = list(chunks)
        self.breaks = breaks
        self.stalls = stalls
        self.read = 0
        self.answer: tuple[int, dict[str, str], bytes] | None = None

    async def __call__(self) -> bytes:
        return b"".join([chunk async for chunk in self])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.read += len(chunk)
            yield chunk
        if self.breaks is not None:
            raise self.breaks
        if self.stalls:
            await asyncio.Event().wait()

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        assert self.answer is None
        self.answer = (status, dict(headers), body)


class Application:
    """Remembers what it was called with; `closed` says that its answer was closed."""

    def __init__(self) -> None:
        self.environ: dict[str, Any] = {}
        self.body = b""
        self.closed = False

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.environ = environ
        self.body = environ["wsgi.input"].read()
        start_response("201 CREATED", [("x-test", "yes")])
        return self

    def __iter__(self) -> Any:
        return iter((b"one ", b"two"))

    def close(self) -> None:
        self.closed = True


def run(scope: Scope, exchange: Exchange, application: Any = None) -> Application:
    app = application or Application()
    served = Bridge(app, threads=1, body_bytes=LIMIT)

    async def main() -> None:
        await served.__rsgi__(scope, exchange)
        served.__rsgi_del__(asyncio.get_running_loop())

    asyncio.run(main())
    return app  # type: ignore[no-any-return]


def test_request_and_answer() -> None:
    """A request reaches the application whole, and its answer the client."""
    exchange = Exchange(b"hel", b"lo")
    app = run(
        Scope(("content-length", "5"), ("content-type", "text/plain"), ("host", "broker.test"), ("x-a", "1")), exchange
    )
    assert app.body == b"hello"
    assert exchange.answer == (201, {"x-test": "yes"}, b"one two")
    assert app.closed
    expected = {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/v1/x", "QUERY_STRING": "a=%41", "CONTENT_LENGTH": "5",
        "CONTENT_TYPE": "text/plain", "HTTP_HOST": "broker.test", "HTTP_X_A": "1", "REMOTE_ADDR": "192.0.2.7",
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8443", "wsgi.url_scheme": "https",
    }  # fmt: skip
    assert expected.items() <= app.environ.items()
    assert "HTTP_CONTENT_LENGTH" not in app.environ


def test_request_without_a_body() -> None:
    """A request that announces no body is not waited for."""
    exchange = Exchange(stalls=True)
    assert run(Scope(method="GET"), exchange).environ["CONTENT_LENGTH"] == "0"


def test_path_beyond_ascii() -> None:
    """A decoded path reaches the application as PEP 3333 wants it."""
    assert run(Scope(path="/é"), Exchange()).environ["PATH_INFO"].encode("latin-1").decode() == "/é"


def test_headers_that_come_twice() -> None:
    """The application sees both values joined, and a header with an underscore never."""
    environ = run(
        Scope(("authorization", "Bearer a"), ("authorization", "Bearer b"), ("cookie", "a=1"), ("cookie", "b=2"),
              ("x_forwarded", "no")),
        Exchange(),
    ).environ  # fmt: skip
    assert environ["HTTP_AUTHORIZATION"] == "Bearer a, Bearer b"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert "HTTP_X_FORWARDED" not in environ


def test_chunked_body() -> None:
    """A body without a length is read to its end."""
    app = run(Scope(("transfer-encoding", "chunked")), Exchange(b"a" * 400, b"b" * 600))
    assert app.body == b"a" * 400 + b"b" * 600
    assert app.environ["CONTENT_LENGTH"] == "1000"
    assert "HTTP_TRANSFER_ENCODING" not in app.environ


def test_announced_body_that_is_too_long_is_not_read() -> None:
    """The application learns the length and refuses; not a byte is read."""
    exchange = Exchange(b"a" * 1001)
    app = run(Scope(("content-length", "1001")), exchange)
    assert (app.body, app.environ["CONTENT_LENGTH"], exchange.read) == (b"", "1001", 0)


def test_chunked_body_that_is_too_long_is_given_up() -> None:
    """Reading stops with the chunk that goes beyond the limit."""
    exchange = Exchange(*[b"a" * 600] * 50)
    app = run(Scope(("transfer-encoding", "chunked")), exchange)
    assert (app.body, app.environ["CONTENT_LENGTH"], exchange.read) == (b"", "1200", 1200)


@pytest.mark.parametrize(
    ("path", "shape"), [("/v1/keys", "error"), ("/kbs/v0/auth", "AttestationError"), ("/kbs/v0/x", "PluginInternal")]
)
@pytest.mark.parametrize("field", [("content-length", "9"), ("transfer-encoding", "chunked")])
def test_body_that_does_not_come(
    monkeypatch: pytest.MonkeyPatch, path: str, shape: str, field: tuple[str, str]
) -> None:
    """A client that stalls is sent away at the deadline, in JSON, and no thread ever waits for it."""
    monkeypatch.setattr(bridge, "BODY_SECONDS", 0.01)
    exchange = Exchange(b"abc", stalls=True)
    app = run(Scope(field, path=path), exchange)
    assert app.environ == {}
    assert exchange.answer is not None
    status, headers, body = exchange.answer
    assert status == 408
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert shape in body.decode()


@pytest.mark.parametrize("error", [ProtocolClosed, ProtocolError])
def test_client_that_goes_away(error: type[Exception]) -> None:
    """A client that leaves in the middle of its body is nobody's request and no exception."""
    exchange = Exchange(b"abc", breaks=error("gone"))
    assert run(Scope(("content-length", "9")), exchange).environ == {}
    assert exchange.answer is None


@pytest.mark.parametrize(("path", "in_the_loop"), [("/kbs/v0/auth", True), ("/v1/keys", False), ("/healthz", False)])
def test_where_a_request_is_served(path: str, in_the_loop: bool) -> None:
    """A guest's request is judged in the event loop's own thread, all others in a thread of the pool."""
    threads: list[threading.Thread] = []

    class Here(Application):
        def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            threads.append(threading.current_thread())
            return super().__call__(environ, start_response)

    exchange = Exchange()
    run(Scope(path=path), exchange, Here())
    assert exchange.answer == (201, {"x-test": "yes"}, b"one two")
    assert (threads == [threading.current_thread()]) is in_the_loop


def test_too_many_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the threads are taken and enough wait, the next is told to come again, at once."""
    monkeypatch.setattr(bridge, "MAX_WAITING", 2)
    go = threading.Event()

    class Slow(Application):
        def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            assert go.wait(10)
            return super().__call__(environ, start_response)

    served = Bridge(Slow(), threads=1, body_bytes=LIMIT)
    exchanges = [Exchange() for _ in range(4)]

    async def main() -> None:
        first = [asyncio.create_task(served.__rsgi__(Scope(), exchange)) for exchange in exchanges[:2]]
        await asyncio.sleep(0)
        await served.__rsgi__(Scope(), exchanges[2])
        go.set()
        await asyncio.gather(*first)
        await served.__rsgi__(Scope(), exchanges[3])
        served.__rsgi_del__(asyncio.get_running_loop())

    asyncio.run(main())
    assert [exchange.answer and exchange.answer[0] for exchange in exchanges] == [201, 201, 503, 201]
    assert exchanges[2].answer is not None
    assert exchanges[2].answer[1]["retry-after"] == "1"


class Undecided(Application):
    """Wants a thread for every request that it gets in the event loop, and there waits for `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.turns: list[tuple[str, threading.Thread, bytes]] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = super().__call__(environ, start_response)
        self.turns.append((environ[TURN], threading.current_thread(), self.body))
        if environ[TURN] == LOOP and environ["QUERY_STRING"] == "wait":
            environ[WANTS_THREAD] = True
        elif environ[TURN] == THREAD:
            assert self.go.wait(20)
        return answer


class Patient(Scope):
    query_string = "wait"


def test_guest_that_must_wait_delays_nobody() -> None:
    """Its request is answered once, by a second turn in a thread with the same body; others are answered meanwhile."""
    app = Undecided()
    served = Bridge(app, threads=1, body_bytes=LIMIT)
    slow, quick = Exchange(b"slow"), Exchange(b"quick")

    async def main() -> None:
        waiting = asyncio.create_task(served.__rsgi__(Patient(("content-length", "4"), path="/kbs/v0/attest"), slow))
        await asyncio.sleep(0)
        await served.__rsgi__(Scope(("content-length", "5"), path="/kbs/v0/auth"), quick)
        assert (slow.answer, quick.answer and quick.answer[0]) == (None, 201)
        app.go.set()
        await waiting
        served.__rsgi_del__(asyncio.get_running_loop())

    asyncio.run(main())
    assert slow.answer == (201, {"x-test": "yes"}, b"one two")
    assert {(turn, body) for turn, _, body in app.turns} == {(LOOP, b"slow"), (THREAD, b"slow"), (LOOP, b"quick")}
    assert all((turn == LOOP) is (thread is threading.current_thread()) for turn, thread, _ in app.turns)


def test_too_many_that_must_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """When enough guests wait, the next that must is told to come again, at once; owners are not touched by it."""
    monkeypatch.setattr(bridge, "MAX_FETCHING", 2)
    app = Undecided()
    served = Bridge(app, threads=1, body_bytes=LIMIT)
    exchanges = [Exchange() for _ in range(4)]

    async def main() -> None:
        first = [
            asyncio.create_task(served.__rsgi__(Patient(path="/kbs/v0/attest"), exchange)) for exchange in exchanges[:2]
        ]
        await asyncio.sleep(0)
        await served.__rsgi__(Patient(path="/kbs/v0/attest"), exchanges[2])
        await served.__rsgi__(Scope(path="/kbs/v0/auth"), exchanges[3])
        app.go.set()
        await asyncio.gather(*first)
        served.__rsgi_del__(asyncio.get_running_loop())

    asyncio.run(main())
    assert [exchange.answer and exchange.answer[0] for exchange in exchanges] == [201, 201, 503, 201]


def test_application_that_fails() -> None:
    """An exception that leaves the application leaves no request counted as waiting."""

    def broken(_environ: dict[str, Any], _start: Callable[..., Any]) -> Iterable[bytes]:
        raise KeyError

    served = Bridge(broken, threads=1, body_bytes=LIMIT)

    async def main() -> None:
        with pytest.raises(KeyError):
            await served.__rsgi__(Scope(), Exchange())
        assert served._pool.waiting == 0
        served.__rsgi_del__(asyncio.get_running_loop())

    asyncio.run(main())


def test_stopping_closes_what_was_opened() -> None:
    """When the server stops, the store behind the application is closed."""
    stopped: list[bool] = []
    served = Bridge(Application(), threads=1, body_bytes=LIMIT, on_stop=lambda: stopped.append(True))
    loop = asyncio.new_event_loop()
    served.__rsgi_del__(loop)
    loop.close()
    assert stopped == [True]


def test_answer_that_is_a_plain_list() -> None:
    """An application may answer a list, which cannot be closed."""

    def plain(_environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        start("200 OK", [])
        return [b"x"]

    exchange = Exchange()
    run(Scope(), exchange, plain)
    assert exchange.answer == (200, {}, b"x")


# --- the log ---


def line(message: str, *args: object, exc_info: Any = None) -> str:
    record = logging.LogRecord("roomkey.test", logging.INFO, __file__, 1, message, args, exc_info)
    record.created = 1_800_000_000.5
    return LineFormatter().format(record)


def test_log_line() -> None:
    """Time in UTC, level, logger and message on one line."""
    assert line("%s is %s", "this", 1) == "2027-01-15T08:00:00.500Z INFO roomkey.test this is 1"


def test_log_cannot_be_forged() -> None:
    """A line feed or an escape sequence in a message stays on its line, visible."""
    assert line("a\nERROR b\x1b[2J\u2028c").endswith(r"a\nERROR b\x1b[2J\u2028c")


def test_log_of_an_exception() -> None:
    """Of an exception the log has the type and never the words, which may quote a secret."""
    try:
        raise ValueError("the secret itself")
    except ValueError:
        assert line("failed", exc_info=sys.exc_info()).endswith("failed (ValueError)")
    assert line("failed", exc_info=(None, None, None)).endswith("failed")


def test_log_goes_to_standard_error() -> None:
    """Our own loggers and the server's write to standard error in this form."""
    loggers = log_config()["loggers"]
    assert {"roomkey", "_granian"} <= loggers.keys()
    assert log_config()["handlers"]["stderr"]["stream"] == "ext://sys.stderr"
