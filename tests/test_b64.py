# SPDX-License-Identifier: Apache-2.0
"""Base64: one spelling per value."""

from __future__ import annotations

import base64
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys import b64
from keys.errors import ProtocolError

ALPHABET = string.ascii_letters + string.digits + "+/-_= \n\u0430"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=70))
def test_what_is_written_is_read(data: bytes) -> None:
    """Each encoder's text gives its bytes back, at exactly the length that is allowed."""
    assert b64.from_std(b64.std(data), name="x", max_bytes=len(data)) == data
    assert b64.from_url(b64.url(data), name="x", max_bytes=len(data)) == data


@settings(max_examples=200, deadline=None)
@given(st.text(ALPHABET, max_size=12))
def test_only_the_written_spelling_is_read(text: str) -> None:
    """A text is either what its bytes are written as, or refused with our error."""
    for read, write in ((b64.from_std, b64.std), (b64.from_url, b64.url)):
        try:
            data = read(text, name="x", max_bytes=100)
        except ProtocolError:
            continue
        assert write(data) == text


@pytest.mark.parametrize(
    "text",
    ["AB==", "AAB=", "AA", "AA=", "AA===", "A", " AAAA", "AAAA\n", "AA==AA==", "_-8=", "\u0410\u0410\u0410\u0410"],
)
def test_other_standard_spellings_are_refused(text: str) -> None:
    """Stray bits, missing or surplus padding, white space, the other alphabet and look-alikes are refused."""
    with pytest.raises(ProtocolError, match="x is not"):
        b64.from_std(text, name="x", max_bytes=100)


@pytest.mark.parametrize("text", ["AB", "AA==", "AA=", "A", " AAAA", "AAAA\n", "+/8", "\u0410\u0410\u0410\u0410"])
def test_other_url_spellings_are_refused(text: str) -> None:
    """Stray bits, padding, white space, the other alphabet and look-alikes are refused."""
    with pytest.raises(ProtocolError, match="x is not"):
        b64.from_url(text, name="x", max_bytes=100)


@pytest.mark.parametrize("value", [None, 7, b"AAAA", ["AAAA"], True])
def test_only_text_is_base64(value: object) -> None:
    """Anything but a string is refused."""
    for read in (b64.from_std, b64.from_url):
        with pytest.raises(ProtocolError, match="must be a string"):
            read(value, name="x", max_bytes=100)


@pytest.mark.parametrize("size", range(6))
def test_a_byte_too_many_is_refused(size: int) -> None:
    """The limit holds to the byte, where the text's length alone does not tell."""
    for read, write in ((b64.from_std, b64.std), (b64.from_url, b64.url)):
        with pytest.raises(ProtocolError, match="too long"):
            read(write(bytes(size + 1)), name="x", max_bytes=size)


def test_long_text_is_refused_unread() -> None:
    """A text that cannot fit is refused by its length, garbage or not."""
    for read in (b64.from_std, b64.from_url):
        with pytest.raises(ProtocolError, match="too long"):
            read("!" * 10_000, name="x", max_bytes=100)


def test_both_alphabets_are_the_rfcs() -> None:
    """The two alphabets differ where RFC 4648 says."""
    assert b64.std(b"\xfb\xff") == "+/8=" == base64.standard_b64encode(b"\xfb\xff").decode()
    assert b64.url(b"\xfb\xff") == "-_8"
