# SPDX-License-Identifier: Apache-2.0
"""AMD's certificates for SEV: every link of the chain counts, and nothing but a canonical certificate is one."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from broker.trace import Stage, Trace, Verdict
from broker.verifiers import sev_roots
from broker.verifiers.sev_certificates import (
    ARK_SPKI_SHA256,
    Chain,
    Generation,
    Usage,
    parse_ca,
    parse_certificate,
    verify_ark,
    verify_ca,
    verify_platform,
)
from broker.verifiers.snp_report import Line
from broker.verifiers.snp_roots import ARK_SPKI_SHA256 as OF_SNP
from keys.errors import EndorsementError
from tests.fakes.sev import CEK, OCA, PDH, PEK, FakePlatform, FakeSev, ca_certificate, ec_key, sev_body, slot
from tests.vectors import VECTORS, needs_vectors

SIGNERS = {
    Usage.CEK: {Usage.ASK},
    Usage.OCA: {Usage.OCA},
    Usage.PEK: {Usage.OCA, Usage.CEK},
    Usage.PDH: {Usage.PEK},
}
LINKS = ("pdh", "pek", "oca", "cek")
AMD = FakeSev()
PLATFORM = FakePlatform(AMD)


def judged(chain: Chain) -> Trace:
    """The trace of a chain that must be refused, with the reason as its only failed check."""
    trace = Trace()
    with pytest.raises(EndorsementError) as caught:
        verify_platform(chain, [AMD.ca], trace)
    assert [check.name for check in trace.failed] == [caught.value.message]
    assert trace.failed[0].stage is Stage.ENDORSEMENT
    return trace


def failure(**links: bytes) -> str:
    return judged(replace(PLATFORM.chain, **links)).failed[0].name


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def flip(data: bytes, at: int, mask: int = 1) -> bytes:
    return put(data, at, bytes((data[at] ^ mask,)))


# --- the chain ---


@pytest.mark.parametrize("generation", [Generation.NAPLES, Generation.ROME])
def test_a_genuine_platform(generation: Generation) -> None:
    """A whole chain is accepted under keys of either size, names the processor, and shows each link in the trace."""
    amd = FakeSev(generation)
    machine, trace = FakePlatform(amd), Trace()
    platform = verify_platform(machine.chain, [AMD.ca, amd.ca] if amd is not AMD else [amd.ca], trace)
    assert platform.generation is generation
    assert platform.instance_id == machine.instance_id
    assert platform.pdh.key.public_numbers() == machine.pdh_key.public_key().public_numbers()
    assert [check.verdict for check in trace.checks] == [Verdict.PASSED] * 5


@needs_vectors
@pytest.mark.parametrize("generation", ["naples", "rome"])
def test_a_real_platform(generation: str) -> None:
    """Recorded platforms are accepted under the keys that the product brings."""
    folder = VECTORS / "sev" / generation
    chain = Chain(*((folder / f"{link}.cert").read_bytes() for link in LINKS))
    assert verify_platform(chain, sev_roots.built_in(), Trace()).generation.lower() == generation


def test_without_amd_nobody_is_genuine() -> None:
    """With no CA configured, or another one, no platform is accepted."""
    other = FakeSev(Generation.ROME)
    for cas in ([], [other.ca]):
        with pytest.raises(EndorsementError, match="AMD signed"):
            verify_platform(PLATFORM.chain, cas, Trace())


def test_each_link_must_be_of_this_platform() -> None:
    """A certificate of another genuine platform in any place breaks the chain at the link that it should close."""
    other = FakePlatform(AMD)
    assert failure(cek=other.cek) == "processor (CEK) signed the platform's key (PEK)"
    assert failure(oca=other.oca) == "owner (OCA) signed the platform's key (PEK)"
    assert failure(pek=other.pek) == "owner (OCA) signed the platform's key (PEK)"
    assert failure(pdh=other.pdh) == "platform's key (PEK) signed the launch key (PDH)"


def test_the_oca_signs_itself() -> None:
    """An owner's certificate that somebody else signed is refused, even where the PEK is right."""
    body = sev_body(PLATFORM.oca_key, OCA)
    oca = body + slot(body, OCA, PLATFORM.pek_key) + slot(body)
    assert failure(oca=oca) == "platform's owner (OCA) signed itself"


def test_the_pek_needs_both_signatures() -> None:
    """The owner's signature does not replace the processor's, nor the other way round; their order is open."""
    body = sev_body(PLATFORM.pek_key, PEK)
    of_oca, of_cek = slot(body, OCA, PLATFORM.oca_key), slot(body, CEK, PLATFORM.cek_key)
    verify_platform(replace(PLATFORM.chain, pek=body + of_cek + of_oca), [AMD.ca], Trace())
    for one in (of_oca, of_cek):
        assert failure(pek=body + one + slot(body)) == "PEK lacks a signature"
        assert failure(pek=body + one + one) == "PEK is signed by another key"
    stranger = ec_key()
    assert failure(pek=body + slot(body, OCA, stranger) + of_cek).startswith("owner (OCA)")
    assert failure(pek=body + of_oca + slot(body, CEK, stranger)).startswith("processor (CEK)")


def test_a_key_stands_for_nothing_but_its_usage() -> None:
    """A PEK is no PDH and a PDH is no CEK, whoever signed them."""
    assert failure(pdh=PLATFORM.pek) == "another key stands for the PDH"
    assert failure(cek=PLATFORM.pdh) == "another key stands for the CEK"


def test_the_signature_has_the_signers_algorithm() -> None:
    """A signature with another hash than the signer's key is for counts for nothing, though it is right."""
    body = sev_body(PLATFORM.pdh_key, PDH)
    r, s = decode_dss_signature(PLATFORM.pek_key.sign(body, ec.ECDSA(hashes.SHA384())))
    signature = (r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(512, b"\0")
    pdh = body + struct.pack("<II", PEK, 0x102) + signature + slot(body)
    assert failure(pdh=pdh).startswith("platform's key (PEK)")
    assert failure(cek=put(PLATFORM.cek, 0x418, struct.pack("<I", 0x101))).startswith("AMD signed")


@pytest.mark.parametrize("sha384", [True, False])
def test_sha384_keys_are_keys_too(sha384: bool) -> None:
    """A platform whose PEK is for ECDSA with SHA-384 and whose PDH is for ECDH with SHA-384 is accepted as such."""
    body = sev_body(PLATFORM.pek_key, PEK, algorithm=0x102)
    pek = body + slot(body, OCA, PLATFORM.oca_key) + slot(body, CEK, PLATFORM.cek_key)
    body = sev_body(PLATFORM.pdh_key, PDH, algorithm=0x103)
    r, s = decode_dss_signature(PLATFORM.pek_key.sign(body, ec.ECDSA(hashes.SHA384() if sha384 else hashes.SHA256())))
    signature = (r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(512, b"\0")
    pdh = body + struct.pack("<II", PEK, 0x102) + signature + slot(body)
    if sha384:
        verify_platform(replace(PLATFORM.chain, pek=pek, pdh=pdh), [AMD.ca], Trace())
    else:
        assert failure(pek=pek, pdh=pdh).startswith("platform's key (PEK)")


def test_nothing_behind_a_signature() -> None:
    """Bytes behind a signature, which nobody signed, are refused for EC and RSA signatures."""
    assert failure(pdh=flip(PLATFORM.pdh, 0x61B)).startswith("platform's key (PEK)")
    assert failure(cek=flip(PLATFORM.cek, 0x61B)).startswith("AMD signed")


@given(link=st.sampled_from(LINKS), at=st.integers(0, 2083), mask=st.integers(1, 255))
def test_no_byte_is_free(link: str, at: int, mask: int) -> None:
    """Whatever byte of a genuine platform's certificates is changed, the platform is refused."""
    with pytest.raises(EndorsementError):
        verify_platform(
            replace(PLATFORM.chain, **{link: flip(getattr(PLATFORM, link), at, mask)}), [AMD.ca], Trace()
        )  # fmt: skip


# --- SEV certificates ---


def _pdh(spoil: Callable[[bytes], bytes]) -> bytes:
    """A PDH whose signed part was spoilt before it was signed."""
    body = spoil(sev_body(PLATFORM.pdh_key, PDH))
    return body + slot(body, PEK, PLATFORM.pek_key) + slot(body)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda body: put(body, 0x00, b"\x02"), "version 1"),
        (lambda body: put(body, 0x06, b"\x01"), "version 1"),
        (lambda body: put(body, 0x07, b"\x01"), "version 1"),
        (lambda body: put(body, 0x08, b"\x02"), "another key"),
        (lambda body: put(body, 0x0C, b"\x02"), "another algorithm"),
        (lambda body: put(body, 0x10, b"\x01"), "no P-384 key"),
        (lambda body: put(body, 0x14 + 144, b"\x01"), "no P-384 key"),
        (lambda body: put(body, 0x413, b"\x01"), "no P-384 key"),
        (lambda body: flip(body, 0x14), "no point"),
        (lambda body: put(body, 0x14 + 71, b"\x01"), "no point"),
        (lambda body: put(body, 0x14, bytes(144)), "no point"),
    ],
)
def test_a_signed_form_that_is_not_canonical(spoil: Callable[[bytes], bytes], words: str) -> None:
    """What the specification reserves or fixes is refused even where the signature is right."""
    assert words in failure(pdh=_pdh(spoil))


@pytest.mark.parametrize("usage", [Usage.CEK, Usage.OCA, Usage.PEK])
def test_a_signing_key_is_no_agreement_key(usage: Usage) -> None:
    """A CEK, OCA or PEK that says that it is for ECDH is refused."""
    data = put(getattr(PLATFORM, usage.name.lower()), 0x0C, b"\x03")
    with pytest.raises(EndorsementError, match="another algorithm"):
        parse_certificate(data, usage, signers=SIGNERS[usage])


@pytest.mark.parametrize("size", [0, 2083, 2085])
def test_a_certificate_of_another_length(size: int) -> None:
    """A byte more or less is refused."""
    assert failure(pdh=(PLATFORM.pdh + b"\0")[:size]) == "PDH has another length"


@pytest.mark.parametrize(
    ("at", "new"),
    [(0x61D, b"\x00"), (0x61C, b"\x02\x10"), (0x620, b"\x01"), (0x624, b"\x01"), (0x823, b"\x01")],
)
def test_an_empty_slot_is_empty(at: int, new: bytes) -> None:
    """The slot that has no signature holds the usage INV, no algorithm and zeros."""
    assert failure(pdh=put(PLATFORM.pdh, at, new)) == "PDH is signed by another key"


@given(st.binary(max_size=4200), st.sampled_from(Usage))
def test_any_bytes(data: bytes, usage: Usage) -> None:
    """Nothing but our own error comes out of a parser, whatever goes in."""
    for cut in (data, data.ljust(2084, b"\0")[:2084], data.ljust(832, b"\0")[:832], data.ljust(1600, b"\0")[:1600]):
        for parse in (lambda raw: parse_certificate(raw, usage, signers=SIGNERS.get(usage, set())), parse_ca):
            with contextlib.suppress(EndorsementError):
                parse(cut)


@given(st.sampled_from(LINKS), st.lists(st.tuples(st.integers(0, 2083), st.integers(1, 255)), min_size=1, max_size=4))
def test_spoilt_certificates(link: str, changes: list[tuple[int, int]]) -> None:
    """A genuine certificate with some bytes changed parses or is refused, and nothing else happens."""
    data, usage = getattr(PLATFORM, link), Usage[link.upper()]
    for at, mask in changes:
        data = flip(data, at, mask)
    try:
        parsed = parse_certificate(data, usage, signers=SIGNERS[usage])
    except EndorsementError:
        return
    assert parsed.usage is usage


# --- CA certificates ---


def test_a_ca_pair() -> None:
    """A pinned ARK and the ASK that it signed are a CA of the pinned generation."""
    ca = AMD.ca
    assert (ca.generation, ca.ark.usage, ca.ask.usage) == (Generation.NAPLES, Usage.ARK, Usage.ASK)
    assert (ca.ark.key_id, ca.ask.certifying_id) == (AMD.ark_id, AMD.ark_id)


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (0x00, b"\x02"),
        (0x24, b"\x01"),
        (0x28, b"\x01"),
        (0x37, b"\x01"),
        (0x38, b"\x01"),
        (0x3C, b"\x01"),
        (0x40, b"\x03"),
        (0x40 + 256 + 255, b"\x01"),
    ],
)
def test_a_ca_certificate_that_is_not_canonical(at: int, new: bytes) -> None:
    """Version, usage, reserved bytes, sizes, exponent and the modulus's length are fixed."""
    for data in (AMD.ark, AMD.ask):
        with pytest.raises(EndorsementError):
            parse_ca(put(data, at, new))


def test_an_even_modulus_is_no_key() -> None:
    """A modulus that no RSA key has is refused by name."""
    with pytest.raises(EndorsementError, match="no RSA key"):
        parse_ca(flip(AMD.ask, 0x40 + 256))


def test_ca_certificates_of_other_lengths() -> None:
    """The ARK without its signature, as it was once published, is refused, and so is any other length."""
    for data in (AMD.ark[:576], AMD.ark[:-1], AMD.ark + b"\0", b""):
        with pytest.raises(EndorsementError, match="another length"):
            parse_ca(data)


def test_an_ark_must_be_pinned() -> None:
    """A perfect CA that AMD did not publish is nobody's."""
    with pytest.raises(EndorsementError, match="not one that AMD published"):
        verify_ark(parse_ca(AMD.ark))
    with pytest.raises(EndorsementError, match="not one that AMD published"):
        verify_ca(parse_ca(AMD.ark), parse_ca(AMD.ask))


def test_an_ark_is_a_root() -> None:
    """A pinned key with the usage of an ASK, another's certifying id, or without its own signature is no root."""
    for usage, certifying_id in ((0x13, AMD.ark_id), (0, AMD.ask_id)):
        other = ca_certificate(AMD.ark_key, usage, AMD.ark_id, certifying_id, AMD.ark_key)
        with pytest.raises(EndorsementError, match="no root"):
            verify_ark(parse_ca(other), AMD.pins)
    with pytest.raises(EndorsementError, match="not signed by itself"):
        verify_ark(parse_ca(flip(AMD.ark, 831)), AMD.pins)


def test_an_ask_is_of_its_ark() -> None:
    """An ASK under another usage, another ARK's id or another signature is refused."""
    ark = parse_ca(AMD.ark)
    wrong_usage = ca_certificate(AMD.ask_key, 0, AMD.ask_id, AMD.ark_id, AMD.ark_key)
    wrong_id = ca_certificate(AMD.ask_key, 0x13, AMD.ask_id, AMD.ask_id, AMD.ark_key)
    for data in (wrong_usage, wrong_id):
        with pytest.raises(EndorsementError, match="not of this ARK"):
            verify_ca(ark, parse_ca(data), AMD.pins)
    wrong_signer = ca_certificate(AMD.ask_key, 0x13, AMD.ask_id, AMD.ark_id, AMD.ask_key)
    with pytest.raises(EndorsementError, match="not signed by the ARK"):
        verify_ca(ark, parse_ca(wrong_signer), AMD.pins)


# --- what comes with the product ---


def test_the_built_in_keys() -> None:
    """The product brings a pair for each generation, under the pin of its own."""
    assert [ca.generation for ca in sev_roots.built_in()] == list(Generation)
    assert {ca.generation: ca.ark.spki_sha256 for ca in sev_roots.built_in()} == ARK_SPKI_SHA256


def test_later_generations_have_the_arks_of_snp() -> None:
    """Milan's, Genoa's and Turin's keys are the ones under which SEV-SNP reports are verified."""
    assert {str(line): OF_SNP[line] for line in Line} == {str(line): ARK_SPKI_SHA256[Generation(line)] for line in Line}


@needs_vectors
def test_the_built_in_certificates_are_the_recorded_ones() -> None:
    """ARK and ASK of each generation are byte for byte what was recorded elsewhere."""
    for ca in sev_roots.built_in():
        folder = VECTORS / "sev" / ca.generation.lower()
        assert ca.ark.raw == (folder / "ark.cert").read_bytes()
        assert ca.ask.raw == (folder / "ask.cert").read_bytes()


def test_no_bytes_in_words() -> None:
    """Certificates show in logs as what they are, not as pages of bytes."""
    assert len(repr(AMD.ca)) < 1000
    assert "\\x" not in repr(PLATFORM.chain)
