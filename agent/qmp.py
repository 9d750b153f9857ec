# SPDX-License-Identifier: Apache-2.0
"""QEMU's machine protocol (QMP) on a unix socket: one command, one answer, what happens meanwhile passed over.

QEMU, docs/interop/qmp-spec: JSON texts, one a line. The other end greets; `qmp_capabilities` begins; an answer is
{"return": ...} or {"error": {"class", "desc"}} with the `id` of its command; events come at any time.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from agent.deadline import Deadline
from keys import strictjson
from keys.errors import AttesterError, ProtocolError, Unavailable

MAX_LINE_BYTES = 64 * 1024
MAX_EVENTS = 256  # passed over while waiting for one answer
MAX_WORDS = 300  # of QEMU's that are shown


class Qmp:
    """A conversation with one QEMU; a context manager. Methods raise AttesterError (QEMU is not there, or refuses),
    ProtocolError (what answers is no QEMU) or, at the deadline, Unavailable.
    """

    def __init__(self, path: str, deadline: Deadline) -> None:
        self._path = path
        self._deadline = deadline
        self._received = b""
        self._count = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Self:
        try:
            self._bound()
            with self._errors():
                self._socket.connect(self._path)
            if "QMP" not in self._line():
                raise ProtocolError(f"{self._path} does not greet as QEMU's monitor does")
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """What `command` returns. Underscores in the arguments' names stand for QMP's hyphens."""
        self._count += 1
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        message: dict[str, Any] = {"execute": command, "id": self._count}
        self._send(strictjson.compact(message | ({"arguments": named} if named else {})) + b"\n")
        for _ in range(MAX_EVENTS + 1):
            answer = self._line()
            if "event" in answer:
                continue
            if answer.get("id") != self._count:
                raise ProtocolError("QEMU answers another command", expected=command)
            if "return" in answer:
                return answer["return"]
            raise AttesterError(f"QEMU refuses {command}", found=_words(answer.get("error")))
        raise ProtocolError(f"QEMU does not answer {command}", found=f"more than {MAX_EVENTS} events")

    def _send(self, line: bytes) -> None:
        self._bound()
        with self._errors():
            self._socket.sendall(line)

    def _line(self) -> dict[str, Any]:
        while b"\n" not in self._received:
            self._bound()
            with self._errors():
                piece = self._socket.recv(MAX_LINE_BYTES)
            if not piece:
                raise AttesterError(f"QEMU closed its monitor {self._path}", mend="see whether it still runs")
            self._received += piece
            if len(self._received) > 2 * MAX_LINE_BYTES:
                break
        line, _, self._received = self._received.partition(b"\n")
        value = strictjson.loads(line, name="QEMU's line", max_bytes=MAX_LINE_BYTES)
        if not isinstance(value, dict):
            raise ProtocolError("QEMU's line is no JSON object")
        return value

    def _bound(self) -> None:
        self._socket.settimeout(self._deadline.left("QEMU"))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise Unavailable("QEMU did not answer in time", mend="see whether it still runs") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise AttesterError(
                f"QEMU's monitor {self._path} cannot be used",
                found=str(error),
                mend="start QEMU with -qmp unix:PATH,server=on,wait=off and give this PATH",
            ) from None


def _words(error: object) -> str:
    """What QEMU says of an error, fit for a console."""
    words = error.get("desc") if isinstance(error, dict) else None
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in str(words)[:MAX_WORDS])
