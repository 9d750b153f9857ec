# SPDX-License-Identifier: Apache-2.0
"""Strict JSON: whatever two readers could understand differently is refused."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys import strictjson
from keys.errors import ProtocolError
from tests.fakes.json_values import values


def loads(text: str | bytes) -> object:
    return strictjson.loads(text if isinstance(text, bytes) else text.encode(), name="it", max_bytes=10_000)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a":[1,null,true,"x"]}', {"a": [1, None, True, "x"]}),
        (" 7 ", 7),
        ("-0", 0),
        ('"\\ud83d\\ude00é"', "😀é"),
        ("18446744073709551615", 2**64 - 1),
    ],
)
def test_plain_json_is_read(text: str, value: object) -> None:
    """Ordinary JSON gives its value."""
    assert loads(text) == value


@pytest.mark.parametrize("number", [1 << 64, -(1 << 63) - 1, 123456789012345678901])
def test_integers_have_64_bits(number: int) -> None:
    """What no 64-bit field could hold is refused wherever it stands; the last that fits is not."""
    for text in (f"{number}", f"[1, {number}]", f'{{"a": [{{"b": {number}}}]}}'):
        with pytest.raises(ProtocolError, match="integer that is too long"):
            loads(text)
    last = number - 1 if number > 0 else number + 1
    assert number > 1 << 64 or loads(f"[{last}]") == [last]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":1,"a":1}', "twice"),
        ('{"b":{"a":1,"a":2}}', "twice"),
        ('{"a":1,"\\u0061":2}', "twice"),
        ("NaN", "only integers"),
        ("-Infinity", "only integers"),
        ("1.0", "only integers"),
        ("1e3", "only integers"),
        ("9" * 6000, "Exceeds the limit"),
        (b"\xff", "not UTF-8"),
        (b"\xed\xa0\x80", "not UTF-8"),
        ("\ufeff{}", "at character 0"),
        ("", "at character 0"),
        ("{} {}", "Extra data at character 3"),
        ("{'a':1}", "at character 1"),
        ("01", "Extra data"),
        ('"\t"', "control character"),
        ("[" * 9000, "nested too deeply"),
    ],
)
def test_ambiguous_json_is_refused(text: str | bytes, reason: str) -> None:
    """Duplicates, floats, huge numbers, bad UTF-8, trailing text and the like are refused with their reason."""
    with pytest.raises(ProtocolError, match=f"it is not strict JSON: .*{reason}"):
        loads(text)


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\udfff":1}', '["é\\ud800"]', '{"a":{"b":["\\udc00\\ud800"]}}'])
def test_lone_surrogates_are_refused(text: str) -> None:
    """A text that has no UTF-8 form is refused, as a member's name too."""
    with pytest.raises(ProtocolError, match="lone surrogate"):
        loads(text)


def test_nesting_is_bounded() -> None:
    """Twelve levels are read, a thirteenth is refused, in arrays and objects."""
    assert loads("[" * 12 + "]" * 12)
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        with pytest.raises(ProtocolError, match="nested too deeply"):
            loads(opening * 12 + "[]" + closing * 12)


def test_length_is_bounded() -> None:
    """The limit on the text holds to the byte."""
    assert strictjson.loads(b"[  ]", name="it", max_bytes=4) == []
    with pytest.raises(ProtocolError, match="too long"):
        strictjson.loads(b"[  ]", name="it", max_bytes=3)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
def test_only_our_errors_escape(data: bytes) -> None:
    """Whatever bytes come in, they are read, to what the plain reader reads, or refused with our error."""
    try:
        value = loads(data)
    except ProtocolError:
        return
    assert value == json.loads(data)


def test_members_are_exactly_the_known_ones() -> None:
    """An object passes with all required and any optional members, and not with fewer or others, or as no object."""
    required, optional = frozenset("ab"), frozenset("c")
    for good in ({"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}):
        assert strictjson.members(good, name="it", required=required, optional=optional) == good
    with pytest.raises(ProtocolError, match=r"lacks a member \(expected b\)"):
        strictjson.members({"a": 1, "c": 3}, name="it", required=required, optional=optional)
    with pytest.raises(ProtocolError, match=r"unknown member \(found d\)"):
        strictjson.members({"a": 1, "b": 2, "d": 3}, name="it", required=required, optional=optional)
    for value in (None, [], "a", 7):
        with pytest.raises(ProtocolError, match="must be a JSON object"):
            strictjson.members(value, name="it", required=frozenset())


def test_strings_are_bounded_strings() -> None:
    """A string passes up to its limit, anything else does not."""
    assert strictjson.string("abc", name="it", max_chars=3) == "abc"
    with pytest.raises(ProtocolError, match="too long"):
        strictjson.string("abcd", name="it", max_chars=3)
    for value in (None, 7, b"a", ["a"]):
        with pytest.raises(ProtocolError, match="must be a string"):
            strictjson.string(value, name="it", max_chars=3)


def test_canonical_form_is_rfc_8785() -> None:
    """Members are sorted, nothing is escaped without need, and the digest is the one that peers publish."""
    assert (
        strictjson.canonical({"b": 1, "a": 'é\n"', "A": [None, True]})
        == '{"A":[null,true],"a":"é\\n\\"","b":1}'.encode()
    )
    digest = hashlib.sha384(strictjson.canonical({"c": {"d": "e"}, "b": 1, "a": "test"})).hexdigest()
    assert digest == (
        "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
    )


def test_compact_form_keeps_the_order() -> None:
    """Compact JSON has no white space and its members stay where they are."""
    assert strictjson.compact({"b": 1, "a": "é"}) == '{"b":1,"a":"é"}'.encode()
