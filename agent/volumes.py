# SPDX-License-Identifier: Apache-2.0
"""The table of this machine's volumes, for what runs at its boot:

# NAME   DEVICE      KEY              OPTIONS
data     /dev/vdb    acme/disk/data   socket
"""

from __future__ import annotations

from typing import NamedTuple

from agent.files import read
from agent.unlock import volume_name
from keys.errors import ConfigError, ProtocolError
from keys.messages import ResourcePath

TABLE = "/etc/roomkey/volumes"
MAX_TABLE_BYTES = 64 * 1024
OPTIONS = frozenset(("initramfs", "socket", "new", "uncapped", "once", "prompt"))
MKFS = "mkfs="  # an option with a value


class Row(NamedTuple):
    """One volume."""

    name: str
    device: str
    key: ResourcePath
    options: frozenset[str]


def volume_row(name: str, table: str = TABLE) -> Row:
    """The volume called `name`. Raises ConfigError."""
    data = read(table, what="the table of volumes", max_bytes=MAX_TABLE_BYTES)
    if data is None:
        raise ConfigError(f"no table of volumes {table}")
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            row = _row(words)
        except (ConfigError, ProtocolError) as error:
            raise ConfigError(f"line {number} of {table} cannot be used", found=str(error)) from None
        if row.name == name:
            return row
    raise ConfigError(f"{table} has no such volume", found=name)


def _row(words: list[str]) -> Row:
    if len(words) != 4:
        raise ConfigError("not a volume", expected="NAME DEVICE KEY OPTIONS")
    name, device, key, options = words
    known = frozenset(options.split(","))
    if unknown := sorted(one for one in known if one not in OPTIONS and not one.startswith(MKFS)):
        raise ConfigError(f"unknown option {unknown[0]}", expected=", ".join(sorted(OPTIONS)))
    return Row(volume_name(name), device, ResourcePath.parse(key), known)
