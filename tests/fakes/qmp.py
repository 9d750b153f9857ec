# SPDX-License-Identifier: Apache-2.0
"""A QEMU that has loaded a SEV guest and waits (-S): its monitor on a unix socket, and nothing behind it.

It keeps the order that the real one keeps: a greeting, then qmp_capabilities, and a secret only for a guest that has
been measured and does not run yet. Between command and answer it likes to tell of something else.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 9}, "package": ""}, "capabilities": ["oob"]}}
EVENT = {"event": "RTC_CHANGE", "data": {"offset": -1}, "timestamp": {"seconds": 1763927461, "microseconds": 4711}}


class Launched(Protocol):
    """The processor's side of one guest, as `tests.fakes.sev.FakeLaunch` has it."""

    def measure(self) -> bytes: ...

    def inject(self, header: bytes, packet: bytes) -> None: ...


Script = bytes | Callable[[socket.socket], object]  # what is sent instead of the answer, or what is done


class FakeQemu:
    """`script["query-sev"]` is played instead of the right answer; "" is the greeting. `commands` are what came in."""

    def __init__(
        self, path: Path, guest: Launched, *, policy: int = 5, api: tuple[int, int] = (1, 49), build: int = 6
    ) -> None:
        self.path = str(path)
        self.commands: list[str] = []
        self.running = False
        self.script: dict[str, Script] = {}
        self.sev: dict[str, Any] = {
            "enabled": True, "api-major": api[0], "api-minor": api[1], "build-id": build, "policy": policy,
            "state": "launch-secret", "handle": 1,
        }  # fmt: skip
        self._guest = guest
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in (self._listener, self._connection):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._connection, _ = self._listener.accept()
            with self._connection as sock, sock.makefile("rb") as stream:
                self._send(sock, "", GREETING)
                for line in stream:
                    message = json.loads(line)
                    command, arguments = message["execute"], message.get("arguments", {})
                    self.commands.append(command)
                    answer = self._answer(command, arguments)
                    self._send(sock, command, EVENT)
                    self._send(sock, command, answer | {"id": message["id"]}, last=True)

    def _send(self, sock: socket.socket, command: str, value: dict[str, Any], *, last: bool = False) -> None:
        script = self.script.get(command)
        if script is None:
            sock.sendall(json.dumps(value).encode() + b"\r\n")
        elif last or not command:
            if callable(script):
                script(sock)
            else:
                sock.sendall(script)

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if self.commands[0] != "qmp_capabilities":
            return _error("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'")
        if command == "qmp_capabilities":
            return {"return": {}}
        if command == "query-sev":
            return {"return": self.sev}
        if command == "query-sev-launch-measure":
            return {"return": {"data": base64.b64encode(self._guest.measure()).decode()}}
        if command == "sev-inject-launch-secret":
            return self._inject(**{name.replace("-", "_"): value for name, value in arguments.items()})
        if command == "cont":
            self.running = True
            return {"return": {}}
        return _error("CommandNotFound", f"The command {command} has not been found")

    def _inject(self, packet_header: str, secret: str) -> dict[str, Any]:
        if self.running or "query-sev-launch-measure" not in self.commands:
            return _error("GenericError", "SEV: Not in correct state. (LSECRET) 2")
        try:
            self._guest.inject(base64.b64decode(packet_header), base64.b64decode(secret))
        except Exception as error:  # noqa: BLE001  whatever the firmware refuses
            return _error("GenericError", f"SEV: failed to inject secret to guest: {error}")
        return {"return": {}}


def _error(kind: str, words: str) -> dict[str, Any]:
    return {"error": {"class": kind, "desc": words}}
