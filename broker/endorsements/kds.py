# SPDX-License-Identifier: Apache-2.0
"""AMD's key distribution service (KDS; AMD 57230, chapter 3), or a mirror of it.

One GET, one connection, every wait and every size bounded; redirects are not followed, and no proxy of the environment
is used. The base URL comes from the config alone. What comes is trusted for nothing here: TLS only keeps others from
seeing which chips a broker asks about, and from holding a revocation list back.

    200           the thing
    404           there is no such thing
    429           too many requests: not before Retry-After
    all others    failed, about this one thing
    no answer     failed, as a whole
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from broker.endorsements.source import FetchFailed
from broker.verifiers.snp_endorsements import PREFIX

CONNECT_S = 3.0  # seconds, for one address
READ_S = 3.0  # seconds, for one read
TOTAL_S = 6.0  # seconds, for the answer as a whole: its header, and its body
MAX_BYTES = 64 * 1024  # of one answer; a VCEK has 1.4 KiB, the longest revocation list so far 1 KiB
PIECE_BYTES = 16 * 1024
RETRY_AFTER_S = 60  # where KDS does not say
MAX_RETRY_AFTER_S = 3600


class Kds:
    """The service at `url`. Keeps no connection open: AMD wants to be asked seldom."""

    def __init__(self, url: str) -> None:
        """`url` as `broker.config` has checked it."""
        self._parts = urlsplit(url)

    def fetch(self, name: str) -> bytes | None:
        """The bytes under `name`, None where KDS says that there is no such thing. Raises FetchFailed."""
        path = f"{self._parts.path.rstrip('/')}/{name.removeprefix(PREFIX)}"
        deadline = time.monotonic() + TOTAL_S
        try:
            request = self._pool().urlopen("GET", path, redirect=False, preload_content=False, decode_content=False)
            with closing(request) as response:  # and its connection, which nobody needs again
                _in_time(deadline)
                body = _read(response, deadline) if response.status == 200 else b""
        except (HTTPError, OSError) as error:
            _in_time(deadline)
            raise FetchFailed("AMD's KDS does not answer", found=type(error).__name__, whole=True) from None
        if response.status == 404:
            return None
        if response.status == 429:
            pause = _pause_ms(response.headers.get("Retry-After", ""))
            raise FetchFailed("AMD's KDS wants no more requests now", found="status 429", whole=True, pause_ms=pause)
        if response.status != 200:
            raise FetchFailed("AMD's KDS answered something else", found=f"status {response.status}", whole=False)
        return body

    def _pool(self) -> urllib3.HTTPConnectionPool:
        host, timeout = self._parts.hostname or "", urllib3.Timeout(connect=CONNECT_S, read=READ_S)
        if self._parts.scheme == "http":
            pool = urllib3.HTTPConnectionPool(host, self._parts.port, timeout=timeout, retries=False)
            pool.ConnectionCls = _Connection
            return pool
        tls = ssl.create_default_context()  # the system's CAs; names are checked
        pool = urllib3.HTTPSConnectionPool(host, self._parts.port, timeout=timeout, retries=False, ssl_context=tls)
        pool.ConnectionCls = _TlsConnection
        return pool


class _Connection(HTTPConnection):
    def getresponse(self) -> Any:
        with _cut_off(self.sock):
            return super().getresponse()


class _TlsConnection(HTTPSConnection):
    def getresponse(self) -> Any:
        with _cut_off(self.sock):
            return super().getresponse()


@contextmanager
def _cut_off(sock: Any) -> Iterator[None]:
    """End the connection in TOTAL_S: a header can come byte by byte, and no timeout of a read ends that."""

    def cut() -> None:
        with suppress(OSError):  # it may just have been closed
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, which would say goodbye

    timer = threading.Timer(TOTAL_S, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _in_time(deadline: float) -> None:
    """Raises FetchFailed after the deadline. What came by then may have been cut off, and is not looked at."""
    if time.monotonic() > deadline:
        raise FetchFailed("AMD's KDS answers too slowly", found=f"over {TOTAL_S:.0f} seconds", whole=True)


def _read(response: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    """The body, piece by piece: a source that sends a byte a second must not hold a thread for ever."""
    body = b""
    while piece := response.read1(PIECE_BYTES):
        body += piece
        if len(body) > MAX_BYTES:
            raise FetchFailed("AMD's KDS answered too much", found=f"over {MAX_BYTES} bytes", whole=False)
        _in_time(deadline)
    return body


def _pause_ms(retry_after: str) -> int:
    """Retry-After in milliseconds. RFC 9110, section 10.2.3, has dates too; they are not read."""
    known = retry_after.isascii() and retry_after.isdecimal() and len(retry_after) < 10
    return min(int(retry_after) if known else RETRY_AFTER_S, MAX_RETRY_AFTER_S) * 1000
