# SPDX-License-Identifier: Apache-2.0
"""Registers: the names under which claims hold measurements, what an image allows in each, and what people call them.

sha256:4                    a TPM's PCR: its bank and its number
measurement, host_data, id_key_digest, author_key_digest, family_id, image_id
                            fields of an SEV-SNP report (AMD 56860, table 22)
launch_digest               of an SEV or SEV-ES launch (AMD 55766)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from keys.errors import ProtocolError

MAX_VALUES = 64  # allowed values of one register

PURPOSES = (
    "firmware code",
    "firmware configuration",
    "option ROM code",
    "option ROM configuration",
    "boot applications",
    "partition table, boot configuration",
    "manufacturer's",
    "Secure Boot state and keys",
    "boot loader commands, kernel command line, init-data",
    "files read by the boot loader, initrd",
    "IMA",
    "unified kernel image, boot phases",
    "command line overrides, credentials",
    "system extensions",
    "MOK lists",
    "machine id, volume keys, file systems",
    "debug",
    "DRTM",
    "DRTM",
    "DRTM",
    "DRTM",
    "DRTM",
    "DRTM",
    "application",
)  # of PCR 0 to 23

SNP_BYTES: Mapping[str, int] = {
    "measurement": 48,
    "id_key_digest": 48,
    "author_key_digest": 48,
    "host_data": 32,
    "family_id": 16,
    "image_id": 16,
}
LAUNCH_DIGEST = "launch_digest"
LAUNCH_DIGEST_BYTES = 32

_TITLES = {
    "measurement": "MEASUREMENT (launch digest)",
    "id_key_digest": "ID_KEY_DIGEST (who signed the launch)",
    "author_key_digest": "AUTHOR_KEY_DIGEST (who vouches for the ID key)",
    "host_data": "HOST_DATA (given by the host at launch)",
    "family_id": "FAMILY_ID",
    "image_id": "IMAGE_ID",
    LAUNCH_DIGEST: "launch digest",
}


class ExpectedEvent(NamedTuple):
    """One event on the way to a register's value: its digest in lower-case hex, and what an owner calls it."""

    digest: str
    type: str = ""
    what: str = ""


@dataclass(frozen=True, slots=True)
class Register:
    """`values`: all that are allowed, lower-case hex. `events`: the sequence that leads to one of them, or empty."""

    values: tuple[str, ...]
    events: tuple[ExpectedEvent, ...] = ()


def title(name: str) -> str:
    """ "PCR 4 (boot applications)" for "sha256:4", other banks are named; "MEASUREMENT (launch digest)"."""
    if name in _TITLES:
        return _TITLES[name]
    bank, _, index = name.partition(":")
    purpose = PURPOSES[int(index)] + ("" if bank == "sha256" else f", {bank}")
    return f"PCR {index} ({purpose})"


def order(name: str) -> tuple[int, int]:
    """A key to sort names by: a report's fields in the order above, then PCRs by number."""
    if name in _TITLES:
        return 0, [*_TITLES].index(name)
    return 1, int(name.partition(":")[2])


def values(given: object, name: str, parse: Callable[[object, str], str]) -> tuple[str, ...]:
    """The allowed values of the register `name`, of which an owner wrote one or a list. Raises ProtocolError."""
    listed = given if isinstance(given, list) else [given]
    if not 1 <= len(listed) <= MAX_VALUES:
        raise ProtocolError(f"{name} needs a value or a list of them", expected=f"1 to {MAX_VALUES} values")
    return tuple(parse(item, name) for item in listed)


def digest(value: object, name: str, *, size: int, what: str = "value") -> str:
    """Lower-case hex of exactly `size` bytes; tools print either case. Raises ProtocolError."""
    text = value.lower() if isinstance(value, str) else ""
    if len(text) != 2 * size or not set(text) <= set("0123456789abcdef"):
        raise ProtocolError(f"{name} is not a {what}", expected=f"{2 * size} hex digits", found=str(value)[:64])
    return text
