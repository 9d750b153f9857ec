# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.snp_evidence and snp_cert_table: three JSON forms, one table, member by member."""

from __future__ import annotations

import copy
import json
import struct
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.verifiers.snp_cert_table import (
    MAX_CERTIFICATE_BYTES,
    MAX_ENTRIES,
    MAX_TABLE_BYTES,
    entries,
    parse_cert_table,
)
from broker.verifiers.snp_evidence import CertificateKind, SnpEvidence, decode_evidence
from broker.verifiers.snp_report import line_of, parse_report, tcb_reserved_is_zero
from keys import b64, strictjson
from keys.errors import ProtocolError, VerificationError
from tests.fakes import json_values
from tests.fakes.snp_bytes import GUIDS, blank_report, cert_table, chain_entry, changed, flipped, kbs_json
from tests.vectors import VECTORS, needs_vectors

SNP = VECTORS / "snp"
REPORT = blank_report()
OTHER = UUID("ecae0c0f-9502-43b1-afa2-0ae2e0d565b6")
TABLE = cert_table([(GUIDS["vcek"], b"a VCEK"), (OTHER, b"\x08\0\0\0"), (GUIDS["ask"], b"an ASK")], padding=100)
FOUND = {CertificateKind.VCEK: b"a VCEK", CertificateKind.ASK: b"an ASK"}
KBS = kbs_json(REPORT)
RAW = {"report": b64.std(REPORT), "cert_table": b64.std(TABLE)}
TSM = {"outblob": b64.std(REPORT), "auxblob": b64.std(TABLE), "provider": "sev_guest\n"}
KINDS = [(2, "Genoa"), (3, "Milan"), (3, "Genoa"), (3, "Turin"), (4, "Genoa"), (5, "Milan"), (5, "Turin")]


def kbs(path: str, value: Any, report: bytes = REPORT) -> dict[str, Any]:
    """The KBS form with one member of the report, "a.b" one inside another, set to `value`; ... takes it out."""
    form = copy.deepcopy(kbs_json(report))
    inner = form["attestation_report"]
    *way, last = path.split(".")
    for step in way:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return form


@needs_vectors
def test_recorded_reports_in_the_kbs_form() -> None:
    """Each recorded report, taken apart into the form of the sev crate, decodes to exactly its bytes again."""
    cases = json.loads((SNP / "manifest.json").read_text())["cases"]
    versions = set()
    for case in cases:
        if "report" not in case["files"]:
            continue
        raw = (SNP / case["files"]["report"]).read_bytes()
        text = json.dumps(kbs_json(raw)).encode()
        assert decode_evidence(strictjson.loads(text, name="evidence", max_bytes=len(text))).report == raw, case["name"]
        versions.add((raw[0], case["product"]))
    assert {
        (2, "Milan"),
        (3, "Milan"),
        (3, "Genoa"),
        (4, "Milan"),
        (5, "Milan"),
        (5, "Genoa"),
        (5, "Turin"),
    } <= versions


@pytest.mark.parametrize(("version", "line"), KINDS)
def test_kbs_form(version: int, line: str) -> None:
    """The KBS form of each version and product line decodes to exactly the report's bytes."""
    raw = blank_report(version, line)
    assert decode_evidence(kbs_json(raw)) == SnpEvidence(raw, {})


@given(kind=st.sampled_from(KINDS), at=st.integers(0, 1183), mask=st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_kbs_form_of_changed_reports(kind: tuple[int, str], at: int, mask: int) -> None:
    """Whatever the fields hold, where nothing reserved was changed the form decodes to exactly the report's bytes."""
    raw = flipped(blank_report(*kind), at, mask)
    with suppress(VerificationError):
        report = parse_report(raw)
        line = line_of(report.cpuid or (0x19, 0, 0))
        tcbs = (report.current_tcb, report.reported_tcb, report.committed_tcb, report.launch_tcb)
        if all(tcb_reserved_is_zero(each, line) for each in tcbs):
            assert decode_evidence(kbs_json(raw)).report == raw


def test_members_that_a_version_has_not() -> None:
    """What a version does not have may be missing instead of null, as an older sev crate leaves it out."""
    names = ("cpuid_fam_id", "cpuid_mod_id", "cpuid_step", "launch_mit_vector", "current_mit_vector")
    raw = blank_report(2)
    form = kbs_json(raw)
    del form["cert_chain"]
    report = form["attestation_report"]
    for name in names:
        del report[name]
    for which in ("current", "reported", "committed", "launch"):
        del report[f"{which}_tcb"]["fmc"]
    assert decode_evidence(form) == SnpEvidence(raw, {})


@pytest.mark.parametrize("name", [name for name in KBS["attestation_report"] if "mit_vector" not in name])
def test_members_that_must_be_there(name: str) -> None:
    """Every field that the version has is needed, and null is none."""
    for value in (..., None):
        with pytest.raises(ProtocolError, match=rf"{name}|lacks a member"):
            decode_evidence(kbs(name, value))


@pytest.mark.parametrize("name", ["launch_mit_vector", "current_mit_vector"])
def test_mitigation_vectors(name: str) -> None:
    """The mitigation vectors belong to version 5, which has both, and to no older one."""
    with pytest.raises(ProtocolError, match=f"{name} must be a number"):
        decode_evidence(kbs(name, None, blank_report(5)))
    for version in (2, 3, 4):
        with pytest.raises(ProtocolError, match=f"{name} must be null"):
            decode_evidence(kbs(name, 0, blank_report(version)))


@pytest.mark.parametrize("name", ["cpuid_fam_id", "cpuid_mod_id", "cpuid_step"])
def test_version_2_names_no_processor(name: str) -> None:
    """Version 2 has no bytes for the processor, so that none can be said."""
    with pytest.raises(ProtocolError, match=f"{name} must be null"):
        decode_evidence(kbs(name, 0, blank_report(2)))


@pytest.mark.parametrize("which", ["current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"])
def test_fmc_is_turins(which: str) -> None:
    """The FMC's number is a part of each TCB on Turin, and of none elsewhere or where the processor is not named."""
    for version, line in ((2, "Milan"), (3, "Milan"), (5, "Genoa")):
        with pytest.raises(ProtocolError, match=rf"{which}\.fmc must be null"):
            decode_evidence(kbs(f"{which}.fmc", 0, blank_report(version, line)))
    for value in (None, ...):
        with pytest.raises(ProtocolError, match=rf"{which}\.fmc must be a number"):
            decode_evidence(kbs(f"{which}.fmc", value, blank_report(5, "Turin")))


def test_processors_that_are_not_known() -> None:
    """Without the layout of its TCBs the report cannot be built again."""
    with pytest.raises(ProtocolError, match="unknown processor"):
        decode_evidence(kbs("cpuid_mod_id", 0x60))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("version", 1, "version is unknown"),
        ("version", 6, "version is unknown"),
        ("version", "3", "version is unknown"),
        ("version", True, "version is unknown"),
        ("version", 3.0, "version must be a number"),
        ("guest_svn", 1 << 32, "guest_svn must be a number"),
        ("guest_svn", -1, "guest_svn must be a number"),
        ("guest_svn", False, "guest_svn must be a number"),
        ("guest_svn", "1", "guest_svn must be a number"),
        ("policy", 1 << 64, "policy must be a number"),
        ("policy", {"abi_minor": 0}, "policy must be a number"),
        ("plat_info", 1 << 64, "plat_info must be a number"),
        ("key_info", 1 << 32, "key_info must be a number"),
        ("vmpl", 1 << 32, "vmpl must be a number"),
        ("sig_algo", [1], "sig_algo must be a number"),
        ("cpuid_step", 256, "cpuid_step must be a number"),
        ("cpuid_fam_id", True, "cpuid_fam_id must be a number"),
        ("current_tcb", 0, "current_tcb must be a JSON object"),
        ("current_tcb.snp", 256, r"current_tcb\.snp must be a number"),
        ("current_tcb.snp", True, r"current_tcb\.snp must be a number"),
        ("current_tcb.spl4", 0, "unknown member"),
        ("launch_tcb.microcode", ..., "lacks a member"),
        ("current", [1, 55, 40], "current must be a JSON object"),
        ("current.build", 256, r"current\.build must be a number"),
        ("current.patch", 0, "unknown member"),
        ("committed.major", ..., "lacks a member"),
        ("family_id", [0] * 15, "family_id must be a list of bytes"),
        ("image_id", [0] * 17, "image_id must be a list of bytes"),
        ("report_data", "00" * 64, "report_data must be a list of bytes"),
        ("measurement", [256] * 48, "measurement must hold bytes"),
        ("host_data", [-1] * 32, "host_data must hold bytes"),
        ("id_key_digest", [True] * 48, "id_key_digest must hold bytes"),
        ("author_key_digest", ["0"] * 48, "author_key_digest must hold bytes"),
        ("chip_id", [0] * 8, "chip_id must be a list of bytes"),
        ("signature", [0] * 512, "signature must be a JSON object"),
        ("signature.r", [0] * 48, r"signature\.r must be a list of bytes"),
        ("signature.s", [0] * 73, r"signature\.s must be a list of bytes"),
        ("signature._reserved", [0] * 368, "unknown member"),
        ("signature.s", ..., "lacks a member"),
        ("_reserved_0", 0, "unknown member"),
    ],
)
def test_members_of_the_kbs_form(path: str, value: Any, message: str) -> None:
    """A member of the wrong type, length or range is refused by its name, and so is one that nobody knows."""
    with pytest.raises(ProtocolError, match=message):
        decode_evidence(kbs(path, value))


def test_largest_numbers() -> None:
    """Every integer of the form may have the largest value that its bytes hold."""
    sizes = {"guest_svn": 4, "policy": 8, "vmpl": 4, "sig_algo": 4, "plat_info": 8, "key_info": 4, "cpuid_step": 1}
    for name, size in sizes.items():
        assert decode_evidence(kbs(name, (1 << 8 * size) - 1)).report.count(b"\xff" * size) == 1
        with pytest.raises(ProtocolError, match=f"{name} must be a number"):
            decode_evidence(kbs(name, 1 << 8 * size))


def test_certificate_chain() -> None:
    """The chain's certificates are kept by kind, and kinds that have no name are left out."""
    chain = [chain_entry(kind, kind.encode()) for kind in GUIDS if kind != "vcek"]
    chain += [{"cert_type": "Empty", "data": []}, {"cert_type": {"OTHER": str(OTHER)}, "data": [1]}] * 2
    found = decode_evidence(kbs_json(REPORT, chain)).certificates
    assert found == {kind: kind.encode() for kind in CertificateKind if kind is not CertificateKind.VCEK}
    assert decode_evidence(kbs_json(REPORT, [])).certificates == {}
    assert decode_evidence(kbs_json(REPORT, [{"cert_type": "Empty", "data": []}] * MAX_ENTRIES)).certificates == {}
    vcek = [chain_entry("vcek", bytes(MAX_CERTIFICATE_BYTES))]
    assert decode_evidence(kbs_json(REPORT, vcek)).certificates == {CertificateKind.VCEK: bytes(MAX_CERTIFICATE_BYTES)}


VCEK = chain_entry("vcek", b"a VCEK")


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ({}, "cert_chain must be null or a list"),
        ([VCEK] * (MAX_ENTRIES + 1), "cert_chain must be null or a list"),
        ([VCEK, VCEK], "two VCEK"),
        ([None], r"cert_chain\.0 must be a JSON object"),
        ([{"cert_type": "VCEK"}], "lacks a member"),
        ([{**VCEK, "more": 1}], "unknown member"),
        ([{**VCEK, "cert_type": "vcek"}], r"cert_chain\.0\.cert_type is unknown"),
        ([{**VCEK, "cert_type": "ASVK"}], r"cert_chain\.0\.cert_type is unknown"),
        ([{**VCEK, "cert_type": None}], r"cert_type must be a string"),
        ([{**VCEK, "cert_type": "V" * 9}], r"cert_type is too long"),
        ([{**VCEK, "cert_type": {"OTHER": 1}}], "OTHER must be a string"),
        ([{**VCEK, "cert_type": {"OTHER": "no GUID"}}], "OTHER is no GUID"),
        ([{**VCEK, "cert_type": {"OTHER": "0" * 37}}], "OTHER is too long"),
        ([{**VCEK, "cert_type": {"other": str(OTHER)}}], "lacks a member"),
        ([VCEK, {"cert_type": "ASK", "data": [256]}], r"cert_chain\.1\.data must hold bytes"),
        ([{"cert_type": "ASK", "data": "AAAA"}], r"cert_chain\.0\.data must be a list"),
        ([{"cert_type": "ASK", "data": [0] * (MAX_CERTIFICATE_BYTES + 1)}], r"cert_chain\.0\.data must be a list"),
        ([{"cert_type": "Empty", "data": [0] * (MAX_CERTIFICATE_BYTES + 1)}], r"cert_chain\.0\.data must be a list"),
        ([{"cert_type": "ASK", "data": []}], "ASK has a wrong length"),
    ],
)
def test_members_of_the_chain(chain: Any, message: str) -> None:
    """Two certificates of one kind, unknown kinds, and lengths that no certificate has are refused."""
    with pytest.raises(ProtocolError, match=message):
        decode_evidence(kbs_json(REPORT, chain))


@pytest.mark.parametrize("form", [RAW, TSM])
def test_reports_as_they_are(form: dict[str, Any]) -> None:
    """The forms of /dev/sev-guest and configfs-tsm give the report and what the host's table holds."""
    assert decode_evidence(form) == SnpEvidence(REPORT, FOUND)


@pytest.mark.parametrize("none", [..., None, ""])
@pytest.mark.parametrize(("form", "table"), [(RAW, "cert_table"), (TSM, "auxblob")])
def test_hosts_without_certificates(form: dict[str, Any], table: str, none: Any) -> None:
    """A table that is missing, null or empty holds no certificates."""
    value = {name: member for name, member in form.items() if name != table}
    if none is not ...:
        value[table] = none
    assert decode_evidence(value) == SnpEvidence(REPORT, {})


@pytest.mark.parametrize("changes", [{}, {"provider": None}, {"provider": "sev_guest"}, {"provider": "sev_guest\n"},
                                     {"manifestblob": None}, {"manifestblob": ""}])  # fmt: skip
def test_configfs_members(changes: dict[str, Any]) -> None:
    """The provider's name may end with the newline of its file, and optional members may be null."""
    assert decode_evidence({"outblob": TSM["outblob"], **changes}) == SnpEvidence(REPORT, {})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "must be a JSON object"),
        ([], "must be a JSON object"),
        ({}, "lacks a member"),
        ({"cert_table": ""}, "lacks a member"),
        ({**RAW, "auxblob": ""}, "unknown member"),
        ({**RAW, "report": None}, "report must be a string"),
        ({**RAW, "report": b64.std(REPORT[:-1])}, "report has a wrong length"),
        ({**RAW, "report": ""}, "report has a wrong length"),
        ({**RAW, "report": b64.std(REPORT + b"\0")}, "report is too long"),
        ({**RAW, "report": b64.url(REPORT).rstrip("=")}, "report"),
        ({**RAW, "cert_table": 1}, "cert_table must be a string"),
        ({**RAW, "cert_table": "A" * 4}, "no end mark"),
        ({**RAW, "cert_table": b64.std(bytes(MAX_TABLE_BYTES + 1))}, "cert_table is too long"),
        ({**TSM, "outblob": b64.std(REPORT[:-1])}, "outblob has a wrong length"),
        ({**TSM, "auxblob": False}, "auxblob must be a string"),
        ({**TSM, "auxblob": "A" * 4}, "no end mark"),
        ({**TSM, "provider": "tdx_guest\n"}, "provider is another platform's"),
        ({**TSM, "provider": "sev_guest\n\n"}, "provider is another platform's"),
        ({**TSM, "provider": ["sev_guest"]}, "provider is another platform's"),
        ({**TSM, "provider": ""}, "provider is another platform's"),
        ({**TSM, "manifestblob": "AAAA"}, "manifestblob must be empty"),
        ({**TSM, "manifestblob": 0}, "manifestblob must be empty"),
        ({**TSM, "generation": 1}, "unknown member"),
        ({**TSM, "report": RAW["report"]}, "unknown member"),
        ({**KBS, "outblob": TSM["outblob"]}, "unknown member"),
        ({"attestation_report": None}, "attestation_report must be a JSON object"),
    ],
)
def test_members_of_the_other_forms(value: object, message: str) -> None:
    """A wrong member is refused by its name, and no form may be mixed with another."""
    with pytest.raises(ProtocolError, match=message):
        decode_evidence(value)


# --- the certificate table ---


@needs_vectors
def test_recorded_table() -> None:
    """A recorded table holds PEM of the three kinds that its manifest names."""
    found = parse_cert_table((SNP / "cert_tables" / "genoa-v3-tsm.auxblob.bin").read_bytes())
    assert set(found) == {CertificateKind.ARK, CertificateKind.ASK, CertificateKind.VCEK}
    assert all(data.startswith(b"-----BEGIN CERTIFICATE-----\n") for data in found.values())


@needs_vectors
def test_recorded_mutations_of_the_table() -> None:
    """Each recorded mutation of a table is refused, or read, as its manifest says."""
    manifest = json.loads((SNP / "manifest.json").read_text())
    files = {case["name"]: case["files"] for case in manifest["cases"]}
    verdicts = []
    for entry in manifest["derived_cert_table"]:
        blob = (SNP / files[entry["base"]]["cert_table"]).read_bytes()
        mutation = entry["mutation"]
        if "truncate" in mutation:
            blob = blob[: mutation["truncate"]]
        if "xor" in mutation:
            mask, at = bytes.fromhex(mutation["xor"]), mutation["offset"]
            blob = changed(blob, at, bytes(a ^ b for a, b in zip(blob[at : at + len(mask)], mask, strict=True)))
        blob += bytes.fromhex(mutation.get("append", ""))
        verdicts.append(entry["expect"])
        if entry["expect"] == "invalid":
            with pytest.raises(ProtocolError):
                parse_cert_table(blob)
        else:
            parse_cert_table(blob)
            assert [guid.hex for guid, _ in entries(blob)] == entry["expected_guids"], entry["name"]
    assert set(verdicts) == {"valid", "invalid"}


def test_table() -> None:
    """All entries are found in their order; only those of known kinds are certificates."""
    assert entries(TABLE) == [(GUIDS["vcek"], b"a VCEK"), (OTHER, b"\x08\0\0\0"), (GUIDS["ask"], b"an ASK")]
    assert parse_cert_table(TABLE) == FOUND
    every = cert_table([(guid, name.encode()) for name, guid in GUIDS.items()])
    assert parse_cert_table(every) == {kind: kind.encode() for kind in CertificateKind}


@pytest.mark.parametrize("blob", [b"", bytes(24), bytes(4096), bytes(MAX_TABLE_BYTES)])
def test_tables_without_certificates(blob: bytes) -> None:
    """Nothing, or only the end mark and padding, is no certificate."""
    assert (entries(blob), parse_cert_table(blob)) == ([], {})


def one(guid: UUID, offset: int, length: int, behind: bytes = b"x" * 100) -> bytes:
    """A table of one entry, which says what it likes about where its contents are."""
    return guid.bytes + struct.pack("<II", offset, length) + bytes(24) + behind


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (bytes(MAX_TABLE_BYTES + 1), "is too long"),
        (bytes(23), "no end mark"),
        (b"\1", "no end mark"),
        (TABLE[:24], "no end mark"),
        (TABLE[:72], "no end mark"),
        (TABLE[:95], "no end mark"),
        (one(GUIDS["vcek"], 47, 10), "contents are elsewhere"),
        (one(GUIDS["vcek"], 0, 10), "contents are elsewhere"),
        (one(GUIDS["vcek"], 48, 101), "contents are elsewhere"),
        (one(GUIDS["vcek"], 149, 0), "contents are elsewhere"),
        (one(GUIDS["vcek"], 0xFFFFFFFF, 50), "contents are elsewhere"),
        (one(GUIDS["vcek"], 0xFFFFFFF0, 0xFF), "contents are elsewhere"),
        (one(GUIDS["vcek"], 50, 0xFFFFFFFF), "contents are elsewhere"),
        (one(OTHER, 47, 1), "contents are elsewhere"),
        (one(UUID(int=0), 48, 0), "entry without a GUID"),
        (one(UUID(int=0), 0, 1), "entry without a GUID"),
        (cert_table([(GUIDS["ask"], b"1"), (OTHER, b"2"), (GUIDS["ask"], b"1")]), "two entries of one GUID"),
        (cert_table([(OTHER, b"1"), (OTHER, b"1")]), "two entries of one GUID"),
        (cert_table([(UUID(int=n + 1), b"") for n in range(MAX_ENTRIES + 1)]), "too many entries"),
    ],
)
def test_wrong_tables(blob: bytes, message: str) -> None:
    """A table without an end, with contents outside, with two of a kind or too many entries is refused."""
    for read in (entries, parse_cert_table):
        with pytest.raises(ProtocolError, match=message):
            read(blob)


def test_edges_of_the_table() -> None:
    """Contents may begin right behind the header and end with the blob; as many entries as allowed are read."""
    assert entries(one(GUIDS["vcek"], 48, 100)) == [(GUIDS["vcek"], b"x" * 100)]
    assert entries(one(OTHER, 148, 0)) == [(OTHER, b"")]
    assert len(entries(cert_table([(UUID(int=n + 1), b"") for n in range(MAX_ENTRIES)]))) == MAX_ENTRIES
    vcek, ask = (GUIDS[name].bytes + struct.pack("<II", 72, 4) for name in ("vcek", "ask"))
    assert parse_cert_table(vcek + ask + bytes(24) + b"same") == dict.fromkeys(FOUND, b"same")


@pytest.mark.parametrize("size", [0, MAX_CERTIFICATE_BYTES + 1])
def test_sizes_of_certificates(size: int) -> None:
    """A certificate is not empty and at most 8 KiB long; what is not one may be either."""
    with pytest.raises(ProtocolError, match="VLEK has a wrong length"):
        parse_cert_table(cert_table([(GUIDS["vlek"], bytes(size))]))
    assert parse_cert_table(cert_table([(OTHER, bytes(size))])) == {}
    largest = bytes(MAX_CERTIFICATE_BYTES)
    assert parse_cert_table(cert_table([(GUIDS["vlek"], largest)])) == {CertificateKind.VLEK: largest}


@given(contents=st.dictionaries(st.uuids(), st.binary(max_size=40), max_size=MAX_ENTRIES), padding=st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_tables_are_read_as_written(contents: dict[UUID, bytes], padding: int) -> None:
    """What a host writes is what is read."""
    assert dict(entries(cert_table(contents.items(), padding=padding))) == contents


@given(
    blob=st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, len(TABLE) - 1), st.integers(1, 255), st.integers(0, len(TABLE))).map(
            lambda change: flipped(TABLE, change[0], change[1])[: change[2]]
        ),
    )
)
@settings(max_examples=200, deadline=None)
def test_any_table_raises_only_our_error(blob: bytes) -> None:
    """Whatever bytes the host writes, they are a table or refused."""
    with suppress(ProtocolError):
        assert len(entries(blob)) <= MAX_ENTRIES
        parse_cert_table(blob)


# --- whatever comes ---


@st.composite
def changed_forms(draw: st.DrawFn) -> object:
    """One of the forms with a member, at any depth, replaced, removed or added."""
    chain = [chain_entry("vcek", b"a VCEK"), {"cert_type": {"OTHER": str(OTHER)}, "data": [1]}]
    form = draw(st.sampled_from([kbs_json(blank_report(5, "Turin"), chain), kbs_json(REPORT, chain), RAW, TSM]))
    return json_values.mutated(draw, form)


@given(value=changed_forms())
@settings(max_examples=200, deadline=None)
def test_any_json_raises_only_our_error(value: object) -> None:
    """Whatever JSON value stands anywhere, the form is read or refused as a fault of the message."""
    with suppress(ProtocolError):
        evidence = decode_evidence(value)
        assert len(evidence.report) == len(REPORT)
