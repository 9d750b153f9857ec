# SPDX-License-Identifier: Apache-2.0
"""With ROOMKEY_NO_SKIPS in the environment, as in .ci/run, a test that would skip fails: nothing may be missing."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

NO_SKIPS = "ROOMKEY_NO_SKIPS"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get(NO_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"would skip, and {NO_SKIPS} is set: {report.longrepr}"
    return report
