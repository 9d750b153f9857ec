# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.snp_certificates: AMD's chains are accepted, and each way to differ from them is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.verifiers import snp_certificates
from broker.verifiers.snp_certificates import (
    MAX_INTERMEDIATES,
    Chain,
    read_ark,
    read_vek,
    verify_chain,
    verify_intermediate,
)
from broker.verifiers.snp_report import Line, SigningKey
from broker.verifiers.snp_roots import built_in, check_ark
from broker.verifiers.x509 import load_certificate
from keys.errors import EndorsementError
from tests.fakes.amd import (
    AT,
    CSP_ID,
    END,
    HW_ID,
    PREFIX,
    START,
    TCBS,
    FakeAmd,
    amd_name,
    ia5,
    integer,
    long_sequence,
    resign,
    usage,
)
from tests.fakes.tpm_forge import rsa_key
from tests.vectors import VECTORS, needs_vectors

SNP = VECTORS / "snp"
AMD = FakeAmd()
DAY = timedelta(days=1)
ASK, ASVK, ARK = "SEV-Genoa", "SEV-VLEK-Genoa", "ARK-Genoa"


def verify(der: bytes, *, at: datetime = AT, amd: FakeAmd = AMD) -> Chain:
    return verify_chain(read_vek(der), (amd.ask, amd.asvk), (amd.ark,), at)


def ca(subject: str = ASK, /, **otherwise: Any) -> x509.Certificate:
    """A CA's certificate like AMD's but for `otherwise`."""
    return load_certificate(AMD.ca_certificate(subject, **otherwise))


# --- what a VEK's certificate says ---


@pytest.mark.parametrize("line", Line)
def test_what_a_vcek_says(line: Line) -> None:
    """Line, key, TCB by component and the chip come out; Turin has FMC and eight bytes of chip id."""
    amd = FakeAmd(line)
    key, der = amd.vcek()
    vek = read_vek(der)
    assert (vek.kind, vek.line, vek.key) == (SigningKey.VCEK, line, key.public_key())
    assert vek.tcb == TCBS[line]
    assert (vek.hw_id, vek.csp_id) == (HW_ID[:8] if line is Line.TURIN else HW_ID, None)
    assert vek.certificate.serial_number == 0


@pytest.mark.parametrize("line", Line)
def test_what_a_vlek_says(line: Line) -> None:
    """A VLEK names the provider and no chip."""
    key, der = FakeAmd(line).vlek()
    vek = read_vek(der)
    assert (vek.kind, vek.line, vek.key) == (SigningKey.VLEK, line, key.public_key())
    assert (vek.tcb, vek.hw_id, vek.csp_id) == (TCBS[line], None, CSP_ID)


def test_vek_as_pem() -> None:
    """A certificate is read from PEM as from DER."""
    _, der = AMD.vcek()
    assert read_vek(load_certificate(der).public_bytes(Encoding.PEM)) == read_vek(der)


def test_vek_that_was_read_is_remembered() -> None:
    """The same bytes are read once."""
    _, der = AMD.vcek()
    assert read_vek(bytes(bytearray(der))) is read_vek(der)


@pytest.mark.parametrize("spl", [0, 1, 127, 128, 219, 255])
def test_components_of_one_byte(spl: int) -> None:
    """Every value of a component is read, those above 127 too, which take two bytes in DER."""
    tcb = {"bootloader": 255 - spl, "tee": spl, "snp": 3, "microcode": spl}
    assert read_vek(AMD.vcek(tcb=tcb)[1]).tcb == tcb


@pytest.mark.parametrize(
    "value",
    [
        "",
        "02",
        "0201",
        "0201db",
        "0202007f",
        "02020100",
        "02020180",
        "0202ffdb",
        "02010000",
        "030105",
        "020201db00",
        "04020105",
    ],
)
def test_component_that_is_no_small_integer(value: str) -> None:
    """A component that is negative, too great, not in the shortest form, or no INTEGER is refused."""
    _, der = AMD.vcek(extensions={"3.8": bytes.fromhex(value)})
    with pytest.raises(EndorsementError, match="no INTEGER from 0 to 255"):
        read_vek(der)


def test_chip_id_in_an_octet_string() -> None:
    """hwID stands as it is or in an OCTET STRING, and both name the same chip."""
    assert read_vek(AMD.vcek(b"\x04\x40" + HW_ID)[1]).hw_id == HW_ID
    # 64 bytes that happen to look like the beginning of one are the id itself
    assert read_vek(AMD.vcek(b"\x04\x40" + HW_ID[:62])[1]).hw_id == b"\x04\x40" + HW_ID[:62]
    assert read_vek(FakeAmd(Line.TURIN).vcek(b"\x04\x08" + HW_ID[:8])[1]).hw_id == HW_ID[:8]


@pytest.mark.parametrize(
    ("line", "hw_id"),
    [
        (Line.GENOA, b""),
        (Line.GENOA, HW_ID[:8]),
        (Line.GENOA, HW_ID[:63]),
        (Line.GENOA, HW_ID + b"\0"),
        (Line.GENOA, b"\x04\x3f" + HW_ID[:63]),
        (Line.GENOA, b"\x05\x40" + HW_ID),
        (Line.TURIN, HW_ID),
        (Line.TURIN, HW_ID[:7]),
    ],
)
def test_chip_id_of_another_length(line: Line, hw_id: bytes) -> None:
    """hwID has 64 bytes on Milan and Genoa and 8 on Turin."""
    amd = FakeAmd(line)
    _, der = amd.vcek(extensions={"4": hw_id})
    with pytest.raises(EndorsementError, match="hwID has a wrong length"):
        read_vek(der)


@pytest.mark.parametrize(
    "value",
    [b"", b"\x16", b"\x16\0", b"\x16\x01", b"\x16\x02a", b"\x16\x01ab", b"\x0c\x01a", b"\x16\x02a\n", b"\x16\x01\xe9",
     bytes((0x16, 0x80)) + b"a" * 128, bytes((0x16, 0)) + b"a" * 256],
)  # fmt: skip
def test_provider_that_is_no_text(value: bytes) -> None:
    """cspID is an IA5String of visible characters: it becomes a name that people read."""
    _, der = AMD.vlek(extensions={"5": value})
    with pytest.raises(EndorsementError, match="no IA5String"):
        read_vek(der)


def test_longest_provider() -> None:
    """127 characters are the most that a cspID has."""
    assert read_vek(AMD.vlek("x" * 127)[1]).csp_id == "x" * 127


@pytest.mark.parametrize("product", ["Genoa", "Genoa-B1", "Genoa-"])
def test_product_names_of_the_line(product: str) -> None:
    """The stepping behind the line's name says nothing that counts."""
    assert read_vek(AMD.vcek(extensions={"2": ia5(product)})[1]).line is Line.GENOA


@pytest.mark.parametrize("product", ["Milan-B0", "Genoa2", "genoa", "Turin", "-Genoa"])
def test_product_name_of_another_line(product: str) -> None:
    """productName is of the line whose ASK issued the certificate."""
    with pytest.raises(EndorsementError, match="productName is of another line"):
        read_vek(AMD.vcek(extensions={"2": ia5(product)})[1])


@pytest.mark.parametrize(("line", "version"), [(Line.MILAN, 1), (Line.GENOA, 1), (Line.GENOA, 2), (Line.TURIN, 0)])
def test_struct_version_of_another_line(line: Line, version: int) -> None:
    """structVersion is 1 on Turin and 0 before."""
    with pytest.raises(EndorsementError, match="structVersion"):
        read_vek(FakeAmd(line).vcek(extensions={"1": integer(version)})[1])


@pytest.mark.parametrize("suffix", ["1", "2", "3.1", "3.2", "3.3", "3.8", "4"])
def test_missing_extension(suffix: str) -> None:
    """A VCEK without one of AMD's extensions is refused, and the refusal names it."""
    with pytest.raises(EndorsementError, match="lacks an extension") as caught:
        read_vek(AMD.vcek(extensions={suffix: None})[1])
    assert caught.value.expected == PREFIX + suffix


def test_missing_extension_of_turin() -> None:
    """A Turin VCEK has the FMC's component."""
    with pytest.raises(EndorsementError, match="lacks an extension") as caught:
        read_vek(FakeAmd(Line.TURIN).vcek(extensions={"3.9": None})[1])
    assert caught.value.expected == PREFIX + "3.9"


def test_vlek_without_provider() -> None:
    """A VLEK without cspID is refused, whatever chip it names."""
    for extensions in ({"5": None}, {"5": None, "4": HW_ID}):
        with pytest.raises(EndorsementError, match="lacks an extension"):
            read_vek(AMD.vlek(extensions=extensions)[1])


@pytest.mark.parametrize("suffix", ["3.4", "3.5", "3.6", "3.7"])
def test_reserved_components(suffix: str) -> None:
    """What is reserved in the certificate's TCB is zero where it is there at all."""
    assert read_vek(AMD.vcek(extensions={suffix: None})[1])
    with pytest.raises(EndorsementError, match="reserved component"):
        read_vek(AMD.vcek(extensions={suffix: integer(1)})[1])


@pytest.mark.parametrize("suffix", ["3.9", "5", "6", "3.10", "3", "1.0", "99.1"])
def test_extensions_that_do_not_belong_there(suffix: str) -> None:
    """A VCEK with cspID, with another line's component, or with anything else of AMD's is refused."""
    with pytest.raises(EndorsementError, match="does not belong there") as caught:
        read_vek(AMD.vcek(extensions={suffix: ia5("0") if suffix == "5" else integer(0)})[1])
    assert caught.value.found == PREFIX + suffix


def test_vlek_that_names_a_chip() -> None:
    """A VLEK with hwID is refused."""
    with pytest.raises(EndorsementError, match="does not belong there"):
        read_vek(AMD.vlek(extensions={"4": HW_ID})[1])


def test_extension_twice() -> None:
    """A certificate with one extension twice is refused, though both are the same."""

    def twice(tbs: bytes) -> bytes:  # spl5 becomes a second spl4
        oid = bytes.fromhex("060a2b060104019c78010305")
        assert tbs.count(oid) == 1
        return tbs.replace(oid, oid[:-1] + b"\x04")

    with pytest.raises(EndorsementError, match="cannot be read"):
        read_vek(resign(AMD.vcek()[1], AMD.key(ASK), twice))


AKI = x509.AuthorityKeyIdentifier(b"\1" * 20, None, None)
LEAF = x509.BasicConstraints(ca=False, path_length=None)
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


@pytest.mark.parametrize(
    "more",
    [(AKI, False), (LEAF, True), (usage(digital_signature=True), True), (UNKNOWN, False)],
    ids=["aki", "leaf", "usage", "unknown"],
)
def test_more_extensions(more: tuple[x509.ExtensionType, bool]) -> None:
    """Extensions that others define may be there, as long as they take nothing away."""
    assert verify(AMD.vcek(more=[more])[1])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((UNKNOWN, True), "critical extension"),
        ((x509.ExtendedKeyUsage([NameOID.COMMON_NAME]), True), "critical extension"),
        ((x509.BasicConstraints(ca=True, path_length=0), True), "not for signing reports"),
        ((usage(key_cert_sign=True), True), "not for signing reports"),
    ],
    ids=["unknown", "extended key usage", "ca", "usage"],
)
def test_extensions_that_take_something_away(more: tuple[x509.ExtensionType, bool], message: str) -> None:
    """A critical extension that nobody understands, a CA's certificate or another use of the key are refused."""
    with pytest.raises(EndorsementError, match=message):
        read_vek(AMD.vcek(more=[more])[1])


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP256R1()), rsa_key(), ec.generate_private_key(ec.BrainpoolP384R1())],
    ids=["p-256", "rsa", "brainpool"],
)
def test_key_of_another_kind(key: Any) -> None:
    """A VEK's key is on P-384."""
    with pytest.raises(EndorsementError, match="key is of another kind"):
        read_vek(AMD.vcek(key=key)[1])


def without_version(tbs: bytes) -> bytes:
    """A signed part without its version, which makes it X.509 v1."""
    assert tbs[4:9] == b"\xa0\x03\x02\x01\x02"
    return long_sequence(tbs[9:])


def test_version_of_certificates() -> None:
    """A certificate is X.509 v3: older ones have no extensions, whatever stands there."""
    with pytest.raises(EndorsementError, match=r"not X\.509 v3"):
        read_vek(resign(AMD.vcek()[1], AMD.key(ASK), without_version))
    with pytest.raises(EndorsementError, match=r"not X\.509 v3"):
        read_ark(load_certificate(resign(AMD.ca_certificate(ARK), AMD.key(ARK), without_version)))


NAMES: Mapping[str, dict[str, str]] = {
    "unit": {"OU": "Engineering "},
    "country": {"C": "DE"},
    "place": {"L": "Austin"},
    "state": {"ST": "TX"},
    "company": {"O": "Advanced Micro Device"},
    "no company": {"O": ""},
}


@pytest.mark.parametrize("wrong", NAMES.values(), ids=NAMES)
def test_names_of_a_vek(wrong: dict[str, str]) -> None:
    """Subject and issuer are AMD's in every attribute."""
    for names in ({"subject": amd_name("SEV-VCEK", **wrong)}, {"issuer": amd_name(ASK, **wrong)}):
        with pytest.raises(EndorsementError, match="name is not AMD's"):
            read_vek(AMD.vcek(signer=AMD.key(ASK), **names)[1])


@pytest.mark.parametrize("wrong", NAMES.values(), ids=NAMES)
def test_names_of_an_intermediate(wrong: dict[str, str]) -> None:
    """Subject and issuer are AMD's in every attribute."""
    for names in ({"subject": amd_name(ASK, **wrong)}, {"issuer": amd_name(ARK, **wrong)}):
        with pytest.raises(EndorsementError, match="name is not AMD's"):
            verify_intermediate(ca(signer=AMD.key(ARK), **names), AMD.ark, AT)


@pytest.mark.parametrize("wrong", NAMES.values(), ids=NAMES)
def test_names_of_an_ark(wrong: dict[str, str]) -> None:
    """Subject and issuer are AMD's in every attribute."""
    for names in ({"subject": amd_name(ARK, **wrong)}, {"issuer": amd_name(ARK, **wrong)}):
        with pytest.raises(EndorsementError, match="name is not AMD's"):
            read_ark(ca(ARK, signer=AMD.key(ARK), **names))


def test_attribute_twice() -> None:
    """A name that says one thing twice is not AMD's, also where both agree."""
    for extra in (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME):
        value = "Advanced Micro Devices" if extra is NameOID.ORGANIZATION_NAME else "SEV-VCEK"
        name = x509.Name([*amd_name("SEV-VCEK"), x509.NameAttribute(extra, value)])
        with pytest.raises(EndorsementError, match="name is not AMD's"):
            read_vek(AMD.vcek(subject=name, own={"4": HW_ID})[1])


@pytest.mark.parametrize(
    ("subject", "issuer"),
    [
        ("SEV-VLEK", ASK),
        ("SEV-VCEK", ASVK),
        ("SEV-VCEK", ARK),
        ("SEV-VCEK2", ASK),
        (ASK, ASK),
        ("SEV-VCEK", "SEV-Venice"),
    ],
)
def test_common_names_of_a_vek(subject: str, issuer: str) -> None:
    """A VCEK's issuer is an ASK and a VLEK's an ASVK, of a line that is known."""
    with pytest.raises(EndorsementError, match="not a VCEK or VLEK"):
        read_vek(AMD.vcek(subject=subject, issuer=issuer, signer=AMD.key(ASK))[1])


@pytest.mark.parametrize("data", [b"", b"\x30\x00", b"-----BEGIN CERTIFICATE-----\n", bytes(9000)])
def test_what_is_no_certificate(data: bytes) -> None:
    """What is no certificate at all is refused."""
    with pytest.raises(EndorsementError):
        read_vek(data)


# --- the chain ---


def test_chains() -> None:
    """A VCEK leads over the ASK and a VLEK over the ASVK to the ARK, whatever order the candidates have."""
    for (_, der), intermediate in ((AMD.vcek(), AMD.ask), (AMD.vlek(), AMD.asvk)):
        vek = read_vek(der)
        expected = Chain(vek, intermediate, AMD.ark, Line.GENOA)
        for candidates in ((AMD.ask, AMD.asvk), (AMD.asvk, AMD.ask)):
            assert verify_chain(vek, candidates, (*built_in().roots, AMD.ark), AT) == expected


def test_chain_without_its_intermediate() -> None:
    """Without the ASK, or with the ASVK in its place, a VCEK leads nowhere, and the refusal names who is missing."""
    vek = read_vek(AMD.vcek()[1])
    for candidates in ((), (AMD.asvk,), (AMD.ark,)):
        with pytest.raises(EndorsementError, match="no Genoa root vouches for this VCEK") as caught:
            verify_chain(vek, candidates, (AMD.ark,), AT)
        assert caught.value.expected is not None
        assert "CN=SEV-Genoa" in caught.value.expected


def test_roots_come_only_from_the_operator() -> None:
    """An ARK among the candidates is no root, and without a root of the line nothing is trusted."""
    vek = read_vek(AMD.vcek()[1])
    for roots in ((), built_in().roots[:1]):
        with pytest.raises(EndorsementError, match="no Genoa root"):
            verify_chain(vek, (AMD.ask, AMD.ark), roots, AT)


def test_another_ark_of_the_same_name() -> None:
    """AMD's real ARK does not vouch for an ASK that somebody else made under its name."""
    vek = read_vek(AMD.vcek()[1])
    with pytest.raises(EndorsementError, match="signature is wrong"):
        verify_chain(vek, (AMD.ask,), built_in().roots, AT)


def test_vek_of_somebody_else() -> None:
    """A VEK that another key signed under the ASK's name is refused, each time it comes."""
    vek = read_vek(AMD.vcek(signer=AMD.key(ASVK))[1])
    for _ in range(2):
        with pytest.raises(EndorsementError, match="signature is wrong"):
            verify_chain(vek, (AMD.ask,), (AMD.ark,), AT)


def test_intermediate_of_somebody_else() -> None:
    """An ASK that another key signed under the ARK's name is refused, each time it comes."""
    vek = read_vek(AMD.vcek()[1])
    for _ in range(2):
        with pytest.raises(EndorsementError, match="signature is wrong"):
            verify_chain(vek, (ca(signer=AMD.key(ASVK)),), (AMD.ark,), AT)


def test_ark_that_did_not_sign_itself() -> None:
    """An ARK's certificate whose own signature is wrong is no root, though it was configured."""
    ark = ca(ARK, signer=AMD.key(ASK))
    with pytest.raises(EndorsementError, match="signature is wrong"):
        verify_chain(read_vek(AMD.vcek()[1]), (AMD.ask,), (ark,), AT)


def test_useless_candidates_do_not_hide_the_right_one() -> None:
    """The first candidate that holds is taken, also behind one that was forged and one that has expired."""
    forged, expired = ca(signer=AMD.key(ASVK)), ca(end=AT - DAY)
    vek = read_vek(AMD.vcek()[1])
    assert verify_chain(vek, (forged, expired, AMD.ask), (AMD.ark,), AT).intermediate is AMD.ask


def test_number_of_candidates() -> None:
    """More candidates than anybody needs are refused before anything is computed."""
    vek = read_vek(AMD.vcek()[1])
    assert verify_chain(vek, (AMD.ask,) * MAX_INTERMEDIATES, (AMD.ark,), AT)
    with pytest.raises(EndorsementError, match="too many certificates"):
        verify_chain(vek, (AMD.ask,) * (MAX_INTERMEDIATES + 1), (AMD.ark,), AT)


@pytest.mark.parametrize("who", ["vek", "intermediate", "ark"])
@pytest.mark.parametrize("days", [-1, 1])
def test_validity_of_each_certificate(who: str, days: int) -> None:
    """Every certificate of the chain is valid at the given time."""
    window = {"start": AT + DAY} if days > 0 else {"end": AT - DAY}
    vek = read_vek(AMD.vcek(**window if who == "vek" else {})[1])
    intermediate = ca(**window) if who == "intermediate" else AMD.ask
    ark = ca(ARK, **window) if who == "ark" else AMD.ark
    with pytest.raises(EndorsementError, match="not valid at this time") as caught:
        verify_chain(vek, (intermediate,), (ark,), AT)
    assert caught.value.found is not None
    assert {"vek": "SEV-VCEK", "intermediate": ASK, "ark": ARK}[who] in caught.value.found
    assert verify_chain(vek, (intermediate,), (ark,), AT + 2 * days * DAY)


def test_dates_are_compared_each_time() -> None:
    """A chain that was found good is refused later, though its signatures are not checked again."""
    _, der = AMD.vcek()
    assert verify(der)
    checked = snp_certificates._check_signed.cache_info().misses
    assert verify(der, at=START) == verify(der, at=END)
    for at in (START - DAY, END + DAY):
        with pytest.raises(EndorsementError, match="not valid at this time"):
            verify(der, at=at)
    assert snp_certificates._check_signed.cache_info().misses == checked


# --- signatures ---


OTHER_ALGORITHMS: Mapping[str, dict[str, Any]] = {
    "salt": {"pss": padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=32)},
    "mgf": {"pss": padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=48)},
    "hash": {"pss": padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=48), "algorithm": hashes.SHA256()},
    "pkcs1": {"pss": padding.PKCS1v15()},
}


@pytest.mark.parametrize("made", OTHER_ALGORITHMS.values(), ids=OTHER_ALGORITHMS)
def test_other_signature_algorithms(made: dict[str, Any]) -> None:
    """A signature of the right key, but of another kind than AMD's, is refused on every certificate."""
    vek = read_vek(AMD.vcek(serial=1, **made)[1])
    with pytest.raises(EndorsementError, match="signature is wrong"):
        verify_chain(vek, (AMD.ask,), (AMD.ark,), AT)
    with pytest.raises(EndorsementError, match="signature is wrong"):
        verify_intermediate(ca(**made), AMD.ark, AT)
    with pytest.raises(EndorsementError, match="signature is wrong"):
        read_ark(ca(ARK, **made))


SALT = b"\xa2\x03\x02\x01\x30"  # in the algorithm's parameters


def test_declared_algorithm_outside_the_signature() -> None:
    """The algorithm that stands outside the signed part must be the one inside, though the signature is right."""
    der = bytearray(AMD.vcek()[1])
    der[der.rindex(SALT) + 4] ^= 0x10
    with pytest.raises(EndorsementError, match="cannot be read or used"):
        verify(bytes(der))


def test_declared_algorithm_that_was_not_used() -> None:
    """A certificate that declares another algorithm than it was signed with is refused."""
    other = SALT[:-1] + b"\x20"
    der = resign(AMD.vcek()[1], AMD.key(ASK), lambda tbs: tbs.replace(SALT, other, 1))
    at = der.rindex(SALT)
    vek = read_vek(der[:at] + other + der[at + 5 :])
    with pytest.raises(EndorsementError, match="signature is wrong"):
        verify_chain(vek, (AMD.ask,), (AMD.ark,), AT)


def test_unused_bits_of_a_signature() -> None:
    """A signature is 512 whole bytes: one that calls its last bit unused is refused, though nothing else changed."""
    der = bytearray(AMD.vcek()[1])
    while der[-1] & 1:  # else it could not be called unused
        der = bytearray(AMD.vcek()[1])
    assert verify(bytes(der))
    der[-513] ^= 1
    with pytest.raises(EndorsementError, match="signature is wrong"):
        verify(bytes(der))


# --- CAs ---


def test_kinds_of_intermediates() -> None:
    """An ASK may issue VCEKs and an ASVK VLEKs, of the line of their ARK."""
    assert verify_intermediate(AMD.ask, AMD.ark, AT) == (Line.GENOA, SigningKey.VCEK)
    assert verify_intermediate(AMD.asvk, AMD.ark, AT) == (Line.GENOA, SigningKey.VLEK)
    assert read_ark(AMD.ark) is Line.GENOA


def test_validity_of_an_intermediate() -> None:
    """An ASK or its ARK that is not valid at the time is refused."""
    for intermediate, ark in ((ca(end=AT - DAY), AMD.ark), (AMD.ask, ca(ARK, start=AT + DAY))):
        with pytest.raises(EndorsementError, match="not valid at this time"):
            verify_intermediate(intermediate, ark, AT)


def test_common_names_of_cas() -> None:
    """An ARK is no ASK, an ASK no ARK, and an ASK's issuer is the ARK of its own line."""
    with pytest.raises(EndorsementError, match="not an ASK or ASVK"):
        verify_intermediate(AMD.ark, AMD.ark, AT)
    with pytest.raises(EndorsementError, match="not an ASK or ASVK"):
        verify_intermediate(ca(issuer="ARK-Milan", signer=AMD.key(ARK)), AMD.ark, AT)
    with pytest.raises(EndorsementError, match="not an ARK"):
        read_ark(AMD.ask)
    with pytest.raises(EndorsementError, match="not an ARK"):
        read_ark(ca(ARK, issuer="ARK-Milan", signer=AMD.key(ARK)))
    with pytest.raises(EndorsementError, match="not an ARK"):
        verify_intermediate(AMD.ask, AMD.asvk, AT)


def test_ark_of_another_line() -> None:
    """An ASK whose issuer has another name than the ARK is refused, also where the ARK's key signed it."""
    milan = load_certificate(
        AMD.certificate(
            "ARK-Milan", "ARK-Milan", AMD.key(ARK).public_key(), serial=1, signer=AMD.key(ARK),
            extensions=[(x509.BasicConstraints(True, None), True), (usage(key_cert_sign=True, crl_sign=True), True)],
        )
    )  # fmt: skip
    assert read_ark(milan) is Line.MILAN
    with pytest.raises(EndorsementError, match="cannot be read or used"):
        verify_intermediate(AMD.ask, milan, AT)


SIGNS = usage(key_cert_sign=True, crl_sign=True)


@pytest.mark.parametrize("subject", [ASK, ARK])
@pytest.mark.parametrize(
    ("constraints", "use", "message"),
    [
        (None, SIGNS, "basicConstraints"),
        (x509.BasicConstraints(ca=False, path_length=None), SIGNS, "basicConstraints"),
        (x509.BasicConstraints(ca=True, path_length=1), SIGNS, "basicConstraints"),
        ("other", SIGNS, "basicConstraints"),
        ("right", None, "keyUsage"),
        ("right", usage(crl_sign=True), "keyUsage"),
        ("right", usage(digital_signature=True), "keyUsage"),
    ],
)
def test_what_a_ca_may_do(subject: str, constraints: Any, use: x509.KeyUsage | None, message: str) -> None:
    """A CA is one by basicConstraints with AMD's pathLen, and may sign certificates by keyUsage."""
    lengths = {"right": None if subject == ARK else 0, "other": 0 if subject == ARK else None}
    if constraints in lengths:
        constraints = x509.BasicConstraints(ca=True, path_length=lengths[constraints])
    extensions = [(value, True) for value in (constraints, use) if value is not None]
    with pytest.raises(EndorsementError, match=message):
        check(ca(subject, extensions=extensions))


def check(certificate: x509.Certificate) -> None:
    """Judge an ARK or ASK by itself."""
    if "ARK" in str(certificate.subject):
        read_ark(certificate)
    else:
        verify_intermediate(certificate, AMD.ark, AT)


def test_ark_signs_lists() -> None:
    """An ARK's keyUsage allows signing revocation lists; an ASK's need not."""
    for subject, length in ((ARK, None), (ASK, 0)):
        extensions = [(x509.BasicConstraints(True, length), True), (usage(key_cert_sign=True), True)]
        if subject == ARK:
            with pytest.raises(EndorsementError, match="keyUsage"):
                check(ca(subject, extensions=extensions))
        else:
            check(ca(subject, extensions=extensions))


@pytest.mark.parametrize("subject", [ASK, ARK])
def test_critical_extensions_of_a_ca(subject: str) -> None:
    """A CA with a critical extension that nobody understands is refused."""
    right = [(x509.BasicConstraints(True, None if subject == ARK else 0), True), (SIGNS, True)]
    check(ca(subject, extensions=[*right, (UNKNOWN, False)]))
    with pytest.raises(EndorsementError, match="critical extension"):
        check(ca(subject, extensions=[*right, (UNKNOWN, True)]))


@pytest.mark.parametrize("subject", [ASK, ARK])
@pytest.mark.parametrize("kind", ["exponent", "length", "curve"])
def test_key_of_a_ca(subject: str, kind: str) -> None:
    """A CA's key is RSA of 4096 bits with the exponent 65537."""
    keys: dict[str, Any] = {
        "exponent": rsa.RSAPublicNumbers(3, AMD.key(ASK).public_key().public_numbers().n).public_key(),
        "length": rsa_key().public_key(),
        "curve": ec.generate_private_key(ec.SECP384R1()).public_key(),
    }
    with pytest.raises(EndorsementError, match="CA's key is of another kind"):
        check(ca(subject, key=keys[kind]))


# --- nothing else ---


@pytest.fixture(scope="module")
def genuine() -> dict[str, bytes]:
    return {
        "vcek": AMD.vcek()[1],
        "vlek": AMD.vlek()[1],
        "ask": AMD.ask.public_bytes(Encoding.DER),
        "ark": AMD.ark.public_bytes(Encoding.DER),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(which=st.sampled_from(["vcek", "vlek", "ask", "ark"]), place=st.integers(0, 1 << 20), bit=st.integers(0, 7))
@settings(max_examples=300, deadline=None)
def test_every_changed_bit_is_refused(genuine: dict[str, bytes], which: str, place: int, bit: int) -> None:
    """A chain with one bit of one certificate changed is refused with our error."""
    certificates = {name: bytearray(der) for name, der in genuine.items()}
    certificates[which][place % len(certificates[which])] ^= 1 << bit
    vek = bytes(certificates["vlek" if which == "vlek" else "vcek"])
    with pytest.raises(EndorsementError):
        verify_chain(
            read_vek(vek),
            (load_certificate(bytes(certificates["ask"])), AMD.asvk),
            (load_certificate(bytes(certificates["ark"])),),
            AT,
        )


@given(
    suffix=st.sampled_from(["1", "2", "3.1", "3.8", "3.9", "4", "5"]), value=st.binary(max_size=70), kind=st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_any_extensions_raise_only_our_error(suffix: str, value: bytes, kind: bool) -> None:
    """Whatever stands in AMD's extensions is read, or refused with our error."""
    _, der = (AMD.vcek if kind else AMD.vlek)(extensions={suffix: value}, serial=1)
    with suppress(EndorsementError):
        vek = read_vek(der)
        assert all(0 <= spl <= 255 for spl in vek.tcb.values())
        assert (vek.hw_id is None) != (vek.csp_id is None)


@given(data=st.binary(max_size=200))
def test_any_bytes_raise_only_our_error(data: bytes) -> None:
    """Whatever is no certificate is refused with our error."""
    with pytest.raises(EndorsementError):
        read_vek(data)


# --- real certificates ---


def manifest(kind: str) -> list[dict[str, Any]]:
    if not SNP.is_dir():
        return []
    entries: list[dict[str, Any]] = json.loads((SNP / "manifest.json").read_text())[kind]
    return entries


CASES = {case["name"]: case for case in manifest("cases")}
VEKS = {name: case for name, case in CASES.items() if {"vcek", "vlek"} & case["files"].keys()}
# Changes that leave report and certificates genuine and apart; those that the chain alone shows.
OF_THE_CHAIN = (
    "ark-as-ask", "ark-signature-bit", "ask-as-root", "ask-for-vlek", "ask-signature-bit", "asvk-for-vcek",
    "chain-of-genoa", "chain-of-milan", "chain-of-turin", "expired", "expired-one-year", "not-yet-valid",
    "vek-outer-sigalg", "vek-pubkey-bit", "vek-signature-bit", "vek-ucode-spl",
)  # fmt: skip
CHANGED = [entry for entry in manifest("derived") if entry["name"].partition("/")[2] in OF_THE_CHAIN]


def judge(case: dict[str, Any], mutation: Any = ()) -> Chain | tuple[Line, SigningKey]:
    """Judge a case's certificates, its ARK being the only root and its ASK the only candidate."""
    names, at, changes = dict(case["files"]), case["verify_at"], []
    for change in mutation if isinstance(mutation, list) else [mutation] if mutation else []:
        names |= change.get("replace", {})
        at = change.get("verify_at", at)
        if "xor" in change:
            changes.append(change)
    data = {
        kind: bytearray((SNP / name).read_bytes())
        for kind, name in names.items()
        if kind in {"ark", "ask", "vcek", "vlek"}
    }
    for change in changes:
        for offset, byte in enumerate(bytes.fromhex(change["xor"]), change["offset"]):
            data[change["target"]][offset] ^= byte
    when = datetime.fromisoformat(at)
    ark, ask = (load_certificate(bytes(data[kind])) for kind in ("ark", "ask"))
    check_ark(ark)
    vek = data.get("vcek") or data.get("vlek")
    if vek is None:
        return verify_intermediate(ask, ark, when)
    return verify_chain(read_vek(bytes(vek)), (ask,), (ark,), when)


@needs_vectors
@pytest.mark.parametrize("name", VEKS)
def test_recorded_veks(name: str) -> None:
    """A real VEK says what was recorded of it and leads to AMD's root of its line, alone and with the built-in CAs."""
    case = VEKS[name]
    chain = judge(case)
    assert isinstance(chain, Chain)
    vek, said = chain.vek, case["vek"]
    reserved = {"spl4", "spl5", "spl6", "spl7"}
    assert (str(chain.line), str(vek.line)) == (case["product"], case["product"])
    assert vek.tcb == {part: value for part, value in said["spl"].items() if part not in reserved}
    assert (None if vek.hw_id is None else vek.hw_id.hex()) == said.get("hwid")
    assert (vek.kind is SigningKey.VLEK) == ("vlek" in case["files"]) == (vek.csp_id is not None)
    trusted = built_in()
    assert verify_chain(vek, trusted.certificates, trusted.roots, datetime.fromisoformat(case["verify_at"])) == chain


@needs_vectors
@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("-asvk-chain")])
def test_recorded_intermediates(name: str) -> None:
    """A real ASVK is one, of the recorded line."""
    line = Line(CASES[name]["product"])
    assert judge(CASES[name]) == (line, SigningKey.VLEK)


@needs_vectors
@pytest.mark.parametrize("entry", CHANGED, ids=lambda entry: entry["name"])
def test_changed_recorded_chains(entry: dict[str, Any]) -> None:
    """A real chain in which one certificate was changed or exchanged, or whose time is over, is refused."""
    assert entry["expect"] == "invalid"
    with pytest.raises(EndorsementError):
        judge(CASES[entry["base"]], entry["mutation"])


@needs_vectors
def test_all_recorded_changes_are_there() -> None:
    """Every kind of change is among the recorded ones."""
    assert {entry["name"].partition("/")[2] for entry in CHANGED} == set(OF_THE_CHAIN)
