# SPDX-License-Identifier: Apache-2.0
"""One connection to one broker: TLS 1.3 to a pinned CA, and every wait and every size bounded.

`http.client` speaks HTTP; the socket under it is ours. A timeout on a socket bounds one read, so a peer that sends a
byte a second could hold a machine for ever: here each read gets only what is left of the deadline, and the bytes of one
answer are counted before anything parses them. Trust comes from the pinned file alone, never from the system's store,
and names are checked. Proxies and SSLKEYLOGFILE in the environment are not looked at, redirects are not followed.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from agent.deadline import Deadline
from agent.loopback import is_loopback
from keys.errors import ConfigError, ProtocolError, Unavailable

MAX_ANSWER_BYTES = 128 * 1024  # of one answer with its header: a key of 64 KiB as JWE, and some
CONNECT_SECONDS = 3.0  # for one address
PORTS = {"https": 443, "http": 80}


class Endpoint(NamedTuple):
    """A broker's URL, taken apart. `base` is what stands before /kbs/v0."""

    url: str
    secure: bool
    host: str
    port: int
    base: str


class Answer(NamedTuple):
    """`cookies` are the values of all Set-Cookie headers, `retry_after` seconds."""

    status: int
    body: bytes
    cookies: tuple[str, ...]
    retry_after: float


def endpoint(url: str) -> Endpoint:
    """`url` checked: https, or http to this machine; no user, query or fragment. Raises ConfigError."""
    mend = "give brokers as https://HOST[:PORT]"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigError("not a broker's URL", found=url, mend=mend) from None
    plain = url.isascii() and url.isprintable() and " " not in url
    if not plain or parts.scheme not in PORTS or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError("not a broker's URL", found=url, mend=mend)
    secure = parts.scheme == "https"
    if not secure and not is_loopback(host):
        raise ConfigError("plain http is for loopback addresses only", found=url, mend=mend)
    return Endpoint(url, secure, host, port or PORTS[parts.scheme], parts.path.rstrip("/"))


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Only TLS 1.3, only the CA in `ca_file`, host names checked. Raises ConfigError."""
    if not ca_file:
        raise ConfigError("no CA file for the broker", mend="set ca_file, or give --ca-file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # requires a certificate and checks the name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cafile=ca_file)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"the CA file {ca_file} cannot be used", found=_reason(error)) from None
    return context


class Connection(http.client.HTTPConnection):
    """Kept open between requests, and opened again if the broker closed it. `deadline` bounds all of them together."""

    def __init__(self, target: Endpoint, tls: ssl.SSLContext | None, deadline: Deadline) -> None:
        super().__init__(target.host, target.port)
        self._target = target
        self._tls = tls
        self._deadline = deadline

    def connect(self) -> None:
        """Called by `http.client`. Raises OSError, ssl.SSLError or Unavailable; `ask` converts them."""
        plain = self._open()
        try:
            if self._tls is not None:
                plain.settimeout(self._deadline.left("the broker"))
                plain = self._tls.wrap_socket(plain, server_hostname=self._target.host)
        except BaseException:
            plain.close()
            raise
        self.sock: Any = _BoundedSocket(plain, self._deadline)

    def _open(self) -> socket.socket:
        """A connected socket: the first address that answers."""
        failure: OSError = OSError("the name has no address")
        for family, address in _addresses(self._target, self._deadline):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(min(CONNECT_SECONDS, self._deadline.left("the broker")))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                failure = error
            else:
                return sock
        raise failure

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        """One request and its answer. Raises Unavailable (retry may help) or ProtocolError (not an answer of ours)."""
        what = f"the broker at {self._target.url}"
        try:
            self.request(method, self._target.base + path, body=body, headers=headers)
            with self.getresponse() as response:
                content = response.read()
        except ssl.SSLCertVerificationError as error:
            raise ProtocolError(
                f"{what} does not show a certificate of the pinned CA",
                found=error.verify_message,
                mend="see that ca_file is the CA of this broker and that the URL has the certificate's name",
            ) from None
        except (http.client.RemoteDisconnected, http.client.IncompleteRead, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise Unavailable(f"{what} closed the connection") from None
        except ssl.SSLError as error:
            raise ProtocolError(f"{what} does not speak TLS 1.3", found=_reason(error)) from None
        except (http.client.HTTPException, ValueError):  # ValueError: a header that no HTTP has
            raise ProtocolError(f"{what} does not answer in HTTP") from None
        except TimeoutError:
            raise Unavailable(f"{what} did not answer in time", mend="see how busy it and the network are") from None
        except OSError as error:
            raise Unavailable(
                f"{what} cannot be reached", found=_reason(error), mend="see that it runs and that the network is up"
            ) from None
        cookies = tuple(response.headers.get_all("Set-Cookie", ()))
        return Answer(response.status, content, cookies, _seconds(response.getheader("Retry-After")))


class _BoundedSocket:
    """The part of a socket that `http.client` uses, with a deadline and a limit for each answer."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._deadline.left("the broker"))
        self._sock.sendall(data)  # the timeout is for the whole of it

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Called once for each answer."""
        return io.BufferedReader(_BoundedReader(self._sock, self._deadline))

    def close(self) -> None:
        """May come before the last answer is read: the socket stays open until its readers are closed, too."""
        self._sock.close()


class _BoundedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._stream = sock.makefile("rb", buffering=0)
        self._deadline = deadline
        self._left = MAX_ANSWER_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader hands over a memoryview
        if self._left == 0:
            raise ProtocolError("the broker's answer is too long", expected=f"at most {MAX_ANSWER_BYTES} bytes")
        self._sock.settimeout(self._deadline.left("the broker's answer"))
        size = self._stream.readinto(buffer[: self._left]) or 0
        self._left -= size
        return size

    def close(self) -> None:
        self._stream.close()
        super().close()


def _addresses(target: Endpoint, deadline: Deadline) -> list[tuple[int, Any]]:
    """(family, address) for a name. The resolver knows no deadline, so it works in a thread that is left behind."""
    import threading  # noqa: PLC0415

    found: list[tuple[int, Any]] = []
    failure: list[OSError] = []

    def resolve() -> None:
        try:
            answers = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            failure.append(error if isinstance(error, OSError) else OSError("not a host name"))
        else:
            found.extend((family, address) for family, _, _, _, address in answers)

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(deadline.left("the name server"))
    deadline.left("the name server")
    if failure:
        raise failure[0]
    return found


def _seconds(text: str | None) -> float:
    """Retry-After in seconds; 0 for none and for a date, which a guest without a clock cannot use."""
    return float(text) if text is not None and text.isdecimal() and len(text) <= 6 else 0.0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
