# SPDX-License-Identifier: Apache-2.0
"""Keeping key bytes out of core dumps, and overwriting them when they have done their work.

Python copies: `cryptography` hands plaintext over as `bytes`, which nothing can overwrite. What protects those is that
the process cannot be dumped or traced; what the agent itself holds is a bytearray, and is wiped.
"""

from __future__ import annotations

import resource

from keys.errors import ConfigError

PR_SET_DUMPABLE = 4


def forbid_core_dumps() -> None:
    """No core file, no core piped to a crash handler, no ptrace by another process of this user. prctl(2), core(5).

    Raises ConfigError.
    """
    import ctypes  # noqa: PLC0415

    # The limit does not hold for a core_pattern that is a pipe; a process that is not dumpable is never dumped.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise ConfigError("core dumps cannot be forbidden", mend="see what keeps this process from prctl(2)")


def wipe(secret: bytearray) -> None:
    """Overwrite `secret` with zeros; its length stays."""
    secret[:] = bytes(len(secret))
