# SPDX-License-Identifier: Apache-2.0
"""JSON from outside, read so that two readers cannot understand it differently.

`json` takes the last of two equal members, accepts NaN, and lets lone surrogates through. Here each of them is an
error, and so are floating-point numbers, which no message of ours has. RFC 8259 section 4, RFC 7493 (I-JSON) section 2.
"""

from __future__ import annotations

import json
from typing import Any

from keys.errors import ProtocolError

MAX_DEPTH = 12  # nested arrays and objects
MIN_INTEGER, MAX_INTEGER = -(1 << 63), (1 << 64) - 1


def loads(data: bytes, *, name: str, max_bytes: int) -> Any:
    """The value of one JSON text in UTF-8, at most `max_bytes` long. `name` names it in errors. Raises
    ProtocolError.
    """
    if len(data) > max_bytes:
        raise ProtocolError(f"{name} is too long", expected=f"at most {max_bytes} bytes", found=f"{len(data)}")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_members,
            parse_constant=_no_number,
            parse_float=_no_number,
        )
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{name} is not strict JSON: {_reason(error)}") from None
    _bounded(value, name, MAX_DEPTH)
    return value


def members(
    value: object, *, name: str, required: frozenset[str], optional: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """`value` as an object that has all `required` members and none beside them and the `optional`. Raises
    ProtocolError.
    """
    if not isinstance(value, dict):
        raise ProtocolError(f"{name} must be a JSON object")
    if missing := sorted(required - value.keys()):
        raise ProtocolError(f"{name} lacks a member", expected=missing[0])
    if unknown := sorted(value.keys() - required - optional):
        raise ProtocolError(f"{name} has an unknown member", found=unknown[0][:64])
    return value


def string(value: object, *, name: str, max_chars: int) -> str:
    """`value` as a string of at most `max_chars` characters. Raises ProtocolError."""
    if not isinstance(value, str):
        raise ProtocolError(f"{name} must be a string")
    if len(value) > max_chars:
        raise ProtocolError(f"{name} is too long", expected=f"at most {max_chars} characters")
    return value


def canonical(value: object) -> bytes:
    """RFC 8785 bytes of a value whose member names are ASCII and whose numbers are integers, as all of ours are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def compact(value: object) -> bytes:
    """`value` without white space, members in the order given: for bytes whose order the protocol prescribes."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a member appears twice")
    return result


def _no_number(_text: str) -> None:
    raise ValueError("only integers are allowed as numbers")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return str(error)


def _bounded(value: object, name: str, depth: int) -> None:
    if isinstance(value, int):
        if not MIN_INTEGER <= value <= MAX_INTEGER:
            raise ProtocolError(f"{name} holds an integer that is too long", expected="64 bits")
    elif isinstance(value, str):
        # A lone surrogate has no UTF-8 form: what is hashed later would not be what was read here.
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise ProtocolError(f"{name} holds a lone surrogate")
    elif isinstance(value, dict | list):
        if depth == 0:
            raise ProtocolError(f"{name} is nested too deeply", expected=f"at most {MAX_DEPTH} levels")
        for item in value if isinstance(value, list) else (*value.keys(), *value.values()):
            # Some guests send thousands of bytes as numbers; a call for each would cost more than all the rest.
            if type(item) is not int or not 0 <= item <= 0xFF:
                _bounded(item, name, depth - 1)
