# SPDX-License-Identifier: Apache-2.0
"""`make bench`."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from statistics import median

from bench import bare, boot, load, revoke, snp
from bench.setting import broker
from tests.fakes.ek_ca import EkCa

WORKERS = (1, 2)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of load for each number of workers (default 10)")
    parser.add_argument("--connections", type=int, default=32, help="kept open at the same time (default 32)")
    options = parser.parse_args()
    base = Path(__file__).resolve().parent.parent / ".state"
    base.mkdir(exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix="bench-", dir=base))
    try:
        _measure(room, options.seconds, options.connections)
    finally:
        shutil.rmtree(room)
    return 0


def _measure(room: Path, seconds: float, connections: int) -> None:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("roomkey", "cryptography", "granian"))
    print(f"{platform.python_implementation()} {platform.python_version()}, {versions}, {os.cpu_count()} cores\n")

    print("Bare cryptography of one flow on the broker's side")
    operations = bare.measure()
    floor = sum(cost for _, cost in operations)
    for name, cost in operations:
        print(f"  {name:<64} {cost * 1e6:8.0f} us")
    print(f"  {'sum':<64} {floor * 1e6:8.0f} us\n")

    print("SEV-SNP: a report's signature alone (ECDSA P-384), and the whole verifier with warm certificates")
    print(f"  {'report':<24}{'bare':>8}{'verify':>11}{'from JSON':>11}{'from KBS JSON':>15}   verify / bare")
    for cost in snp.measure():
        micros = [seconds * 1e6 for seconds in cost[1:]]
        print(
            f"  {cost.what:<24}{micros[0]:>5.0f} us{micros[1]:>8.0f} us{micros[2]:>8.0f} us{micros[3]:>12.0f} us"
            f"{cost.verify / cost.bare:>14.2f} x"
        )
    print()

    print(f"Complete flows: auth, attest with a TPM quote, resource; TLS 1.3, SQLite, {connections} open connections")
    print("  workers   flows/s   p50 ms   p99 ms   broker CPU/flow   client CPU/flow   broker CPU / bare crypto")
    ca = EkCa()
    for workers in WORKERS:
        with broker(room / f"broker-{workers}", ca, workers=workers) as server:
            found = load.run(server, ca, connections=connections, seconds=seconds)
            print(
                f"  {workers:7}   {found.rate:7.0f}   {found.percentile(0.5) * 1e3:6.1f}   "
                f"{found.percentile(0.99) * 1e3:6.1f}   {found.broker_cpu * 1e3:12.2f} ms   "
                f"{found.client_cpu * 1e3:12.2f} ms   {found.broker_cpu / floor:18.1f} x",
                flush=True,
            )

    print(f"\nThe agent, from exec to key: {boot.RUNS} runs of roomkey-agent get, TLS, software TPM in its own process")
    with broker(room / "broker-agent", ca, workers=1) as server:
        times = boot.measure(server, ca, room / "agent")
    print(f"  best {times[0] * 1e3:.0f} ms, median {median(times) * 1e3:.0f} ms, worst {times[-1] * 1e3:.0f} ms")

    print(f"\nFrom an owner's word to the first refusal: {revoke.ROUNDS} rounds, guests ask on and on, 2 workers")
    print("  what                  owner's call, median   first refusal: median   worst")
    with broker(room / "broker-revoke", ca, workers=2) as server:
        owner = server.owner("acme")
        for line in revoke.measure(server, ca, owner):
            print(
                f"  {line.what:<22}{median(line.calls) * 1e3:17.1f} ms{median(line.refusals) * 1e3:20.1f} ms"
                f"{line.refusals[-1] * 1e3:8.1f} ms"
            )
        owner.close()


if __name__ == "__main__":
    sys.exit(main())
