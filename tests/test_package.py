# SPDX-License-Identifier: Apache-2.0
"""The packages' names are short, so nothing else may answer to them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("agent", "broker", "keys")


def test_no_other_distribution_owns_our_names() -> None:
    """No installed distribution but ours brings a package or module called agent, broker or keys."""
    taken = [
        f"{distribution.name}: {file}"
        for distribution in metadata.distributions()
        if distribution.name != "roomkey"
        for file in distribution.files or ()
        if file.parts[0].removesuffix(".py") in PACKAGES
    ]
    assert taken == []


@pytest.mark.parametrize(("script", "module"), [("roomkey", "broker.cli"), ("roomkey-agent", "agent")])
def test_start_scripts_are_isolated(tmp_path: Path, script: str, module: str) -> None:
    """A folder in PYTHONPATH, or the working directory, cannot put its own code in the place of ours."""
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "python3").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (fake / "python3").chmod(0o755)
    (fake / script).write_bytes((ROOT / "deploy" / "bin" / script).read_bytes())
    (fake / script).chmod(0o755)
    done = subprocess.run([fake / script, "a b", "--help"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["-I", "-m", module, "a b", "--help"]


@pytest.mark.parametrize("module", ["broker.cli", "agent"])
def test_isolated_start_ignores_what_lies_about(tmp_path: Path, module: str) -> None:
    """With -I our own packages are found, and a `keys` in the working directory and in PYTHONPATH is not."""
    (tmp_path / "keys.py").write_text("raise SystemExit('shadowed')\n")
    done = subprocess.run(
        [sys.executable, "-I", "-m", module, "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, "shadowed" in done.stderr) == (0, False)
