# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.conformance DIR`: a table for each folder, failures, totals; exit 0 only if nothing failed."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.conformance.runner import run

if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python -m tests.conformance DIR (a folder with recorded evidence)")
    sys.exit(run(Path(sys.argv[1]), sys.stdout))
