# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.snp_report: every field in its place, every rule about the form kept."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.verifiers.snp_report import (
    P384_ORDER,
    PLATFORM_BITS,
    POLICY_BITS,
    REPORT_BYTES,
    SIGNED_BYTES,
    TCB_LAYOUT,
    Line,
    Report,
    SigningKey,
    Version,
    line_of,
    parse_report,
    tcb,
    tcb_reserved_is_zero,
)
from keys.errors import VerificationError
from tests.fakes.snp_bytes import blank_report, changed, flipped
from tests.vectors import VECTORS, needs_vectors

SNP = VECTORS / "snp"


@lru_cache
def manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((SNP / "manifest.json").read_text())
    return loaded


def recorded() -> list[dict[str, Any]]:
    """The recorded cases that have a report."""
    return [case for case in manifest()["cases"] if "claims" in case] if SNP.is_dir() else []


def recorded_report(case: dict[str, Any]) -> bytes:
    return (SNP / case["files"]["report"]).read_bytes()


def bits(names: dict[str, Any], value: int, places: dict[str, int]) -> dict[str, bool]:
    return {name: bool(value >> places[known] & 1) for name, known in names.items()}


# how the manifest calls some of the bits
POLICY_NAMES = {("migrate_ma_allowed" if name == "migrate_ma" else name): name for name in POLICY_BITS}
PLATFORM_NAMES = {
    "smt_en": "smt_enabled",
    "tsme_en": "tsme_enabled",
    "ecc_en": "ecc_enabled",
    "rapl_dis": "rapl_disabled",
    "ciphertext_hiding_dram_en": "ciphertext_hiding_enabled",
    "alias_check_complete": "alias_check_complete",
    "tio_en": "tio_enabled",
}


def as_recorded(report: Report, line: Line) -> dict[str, Any]:
    """What the manifest's "claims" say about a report."""
    claims: dict[str, Any] = {
        name: getattr(report, name).hex()
        for name in ("family_id", "image_id", "report_data", "measurement", "host_data", "id_key_digest",
                     "author_key_digest", "report_id", "report_id_ma", "chip_id")
    }  # fmt: skip
    claims |= {name: getattr(report, name) for name in ("version", "guest_svn", "vmpl", "author_key_en")}
    claims |= {name: hex(getattr(report, name)) for name in ("policy", "platform_info")}
    claims |= {name: str(getattr(report, name)) for name in ("signing_key", "current_version", "committed_version")}
    for name in ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"):
        raw = getattr(report, name)
        claims[name] = {**tcb(raw, line), "raw": raw.hex()}
    for name in ("launch_mit_vector", "current_mit_vector"):
        if (vector := getattr(report, name)) is not None:
            claims[name] = hex(vector)
    if report.cpuid is not None:
        claims |= dict(zip(("cpuid_fam_id", "cpuid_mod_id", "cpuid_step"), report.cpuid, strict=True))
    claims["policy_bits"] = {
        "abi_minor": report.policy & 0xFF,
        "abi_major": report.policy >> 8 & 0xFF,
        **bits(POLICY_NAMES, report.policy, dict(POLICY_BITS)),
    }
    claims["platform_bits"] = {
        **bits(PLATFORM_NAMES, report.platform_info, dict(PLATFORM_BITS)),
        "bit6_reserved": bool(report.platform_info >> 6 & 1),
    }
    return claims


@needs_vectors
@pytest.mark.parametrize("case", recorded(), ids=lambda case: case["name"])
def test_fields_of_recorded_reports(case: dict[str, Any]) -> None:
    """Every field of every recorded report is what the manifest says, and nothing in it is left out here."""
    report = parse_report(recorded_report(case))
    # what is one value only, or has no field of its own
    fixed = {"signature_algo": 1, "mask_chip_key": False, "key_info": case["claims"]["key_info"]}
    assert as_recorded(report, Line(case["product"])) | fixed == case["claims"]
    key = {SigningKey.VCEK: 0, SigningKey.VLEK: 1}[report.signing_key]
    assert case["claims"]["key_info"] == key << 2 | report.author_key_en


@needs_vectors
@pytest.mark.parametrize("case", recorded(), ids=lambda case: case["name"])
def test_signature_and_line_of_recorded_reports(case: dict[str, Any]) -> None:
    """R, S and the signed bytes are where they are signed; the processor is of the line that the case names."""
    raw = recorded_report(case)
    report = parse_report(raw)
    assert report.raw == raw
    assert report.signed == raw[:SIGNED_BYTES]
    assert report.r.to_bytes(72, "little") == raw[0x2A0:0x2E8]
    assert report.s.to_bytes(72, "little") == raw[0x2E8:0x330]
    if report.cpuid is not None:
        assert line_of(report.cpuid) == case["product"]
    assert all(tcb_reserved_is_zero(getattr(report, name), Line(case["product"]))
               for name in ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"))  # fmt: skip


@needs_vectors
def test_recorded_mutations_of_the_form() -> None:
    """Every recorded mutation that breaks the form is refused here, before any key is looked at."""
    form = {"version", "algo", "signing_key", "reserved", "length", "sigfmt"}
    files = {case["name"]: case for case in recorded()}
    broken = 0
    for entry in manifest()["derived"]:
        if entry.get("reference_code") not in form:
            continue
        raw = recorded_report(files[entry["base"]])
        mutation = entry["mutation"]
        for step in mutation if isinstance(mutation, list) else [mutation]:
            raw = mutated(raw, step)
        with pytest.raises(VerificationError):
            parse_report(raw)
        broken += 1
    assert broken > 100


def mutated(raw: bytes, step: dict[str, Any]) -> bytes:
    if "truncate" in step:
        return raw[: step["truncate"]]
    if "append" in step:
        return raw + bytes.fromhex(step["append"])
    mask = bytes.fromhex(step["xor"])
    at = step["offset"]
    return changed(raw, at, bytes(a ^ b for a, b in zip(raw[at : at + len(mask)], mask, strict=True)))


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_fields(version: int) -> None:
    """Each field is read from its own place, and what a version does not have is None."""
    report = parse_report(blank_report(version))
    assert (report.version, report.guest_svn, report.policy, report.vmpl) == (version, 0x01020304, 0x3001F, 2)
    starts = {"family_id": 1, "image_id": 40, "report_data": 2, "measurement": 3, "host_data": 4, "id_key_digest": 5,
              "author_key_digest": 6, "report_id": 7, "report_id_ma": 8, "chip_id": 9}  # fmt: skip
    assert {name: getattr(report, name)[0] for name in starts} == starts
    sizes = [len(getattr(report, name)) for name in starts]
    assert sizes == [16, 16, 64, 48, 32, 48, 48, 32, 32, 64]
    tcbs = [
        tcb(getattr(report, f"{which}_tcb"), Line.GENOA) for which in ("current", "reported", "committed", "launch")
    ]
    assert [tuple(parts.values()) for parts in tcbs] == [
        tuple(10 * number + place for place in range(1, 5)) for number in range(4)
    ]
    assert (report.platform_info, report.author_key_en, report.signing_key) == (0x27, True, SigningKey.VCEK)
    assert report.cpuid == (None if version == 2 else (0x19, 0x11, 1))
    assert (report.current_version, report.committed_version) == (Version(1, 55, 40), Version(2, 54, 39))
    assert (report.launch_mit_vector, report.current_mit_vector) == ((0xB, 0x3F) if version == 5 else (None, None))


def test_versions_of_firmware() -> None:
    """Versions are written as people write them, and compare as numbers and not as texts."""
    assert str(Version(1, 55, 29)) == "1.55.29"
    assert Version(1, 55, 9) < Version(1, 55, 29) < Version(1, 56, 0) < Version(2, 0, 0)


def test_a_vlek_signs() -> None:
    """SIGNING_KEY 1 is a VLEK, and bit 0 beside it is AUTHOR_KEY_EN."""
    report = parse_report(changed(blank_report(), 0x48, b"\x04"))
    assert (report.signing_key, report.author_key_en) == (SigningKey.VLEK, False)


@pytest.mark.parametrize("size", [0, 48, SIGNED_BYTES, REPORT_BYTES - 1, REPORT_BYTES + 1, 4000])
def test_length(size: int) -> None:
    """Only 1184 bytes are a report."""
    with pytest.raises(VerificationError, match="another length"):
        parse_report(blank_report().ljust(size, b"\0")[:size])


@pytest.mark.parametrize("version", [0, 1, 6, 0x102, 0x01000003])
def test_version(version: int) -> None:
    """Versions that nobody has described are refused."""
    with pytest.raises(VerificationError, match="unknown version"):
        parse_report(changed(blank_report(), 0, version.to_bytes(4, "little")))


@pytest.mark.parametrize("algorithm", [0, 2, 0x101, 0x01000001])
def test_algorithm(algorithm: int) -> None:
    """ECDSA P-384 with SHA-384 is the only algorithm."""
    with pytest.raises(VerificationError, match="SIGNATURE_ALGO"):
        parse_report(changed(blank_report(), 0x34, algorithm.to_bytes(4, "little")))


@pytest.mark.parametrize("bit", range(5, 32))
def test_reserved_bits_of_key_info(bit: int) -> None:
    """Each reserved bit of KEY_INFO has to be clear."""
    with pytest.raises(VerificationError, match="KEY_INFO has reserved bits"):
        parse_report(flipped(blank_report(), 0x48 + bit // 8, 1 << bit % 8))


@pytest.mark.parametrize("key", range(2, 8))
def test_reports_that_no_such_key_signed(key: int) -> None:
    """SIGNING_KEY none (7) and the reserved ones are refused."""
    with pytest.raises(VerificationError, match="not signed by a VCEK or VLEK"):
        parse_report(changed(blank_report(), 0x48, bytes((key << 2,))))


def test_masked_chip_key() -> None:
    """With MASK_CHIP_KEY there is no signature, whatever stands in its place."""
    with pytest.raises(VerificationError, match="not signed by a VCEK or VLEK"):
        parse_report(flipped(blank_report(), 0x48, 0b10))


@pytest.mark.parametrize("bit", [17, *range(26, 64)])
def test_reserved_bits_of_policy(bit: int) -> None:
    """Bit 17 of POLICY has to be set, and those above 25 clear."""
    with pytest.raises(VerificationError, match="POLICY has reserved bits"):
        parse_report(flipped(blank_report(), 0x08 + bit // 8, 1 << bit % 8))


@pytest.mark.parametrize("bit", [*range(17), *range(18, 26)])
def test_bits_of_policy(bit: int) -> None:
    """Every other bit of POLICY may be either; whether it is wanted is not decided here."""
    assert parse_report(flipped(blank_report(), 0x08 + bit // 8, 1 << bit % 8)).policy == 0x3001F ^ 1 << bit


@pytest.mark.parametrize("bit", range(64))
def test_bits_of_platform_info(bit: int) -> None:
    """No bit of PLATFORM_INFO is refused: real Turin machines set reserved ones."""
    assert parse_report(flipped(blank_report(), 0x40 + bit // 8, 1 << bit % 8)).platform_info == 0x27 ^ 1 << bit


RESERVED = {  # by version, both ends included
    2: ((0x4C, 0x4F), (0x188, 0x19F), (0x1EB, 0x1EB), (0x1EF, 0x1EF), (0x1F8, 0x29F)),
    3: ((0x4C, 0x4F), (0x18B, 0x19F), (0x1EB, 0x1EB), (0x1EF, 0x1EF), (0x1F8, 0x29F)),
    4: ((0x4C, 0x4F), (0x18B, 0x19F), (0x1EB, 0x1EB), (0x1EF, 0x1EF), (0x1F8, 0x29F)),
    5: ((0x4C, 0x4F), (0x18B, 0x19F), (0x1EB, 0x1EB), (0x1EF, 0x1EF), (0x208, 0x29F)),
}
BEHIND = ((0x2D0, 0x2E7), (0x318, 0x32F), (0x330, 0x49F))  # R's and S's padding, and the tail that nobody signs


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_reserved_bytes(version: int) -> None:
    """A single bit in any reserved byte is refused, and every other byte may have any of its bits flipped or breaks
    another rule.
    """
    raw = blank_report(version)
    reserved = {at for first, last in (*RESERVED[version], *BEHIND) for at in range(first, last + 1)}
    refused = set()
    for at in range(REPORT_BYTES):
        try:
            parse_report(flipped(raw, at, 0x10))
        except VerificationError as error:
            if "reserved part" in error.message:
                refused.add(at)
    assert refused == reserved


@pytest.mark.parametrize("at", [0x2A0, 0x2E8])
@pytest.mark.parametrize(("number", "good"), [(0, False), (1, True), (P384_ORDER - 1, True), (P384_ORDER, False),
                                              ((1 << 384) - 1, False)])  # fmt: skip
def test_range_of_the_signature(at: int, number: int, good: bool) -> None:
    """R and S are from 1 to n-1, each."""
    raw = changed(blank_report(), at, number.to_bytes(48, "little"))
    if good:
        assert number in {parse_report(raw).r, parse_report(raw).s}
    else:
        with pytest.raises(VerificationError, match="out of range"):
            parse_report(raw)


@pytest.mark.parametrize(
    ("family", "first", "last", "line"),
    [
        (0x19, 0x00, 0x0F, Line.MILAN),
        (0x19, 0x10, 0x1F, Line.GENOA),
        (0x19, 0xA0, 0xAF, Line.GENOA),
        (0x1A, 0x00, 0x11, Line.TURIN),
    ],
)
def test_lines(family: int, first: int, last: int, line: Line) -> None:
    """A line is a family and a range of models, both ends included, whatever the stepping."""
    assert {line_of((family, model, step)) for model in range(first, last + 1) for step in (0, 255)} == {line}


@pytest.mark.parametrize(
    ("family", "model"),
    [(0x17, 0x01), (0x18, 0x00), (0x19, 0x20), (0x19, 0x9F), (0x19, 0xB0), (0x1A, 0x12), (0x1A, 0x50), (0, 0)],
)
def test_unknown_processors(family: int, model: int) -> None:
    """Every other processor is refused, also those that are announced."""
    with pytest.raises(VerificationError, match="unknown processor"):
        line_of((family, model, 0))


def test_tcb() -> None:
    """A TCB_VERSION means one thing on Milan and Genoa and another on Turin."""
    raw = bytes(range(1, 9))
    old = {"bootloader": 1, "tee": 2, "snp": 7, "microcode": 8}
    assert (tcb(raw, Line.MILAN), tcb(raw, Line.GENOA)) == (old, old)
    assert tcb(raw, Line.TURIN) == {"fmc": 1, "bootloader": 2, "tee": 3, "snp": 4, "microcode": 8}
    assert list(tcb(raw, Line.TURIN)) == list(TCB_LAYOUT[Line.TURIN])


@pytest.mark.parametrize(
    ("line", "used"), [(Line.MILAN, {0, 1, 6, 7}), (Line.GENOA, {0, 1, 6, 7}), (Line.TURIN, {0, 1, 2, 3, 7})]
)
def test_reserved_bytes_of_tcb(line: Line, used: set[int]) -> None:
    """The bytes of a TCB_VERSION that mean nothing on a line are told from those that do."""
    assert {at for at in range(8) if tcb_reserved_is_zero(flipped(bytes(8), at, 0x80), line)} == used


@given(raw=st.binary(min_size=0, max_size=2 * REPORT_BYTES))
@settings(max_examples=50, deadline=None)
def test_any_bytes_raise_only_our_error(raw: bytes) -> None:
    """Whatever bytes come, they are a report or refused."""
    with suppress(VerificationError):
        parse_report(raw)


@given(
    version=st.sampled_from([2, 3, 4, 5]),
    at=st.integers(0, REPORT_BYTES - 1),
    mask=st.integers(1, 255),
    second=st.integers(0, REPORT_BYTES - 1),
)
@settings(max_examples=300, deadline=None)
def test_changed_reports_keep_every_byte(version: int, at: int, mask: int, second: int) -> None:
    """A changed report that still parses differs in a field: no byte of it is lost on the way."""
    raw = blank_report(version)
    other = flipped(flipped(raw, at, mask), second, 1)
    with suppress(VerificationError):
        fields, others = (replace(parse_report(each), raw=b"") for each in (raw, other))
        assert (fields == others) == (raw == other)
