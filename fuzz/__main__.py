# SPDX-License-Identifier: Apache-2.0
"""`make fuzz`: every target in turn, a minute in all. A finding fails, and its input stays in .state/fuzz."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from fuzz.targets import TARGETS, Target

SECONDS = 60  # of all targets together
SLOWEST_SECONDS = 10  # one input: more is a finding
MEMORY_MIB = 2048
STATE = Path(__file__).resolve().parent.parent / ".state" / "fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)} [default: all]")
    parser.add_argument("--seconds", type=int, default=SECONDS, help=f"of all targets together (default {SECONDS})")
    options = parser.parse_args()
    if unknown := [name for name in options.targets if name not in TARGETS]:
        parser.error(f"unknown: {', '.join(unknown)}")
    if find_spec("atheris") is None:
        print("fuzz: atheris is not installed; it has wheels for Linux on x86-64, Python 3.11 to 3.13", file=sys.stderr)
        return 2
    chosen = options.targets or list(TARGETS)
    each = max(1, options.seconds // len(chosen))
    print(f"  {'target':<24}{'seeds':>7}{'inputs':>10}{'coverage':>10}")
    found = [name for name in chosen if not run(name, TARGETS[name], each)]
    if found:
        print(f"findings in {', '.join(found)}; their inputs are in {STATE}", file=sys.stderr)
    return 1 if found else 0


def run(name: str, target: Target, seconds: int) -> bool:
    """Whether nothing was found. The seeds are written beside what the fuzzer finds, and go with it."""
    findings = STATE / name
    findings.mkdir(parents=True, exist_ok=True)
    corpus = Path(tempfile.mkdtemp(prefix="corpus-", dir=findings))
    try:
        made = list(target.made())
        for number, seed in enumerate(made):
            (corpus / f"seed-{number}").write_bytes(seed)
        command = [
            sys.executable, "-m", "fuzz.one", name, f"-max_total_time={seconds}", f"-max_len={target.max_bytes}",
            f"-timeout={SLOWEST_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}", f"-artifact_prefix={findings}/",
            "-print_final_stats=1",
        ]  # fmt: skip
        if target.files:
            command.append(f"-seed_inputs={','.join(map(str, target.files))}")
        done = subprocess.run([*command, str(corpus)], capture_output=True, text=True, errors="replace", check=False)
    finally:
        shutil.rmtree(corpus)
    units = re.findall(r"number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    counts = [len(made) + len(target.files), *(found[-1] if found else "?" for found in (units, covered))]
    print(f"  {name:<24}{counts[0]:>7}{counts[1]:>10}{counts[2]:>10}", flush=True)
    if done.returncode:
        print(done.stdout + done.stderr[-4000:], file=sys.stderr)
    elif not any(findings.iterdir()):
        findings.rmdir()
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
