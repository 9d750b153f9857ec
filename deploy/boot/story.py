# SPDX-License-Identifier: Apache-2.0
"""What both boot demos begin with: a broker that knows the TPMs' maker, and the settings of an agent in a guest."""

from __future__ import annotations

import secrets
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from demo.stage import Failed, Stage
from deploy.boot import vm

BASE = Path(__file__).resolve().parent.parent.parent / ".state"
SECONDS_TO_KEY = 12  # that the agent tries


def told(name: str, story: Callable[[Path, Stage], None]) -> int:
    """Tell `story` in a room of its own; the exit status. What it leaves behind stays where it came out otherwise."""
    room = BASE / f"{name}-{secrets.token_hex(4)}"
    room.mkdir(parents=True)
    stage = Stage({f"{room}/": "", str(room): "."})
    began = time.monotonic()
    try:
        story(room, stage)
    except Failed:
        print("\nThe demo failed: the step above came out otherwise. What it left behind is in", room, file=sys.stderr)
        return 1
    shutil.rmtree(room)
    print(f"\nAll {len(stage.steps)} steps came out as told, in {time.monotonic() - began:.0f} s.")
    return 0


def init_broker(stage: Stage, broker: Path, port: int, room: Path) -> None:
    hosts = [word for host in ("localhost", "127.0.0.1", vm.BROKER[0]) for word in ("--host", host)]
    stage.run("roomkey", "init", broker, *hosts, "--listen", "127.0.0.1", "--port", str(port), quiet=True)
    config, maker = broker / "broker.toml", room / "tpm-maker"
    text = config.read_text()
    for setting, file in (
        ("ek_root_files", "swtpm-localca-rootca-cert.pem"),
        ("ek_intermediate_files", "issuercert.pem"),
    ):
        text = text.replace(f"{setting} = []", f'{setting} = ["{maker / file}"]')
    config.write_text(text)


def settings(broker: Path, key: str) -> dict[str, bytes]:
    address, port = vm.BROKER
    toml = (
        f'brokers = ["https://{address}:{port}"]\nca_file = "/etc/roomkey/broker-ca.pem"\ntimeout = {SECONDS_TO_KEY}\n'
    )
    return {
        "etc/roomkey/agent.toml": toml.encode(),
        "etc/roomkey/broker-ca.pem": (broker / "tls" / "ca.pem").read_bytes(),
        "etc/roomkey/broker-keys.json": (broker / "signing.pub.json").read_bytes(),
        "etc/roomkey/key": key.encode(),
    }
