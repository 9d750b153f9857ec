# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.snp_crl: lists that AMD's roots signed are read, everything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.verifiers.snp_crl import KNOWN_REVOKED, MAX_CRL_BYTES, check_current, read_crl
from broker.verifiers.snp_report import Line
from broker.verifiers.snp_roots import check_ark
from broker.verifiers.x509 import load_certificate
from keys.errors import EndorsementError
from tests.fakes.amd import AT, END, START, FakeAmd, long_sequence, resign
from tests.vectors import VECTORS, needs_vectors

SNP = VECTORS / "snp"
AMD = FakeAmd()
MOMENT = timedelta(seconds=1)


@pytest.fixture(scope="module")
def genuine() -> bytes:
    return AMD.crl([0x20001, 0x20001FFFF], number=300)


def test_what_a_list_says(genuine: bytes) -> None:
    """Line, number, dates and serial numbers come out, from DER and from PEM."""
    pem = x509.load_der_x509_crl(genuine).public_bytes(Encoding.PEM)
    for data in (genuine, pem):
        crl = read_crl(data, AMD.ark)
        assert (crl.line, crl.number) == (Line.GENOA, 300)
        assert (crl.this_update, crl.next_update) == (START, END)
        assert crl.revoked == {0x20001, 0x20001FFFF}
    assert read_crl(AMD.crl(number=0), AMD.ark).revoked == frozenset()


@pytest.mark.parametrize(
    ("at", "current"),
    [(START - MOMENT, False), (START, True), (AT, True), (END - MOMENT, True), (END, False), (END + MOMENT, False)],
)
def test_when_a_list_is_current(genuine: bytes, at: datetime, current: bool) -> None:
    """A list counts from its update until before the next one."""
    crl = read_crl(genuine, AMD.ark)
    if current:
        check_current(crl, at)
    else:
        with pytest.raises(EndorsementError, match="not current") as caught:
            check_current(crl, at)
        assert caught.value.mend == "fetch or import the list of Genoa that AMD publishes now"


def test_list_that_was_read_is_remembered(genuine: bytes) -> None:
    """The same list under the same root is checked once."""
    assert read_crl(bytes(bytearray(genuine)), AMD.ark) is read_crl(genuine, AMD.ark)


def test_list_of_another_issuer() -> None:
    """A list whose issuer has another name than the root's is refused, also when the root's key signed it."""
    with pytest.raises(EndorsementError, match="another issuer's"):
        read_crl(AMD.crl(issuer="ARK-Milan"), AMD.ark)


def test_list_of_somebody_else() -> None:
    """A list that somebody else signed under the root's name is refused, each time."""
    data = AMD.crl(signer=AMD.key("SEV-Genoa"))
    for _ in range(2):
        with pytest.raises(EndorsementError, match="signature is wrong"):
            read_crl(data, AMD.ark)


def test_issuer_that_is_no_ark(genuine: bytes) -> None:
    """Only an ARK's certificate is taken for the issuer of a list, and only one that its own key signed."""
    with pytest.raises(EndorsementError, match="not an ARK"):
        read_crl(genuine, AMD.ask)
    der = AMD.ca_certificate("ARK-Genoa", signer=AMD.key("SEV-Genoa"))
    with pytest.raises(EndorsementError, match="signature is wrong"):
        read_crl(genuine, load_certificate(der))


@pytest.mark.parametrize(
    "made",
    [
        {"pss": padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=32)},
        {"pss": padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=48)},
        {"pss": padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=48), "algorithm": hashes.SHA256()},
        {"pss": padding.PKCS1v15()},
    ],
    ids=["salt", "mgf", "hash", "pkcs1"],
)
def test_other_signature_algorithms(made: dict[str, Any]) -> None:
    """A signature of the root's key that is right but of another kind than AMD's is refused."""
    with pytest.raises(EndorsementError, match="signature is wrong"):
        read_crl(AMD.crl(**made), AMD.ark)


def test_declared_algorithm_outside_the_signature(genuine: bytes) -> None:
    """The algorithm that stands outside the signed part is the one inside, though the signature verifies with it."""
    at = genuine.rindex(b"\xa2\x03\x02\x01\x30") + 4  # the salt's length
    changed = bytearray(genuine)
    changed[at] ^= 0x10
    with pytest.raises(EndorsementError, match="revocation list cannot be read"):
        read_crl(bytes(changed), AMD.ark)


def test_declared_algorithm_that_was_not_used() -> None:
    """A list that declares another algorithm than it was signed with is refused, though AMD's would verify it."""

    def declare(tbs: bytes) -> bytes:
        return tbs.replace(b"\xa2\x03\x02\x01\x30", b"\xa2\x03\x02\x01\x20", 1)

    der = resign(AMD.crl(), AMD.key("ARK-Genoa"), declare)
    at = der.rindex(b"\xa2\x03\x02\x01\x30")
    both = der[:at] + b"\xa2\x03\x02\x01\x20" + der[at + 5 :]
    with pytest.raises(EndorsementError, match="signature is wrong"):
        read_crl(both, AMD.ark)


def test_unused_bits_of_a_signature() -> None:
    """A signature is 512 whole bytes: one that calls its last bit unused is refused, though nothing else changed."""
    der = bytearray(AMD.crl())
    while der[-1] & 1:  # else it could not be called unused
        der = bytearray(AMD.crl())
    assert read_crl(bytes(der), AMD.ark)
    der[-513] ^= 1
    with pytest.raises(EndorsementError, match="signature is wrong"):
        read_crl(bytes(der), AMD.ark)


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


def test_critical_extensions() -> None:
    """A critical extension of the list or of an entry refuses the list; others are none of our business."""
    for made in ({"extensions": [(UNKNOWN, True)]}, {"entry_extensions": [(UNKNOWN, True)]}):
        with pytest.raises(EndorsementError, match="critical extension") as caught:
            read_crl(AMD.crl([7], **made), AMD.ark)  # type: ignore[arg-type]
        assert caught.value.found == "1.2.3.4"
    reason = x509.CRLReason(x509.ReasonFlags.key_compromise)
    data = AMD.crl([7], extensions=[(UNKNOWN, False)], entry_extensions=[(reason, False)])
    assert read_crl(data, AMD.ark).revoked == {7}


def test_delta_list() -> None:
    """A list of changes only is not mistaken for a whole one."""
    with pytest.raises(EndorsementError, match="critical extension"):
        read_crl(AMD.crl(extensions=[(x509.DeltaCRLIndicator(1), True)]), AMD.ark)


def test_list_without_number_or_next_update() -> None:
    """A list that has no number, or does not say when the next one comes, is refused."""
    with pytest.raises(EndorsementError, match="no number"):
        read_crl(AMD.crl(number=None), AMD.ark)

    def without_next_update(tbs: bytes) -> bytes:
        at = tbs.index(b"\x17\x0d" + b"450101000000Z")
        return long_sequence(tbs[4:at] + tbs[at + 15 :])

    with pytest.raises(EndorsementError, match="no time of the next update"):
        read_crl(resign(AMD.crl(), AMD.key("ARK-Genoa"), without_next_update), AMD.ark)


def test_extension_twice() -> None:
    """A list with one extension twice is refused."""

    def twice(tbs: bytes) -> bytes:  # authorityKeyIdentifier becomes a second CRL number
        return tbs.replace(b"\x06\x03\x55\x1d\x23", b"\x06\x03\x55\x1d\x14", 1)

    with pytest.raises(EndorsementError, match="revocation list cannot be read"):
        read_crl(resign(AMD.crl(), AMD.key("ARK-Genoa"), twice), AMD.ark)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "revocation list cannot be read"),
        (b"\x30\x00", "revocation list cannot be read"),
        (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "revocation list cannot be read"),
        (bytes(MAX_CRL_BYTES + 1), "too long"),
    ],
)
def test_what_is_no_list(data: bytes, message: str) -> None:
    """What is no list at all is refused."""
    with pytest.raises(EndorsementError, match=message):
        read_crl(data, AMD.ark)


def test_bytes_behind_a_list(genuine: bytes) -> None:
    """A list ends where it ends."""
    with pytest.raises(EndorsementError, match="cannot be read"):
        read_crl(genuine + b"\0", AMD.ark)


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(place=st.integers(0, 1 << 20), bit=st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_every_changed_bit_is_refused(genuine: bytes, place: int, bit: int) -> None:
    """A list with one bit changed anywhere is refused with our error."""
    changed = bytearray(genuine)
    changed[place % len(changed)] ^= 1 << bit
    with pytest.raises(EndorsementError):
        read_crl(bytes(changed), AMD.ark)


def manifest(kind: str) -> list[dict[str, Any]]:
    if not SNP.is_dir():
        return []
    entries: list[dict[str, Any]] = json.loads((SNP / "manifest.json").read_text())[kind]
    return entries


LISTS = {case["name"]: case for case in manifest("cases") if "crl" in case["files"]}


def judge(case: dict[str, Any], mutation: dict[str, Any]) -> Callable[[], Any]:
    names = case["files"] | mutation.get("replace", {})
    data = bytearray((SNP / names["crl"]).read_bytes())
    if "xor" in mutation:
        data[mutation["offset"]] ^= int(mutation["xor"], 16)
    ark = load_certificate((SNP / names["ark"]).read_bytes())
    at = datetime.fromisoformat(mutation.get("verify_at", case["verify_at"])).astimezone(UTC)

    def run() -> Any:
        check_ark(ark)
        crl = read_crl(bytes(data), ark)
        check_current(crl, at)
        return crl

    return run


@needs_vectors
@pytest.mark.parametrize("name", LISTS)
def test_recorded_lists(name: str) -> None:
    """A real list verifies under AMD's root and says what was published; at a later time it is stale."""
    case = LISTS[name]
    crl = judge(case, {})()
    assert (str(crl.line), crl.number) == (case["product"], case["crl_number"])
    assert crl.revoked == {int(serial, 16) for serial in case["revoked_serials"]}
    assert crl.revoked == KNOWN_REVOKED.get(crl.line, frozenset())
    assert (crl.this_update, crl.next_update) == tuple(
        datetime.fromisoformat(case[which]) for which in ("this_update", "next_update")
    )
    with pytest.raises(EndorsementError, match="not current"):
        check_current(crl, datetime.fromisoformat(case["stale_at"]))


@needs_vectors
@pytest.mark.parametrize("entry", manifest("derived_crl"), ids=lambda entry: entry["name"])
def test_changed_recorded_lists(entry: dict[str, Any]) -> None:
    """A real list that was changed, that another root should have signed, or that is stale is refused."""
    assert entry["expect"] == "invalid"
    with pytest.raises(EndorsementError):
        judge(LISTS[entry["base"]], entry["mutation"])()
