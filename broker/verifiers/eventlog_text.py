# SPDX-License-Identifier: Apache-2.0
"""Text out of an event log's data: printable and short, whatever it holds."""

from __future__ import annotations

MAX_WORDS = 400  # characters of a description: most kernel command lines; as long as `what` in an image

_SPACES = str.maketrans("\0\t\r\n", "    ")  # what stands between words in command lines and lists


def short(words: str) -> str:
    """At most MAX_WORDS characters of `words`, the last an ellipsis where some are left out."""
    return words if len(words) <= MAX_WORDS else words[: MAX_WORDS - 1] + "…"


def text(data: bytes) -> str:
    """Text in UTF-16 or ASCII as such; other bytes as their number."""
    head = data[: 4 * MAX_WORDS]
    if data[1:2] == b"\0":
        found = head[: len(head) & ~1].decode("utf-16-le", "replace").rstrip("\0")
    else:
        found = head.decode("utf-8", "replace").rstrip("\0")
    plain = found.translate(_SPACES)
    if plain and plain.isprintable() and "\ufffd" not in plain:
        return plain.strip()
    return count(len(data)) if data else ""


def printable(found: str) -> str:
    """`found` with spaces for what cannot be printed."""
    if found.isprintable():
        return found
    return "".join(c if c.isprintable() else " " for c in found).strip()


def count(number: int, thing: str = "byte", things: str = "bytes") -> str:
    """ "1 byte", "2 bytes"."""
    return f"{number} {thing if number == 1 else things}"
