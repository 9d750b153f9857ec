# SPDX-License-Identifier: Apache-2.0
"""`roomkey serve`: granian with TLS 1.3, a few worker processes, and each of them a few threads."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.server import Server

from broker.app import build_services, create_app
from broker.config import Config, load
from broker.files import read_file
from broker.http.bridge import Bridge
from broker.logs import log_config
from keys.errors import ConfigError
from keys.secrecy import forbid_core_dumps

HEADER_MS = 10_000  # to send a request's head in
HEADER_BYTES = 64 * 1024  # of a request's head; a token has up to 16 KiB
CONNECTIONS = 1024  # of one worker; each may hold a body of `limits.body_bytes`
STOP_SECONDS = 10  # for what is under way when the server is told to stop

PR_SET_PDEATHSIG = 1
PKCS8 = b"-----BEGIN PRIVATE KEY-----"


def serve(config_path: Path) -> None:
    """Run the broker until it is told to stop (SIGTERM, SIGINT). Raises ConfigError, Unavailable before it listens."""
    config = load(config_path, os.environ)
    _try_out(config)
    forbid_core_dumps()
    listen = config.listen
    server = Server(
        "broker.serve",
        address=listen.host,
        port=listen.port,
        interface=Interfaces.RSGI,
        workers=listen.workers,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_MS, max_buffer_size=HEADER_BYTES),
        websockets=False,
        backpressure=CONNECTIONS,
        log_dictconfig=log_config(),
        ssl_cert=listen.tls_certificate_file,
        ssl_key=listen.tls_key_file,
        ssl_protocol_min=SSLProtocols.tls13,
        respawn_failed_workers=True,
        workers_kill_timeout=STOP_SECONDS,
    )
    loader: Callable[..., Any] = partial(worker, config, os.getpid())
    server.serve(target_loader=loader, wrap_loader=False)


def worker(config: Config, parent: int) -> Bridge:
    """The application of one worker process, with its own store. A worker ends with the main process `parent`, however
    that ends: nobody would look after it any more.
    """
    forbid_core_dumps()  # it does not survive an exec, so the main process cannot do it for its workers
    _end_with(parent)
    services = build_services(config)
    return Bridge(
        create_app(services, config.limits).wsgi_app,
        threads=config.listen.threads,
        body_bytes=config.limits.body_bytes,
        on_stop=services.store.close,
    )


def _end_with(parent: int) -> None:
    """Be killed when the process `parent` ends. prctl(2). Raises ConfigError, also if it has ended by now.

    Killed and not asked: a worker that is just starting may miss the question, and a kill loses nothing that was
    acknowledged. A main process that is told to stop asks its workers itself, and waits for them.
    """
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise ConfigError("workers cannot be tied to the main process", mend="see what keeps them from prctl(2)")
    if os.getppid() != parent:
        raise ConfigError("the main process has ended")


def _try_out(config: Config) -> None:
    """Find what is wrong with the settings now, once, and in words. Nothing stays open: workers open their own."""
    services = build_services(config)
    try:
        services.store.ready()
    finally:
        services.store.close()
    if config.listen.tls_key_file is not None:
        _check_tls_key(config.listen.tls_key_file)


def _check_tls_key(path: Path) -> None:
    if PKCS8 not in read_file(path, private=True):
        raise ConfigError(
            f"{path} is not an unencrypted PKCS #8 key",
            expected=PKCS8.decode("ascii"),
            mend=f"openssl pkcs8 -topk8 -nocrypt -in {path} -out NEW",
        )
