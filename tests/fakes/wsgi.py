# SPDX-License-Identifier: Apache-2.0
"""An application on loopback, one request after another, in a thread of the test's own process."""

from __future__ import annotations

import threading
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, make_server


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        pass


class Served:
    """`url` is plain http, as a client may use it on loopback."""

    def __init__(self, app: Any) -> None:
        self._server = make_server("127.0.0.1", 0, app, handler_class=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
