# SPDX-License-Identifier: Apache-2.0
"""TOML from outside, at a cost that its length bounds.

`tomllib` walks all parts of a key for every one of them: a key of 16000 parts, or a table with such a name and many
members, takes minutes in 64 KiB. Nothing of ours nests deeply, so such a text is refused before it is parsed.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from keys.errors import ProtocolError

MAX_KEY_PARTS = 32  # parts of one dotted key

# A longer quoted part counts as none; too few of those fit into a text. Bounded quotes, possessive quantifiers and a
# start only where a run of letters starts keep the search itself linear.
_PART = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.){0,128}+"|'[^'\n]{0,128}+')"""
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{MAX_KEY_PARTS}}}")


def loads(text: str, *, name: str) -> dict[str, Any]:
    """The tables in `text`, whose length the caller has bounded. `name` names it in errors. Raises ProtocolError."""
    if _LONG_KEY.search(text):
        raise ProtocolError(f"{name} has a key of too many parts", expected=f"at most {MAX_KEY_PARTS}")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{name} is not TOML: {error}"[:200]) from None
