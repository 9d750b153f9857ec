# SPDX-License-Identifier: Apache-2.0
"""The agent's time from exec to key: the real program, TLS, and a software TPM process for a TPM."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.setting import KEY, PLAINTEXT
from tests.fakes.boot import Boot
from tests.fakes.broker_server import BrokerServer
from tests.fakes.ek_ca import EkCa
from tests.fakes.swtpm import SoftwareTpm

RUNS = 20
AGENT = Path(sys.executable).parent / "roomkey-agent"


def measure(server: BrokerServer, ca: EkCa, directory: Path) -> list[float]:
    """Wall seconds of each run of `roomkey-agent get`, sorted."""
    log = directory / "eventlog"
    with SoftwareTpm(directory / "tpm") as tpm:
        tpm.manufacture(ca)
        tpm.measure_boot(Boot(), log)
        command = [
            str(AGENT), "get", "/".join(KEY), "--broker", server.url, "--ca-file", str(server.ca_file),
            "--broker-keys", str(server.keys_file), "--tpm", tpm.address, "--eventlog", str(log),
        ]  # fmt: skip
        times = []
        for _ in range(RUNS + 1):
            began = time.perf_counter()
            done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
            times.append(time.perf_counter() - began)
            if done.returncode != 0 or done.stdout != PLAINTEXT:
                raise RuntimeError(f"the agent did not get the key: {done.stderr.decode()}")
    return sorted(times[1:])  # the first one fills the file cache
