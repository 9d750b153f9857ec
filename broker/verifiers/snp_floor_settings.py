# SPDX-License-Identifier: Apache-2.0
"""How each floor of `snp_floors.Floors` is written, by operators in the config and by owners in an image.

TCB floors are texts like "Milan snp=24 microcode=219", one for a product line; firmware floors like "Milan 1.55.29".
Digests and ids are lower-case hex. Bits have the names of `snp_report.POLICY_BITS` and `PLATFORM_BITS`. Every reader
takes the setting's name and a value from TOML or the environment, and raises ProtocolError with words that help.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache, partial
from typing import Any

from broker.verifiers.snp_report import PLATFORM_BITS, POLICY_BITS, TCB_LAYOUT, VERSIONS, Line
from keys.errors import ProtocolError

MAX_ENTRIES = 256  # of one list
MAX_ENTRY_CHARS = 256
MAX_NUMBER = 0xFFFFFFFF
MAX_SVN = 255  # of one TCB component, one byte
MAX_VMPL = 3
CHIP_DIGITS = 128  # hex digits of CHIP_ID
TURIN_CHIP_DIGITS = 16  # of which Turin and later use the first
DIGEST_DIGITS = 96  # SHA-384
HOST_DATA_DIGITS = 64

_COMPONENT = re.compile(r"([a-z]{1,16})=([0-9]{1,3})")
_ABI = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")
_FIRMWARE = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
_HEX = re.compile(r"[0-9a-f]+")
_TCB_FORM = "a product line and components of it, as in Milan snp=24 microcode=219"
_FIRMWARE_FORM = "a product line and a version, as in Milan 1.55.29"


@lru_cache(maxsize=64)
def tcb_floors(name: str, texts: tuple[str, ...]) -> Mapping[Line, Mapping[str, int]]:
    """The components that each named line must at least have. Raises ProtocolError."""
    floors: dict[Line, dict[str, int]] = {}
    for text in texts:
        line, parts = _by_line(name, text, floors, _TCB_FORM)
        components = floors[line] = {}
        for part in parts:
            if not (match := _COMPONENT.fullmatch(part)) or int(match[2]) > MAX_SVN:
                raise _wrong(name, part, f"COMPONENT=NUMBER, 0 to {MAX_SVN}")
            component = match[1]
            _known(name, component, TCB_LAYOUT[line])
            if component in components:
                raise _wrong(name, text, "each component once")
            components[component] = int(match[2])
    return floors


@lru_cache(maxsize=64)
def firmware_floors(name: str, texts: tuple[str, ...]) -> Mapping[Line, tuple[int, ...]]:
    """The version (major, minor, build) that each named line must at least have. Raises ProtocolError."""
    floors: dict[Line, tuple[int, ...]] = {}
    for text in texts:
        line, parts = _by_line(name, text, floors, _FIRMWARE_FORM)
        if len(parts) != 1 or not _FIRMWARE.fullmatch(parts[0]):
            raise _wrong(name, text, _FIRMWARE_FORM)
        floors[line] = numbers(parts[0])
    return floors


def numbers(version: str) -> tuple[int, ...]:
    """The parts of "1.55.29". Raises ValueError."""
    return tuple(map(int, version.split(".")))


def nearest(word: str, known: Collection[str]) -> str | None:
    """What to tell somebody who wrote `word`."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else None


def _by_line(name: str, text: str, floors: Mapping[Line, object], form: str) -> tuple[Line, list[str]]:
    """The line that `text` begins with, and the words behind it, at least one."""
    first, *parts = text.split() or [""]
    _known(name, first, list(Line))
    line = Line(first)
    if not parts:
        raise _wrong(name, text, form)
    if line in floors:
        raise _wrong(name, text, "each product line once")
    return line, parts


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _number(name: str, value: object, *, low: int = 1, high: int = MAX_NUMBER) -> int:
    """0 requires nothing."""
    if type(value) is not int or (value != 0 and not low <= value <= high):
        raise _wrong(name, value, f"0, or a number {low} to {high}")
    return value


def _vmpl(name: str, value: object) -> int | None:
    return None if value is None else _number(name, value, high=MAX_VMPL)


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise ProtocolError(f"{name} must be a list of texts", expected=f'as in {name} = ["...", "..."]')
    if len(value) > MAX_ENTRIES:
        raise _wrong(name, len(value), f"at most {MAX_ENTRIES} entries")
    for text in value:
        if not text or len(text) > MAX_ENTRY_CHARS or not text.isprintable():
            raise _wrong(name, text, f"1 to {MAX_ENTRY_CHARS} printable characters an entry")
    return tuple(value)


def _words(name: str, value: object, *, known: Collection[str]) -> tuple[str, ...]:
    words = _texts(name, value)
    for word in words:
        _known(name, word, known)
    return words


def _digests(name: str, value: object, *, digits: tuple[int, ...], zeros: str) -> tuple[str, ...]:
    """`zeros` says why an entry of zeros is refused; empty where it is fine."""
    texts = _texts(name, value)
    for text in texts:
        if not _HEX.fullmatch(text) or len(text) not in digits:
            raise _wrong(name, text, f"{' or '.join(map(str, digits))} lower-case hex digits")
        if zeros and not text.strip("0"):
            raise ProtocolError(f"{name} has an entry of zeros: {zeros}")
    return texts


def _tcbs(name: str, value: object) -> tuple[str, ...]:
    texts = _texts(name, value)
    tcb_floors(name, texts)
    return texts


def _firmware(name: str, value: object) -> tuple[str, ...]:
    texts = _texts(name, value)
    firmware_floors(name, texts)
    return texts


def _abi(name: str, value: object) -> str:
    if not isinstance(value, str) or (value and not _ABI.fullmatch(value)):
        raise _wrong(name, value, 'a text like "1.55", or ""')
    return value


def _known(name: str, word: str, known: Collection[str]) -> None:
    if word not in known:
        mend = nearest(word, known)
        raise ProtocolError(f"{name} has an unknown name", expected=", ".join(known), found=word[:64], mend=mend)


def _wrong(name: str, value: object, expected: str) -> ProtocolError:
    return ProtocolError(f"{name} has a wrong value", expected=expected, found=str(value)[:64])


_chip_ids = partial(_digests, digits=(CHIP_DIGITS, TURIN_CHIP_DIGITS), zeros="that is what a host that masks ids shows")
_key_digests = partial(_digests, digits=(DIGEST_DIGITS,), zeros="that is what a launch without such a key shows")
_lines = partial(_words, known=tuple(Line))
_policy_bits = partial(_words, known=tuple(POLICY_BITS))
_platform_bits = partial(_words, known=tuple(PLATFORM_BITS))

READERS: Mapping[str, Callable[[str, object], Any]] = {
    "unsafe_debug": _flag,
    "min_report_version": partial(_number, low=VERSIONS[0], high=VERSIONS[-1]),
    "products": _lines,
    "named_only": _lines,
    "max_vmpl": _vmpl,
    "policy_forbidden": _policy_bits,
    "policy_required": _policy_bits,
    "min_abi": _abi,
    "platform_forbidden": _platform_bits,
    "platform_required": _platform_bits,
    "min_reported_tcb": _tcbs,
    "min_current_tcb": _tcbs,
    "min_committed_tcb": _tcbs,
    "min_launch_tcb": _tcbs,
    "committed_is_current": _flag,
    "min_firmware": _firmware,
    "launch_mitigations": _number,
    "current_mitigations": _number,
    "masked_chip_id": _flag,
    "chip_ids": _chip_ids,
    "denied_chip_ids": _chip_ids,
    "csp_ids": _texts,
    "id_key_digests": _key_digests,
    "author_key_digests": _key_digests,
    "min_guest_svn": _number,
    "host_data": partial(_digests, digits=(HOST_DATA_DIGITS,), zeros=""),
    "require_crl": _flag,
}
