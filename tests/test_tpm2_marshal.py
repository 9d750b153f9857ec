# SPDX-License-Identifier: Apache-2.0
"""TPM structures: what is written is what Part 2 says, and nothing malformed is read."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import tpm2_marshal as m
from keys.errors import AttesterError

QUOTE = (
    m.GENERATED
    + m.u16(m.ST_ATTEST_QUOTE)
    + m.tpm2b(b"signer")
    + m.tpm2b(b"nonce")
    + bytes(25)
    + m.pcr_selection(m.ALG_SHA256, [0, 23])
    + m.tpm2b(b"digest")
)


def test_a_field_is_never_read_past_the_end() -> None:
    """Every read of a Reader stops with an AttesterError at the end of the bytes."""
    for read in (m.Reader.u8, m.Reader.u16, m.Reader.u32, m.Reader.tpm2b):
        with pytest.raises(AttesterError, match="in the middle"):
            read(m.Reader(b""))
    with pytest.raises(AttesterError, match="in the middle"):
        m.Reader(b"\0\5abcd").tpm2b()


def test_left_over_bytes_are_an_error() -> None:
    """`end` accepts an empty rest and nothing else."""
    reader = m.Reader(b"ab")
    reader.u8()
    with pytest.raises(AttesterError, match="after its end"):
        reader.end()
    assert reader.rest() == b"b"
    reader.end()


def test_a_count_beyond_its_limit_is_refused() -> None:
    """A list's count is bounded before anything is read for it."""
    assert m.Reader(m.u32(3)).count(3) == 3
    with pytest.raises(AttesterError, match="too long a list"):
        m.Reader(m.u32(4)).count(3)


@given(st.sets(st.integers(0, m.PCRS - 1)))
def test_a_selection_reads_back_as_it_was_written(indices: set[int]) -> None:
    """PCR n is bit n % 8 of byte n // 8, both ways."""
    reader = m.Reader(m.pcr_selection(m.ALG_SHA384, indices))
    assert m.read_pcr_selection(reader) == [(m.ALG_SHA384, sorted(indices))]
    reader.end()


def test_a_selection_of_known_bytes() -> None:
    """PCRs 0, 7 and 23 of SHA-256 are the bytes that Part 2, 10.6.2 gives."""
    assert m.pcr_selection(m.ALG_SHA256, [0, 7, 23]) == bytes.fromhex("00000001000b03810080")


def test_an_oversized_bitmap_is_refused() -> None:
    """sizeofSelect is at most 4."""
    with pytest.raises(AttesterError, match="bitmap"):
        m.read_pcr_selection(m.Reader(m.u32(1) + m.u16(m.ALG_SHA256) + b"\5" + bytes(5)))


def test_a_quote_is_read() -> None:
    """extraData, selection and digest come out of a TPMS_ATTEST."""
    assert m.read_quote(QUOTE) == (b"nonce", [(m.ALG_SHA256, [0, 23])], b"digest")


@pytest.mark.parametrize("attest", [b"\xffTCX" + QUOTE[4:], QUOTE[:4] + b"\x80\x17" + QUOTE[6:]])
def test_what_is_no_quote_is_refused(attest: bytes) -> None:
    """Another magic or another attestation type is not a quote."""
    with pytest.raises(AttesterError, match="something else"):
        m.read_quote(attest)


def test_a_quote_with_bytes_after_it_is_refused() -> None:
    """A TPMS_ATTEST ends where its digest ends."""
    with pytest.raises(AttesterError, match="after its end"):
        m.read_quote(QUOTE + b"\0")


@given(st.binary(max_size=200) | st.binary(max_size=160).map(lambda tail: QUOTE[:40] + tail))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_quote_reader_fail_otherwise(data: bytes) -> None:
    """Arbitrary bytes give a quote or an AttesterError."""
    with contextlib.suppress(AttesterError):
        m.read_quote(data)


def test_a_name_is_the_hash_of_the_public_area() -> None:
    """Name = nameAlg || H(TPMT_PUBLIC), by the public area's own hash."""
    public = m.ecc_template(m.ALG_SHA384, 0, b"", m.NO_SYMMETRIC, m.NO_SCHEME, m.CURVE_P384, b"")
    assert m.name(public) == b"\x00\x0c" + hashlib.sha384(public).digest()


def test_a_name_by_an_unknown_hash_is_refused() -> None:
    """A public area whose nameAlg is no hash that we know has no Name here."""
    with pytest.raises(AttesterError, match="name algorithm"):
        m.name(m.u16(m.ALG_ECC) + m.u16(m.ALG_NULL))
