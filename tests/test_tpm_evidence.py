# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.tpm_evidence: the two JSON forms, member by member."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.verifiers.tpm_evidence import decode_evidence, decode_pcrs
from keys.errors import ProtocolError
from tests.fakes.tpm_guest import FakeTpm

TPM = FakeTpm()
DATA = bytes(range(48))
ROOMKEY = TPM.evidence(DATA, b"secret")
STOCK = TPM.stock_evidence(DATA)


def test_roomkeys_form() -> None:
    """Roomkey's form gives the AK's public area, values by bank and index, log and activation proof."""
    evidence = decode_evidence(ROOMKEY)
    assert (evidence.ak_public, evidence.ak_spki) == (TPM.ak_public, b"")
    assert evidence.pcrs == {"sha256": dict(enumerate(TPM.pcrs))}
    assert evidence.eventlog is not None
    assert evidence.activation is not None
    assert repr(evidence.activation) not in repr(evidence)
    bare = {name: ROOMKEY[name] for name in ("ak_public", "attest", "signature", "pcrs")}
    assert (decode_evidence(bare).eventlog, decode_evidence(bare).activation) == (None, None)


def test_stock_form() -> None:
    """The form of stock guests gives the AK without attributes, and values that are meant as SHA-256 PCR 0 to 23."""
    evidence = decode_evidence(STOCK)
    assert (evidence.ak_public, evidence.ak_spki) == (b"", TPM.ak_spki)
    assert evidence.pcrs == {"sha256": dict(enumerate(TPM.pcrs))}
    assert (evidence.eventlog, evidence.activation) == (None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ak_public": 1}, "ak_public must be a string"),
        ({"ak_public": "AA="}, "ak_public is not"),
        ({"attest": "A" * 1500}, "attest is too long"),
        ({"signature": None}, "signature must be"),
        ({"eventlog": "!"}, "eventlog is not"),
        ({"eventlog": "A" * 300_000}, "eventlog is too long"),
        ({"activation": "A" * 48}, "activation is too long"),
        ({"pcrs": []}, "pcrs must be a JSON object"),
        ({"pcrs": {"md5": {}}}, "unknown member"),
        ({"pcrs": {"sha256": []}}, "pcrs.sha256 must be a JSON object"),
        ({"pcrs": {"sha256": {"24": "00"}}}, "no such PCR"),
        ({"pcrs": {"sha256": {"04": "00"}}}, "no such PCR"),
        ({"pcrs": {"sha256": {"-1": "00"}}}, "no such PCR"),
        ({"pcrs": {"sha256": {"4": "AB"}}}, "lower-case hex"),
        ({"pcrs": {"sha256": {"4": "abc"}}}, "lower-case hex"),
        ({"pcrs": {"sha256": {"4": ""}}}, "lower-case hex"),
        ({"pcrs": {"sha256": {"4": "00" * 65}}}, "too long"),
        ({"pcrs": {"sha256": {"4": 7}}}, "must be a string"),
        ({"more": 1}, "unknown member"),
    ],
)
def test_members_of_roomkeys_form(changes: dict[str, Any], message: str) -> None:
    """A member of the wrong type, size or spelling is refused by its name."""
    with pytest.raises(ProtocolError, match=message):
        decode_evidence({**ROOMKEY, **changes})


@pytest.mark.parametrize("name", ["ak_public", "attest", "signature", "pcrs"])
def test_missing_members(name: str) -> None:
    """Every member but log and proof is needed."""
    with pytest.raises(ProtocolError, match="lacks a member"):
        decode_evidence({key: value for key, value in ROOMKEY.items() if key != name})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "must be a JSON object"),
        ({**STOCK, "eventlog": ""}, "unknown member"),
        ({"tpm_quote": STOCK["tpm_quote"]}, "lacks a member"),
        ({**STOCK, "tpm_quote": 1}, "tpm_quote must be"),
        ({**STOCK, "tpm_quote": {**STOCK["tpm_quote"], "pcrs": ["00" * 32] * 23}}, "24 values"),
        ({**STOCK, "tpm_quote": {**STOCK["tpm_quote"], "pcrs": {str(i): "00" for i in range(24)}}}, "must be a list"),
        ({**STOCK, "tpm_quote": {**STOCK["tpm_quote"], "pcrs": ["zz"] * 24}}, "lower-case hex"),
        ({**STOCK, "tpm_quote": {**STOCK["tpm_quote"], "message": "*"}}, "tpm_quote.message"),
        ({**STOCK, "tpm_quote": {**STOCK["tpm_quote"], "signature": "*"}}, "tpm_quote.signature"),
        ({**STOCK, "ak_public": "*"}, "ak_public"),
    ],
)
def test_members_of_the_stock_form(value: object, message: str) -> None:
    """The stock form is read as strictly as our own."""
    with pytest.raises(ProtocolError, match=message):
        decode_evidence(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ROOMKEY, *STOCK, "sha256", "4"]), inner)
    ),
    max_leaves=8,
)


@given(value=JSON, name=st.sampled_from([*ROOMKEY]))
@settings(max_examples=150, deadline=None)
def test_any_json_raises_only_our_error(value: object, name: str) -> None:
    """Whatever JSON value stands anywhere, the form is read or refused as a fault of the message."""
    for form in (value, {**ROOMKEY, name: value}, {**STOCK, "tpm_quote": value}):
        with suppress(ProtocolError):
            decode_evidence(form)


def test_values_of_several_banks() -> None:
    """Values are kept by bank and index."""
    assert decode_pcrs({"sha1": {}, "sha512": {"0": "ff", "23": "00" * 64}}) == {
        "sha1": {},
        "sha512": {0: b"\xff", 23: bytes(64)},
    }
