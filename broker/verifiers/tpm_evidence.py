# SPDX-License-Identifier: Apache-2.0
"""TPM evidence as JSON: Roomkey's form, and the one of stock KBS guests. Shapes only; nothing is judged here.

Roomkey's form: {"ak_public", "attest", "signature", "pcrs": {bank: {index: lower hex}}, "eventlog"?, "activation"?};
the stock form: {"tpm_quote": {"signature", "message", "pcrs": [24 values]}, "ak_public": SubjectPublicKeyInfo}. Bytes
are standard base64, padded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.verifiers.eventlog import MAX_LOG_BYTES
from broker.verifiers.tpm_quote import PcrValues
from broker.verifiers.tpm_structures import BANKS, MAX_DIGEST_BYTES, PCR_COUNT
from keys import b64, strictjson
from keys.errors import ProtocolError

MAX_PUBLIC_BYTES = 2048  # TPMT_PUBLIC or SubjectPublicKeyInfo
MAX_ATTEST_BYTES = 1024  # TPMS_ATTEST
MAX_SIGNATURE_BYTES = 1024  # TPMT_SIGNATURE
ACTIVATION_BYTES = 32

_ROOMKEY = frozenset(("ak_public", "attest", "signature", "pcrs"))
_ROOMKEY_OPTIONAL = frozenset(("eventlog", "activation"))
_STOCK = frozenset(("tpm_quote", "ak_public"))
_STOCK_QUOTE = frozenset(("signature", "message", "pcrs"))
_STOCK_BANK = "sha256"  # a stock guest sends the values of PCR 0 to 23 of this bank, without names
_INDEX = re.compile(r"(?:0|[1-9][0-9]?)\Z")
_HEX = re.compile(r"(?:[0-9a-f]{2})+\Z")


@dataclass(frozen=True, slots=True)
class TpmEvidence:
    """Decoded evidence. Either `ak_public` (a TPMT_PUBLIC) or, from stock guests, `ak_spki` (DER) is not empty."""

    ak_public: bytes
    ak_spki: bytes
    attest: bytes
    signature: bytes
    pcrs: PcrValues
    eventlog: bytes | None = None
    activation: bytes | None = field(default=None, repr=False)


def decode_evidence(value: object) -> TpmEvidence:
    """`value`, a parsed JSON object in one of the two forms. Raises ProtocolError that names the wrong member."""
    if isinstance(value, dict) and "tpm_quote" in value:
        return _stock(value)
    members = strictjson.members(value, name="TPM evidence", required=_ROOMKEY, optional=_ROOMKEY_OPTIONAL)
    activation = None
    if "activation" in members:
        activation = b64.from_std(members["activation"], name="activation", max_bytes=ACTIVATION_BYTES)
    eventlog = None
    if "eventlog" in members:
        eventlog = b64.from_std(members["eventlog"], name="eventlog", max_bytes=MAX_LOG_BYTES)
    return TpmEvidence(
        ak_public=b64.from_std(members["ak_public"], name="ak_public", max_bytes=MAX_PUBLIC_BYTES),
        ak_spki=b"",
        attest=b64.from_std(members["attest"], name="attest", max_bytes=MAX_ATTEST_BYTES),
        signature=b64.from_std(members["signature"], name="signature", max_bytes=MAX_SIGNATURE_BYTES),
        pcrs=decode_pcrs(members["pcrs"]),
        eventlog=eventlog,
        activation=activation,
    )


def decode_pcrs(value: object) -> PcrValues:
    """{bank: {index: lower-case hex}} as bytes, each of one to 64 bytes. Raises ProtocolError."""
    banks = strictjson.members(value, name="pcrs", required=frozenset(), optional=frozenset(BANKS))
    return {bank: _bank(bank, values) for bank, values in banks.items()}


def _bank(bank: str, values: object) -> Mapping[int, bytes]:
    if not isinstance(values, dict):
        raise ProtocolError(f"pcrs.{bank} must be a JSON object")
    for index in values:
        if not _INDEX.match(index) or int(index) >= PCR_COUNT:
            raise ProtocolError(f"pcrs.{bank} has no such PCR", expected=f"0 to {PCR_COUNT - 1}", found=index[:16])
    return {int(index): _value(f"pcrs.{bank}.{index}", text) for index, text in values.items()}


def _value(name: str, text: object) -> bytes:
    value = strictjson.string(text, name=name, max_chars=2 * MAX_DIGEST_BYTES)
    if not _HEX.match(value):
        raise ProtocolError(f"{name} must be lower-case hex")
    return bytes.fromhex(value)


def _stock(value: object) -> TpmEvidence:
    """The values get the names that a stock guest means; the verifier compares these names with the signed ones."""
    members = strictjson.members(value, name="TPM evidence", required=_STOCK)
    quote = strictjson.members(members["tpm_quote"], name="tpm_quote", required=_STOCK_QUOTE)
    values = quote["pcrs"]
    if not isinstance(values, list) or len(values) != PCR_COUNT:
        raise ProtocolError("tpm_quote.pcrs must be a list", expected=f"{PCR_COUNT} values")
    return TpmEvidence(
        ak_public=b"",
        ak_spki=b64.from_std(members["ak_public"], name="ak_public", max_bytes=MAX_PUBLIC_BYTES),
        attest=b64.from_std(quote["message"], name="tpm_quote.message", max_bytes=MAX_ATTEST_BYTES),
        signature=b64.from_std(quote["signature"], name="tpm_quote.signature", max_bytes=MAX_SIGNATURE_BYTES),
        pcrs={_STOCK_BANK: {i: _value(f"tpm_quote.pcrs.{i}", text) for i, text in enumerate(values)}},
    )
