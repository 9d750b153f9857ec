# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.reader and broker.verifiers.tpm_structures: exact parsing, Names, and nothing but our errors."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.verifiers.reader import Reader
from broker.verifiers.roca import has_roca_fingerprint
from broker.verifiers.tpm_structures import (
    ALG_ECDSA,
    ALG_RSASSA,
    RH_ENDORSEMENT,
    SHA256,
    name_of,
    parse_attest,
    parse_public,
    parse_public_2b,
    parse_public_prefix,
    parse_signature,
    qualified_name,
)
from keys.errors import VerificationError
from tests.fakes import tpm_forge as forge
from tests.vectors import needs_vectors, vector

AK = forge.public_area(forge.ec_key())
RSA_AK = forge.public_area(forge.rsa_key())
QUOTE = forge.Quote(forge.ec_key())


def test_reader_stays_within_its_data() -> None:
    """A reader hands out bytes in order and never more than there are."""
    read = Reader(b"\x00\x02abcd", "thing")
    assert (read.sized(2, 2, "text"), read.at, read.left) == (b"ab", 4, 2)
    with pytest.raises(VerificationError, match="thing is cut short"):
        read.take(3)
    with pytest.raises(VerificationError, match="thing has trailing bytes"):
        read.end()
    assert read.take(2) == b"cd"
    read.end()


def test_reader_caps_lengths_before_it_reads() -> None:
    """A declared length above the cap is refused although the bytes are there."""
    with pytest.raises(VerificationError, match="text is too long"):
        Reader(b"\x03abc", "thing").sized(1, 2, "text")


def test_reader_knows_both_byte_orders() -> None:
    """Integers are big-endian unless little-endian is asked for."""
    assert Reader(b"\x01\x00", "thing").uint(2) == 256
    assert Reader(b"\x01\x00", "thing", "little").uint(2) == 1


def test_attest_fields() -> None:
    """Every field of a quote's TPMS_ATTEST comes out as it was written."""
    quote = forge.Quote(forge.ec_key(), banks=(("sha1", (1, 23)), ("sha384", ())))
    attest = parse_attest(quote.attest())
    assert attest.qualified_signer == forge.signer(quote.public)
    assert attest.extra_data == bytes(range(32))
    assert (attest.clock, attest.reset_count, attest.restart_count, attest.safe) == (1234, 5, 6, True)
    assert attest.firmware_version == bytes.fromhex("0102030405060708")
    assert [(bank.name, indices) for bank, indices in attest.selection] == [("sha1", (1, 23)), ("sha384", ())]
    assert len(attest.pcr_digest) == 32


@pytest.mark.parametrize(
    ("quote", "message"),
    [
        (forge.Quote(forge.ec_key(), magic=0xFE544347), "did not generate"),
        (forge.Quote(forge.ec_key(), type=0x8017), "not a quote"),
        (forge.Quote(forge.ec_key(), safe=2), "YES_NO"),
        (forge.Quote(forge.ec_key(), tail=b"\0"), "trailing"),
        (forge.Quote(forge.ec_key(), extra_data=bytes(67)), "extraData is too long"),
        (forge.Quote(forge.ec_key(), qualified_signer=bytes(67)), "qualifiedSigner is too long"),
        (forge.Quote(forge.ec_key(), digest=bytes(65)), "pcrDigest is too long"),
        (forge.Quote(forge.ec_key(), banks=[("sha256", ())] * 17), "TPML_PCR_SELECTION is too long"),
    ],
)
def test_attest_that_no_tpm_writes(quote: forge.Quote, message: str) -> None:
    """A TPMS_ATTEST with one wrong field is refused for that field."""
    with pytest.raises(VerificationError, match=message):
        parse_attest(quote.attest())


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b"\x00\x0b\x03\x91", b"\x00\x12\x03\x91", "PCR bank is not a known hash"),
        (b"\x00\x0b\x03\x91", b"\x00\x0b\x04\x91", "another size"),
        (b"\x00\x0b\x03\x91", b"\x00\x0b\x02\x91", "another size"),
    ],
)
def test_attest_with_a_strange_selection(before: bytes, after: bytes, message: str) -> None:
    """A selection names known banks with three bytes of bitmap each."""
    attest = QUOTE.attest()
    assert attest.count(before) == 1
    with pytest.raises(VerificationError, match=message):
        parse_attest(attest.replace(before, after))


def test_signature_fields() -> None:
    """ECDSA signatures are two integers, RSA signatures are bytes."""
    ecdsa = parse_signature(QUOTE.signature())
    assert (ecdsa.scheme, ecdsa.hash) == (ALG_ECDSA, SHA256)
    assert isinstance(ecdsa.value, tuple)
    rsassa = parse_signature(forge.Quote(forge.rsa_key()).signature())
    assert rsassa.scheme == ALG_RSASSA
    assert isinstance(rsassa.value, bytes)
    assert len(rsassa.value) == 256


@pytest.mark.parametrize("scheme", [0x0005, 0x0010, 0x001A, 0x001B, 0x001C])
def test_signature_schemes_that_are_not_allowed(scheme: int) -> None:
    """HMAC, NULL, ECDAA, SM2 and ECSCHNORR signatures are refused."""
    with pytest.raises(VerificationError, match="scheme is not allowed"):
        parse_signature(struct.pack(">H", scheme) + QUOTE.signature()[2:])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (QUOTE.signature() + b"\0", "trailing"),
        (struct.pack(">HHH", 0x18, 0x27, 0), "signature hash is not a known hash"),
        (struct.pack(">HHH", 0x14, 0x0B, 513) + bytes(513), "signature is too long"),
        (struct.pack(">HHH", 0x18, 0x0B, 67) + bytes(67), "signatureR is too long"),
        (struct.pack(">HHHH", 0x18, 0x0B, 0, 67) + bytes(67), "signatureS is too long"),
    ],
)
def test_signature_that_no_tpm_writes(data: bytes, message: str) -> None:
    """Length and hash of a TPMT_SIGNATURE are bounded."""
    with pytest.raises(VerificationError, match=message):
        parse_signature(data)


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
def test_public_area_of_an_ecc_key(curve: str) -> None:
    """An ECC public area gives its key, attributes, scheme and Name on each of the three curves."""
    key = forge.ec_key(curve)
    area = forge.public_area(key)
    public = parse_public(area)
    assert public.key == key.public_key()
    assert (public.raw, public.attributes, public.symmetric_bits) == (area, 0x00050072, None)
    assert (public.scheme, public.scheme_hash) == (ALG_ECDSA, SHA256)
    assert public.name == name_of(area) == b"\x00\x0b" + hashlib.sha256(area).digest()
    assert public.spki == key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_public_area_of_an_rsa_key() -> None:
    """An RSA public area gives its key; exponent 0 means 65537, and a stated 65537 is another Name of the same key."""
    assert parse_public(RSA_AK).key == forge.rsa_key().public_key()
    stated = RSA_AK.replace(struct.pack(">HI", 2048, 0), struct.pack(">HI", 2048, 65537))
    assert parse_public(stated).key == forge.rsa_key().public_key()
    assert parse_public(stated).name != parse_public(RSA_AK).name


def test_public_area_of_an_endorsement_key() -> None:
    """A storage key states its AES key size and has no scheme."""
    public = parse_public(forge.storage_area(forge.ec_key("P-384"), name="sha384", bits=256))
    assert (public.symmetric_bits, public.scheme, public.scheme_hash) == (256, None, None)


def test_public_area_prefix() -> None:
    """A public area knows its own end, so that two can stand behind one another."""
    public, rest = parse_public_prefix(AK + RSA_AK)
    assert (public.raw, rest) == (AK, RSA_AK)
    assert parse_public_2b(forge.sized(AK)).raw == AK
    with pytest.raises(VerificationError, match="TPMT_PUBLIC has trailing"):
        parse_public(AK + b"\0")
    with pytest.raises(VerificationError, match="TPM2B_PUBLIC has trailing"):
        parse_public_2b(forge.sized(AK) + b"\0")


ECC_TAIL = forge.public_area(forge.ec_key())[-72:]


@pytest.mark.parametrize(
    ("area", "message"),
    [
        (b"\x00\x25" + AK[2:], "not an RSA or ECC key"),
        (AK[:2] + b"\x00\x12" + AK[4:], "nameAlg is not a known hash"),
        (forge.public_area(forge.ec_key(), policy=bytes(65)), "authPolicy is too long"),
        (forge.public_area(forge.ec_key(), symmetric=struct.pack(">HHH", 6, 128, 0x42)), "symmetric"),
        (forge.public_area(forge.ec_key(), symmetric=struct.pack(">HHH", 6, 192, 0x43)), "symmetric"),
        (forge.public_area(forge.ec_key(), symmetric=struct.pack(">HHH", 0x13, 128, 0x43)), "symmetric"),
        (forge.public_area(forge.ec_key(), scheme=struct.pack(">HH", 0x1C, 11)), "unknown scheme"),
        (forge.public_area(forge.ec_key(), scheme=struct.pack(">HH", 0x14, 11)), "unknown scheme"),
        (forge.public_area(forge.rsa_key(), scheme=struct.pack(">HH", 0x18, 11)), "unknown scheme"),
        (forge.public_area(forge.ec_key(), scheme=struct.pack(">HH", 0x18, 0x12)), "scheme hash is not a known hash"),
        (AK[:-72] + b"\x00\x20" + ECC_TAIL[2:], "curve is not allowed"),
        (AK[:-70] + b"\x00\x20" + ECC_TAIL[4:], "unknown kdf"),
        (AK[:-1] + bytes((AK[-1] ^ 1,)), "not a point"),
        (RSA_AK.replace(struct.pack(">HI", 2048, 0), struct.pack(">HI", 2048, 3)), "RSA key is not allowed"),
        (RSA_AK.replace(struct.pack(">HI", 2048, 0), struct.pack(">HI", 3072, 0)), "RSA key is not allowed"),
        (RSA_AK[:-1] + bytes((RSA_AK[-1] ^ 1,)), "RSA key is not allowed"),
        (forge.public_area(forge.rsa_key(1024)), "RSA key is not allowed"),
    ],
)
def test_public_area_that_is_not_judged(area: bytes, message: str) -> None:
    """Keys, schemes and algorithms outside the allowed ones are refused by name."""
    with pytest.raises(VerificationError, match=message):
        parse_public(area)


def test_qualified_names() -> None:
    """A qualified name is the hash over the parent's and the key's own Name, whatever kind of parent it is."""
    ak, ek = parse_public(AK), parse_public(forge.storage_area(forge.ec_key(which=1)))
    primary = qualified_name(RH_ENDORSEMENT, ek)
    assert primary == b"\x00\x0b" + hashlib.sha256(struct.pack(">I", 0x4000000B) + ek.name).digest()
    assert qualified_name(primary, ak) == b"\x00\x0b" + hashlib.sha256(primary + ak.name).digest()


def test_attributes_are_named_in_the_refusal() -> None:
    """The refusal of attributes says which are missing and which are too much."""
    public = parse_public(forge.public_area(forge.ec_key(), attributes=0x00020072))
    with pytest.raises(VerificationError, match="restricted sign missing, decrypt too much") as caught:
        public.require_attributes("key", needed=0x00050072 & ~0x40, forbidden=0x00020000)
    assert caught.value.expected == "fixedTPM fixedParent sensitiveDataOrigin restricted sign set, decrypt clear"
    with pytest.raises(VerificationError, match="sign missing, nothing too much"):
        public.require_attributes("key", needed=0x00040000, forbidden=0x00010000)
    with pytest.raises(VerificationError, match="nothing missing, decrypt too much"):
        public.require_attributes("key", needed=0x00000072, forbidden=0x00020000)
    public.require_attributes("key", needed=0x00000072, forbidden=0x00050000)


def test_roca_fingerprint() -> None:
    """A modulus of the broken library's form is recognised, a sound one is not."""
    product = 1
    for prime in [p for p in range(2, 168) if all(p % q for q in range(2, p))]:
        product *= prime
    weak = (pow(65537, 4711, product) + product * (1 << 700)) * (pow(65537, 42, product) + product * (1 << 701))
    assert has_roca_fingerprint(weak)
    assert not has_roca_fingerprint(forge.rsa_key().public_key().public_numbers().n)


PARSERS: list[tuple[Callable[[bytes], object], bytes]] = [
    (parse_attest, QUOTE.attest()),
    (parse_signature, QUOTE.signature()),
    (parse_public, AK),
    (parse_public, RSA_AK),
    (parse_public_2b, forge.sized(AK)),
    (name_of, AK),
]


@pytest.mark.parametrize(("parse", "good"), PARSERS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_parsers_raise_only_our_error(parse: Callable[[bytes], object], good: bytes, data: st.DataObject) -> None:
    """Whatever the bytes, a parser returns or raises VerificationError."""
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    for candidate in (bytes(changed), bytes(changed[:cut]), data.draw(st.binary(max_size=80))):
        with suppress(VerificationError):
            parse(candidate)


@needs_vectors
@pytest.mark.parametrize("name", ["gce/ak_tpmt.bin", "windows-gcp/ak_tpmt.bin", "keylime/infineon-ek-ec.tpmt.bin"])
def test_real_public_areas(name: str) -> None:
    """Public areas of real TPMs parse, and no prefix or extension of them does."""
    area = vector(name)
    assert parse_public(area).raw == area
    for size in range(0, len(area), 7):
        with pytest.raises(VerificationError):
            parse_public(area[:size])
