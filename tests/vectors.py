# SPDX-License-Identifier: Apache-2.0
"""Where the recorded evidence lies: ROOMKEY_VECTORS, or `shared/vectors` beside the repository. Read in place only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VECTORS = Path(os.environ.get("ROOMKEY_VECTORS") or Path(__file__).parent.parent.parent / "shared" / "vectors")

needs_vectors = pytest.mark.skipif(
    not VECTORS.is_dir(), reason=f"no recorded evidence at {VECTORS}: set ROOMKEY_VECTORS to a folder that has it"
)


def vector(path: str) -> bytes:
    """The file `path` of the folder with the recorded TPM evidence."""
    return (VECTORS / "tpm" / path).read_bytes()
