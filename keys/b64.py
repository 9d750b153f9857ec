# SPDX-License-Identifier: Apache-2.0
"""Base64 with one accepted spelling per value.

Python's decoder skips characters that it does not know and ignores stray bits in the last character, so two different
texts can mean the same bytes. Here the text must be exactly what encoding its bytes gives. RFC 4648 sections 3.5, 4, 5.
"""

from __future__ import annotations

import base64
import binascii

from keys.errors import ProtocolError


def std(data: bytes) -> str:
    """`data` in the standard alphabet, padded."""
    return base64.b64encode(data).decode("ascii")


def url(data: bytes) -> str:
    """`data` in the URL-safe alphabet, without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_std(text: object, *, name: str, max_bytes: int) -> bytes:
    """The bytes of `text` (standard alphabet, padded, at most `max_bytes` long).

    `name` says in the error which member was wrong. Raises ProtocolError.
    """
    checked = _text(text, name, max_bytes)
    try:
        data = base64.b64decode(checked, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"{name} is not standard base64") from error
    if std(data) != checked:
        raise ProtocolError(f"{name} is not the canonical standard base64 of its bytes")
    return _sized(data, name, max_bytes)


def from_url(text: object, *, name: str, max_bytes: int) -> bytes:
    """The bytes of `text` (URL-safe alphabet, no padding, at most `max_bytes` long). Raises ProtocolError."""
    checked = _text(text, name, max_bytes)
    try:
        data = base64.b64decode(checked + "=" * (-len(checked) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"{name} is not unpadded base64url") from error
    if url(data) != checked:
        raise ProtocolError(f"{name} is not the canonical unpadded base64url of its bytes")
    return _sized(data, name, max_bytes)


def _text(text: object, name: str, max_bytes: int) -> str:
    if not isinstance(text, str):
        raise ProtocolError(f"{name} must be a string of base64")
    if len(text) > (max_bytes + 2) // 3 * 4:
        raise ProtocolError(f"{name} is too long", expected=f"at most {max_bytes} bytes")
    return text


def _sized(data: bytes, name: str, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise ProtocolError(f"{name} is too long", expected=f"at most {max_bytes} bytes", found=f"{len(data)}")
    return data
