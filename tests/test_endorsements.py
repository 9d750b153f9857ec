# SPDX-License-Identifier: Apache-2.0
"""The names of AMD's endorsements, that nothing passes under a name that it does not deserve, and bundles."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.claims import Trusted
from broker.endorsements.bundle import MAX_DATA_BYTES, MAX_ENTRIES, is_bundle, read_bundle, write_bundle
from broker.store.protocols import StoredEndorsement
from broker.verifiers.endorsement import Genuine
from broker.verifiers.snp_certificates import read_vek
from broker.verifiers.snp_endorsements import (
    RevocationList,
    Vcek,
    check_endorsement,
    crl_name,
    instance_id,
    name_of,
    read_name,
    vcek_name,
)
from broker.verifiers.snp_report import TCB_LAYOUT, Line
from broker.verifiers.snp_roots import built_in
from keys import b64, strictjson
from keys.errors import EndorsementError, ProtocolError
from tests.fakes.amd import AT, CSP_ID, END, START, Chip, FakeAmd
from tests.fakes.kds import names
from tests.vectors import VECTORS, needs_vectors

MILAN = {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}
TURIN = {"fmc": 1, "bootloader": 1, "tee": 1, "snp": 4, "microcode": 81}
AMD = FakeAmd()


@cache
def chip(line: Line = Line.GENOA) -> Chip:
    return Chip(FakeAmd(line))


def trusted(*lines: Line) -> Trusted:
    """The roots of several lines, as the product has them."""
    each = [FakeAmd(line).trusted() for line in lines]
    return Trusted(
        roots=tuple(root for one in each for root in one.roots),
        certificates=tuple(certificate for one in each for certificate in one.certificates),
    )


def pem(crl: bytes) -> bytes:
    return x509.load_der_x509_crl(crl).public_bytes(Encoding.PEM)


# --- names ---


def test_names_are_paths_of_the_key_distribution_service() -> None:
    """AMD's own paths behind "amd/": two digits at least, Turin with FMC and its short chip id."""
    hw_id = bytes(range(64))
    assert vcek_name(Line.MILAN, hw_id, MILAN) == (
        f"amd/vcek/v1/Milan/{hw_id.hex()}?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219"
    )
    assert vcek_name(Line.TURIN, hw_id[:8], dict(reversed(TURIN.items()))) == (
        "amd/vcek/v1/Turin/0001020304050607?fmcSPL=01&blSPL=01&teeSPL=01&snpSPL=04&ucodeSPL=81"
    )
    assert crl_name(Line.GENOA) == "amd/vcek/v1/Genoa/crl"


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_names_say_what_they_were_made_of(data: st.DataObject) -> None:
    """Reading a name gives back line, chip and TCB, and no one-character change means the same."""
    line = data.draw(st.sampled_from(Line))
    size = 8 if line is Line.TURIN else 64
    hw_id = data.draw(st.binary(min_size=size, max_size=size))
    tcb = {component: data.draw(st.integers(0, 255)) for component in TCB_LAYOUT[line]}
    name = vcek_name(line, hw_id, tcb)
    assert read_name(name) == Vcek(line, hw_id, tcb)
    assert instance_id(name) == f"snp-chip:{hw_id.hex()}"
    place = data.draw(st.integers(0, len(name) - 1))
    other = name[:place] + data.draw(st.characters(exclude_characters=name[place])) + name[place + 1 :]
    with suppress(ProtocolError):
        assert read_name(other) != Vcek(line, hw_id, tcb)


@pytest.mark.parametrize(
    ("line", "size", "tcb"),
    [
        (Line.MILAN, 8, MILAN), (Line.TURIN, 64, TURIN), (Line.MILAN, 64, TURIN), (Line.TURIN, 8, MILAN),
        (Line.MILAN, 64, MILAN | {"snp": 256}), (Line.MILAN, 64, MILAN | {"snp": -1}), (Line.MILAN, 63, MILAN),
        (Line.MILAN, 64, {}),
    ],
)  # fmt: skip
def test_what_is_not_of_one_line_makes_no_name(line: Line, size: int, tcb: dict[str, int]) -> None:
    """A chip id or TCB of another line is a programming error."""
    with pytest.raises(RuntimeError):
        vcek_name(line, bytes(size), tcb)


SPLS = "blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219"


@pytest.mark.parametrize(
    "name",
    [
        "", "amd/", "amd/vcek/v1/Milan", "vcek/v1/Milan/crl", "amd/vcek/v1/Rome/crl", "amd/vcek/v1/milan/crl",
        "amd/vcek/v1/Milan/crl\n", "amd/vcek/v1/Milan/crl?", "amd/vlek/v1/Milan/crl", "amd/../v1/Milan/crl",
        f"amd/vcek/v1/Milan/{'0' * 128}", f"amd/vcek/v1/Milan/{'0' * 127}?{SPLS}",
        f"amd/vcek/v1/Milan/{'0' * 16}?{SPLS}",
        f"amd/vcek/v1/Turin/{'0' * 16}?{SPLS}", f"amd/vcek/v1/Milan/{'A' * 128}?{SPLS}",
        f"amd/vcek/v1/Milan/{'0' * 128}?{SPLS}&fmcSPL=00", f"amd/vcek/v1/Milan/{'0' * 128}?{SPLS}&blSPL=04",
        f"amd/vcek/v1/Milan/{'0' * 128}?{SPLS}&",
        f"amd/vcek/v1/Milan/{'0' * 128}?teeSPL=00&blSPL=04&snpSPL=24&ucodeSPL=219",
        f"amd/vcek/v1/Milan/{'0' * 128}?blSPL=4&teeSPL=00&snpSPL=24&ucodeSPL=219",
        f"amd/vcek/v1/Milan/{'0' * 128}?blSPL=004&teeSPL=00&snpSPL=24&ucodeSPL=219",
        f"amd/vcek/v1/Milan/{'0' * 128}?blSPL=256&teeSPL=00&snpSPL=24&ucodeSPL=219",
        f"amd/vcek/v1/Milan/{'0' * 128}?blSPL=٠٤&teeSPL=00&snpSPL=24&ucodeSPL=219",
        f"amd/vcek/v1/Milan/{'0' * 128}?xxSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219",
        f"amd/vcek/v1/Milan/{'0' * 4000}?{SPLS}",
    ],
)  # fmt: skip
def test_other_spellings_are_no_names(name: str) -> None:
    """One thing has one name: nothing is stored twice, and no path is asked for that AMD does not have."""
    with pytest.raises(ProtocolError):
        read_name(name)


def test_a_list_is_about_many_machines() -> None:
    """A revocation list's name says its line, and nobody enrolled it."""
    assert read_name(crl_name(Line.TURIN)) == RevocationList(Line.TURIN)
    assert instance_id(crl_name(Line.TURIN)) is None


# --- what deserves its name ---


@pytest.mark.parametrize("line", Line)
def test_genuine_things_pass_under_their_names(line: Line) -> None:
    """A VCEK and a revocation list, in DER or PEM, pass, become DER, and are known by their own content."""
    everybody, amd = trusted(*Line), FakeAmd(line)
    [name] = names([chip(line)])
    vcek, crl = chip(line).vcek, amd.crl(number=7)
    certificate = read_vek(vcek).certificate.public_bytes(Encoding.PEM)
    for data in (vcek, certificate):
        assert name_of(data, everybody) == name
        assert check_endorsement(name, data, everybody, AT) == Genuine(vcek)
    for data in (crl, pem(crl)):
        assert name_of(data, everybody) == crl_name(line)
        assert check_endorsement(crl_name(line), data, everybody, AT) == Genuine(crl, 7, END)


def test_a_list_past_its_time_still_counts() -> None:
    """A stale list is what its name says; one that begins later is not yet."""
    crl = AMD.crl(start=START, end=START + timedelta(days=1))
    assert check_endorsement(crl_name(Line.GENOA), crl, AMD.trusted(), AT).next_update == START + timedelta(days=1)
    with pytest.raises(EndorsementError, match="future"):
        check_endorsement(crl_name(Line.GENOA), crl, AMD.trusted(), START - timedelta(seconds=1))


def other_chip() -> bytes:
    return AMD.vcek(bytes(64))[1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (other_chip, "another one"),
        (lambda: AMD.vcek(AMD.hw_id, chip().tcb | {"snp": 200})[1], "another one"),
        (lambda: AMD.vlek(CSP_ID, chip().tcb)[1], "VLEK has no name"),
        (lambda: chip(Line.MILAN).vcek, "another one"),
        (lambda: FakeAmd(copy=1).vcek(chip().hw_id, chip().tcb)[1], None),
        (lambda: AMD.vcek(chip().hw_id, chip().tcb, end=AT - timedelta(days=1))[1], "not valid at this time"),
        (AMD.crl, None),
        (lambda: b"<html>", None),
        (lambda: b"", None),
        (lambda: chip().vcek[:-1] + bytes([chip().vcek[-1] ^ 1]), None),
        (lambda: chip().vcek + b"\0", None),
    ],
)
def test_nothing_else_passes_as_a_vcek(make: Any, words: str | None) -> None:
    """Another chip, TCB, kind, line or issuer, an expired certificate, and garbage do not pass under a VCEK's name."""
    [name] = names([chip()])
    with pytest.raises(EndorsementError, match=words):
        check_endorsement(name, make(), trusted(Line.GENOA, Line.MILAN), AT)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FakeAmd(Line.MILAN).crl(), lambda: FakeAmd(copy=1).crl(), lambda: chip().vcek, lambda: b"",
        lambda: b"<html>", lambda: b"-----BEGIN X509 CRL-----", lambda: AMD.crl()[:-1] + bytes([AMD.crl()[-1] ^ 1]),
    ],
)  # fmt: skip
def test_nothing_else_passes_as_a_list(make: Any) -> None:
    """Another line's list, another issuer's, and garbage do not pass under a list's name."""
    with pytest.raises(EndorsementError):
        check_endorsement(crl_name(Line.GENOA), make(), trusted(Line.GENOA, Line.MILAN), AT)


def test_without_roots_nothing_is_genuine() -> None:
    """An operator who trusts no root has no endorsements."""
    [name] = names([chip()])
    for wanted, data in ((name, chip().vcek), (crl_name(Line.GENOA), AMD.crl())):
        with pytest.raises(EndorsementError):
            check_endorsement(wanted, data, Trusted(), AT)


@pytest.mark.parametrize("data", [b"", b"{}", b"\x30\x00", b"-----BEGIN CERTIFICATE-----\n"])
def test_what_is_neither_has_no_name(data: bytes) -> None:
    """Bytes that are neither a VCEK nor a revocation list have no name."""
    with pytest.raises(EndorsementError):
        name_of(data, AMD.trusted())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: b"-----BEGIN X509 CRL-----\n" + tail))
def test_arbitrary_bytes_raise_only_our_error(data: bytes) -> None:
    """Whatever a source or an operator hands over, it is genuine or refused."""
    for wanted in (crl_name(Line.GENOA), *names([chip()])):
        with pytest.raises(EndorsementError):
            check_endorsement(wanted, data, AMD.trusted(), AT)


@needs_vectors
def test_real_certificates_pass_under_the_names_of_their_reports() -> None:
    """AMD's own certificates and lists lead to the built-in roots, under the names that their content gives."""
    folder, at = VECTORS / "snp", datetime.fromisoformat("2026-09-01T00:00:00+00:00")
    lines = {}
    for file in sorted((folder / "crl").iterdir()):
        name = name_of(file.read_bytes(), built_in())
        assert check_endorsement(name, file.read_bytes(), built_in(), at).number > 0
        lines[file.name] = name
    assert lines["turin-2026-crl.der"] == "amd/vcek/v1/Turin/crl"
    certificates = sorted((folder / "veks").glob("*.vcek.der"))
    assert len(certificates) > 10
    for file in certificates:
        data = file.read_bytes()
        vek = read_vek(data)
        assert vek.hw_id is not None
        name = name_of(data, built_in())
        assert read_name(name) == Vcek(vek.line, vek.hw_id, dict(vek.tcb))
        middle = vek.certificate.not_valid_before_utc + timedelta(days=365)
        assert check_endorsement(name, data, built_in(), middle) == Genuine(data)


# --- bundles ---


def stored(name: str, data: bytes) -> StoredEndorsement:
    return StoredEndorsement(name, data, "", True, 0)


def test_a_bundle_comes_back_as_it_was_written() -> None:
    """Names and bytes survive, in order; a bundle is told from DER and PEM by its first character."""
    things = [("amd/b", b"\x30\x00"), ("amd/a", b"")]
    data = write_bundle(stored(name, content) for name, content in things)
    assert is_bundle(data)
    assert is_bundle(b" \n" + data)
    assert read_bundle(data) == things
    assert not is_bundle(chip().vcek)
    assert not is_bundle(pem(AMD.crl()))


@pytest.mark.parametrize(
    "value",
    [
        [], {}, {"roomkey-endorsements": 1}, {"endorsements": []},
        {"roomkey-endorsements": 2, "endorsements": []}, {"roomkey-endorsements": True, "endorsements": []},
        {"roomkey-endorsements": "1", "endorsements": []}, {"roomkey-endorsements": 1, "endorsements": {}},
        {"roomkey-endorsements": 1, "endorsements": [], "x": 1}, {"roomkey-endorsements": 1, "endorsements": [[]]},
        {"roomkey-endorsements": 1, "endorsements": [{"name": "a"}]},
        {"roomkey-endorsements": 1, "endorsements": [{"name": 1, "data": ""}]},
        {"roomkey-endorsements": 1, "endorsements": [{"name": "a" * 513, "data": ""}]},
        {"roomkey-endorsements": 1, "endorsements": [{"name": "a", "data": "*"}]},
        {"roomkey-endorsements": 1, "endorsements": [{"name": "a", "data": b64.std(bytes(MAX_DATA_BYTES + 1))}]},
        {"roomkey-endorsements": 1, "endorsements": [{"name": "a", "data": ""}] * (MAX_ENTRIES + 1)},
    ],
)  # fmt: skip
def test_what_is_no_bundle_is_refused(value: object) -> None:
    """Another form, version or size is refused as a whole."""
    with pytest.raises(ProtocolError):
        read_bundle(strictjson.compact(value))
