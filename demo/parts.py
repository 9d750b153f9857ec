# SPDX-License-Identifier: Apache-2.0
"""What every story needs: a broker that runs, an owner with an identity, what an answer says."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.stage import BIN, Failed, Stage
from demo.tap import Message

START_SECONDS = 15.0


def owner(
    stage: Stage, room: Path, broker: Path, name: str, url: str, *, quiet: bool = False
) -> dict[str, str]:  # fmt: skip
    home = room / name
    home.mkdir()
    identity = home / "identity.toml"
    env = {"HOME": str(home), "ROOMKEY_IDENTITY": str(identity)}
    ca, config = broker / "tls" / "ca.pem", broker / "broker.toml"
    made = stage.run("roomkey", "identity", "new", name, "--broker", url, "--ca", ca, env=env, quiet=quiet)
    public = home / "identity.public.jwk"
    added = stage.run("roomkey", "owner", "add", name, "--key", public, "--config", config, quiet=quiet)
    stage.expect(made.returncode == 0 and added.returncode == 0, f"{name} is an owner: the broker knows its public key")
    return env


@contextmanager
def running_broker(config: Path, port: int, ca: Path) -> Iterator[None]:
    with (config.parent / "log").open("wb") as output:
        process = subprocess.Popen(
            [str(BIN / "roomkey"), "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            _wait(process, port, ca, config.parent / "log")
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, ca: Path, log: Path) -> None:
    context = ssl.create_default_context(cafile=str(ca))
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with (
                socket.create_connection(("127.0.0.1", port), 1) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1"),
            ):
                return
        except OSError:
            time.sleep(0.05)
    print(log.read_text(), file=sys.stderr)
    raise Failed("the broker starts")


def with_cookie_of(fresh: Message, recorded: Message) -> dict[str, str]:
    cookie = next(value for name, value in fresh.answer_headers.items() if name.lower() == "set-cookie")
    return {**recorded.headers, "Cookie": cookie.partition(";")[0]}


def decision_in(text: str) -> str:
    found = re.search(r"d-[a-z2-7]{20}", text)
    if found is None:
        raise Failed("the answer names a decision")
    return found[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
