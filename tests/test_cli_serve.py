# SPDX-License-Identifier: Apache-2.0
"""`roomkey init`, `serve` and an owner's commands as separate processes, over TLS 1.3: nothing is stood in for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

START_SECONDS = 30.0
ROOT = Path(__file__).resolve().parents[1]


def roomkey(*args: object, env: dict[str, str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "broker.cli", *map(str, args)],
        cwd=ROOT, env=env, input=stdin, capture_output=True, check=False,
    )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_broker_from_nothing_to_a_kept_key(tmp_path: Path) -> None:
    """init, identity new, owner add, serve, key put, key list; the key's bytes are in no argument, output or file."""
    folder, port, secret = tmp_path / "broker", _free_port(), b"the-bytes-of-this-key-are-secret"
    env = os.environ | {"ROOMKEY_IDENTITY": str(tmp_path / "me" / "identity.toml"), "ROOMKEY_LISTEN_WORKERS": "1"}
    config = folder / "broker.toml"

    def done(*args: object, stdin: bytes = b"") -> bytes:
        result = roomkey(*args, env=env, stdin=stdin)
        assert result.returncode == 0, result.stderr
        assert secret not in result.stdout + result.stderr
        return result.stdout

    done("init", folder, "--host", "127.0.0.1", "--listen", "127.0.0.1", "--port", port)
    done("identity", "new", "acme", "--broker", f"https://127.0.0.1:{port}", "--ca", folder / "tls/ca.pem")
    done("owner", "add", "acme", "--key", tmp_path / "me" / "identity.public.jwk", "--config", config)
    assert roomkey("key", "list", env=env).returncode == 16  # not running yet
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "broker.cli", "serve", "--config", config],
            cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_SECONDS
        while (listed := roomkey("key", "list", "--json", env=env)).returncode == 16:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
        assert json.loads(listed.stdout) == []
        done("key", "put", "acme/disk/root", stdin=secret)
        [key] = json.loads(done("key", "list", "--json"))
        assert (key["path"], key["state"]) == ("acme/disk/root", "active")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(START_SECONDS)
    assert server.returncode == 0
    assert done("ledger", "verify", "--config", config) == b"2 lines, one unbroken chain\n"
    assert all(secret not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    """`serve` on a spoilt set-up ends at once with the error's status, cause and mend, and no traceback."""
    env = dict(os.environ)
    assert roomkey("init", tmp_path / "b", env=env).returncode == 0
    (tmp_path / "b" / "kek").chmod(0o644)
    result = roomkey("serve", "--config", tmp_path / "b" / "broker.toml", env=env)
    assert result.returncode == 17
    assert b"chmod 0400" in result.stderr
    assert b"Traceback" not in result.stderr
    assert roomkey("serve", "--config", tmp_path / "none.toml", env=env).returncode == 17
