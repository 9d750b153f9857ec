# SPDX-License-Identifier: Apache-2.0
"""Logs on standard error: one line an event, UTC, no control characters, no secrets.

2026-01-31T12:00:00.123Z INFO roomkey.decision release d-k3… released owner=acme
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any


class LineFormatter(logging.Formatter):
    """Whatever is in a message, it stays on its line: a guest's words cannot forge an entry."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            text += f" ({record.exc_info[0].__name__})"  # neither its words nor its stack: they may quote a secret
        line = f"{at} {record.levelname} {record.name} {text}"
        if line.isprintable():
            return line
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def log_config() -> dict[str, Any]:
    """For `logging.config.dictConfig`: our own loggers and the server's, to standard error."""
    quiet = {"handlers": ["stderr"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": LineFormatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {"roomkey": quiet, "_granian": quiet, "granian.access": quiet},
    }
