# SPDX-License-Identifier: Apache-2.0
"""TOML from outside: what is read, what is refused, and that neither takes long."""

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.tomltext import loads
from keys.errors import ProtocolError

BYTES = 64 * 1024
MEMBERS = "\n".join(f"{number:x} = 1" for number in range(5000))


def test_toml_is_read() -> None:
    """Tables, dotted keys of the usual depth and long texts with dots in them come out as they are."""
    assert loads("a.b.c = 1\n[d.e]\nf = '1.2.3.4'\ng = '''..........\n'''\n", name="x") == {
        "a": {"b": {"c": 1}},
        "d": {"e": {"f": "1.2.3.4", "g": "..........\n"}},
    }


@pytest.mark.parametrize("part", ["a", '"a"', "'a'", '"a.b"', r'"\""'])
@pytest.mark.parametrize("dot", [".", " . ", "\t.\t", " " * 40 + "."])
def test_a_key_has_a_bounded_number_of_parts(part: str, dot: str) -> None:
    """32 parts are the most, however they are quoted and spaced, in keys and in tables' names."""
    assert loads(dot.join([part] * 32) + " = 1", name="x")
    for text in (dot.join([part] * 33) + " = 1", "[" + dot.join([part] * 33) + "]"):
        with pytest.raises(ProtocolError, match="x has a key of too many parts"):
            loads(text, name="x")


@pytest.mark.parametrize("text", ["x = ", "a = " + "[" * 3000, "\ud800", "a = 1\na = 2"])
def test_what_is_no_toml_is_refused(text: str) -> None:
    """Broken, too deep or double: our error, with what it was."""
    with pytest.raises(ProtocolError, match="x is not TOML"):
        loads(text, name="x")


@pytest.mark.parametrize(
    "text",
    [
        ".".join(["a"] * 16000) + " = 1",
        "[" + ".".join(["a"] * 16000) + "]\n" + MEMBERS,
        "[" + (" " * 9 + ".").join(["a"] * 3200) + "]\n" + MEMBERS,
        "[" + ".".join(['"' + "b" * 129 + '"'] * 245) + "]\n" + MEMBERS,
        "[" + ".".join(["a"] * 31) + "]\n" + MEMBERS,
        '"' + r"\"" * 32000,
        "a" * BYTES,
        "x = '" + "." * 65000 + "'",
        "a" + " " * 60000 + "b",
        "'" * BYTES,
        "a = {" * 13000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    """A text of 64 KiB that would take minutes is refused, or read, in seconds at most."""
    start = time.process_time()
    with contextlib.suppress(ProtocolError):
        loads(text, name="x")
    assert time.process_time() - start < 20  # a slow machine may take a second, an unbounded parser minutes


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="a.\"'[]{}= \n\\,1#", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but ProtocolError comes out."""
    with contextlib.suppress(ProtocolError):
        loads(text, name="x")
