# SPDX-License-Identifier: Apache-2.0
"""The line to a broker: only to the pinned CA, and with an end to every wait and every size."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import connection
from agent.connection import Answer, Connection, endpoint, tls_context
from agent.deadline import Deadline
from agent.loopback import is_loopback
from keys.errors import ConfigError, ProtocolError, Unavailable
from tests.fakes.kbs import FakeKbs, Script, answer, raw
from tests.fakes.tls import TlsCa


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> TlsCa:
    return TlsCa(tmp_path_factory.mktemp("tls"))


def ask(url: str, tls: ssl.SSLContext | None = None, seconds: float = 5) -> Answer:
    line = Connection(endpoint(url), tls, Deadline(seconds))
    try:
        return line.ask("GET", "/kbs/v0/resource/a/b/c", None, {})
    finally:
        line.close()


def played(script: Script, seconds: float = 5) -> Answer:
    """The answer of a plain server that plays `script`."""
    with FakeKbs({}) as kbs:
        kbs.script["resource"].append(script)
        return ask(kbs.url, seconds=seconds)


@pytest.mark.parametrize(
    ("url", "secure", "host", "port", "base"),
    [
        ("https://broker.example", True, "broker.example", 443, ""),
        ("https://broker.example:8443/kbs/", True, "broker.example", 8443, "/kbs"),
        ("https://[2001:db8::1]:8443", True, "2001:db8::1", 8443, ""),
        ("http://127.0.0.1", False, "127.0.0.1", 80, ""),
        ("http://localhost:8080", False, "localhost", 8080, ""),
        ("http://[::1]:8080", False, "::1", 8080, ""),
    ],
)
def test_an_endpoint_is_taken_apart(url: str, secure: bool, host: str, port: int, base: str) -> None:
    """A broker's URL gives host, port, base path, and whether TLS is spoken."""
    assert endpoint(url) == (url, secure, host, port, base)


@pytest.mark.parametrize(
    "url",
    [
        "", "broker.example", "ftp://broker.example", "https://", "https://user@broker.example", "https://b.example?x",
        "https://b.example#x", "https://b.example:port", "https://b.example:99999", "https://[::1",
        "https://b.example/ x", "https://b.example/\x7fX", "https://b\u00fccher.example",
    ],
)  # fmt: skip
def test_what_is_no_endpoint_is_a_config_error(url: str) -> None:
    """A URL with a user, a query, a fragment, a bad port or strange characters is refused."""
    with pytest.raises(ConfigError, match="not a broker's URL"):
        endpoint(url)


@pytest.mark.parametrize("url", ["http://broker.example", "http://192.0.2.1", "http://127.0.0.1.example"])
def test_plain_http_stays_on_this_machine(url: str) -> None:
    """Without TLS only a loopback address is spoken to."""
    with pytest.raises(ConfigError, match="loopback"):
        endpoint(url)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("10.0.0.1", False),
     ("localhost.example", False), ("192.168.1.1", False), ("", False)],
)  # fmt: skip
def test_loopback_is_decided_by_the_literal_address(host: str, loopback: bool) -> None:
    """Only localhost and literal loopback addresses mean this machine."""
    assert is_loopback(host) is loopback


def test_a_broker_of_the_pinned_ca_is_spoken_to(ca: TlsCa) -> None:
    """The pinned CA's certificate for this name, over TLS 1.3, is accepted."""
    with FakeKbs({}, ca.server_context()) as kbs:
        assert ask(kbs.url, tls_context(str(ca.ca_file))).status == 401


def test_a_broker_of_another_ca_is_refused(ca: TlsCa, tmp_path: Path) -> None:
    """A certificate of any other CA is refused, the machine's own store is never asked, and no request is sent."""
    other = TlsCa(tmp_path, "another CA")
    with FakeKbs({}, other.server_context()) as kbs:
        with pytest.raises(ProtocolError, match="pinned CA"):
            ask(kbs.url, tls_context(str(ca.ca_file)))
        assert kbs.received == []


def test_a_broker_with_another_name_is_refused(ca: TlsCa) -> None:
    """A certificate of the pinned CA for another host is refused."""
    with FakeKbs({}, ca.server_context("broker.example")) as kbs, pytest.raises(ProtocolError, match="pinned CA"):
        ask(kbs.url, tls_context(str(ca.ca_file)))


def test_a_broker_that_speaks_only_tls_1_2_is_refused(ca: TlsCa) -> None:
    """TLS 1.3 is the least."""
    context = ca.server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with FakeKbs({}, context) as kbs, pytest.raises(ProtocolError, match=r"TLS 1\.3"):
        ask(kbs.url, tls_context(str(ca.ca_file)))


def test_a_connection_that_ends_in_the_handshake_is_unavailable(ca: TlsCa) -> None:
    """A peer that hangs up instead of a handshake may be there later."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            sock, _ = server.accept()
            with sock:
                sock.recv(1)

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(Unavailable):
            ask(f"https://127.0.0.1:{server.getsockname()[1]}", tls_context(str(ca.ca_file)))
        thread.join()


def test_a_handshake_that_never_ends_is_given_up(ca: TlsCa) -> None:
    """A peer that accepts and says nothing costs no more than the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            ask(f"https://127.0.0.1:{server.getsockname()[1]}", tls_context(str(ca.ca_file)), seconds=0.1)
        assert time.monotonic() - started < 8


@pytest.mark.parametrize("content", [None, b"", b"not a certificate"])
def test_a_ca_file_that_is_none_is_a_config_error(content: bytes | None, tmp_path: Path) -> None:
    """Without a usable CA file there is no TLS, and never the system's store instead."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be used"):
        tls_context(str(path))
    with pytest.raises(ConfigError, match="no CA file"):
        tls_context("")


def test_several_requests_use_one_connection() -> None:
    """A connection is kept open, and opened again when the broker has closed it."""
    with FakeKbs({}) as kbs:
        line = Connection(endpoint(kbs.url), None, Deadline(5))
        for _ in range(3):
            assert line.ask("GET", "/kbs/v0/resource/a/b/c", None, {}).status == 401
        assert kbs.connections == 1
        kbs.script["resource"].append(answer(200, {}, "Connection: close\r\n"))
        for _ in range(2):
            line.ask("GET", "/kbs/v0/resource/a/b/c", None, {})
        assert kbs.connections == 2
        line.close()


def test_an_answer_has_status_body_cookies_and_retry_after() -> None:
    """What the client needs of an answer is all there."""
    headers = "Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nRetry-After: 7\r\n"
    assert played(raw(503, b"body", headers)) == (503, b"body", ("a=1", "b=2"), 7.0)


@pytest.mark.parametrize("value", ["", "soon", "-1", "1e9", "9999999", "Mon, 01 Jan 2029 00:00:00 GMT"])
def test_a_retry_after_that_is_no_small_number_is_not_obeyed(value: str) -> None:
    """A guest without a clock cannot use a date, and nobody makes it wait for weeks."""
    assert played(raw(503, b"", f"Retry-After: {value}\r\n")).retry_after == 0


def test_an_answer_in_chunks_is_read() -> None:
    """Chunked transfer, as proxies make it, is HTTP too."""
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert played(chunks).body == b"abcde"


def _endless(header: bytes, piece: bytes) -> Callable[[socket.socket], None]:
    def script(sock: socket.socket) -> None:
        sock.sendall(header)
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(piece)

    return script


@pytest.mark.parametrize(
    "script",
    [
        raw(200, bytes(connection.MAX_ANSWER_BYTES + 1)),
        _endless(b"HTTP/1.1 200 OK\r\n\r\n", bytes(4096)),
        _endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        _endless(b"HTTP/1.1 200 OK\r\n", b"X: " + 1000 * b"y" + b"\r\n"),
        _endless(b"HTTP/1.1 200 ", bytes(4096)),
        _endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["length", "no length", "chunks", "headers", "status line", "interim answers"],
)
def test_an_answer_without_end_is_cut_off(script: Script) -> None:
    """However an answer is too long, the agent stops reading it."""
    with pytest.raises(ProtocolError):
        played(script)


def _slowly(data: bytes) -> Callable[[socket.socket], None]:
    def script(sock: socket.socket) -> None:
        sock.settimeout(0.02)
        with contextlib.suppress(OSError):
            for byte in data:
                sock.sendall(bytes((byte,)))
                with contextlib.suppress(TimeoutError):
                    sock.recv(1)  # waits, and ends when the agent hangs up

    return script


@pytest.mark.parametrize("data", [raw(200, bytes(10000)), b"HTTP/1.1 200 OK\r\n" + 10000 * b"X"])
def test_an_answer_byte_by_byte_costs_no_more_than_the_deadline(data: bytes) -> None:
    """A peer that sends just enough to keep each read alive is given up all the same."""
    started = time.monotonic()
    with pytest.raises(Unavailable, match="time"):
        played(_slowly(data), seconds=0.2)
    assert time.monotonic() - started < 8


def _silence(sock: socket.socket) -> None:
    sock.recv(1)  # until the agent hangs up


def test_a_silent_broker_costs_no_more_than_the_deadline() -> None:
    """A request without an answer is Unavailable at the deadline."""
    started = time.monotonic()
    with pytest.raises(Unavailable):
        played(_silence, seconds=0.1)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    "script",
    [lambda _: None, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"],
    ids=["at once", "in the answer"],
)
def test_a_broker_that_hangs_up_may_be_asked_again(script: Script) -> None:
    """A connection that ends early is Unavailable: retry may help."""

    def then_close(sock: socket.socket) -> None:
        if isinstance(script, bytes):
            sock.sendall(script)

    with pytest.raises(Unavailable):
        played(then_close)


@pytest.mark.parametrize(
    "script",
    [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n" + b"X\r\n" * 200],
)
def test_what_is_no_http_is_a_protocol_error(script: bytes) -> None:
    """A peer that does not speak HTTP is not asked again."""

    def send(sock: socket.socket) -> None:
        sock.sendall(script)

    with pytest.raises(ProtocolError, match="HTTP"):
        played(send)


def test_nobody_there_is_unavailable() -> None:
    """A refused connection is Unavailable, with what to look at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        ask(f"http://127.0.0.1:{port}")
    assert caught.value.found == "Connection refused"
    assert caught.value.mend is not None


def test_a_name_server_that_hangs_costs_no_more_than_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver without a deadline of its own does not hold the machine."""
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(10) and [])
    started = time.monotonic()
    with pytest.raises(Unavailable, match="name server"):
        ask("https://broker.example", seconds=0.1)
    release.set()
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (UnicodeError("label too long"), "not a host name"),
        (None, "has no address"),
    ],
)
def test_a_name_without_an_address_is_unavailable(
    failure: Exception | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that does not resolve may resolve later, when the network is up."""

    def resolve(*_: object, **__: object) -> list[object]:
        if failure is not None:
            raise failure
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(Unavailable, match=words):
        ask("https://broker.example")


def test_the_second_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that refuses is passed over for the next one."""
    with FakeKbs({}) as kbs:
        port = int(kbs.url.rpartition(":")[2])
        addresses = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        assert ask(f"http://localhost:{port}").status == 401
