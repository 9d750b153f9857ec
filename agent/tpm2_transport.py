# SPDX-License-Identifier: Apache-2.0
"""The way to a TPM: one command out, one response back.

device:/dev/tpmrm0        the kernel's resource manager; it flushes what a closed file left behind
swtpm:unix:PATH           a software TPM on a unix socket
swtpm:127.0.0.1:PORT      a software TPM on TCP, loopback only: the line carries secrets in the clear
"""

from __future__ import annotations

import os
import select
import socket

from agent.deadline import Deadline
from agent.loopback import is_loopback
from keys.errors import AttesterError, ConfigError

MAX_RESPONSE_BYTES = 4096  # TPM2_MAX_RESPONSE_SIZE of the PC Client profile
HEADER_BYTES = 10  # tag, size, response code
SPELLINGS = "device:PATH, swtpm:unix:PATH or swtpm:HOST:PORT"


class Transport:
    """A file descriptor that answers each command with one response, in as many pieces as it likes.

    The descriptor does not block, so a silent TPM costs no more than the deadline. Owns `fd`.
    """

    def __init__(self, fd: int, address: str) -> None:
        self._fd = fd
        self._address = address
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def exchange(self, command: bytes, deadline: Deadline) -> bytes:
        """The whole response to one whole command. Raises AttesterError or, at the deadline, Unavailable."""
        try:
            # A device wants a command as one write; sockets and terminals take one of this size whole, too.
            if os.write(self._fd, command) != len(command):
                raise AttesterError(f"the TPM at {self._address} does not take a whole command")
            response = self._read(HEADER_BYTES, b"", deadline)
            size = int.from_bytes(response[2:6], "big")
            if not HEADER_BYTES <= size <= MAX_RESPONSE_BYTES:
                raise AttesterError(f"the TPM at {self._address} answered with an impossible size", found=f"{size}")
            response = self._read(size, response, deadline)
        except OSError as error:
            raise AttesterError(f"the TPM at {self._address} cannot be used", found=_reason(error)) from None
        if len(response) != size:
            raise AttesterError(f"the TPM at {self._address} answered more than one response")
        return response

    def _read(self, size: int, response: bytes, deadline: Deadline) -> bytes:
        """`response` and what follows it, until there are `size` bytes. A device hands over more at once."""
        while len(response) < size:
            if self._poll.poll(1000 * deadline.left("the TPM")):
                piece = os.read(self._fd, MAX_RESPONSE_BYTES)
                if not piece:
                    raise AttesterError(f"the TPM at {self._address} closed the connection")
                response += piece
        return response

    def close(self) -> None:
        os.close(self._fd)


def connect(spelling: str, deadline: Deadline) -> Transport:
    """The transport that `spelling` names. Raises ConfigError if it is none, AttesterError if nothing is there."""
    kind, _, address = spelling.partition(":")
    if kind not in {"device", "swtpm"} or not address:
        raise ConfigError("not a way to a TPM", expected=SPELLINGS, found=spelling)
    try:
        if kind == "device":
            return Transport(os.open(address, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), address)
        return Transport(_socket(address, deadline), address)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise AttesterError(
            f"no TPM at {spelling}",
            found=_reason(error),
            mend="see that it exists and that this user may open it, or set `tpm` in the agent's config",
        ) from None


def _socket(address: str, deadline: Deadline) -> int:
    """A connected socket that does not block, as a bare descriptor."""
    target: str | tuple[str, int]
    if address.startswith("unix:"):
        family, target = socket.AF_UNIX, address.removeprefix("unix:")
    else:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        if not is_loopback(host) or not port.isdecimal():
            raise ConfigError("a software TPM is reached over loopback only", expected=SPELLINGS, found=address)
        family, target = socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port))
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(deadline.left("the TPM"))
        sock.connect(target)
        sock.setblocking(False)
        return sock.detach()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
