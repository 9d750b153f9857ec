# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.tpm_quote: each of its checks refuses exactly what it is there for."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import replace

import pytest

from broker.trace import Trace, Verdict
from broker.verifiers import tpm_quote
from broker.verifiers.tpm_quote import VerifiedQuote, verify_quote
from broker.verifiers.tpm_structures import parse_public
from keys.errors import VerificationError
from tests.fakes import tpm_forge as forge
from tests.fakes.tpm_forge import Quote

EC, RSA = forge.ec_key(), forge.rsa_key()


def verify(
    quote: Quote,
    *,
    signature: bytes | None = None,
    expected: bytes = bytes(range(32)),
    pcrs: Mapping[str, Mapping[int, bytes]] | None = None,
    trace: Trace | None = None,
) -> VerifiedQuote:
    return verify_quote(
        attest=quote.attest(),
        signature=quote.signature() if signature is None else signature,
        ak=parse_public(quote.public),
        qualifying_data=expected,
        pcrs=quote.values if pcrs is None else pcrs,
        trace=Trace() if trace is None else trace,
    )


def refused(quote: Quote, message: str, **options: object) -> Trace:
    """The trace of a refusal, whose last line is the one failed check."""
    trace = Trace()
    with pytest.raises(VerificationError, match=message):
        verify(quote, trace=trace, **options)  # type: ignore[arg-type]
    assert [check.verdict for check in trace.checks].count(Verdict.FAILED) == 1
    assert trace.checks[-1].verdict is Verdict.FAILED
    return trace


def area(scheme: int, hash_name: str, key: forge.PrivateKey = EC) -> bytes:
    return forge.public_area(key, scheme=struct.pack(">HH", scheme, forge.HASHES[hash_name]))


@pytest.mark.parametrize(
    "quote",
    [
        Quote(EC),
        Quote(RSA),
        Quote(RSA, area(forge.RSAPSS, "sha256", RSA), scheme=forge.RSAPSS),
        Quote(forge.ec_key("P-384"), area(forge.ECDSA, "sha384", forge.ec_key("P-384")), hash="sha384"),
        Quote(forge.ec_key("P-521"), area(forge.ECDSA, "sha512", forge.ec_key("P-521")), hash="sha512"),
        Quote(EC, banks=(("sha384", (0, 23)), ("sha1", (5,)), ("sha256", (3, 1, 2)))),
        Quote(EC, banks=()),
        Quote(EC, banks=(("sha512", ()),)),
    ],
    ids=["ecdsa", "rsassa", "rsapss", "p384", "p521", "banks", "empty", "unallocated"],
)
def test_genuine_quotes(quote: Quote) -> None:
    """A quote with each scheme, curve and selection is verified, and its trace has no failed line."""
    trace = Trace()
    verified = verify(quote, trace=trace)
    assert verified.pcrs == quote.values
    assert verified.attest.extra_data == quote.extra_data
    assert not trace.failed


def test_signature_of_integers_with_leading_zeros() -> None:
    """ECDSA integers may be shorter or longer than the curve's size, as TPMs write them."""
    quote = Quote(EC)
    head, body = quote.signature()[:4], quote.signature()[4:]
    size = int.from_bytes(body[:2], "big")
    r, s = body[2 : 2 + size], body[4 + size :]
    padded = head + forge.sized(bytes(34 - len(r)) + r) + forge.sized(bytes(34 - len(s)) + s)
    assert verify(quote, signature=padded)


@pytest.mark.parametrize(
    ("bit", "name"),
    [(1, "fixedTPM"), (4, "fixedParent"), (5, "sensitiveDataOrigin"), (16, "restricted"), (18, "sign")],
)
def test_attributes_that_an_ak_must_have(bit: int, name: str) -> None:
    """A key that can leave the TPM, came from outside, or signs anything it is given is no attestation key."""
    public = forge.public_area(EC, attributes=forge.AK & ~(1 << bit))
    trace = refused(Quote(EC, public), "wrong attributes")
    assert f"{name} missing" in trace.checks[-1].found


@pytest.mark.parametrize(("bit", "name"), [(17, "decrypt"), (11, "encryptedDuplication")])
def test_attributes_that_an_ak_must_not_have(bit: int, name: str) -> None:
    """A key that also decrypts or can be duplicated is no attestation key."""
    public = forge.public_area(EC, attributes=forge.AK | 1 << bit)
    assert f"{name} too much" in refused(Quote(EC, public), "wrong attributes").checks[-1].found


def test_weak_rsa_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """An RSA key with the ROCA fingerprint is refused."""
    monkeypatch.setattr(
        tpm_quote, "has_roca_fingerprint", lambda modulus: modulus == RSA.public_key().public_numbers().n
    )
    refused(Quote(RSA), "weak RSA key")


def test_malformed_parts_leave_a_failed_line() -> None:
    """A signature or an attestation that does not parse is a failed check of the trace."""
    refused(Quote(EC), "TPMT_SIGNATURE is cut short", signature=Quote(EC).signature()[:-1])
    refused(Quote(EC, tail=b"\0"), "TPMS_ATTEST has trailing bytes")


def test_sha1_signature() -> None:
    """A signature made with SHA-1 is refused although it is right."""
    quote = Quote(RSA, area(forge.RSASSA, "sha1", RSA), hash="sha1")
    assert refused(quote, "hash is strong").checks[-1].found == "sha1"


@pytest.mark.parametrize("key", [EC, RSA], ids=["ecdsa", "rsassa"])
def test_signature_over_other_bytes(key: forge.PrivateKey) -> None:
    """A signature over anything but the whole attestation is refused."""
    quote = Quote(key)
    refused(quote, "signed by the attestation key", signature=quote.signature(quote.attest()[:-1]))


def test_signature_of_another_key() -> None:
    """A signature made by another key of the same kind is refused."""
    other = Quote(forge.ec_key(which=7), forge.public_area(EC))
    refused(other, "signed by the attestation key")


@pytest.mark.parametrize(("key", "other"), [(EC, RSA), (RSA, EC)], ids=["rsa-for-ecc", "ecc-for-rsa"])
def test_signature_of_another_kind_of_key(key: forge.PrivateKey, other: forge.PrivateKey) -> None:
    """An RSA signature for an ECC key, and the other way round, is a refusal and not a crash."""
    refused(Quote(key), "signed by the attestation key", signature=Quote(other).signature(Quote(key).attest()))


def test_rsa_signature_with_another_padding() -> None:
    """An RSASSA signature that is labelled RSAPSS, or the other way round, is refused."""
    pss = Quote(RSA, area(forge.RSAPSS, "sha256", RSA), scheme=forge.RSAPSS)
    refused(pss, "signed by the attestation key", signature=struct.pack(">H", 0x14) + pss.signature()[2:])
    refused(Quote(RSA), "signed by the attestation key", signature=struct.pack(">H", 0x16) + Quote(RSA).signature()[2:])


@pytest.mark.parametrize(
    "public", [area(forge.ECDSA, "sha384"), forge.public_area(EC, scheme=struct.pack(">H", forge.NULL))]
)
def test_signature_with_another_scheme_than_the_keys(public: bytes) -> None:
    """A restricted key has one scheme and hash; a right signature with another one came from elsewhere."""
    refused(Quote(EC, public), "scheme is the attestation key's")


@pytest.mark.parametrize(
    "expected", [bytes(32), bytes(range(31)), bytes(range(32)) + b"\0", b""], ids=["other", "prefix", "padded", "none"]
)
def test_other_challenge(expected: bytes) -> None:
    """Only exactly the expected qualifying data answers the challenge."""
    trace = refused(Quote(EC), "answers this challenge", expected=expected)
    assert trace.checks[-1].found == bytes(range(32)).hex()


def test_bank_named_twice() -> None:
    """A selection that names a bank twice could put PCR 16 in PCR 4's place, so it is refused."""
    values = {"sha256": {index: hashlib.sha256(bytes([index])).digest() for index in (0, 4, 16)}}
    refused(Quote(EC, banks=(("sha256", (0,)), ("sha256", (16,))), pcrs=values), "names every bank once")


def test_values_of_other_registers() -> None:
    """Values are refused that are missing, too many, of an unsigned bank or under another register's label."""
    quote = Quote(EC)
    good = dict(quote.values["sha256"])
    relabelled = {(5 if index == 4 else index): value for index, value in good.items()}
    for pcrs in (
        {"sha256": {0: good[0], 4: good[4]}},
        {"sha256": {**good, 9: bytes(32)}},
        {"sha256": good, "sha384": {0: bytes(48)}},
        {"sha256": relabelled},
        {},
    ):
        refused(quote, "those of the signed selection", pcrs=pcrs)
    assert verify(quote, pcrs={"sha256": good, "sha384": {}})


@pytest.mark.parametrize("size", [20, 31, 33, 48])
def test_values_of_another_length(size: int) -> None:
    """A value has its bank's length even where the signed digest would fit: nothing can hide in another length."""
    pcrs = {"sha256": {0: bytes(32), 4: bytes(size), 7: bytes(32)}}
    trace = refused(Quote(EC, pcrs=pcrs), "bank's length")
    assert trace.checks[-1].found == "sha256:4"


def test_other_values() -> None:
    """Values whose digest is not the signed one are refused."""
    pcrs = {"sha256": {0: bytes(32), 4: bytes(32), 7: bytes(32)}}
    refused(Quote(EC), "what the TPM quoted", pcrs=pcrs)


def test_values_in_another_order() -> None:
    """The digest is made in the order of the signed list, not in the order of the supplied values."""
    quote = Quote(EC, banks=(("sha384", (1,)), ("sha256", (2, 1))))
    reordered = {bank: dict(reversed(values.items())) for bank, values in reversed(quote.values.items())}
    assert verify(quote, pcrs=reordered)
    swapped = replace(quote, banks=(("sha256", (1, 2)), ("sha384", (1,))))
    assert verify(swapped).attest.pcr_digest != verify(quote).attest.pcr_digest
