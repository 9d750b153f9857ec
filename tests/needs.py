# SPDX-License-Identifier: Apache-2.0
"""What some tests need beside Python: programs that `make setup` installs. Without it they skip, with what to install.

Where nothing may be missing, as in .ci/run, a skip is a failure (tests/conftest.py).
"""

from __future__ import annotations

import shutil

import pytest

from agent.cryptsetup import ENVIRONMENT

NO_SWTPM = "swtpm is not installed: make setup, or apt-get install swtpm swtpm-tools"

has_swtpm = shutil.which("swtpm") is not None
needs_swtpm = pytest.mark.skipif(not has_swtpm, reason=NO_SWTPM)
needs_cryptsetup = pytest.mark.skipif(
    shutil.which("cryptsetup", path=ENVIRONMENT["PATH"]) is None,
    reason="cryptsetup is not installed: make setup, or apt-get install cryptsetup-bin",
)
