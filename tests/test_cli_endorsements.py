# SPDX-License-Identifier: Apache-2.0
"""`roomkey endorsements`, from a KDS to a broker without a network, and what the doctor says of AMD."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker.cli import main
from broker.endorsements import setup
from broker.endorsements.bundle import write_bundle
from broker.store.protocols import StoredEndorsement
from broker.verifiers.snp_endorsements import crl_name
from broker.verifiers.snp_report import Line
from tests.fakes.amd import START, Chip, FakeAmd, raw_evidence
from tests.fakes.kds import FakeKds, Reply, names

AMD = FakeAmd()
CHIP, TURIN = Chip(AMD), Chip(FakeAmd(Line.TURIN))
[VCEK] = names([CHIP])
CRL = crl_name(Line.GENOA)


@pytest.fixture(autouse=True)
def _our_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, turin = AMD.trusted(), FakeAmd(Line.TURIN).trusted()
    trusted = replace(ours, roots=ours.roots + turin.roots, certificates=ours.certificates + turin.certificates)
    monkeypatch.setattr(setup, "built_in", lambda: trusted)


@pytest.fixture
def kds(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKds]:
    with FakeKds(CHIP, AMD) as kds:
        monkeypatch.setenv("ROOMKEY_SNP_KDS_URL", kds.url)
        yield kds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run("init", tmp_path / "broker")
    return tmp_path


def run(*args: object, status: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


def ours(command: str, folder: Path, *args: object, broker: str = "broker", status: int = 0) -> Result:
    return run("endorsements", command, *args, "--config", folder / broker / "broker.toml", status=status)


def listed(folder: Path, broker: str = "broker") -> dict[str, bool]:
    """Name -> imported, of everything that is stored."""
    stored = json.loads(ours("list", folder, "--json", broker=broker).stdout)
    assert all(one["stored_at"] > 0 for one in stored)
    return {one["name"]: one["imported"] for one in stored}


def evidence(folder: Path, chip: Chip = CHIP, **certificates: bytes) -> Path:
    file = folder / "guest.json"
    file.write_text(json.dumps({"tee": "snp", "evidence": raw_evidence(chip.report(), certificates)}))
    return file


def written(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


# --- the way from network to no network ---


def test_what_is_fetched_here_works_there(folder: Path, kds: FakeKds) -> None:
    """Fetched for an evidence file, exported, and imported by a broker that asks nobody."""
    result = ours("fetch", folder, evidence(folder))
    assert result.stdout.splitlines() == [f"stored  {VCEK}", f"stored  {CRL}"]
    assert "endorsements export" in result.stderr
    result = ours("export", folder, folder / "amd.json")
    assert "2 endorsements" in result.stdout
    assert "endorsements import amd.json" in result.stderr
    asked = len(kds.asked)
    run("init", folder / "there")
    result = ours("import", folder, folder / "amd.json", broker="there")
    assert result.stdout.splitlines() == [f"stored  {VCEK}", f"stored  {CRL}"]
    assert listed(folder) == {VCEK: False, CRL: False}
    assert listed(folder, "there") == {VCEK: True, CRL: True}
    assert len(kds.asked) == asked


def test_files_of_amds_are_imported_as_they_are(folder: Path) -> None:
    """Certificates and lists, DER or PEM, of any line, get the names that their content says."""
    pem = x509.load_der_x509_crl(AMD.crl(number=3)).public_bytes(Encoding.PEM)
    ours("import", folder, written(folder, "a.der", TURIN.vcek), written(folder, "b.pem", pem))
    assert listed(folder) == {CRL: True, names([TURIN])[0]: True}
    result = ours("import", folder, written(folder, "c.der", AMD.crl(number=2)))
    assert result.stdout == f"a newer issue is stored already  {CRL}\n"


def test_the_list_is_for_people_too(folder: Path) -> None:
    """One line a thing: what it is, of which line and chip, for which TCB, and where it came from."""
    assert "Nothing is stored yet" in ours("list", folder).stdout
    ours("import", folder, written(folder, "a", CHIP.vcek), written(folder, "b", AMD.crl()))
    first, second = ours("list", folder).stdout.splitlines()[1:]
    assert first.split()[:4] == ["VCEK", "Genoa", CHIP.hw_id.hex()[:16] + "…", "bootloader=10"]
    assert second.split()[:3] == ["CRL", "Genoa", "import"]


# --- what is refused ---


def bundle(name: str, data: bytes) -> bytes:
    return write_bundle([StoredEndorsement(name, data, "", True, 0)])


@pytest.mark.parametrize(
    ("data", "words", "status"),
    [
        (b"<html>", "neither a bundle nor AMD's", 17),
        (b"{}", "neither a bundle nor AMD's", 17),
        (AMD.vlek, "VLEK has no name", 17),
        (lambda: bundle(VCEK, TURIN.vcek), "not to be trusted", 12),
        (lambda: bundle("amd/x", b""), "not the name of an endorsement", 10),
        (lambda: bundle("x/y", b""), "no source has endorsements of this name", 10),
        (lambda: FakeAmd(copy=1).vcek()[1], "not to be trusted", 12),
    ],
)
def test_one_bad_file_keeps_all_out(folder: Path, data: Any, words: str, status: int) -> None:
    """What is not AMD's, or not what its name says, is named, and nothing of the whole import is stored."""
    made = data() if callable(data) else data
    bad = written(folder, "bad", made[1] if isinstance(made, tuple) else made)
    assert words in ours("import", folder, written(folder, "good", CHIP.vcek), bad, status=status).stderr
    assert listed(folder) == {}


def test_nothing_is_overwritten(folder: Path) -> None:
    """An export never replaces a file."""
    ours("export", folder, written(folder, "mine", b"mine"), status=17)
    assert (folder / "mine").read_bytes() == b"mine"


def test_a_chip_that_amd_does_not_know(folder: Path, kds: FakeKds) -> None:
    """A certificate that does not exist is an error; the list that does is stored all the same."""
    stranger = Chip(AMD, bytes(64 * [7]))
    result = ours("fetch", folder, evidence(folder, stranger), status=15)
    assert "knows no such certificate" in result.stderr
    assert listed(folder) == {CRL: False}


def test_a_kds_that_is_out(folder: Path, kds: FakeKds) -> None:
    """An outage ends with the status that says: try again later."""
    kds.always = Reply(503)
    ours("fetch", folder, evidence(folder), status=16)
    assert listed(folder) == {}


def test_evidence_that_brings_its_certificate(folder: Path, kds: FakeKds) -> None:
    """Then only the revocation list is fetched, and what cannot be had is no error."""
    kds.put(CRL, Reply(500))
    result = ours("fetch", folder, evidence(folder, vcek=CHIP.vcek))
    assert "brings its own certificate" in result.stdout
    assert f"not to be had  {CRL}" in result.stdout


def test_fetching_where_it_is_switched_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that may ask nobody says so."""
    monkeypatch.setenv("ROOMKEY_SNP_KDS_URL", "")
    assert "snp.kds_url is empty" in ours("fetch", folder, evidence(folder), status=17).stderr


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tee": "x", "evidence": {}}', '{"tee": "snp", "evidence": {}}',
                                  '{"tee": "sgx", "evidence": {}}', '{"tee": ["snp"], "evidence": {}}'])  # fmt: skip
def test_what_is_no_evidence_file(folder: Path, text: str) -> None:
    """Another file is refused with the command that makes a good one."""
    file = written(folder, "guest.json", text.encode())
    assert "roomkey-agent evidence" in ours("fetch", folder, file, status=17).stderr


# --- the doctor ---


def findings(folder: Path, **environ: str) -> list[dict[str, str]]:
    result = CliRunner().invoke(main, ["doctor", "--config", str(folder / "broker/broker.toml"), "--json"], env=environ)
    checks: list[dict[str, str]] = json.loads(result.stdout)["checks"]
    return checks


def test_the_doctor_shows_what_is_trusted_of_amd(folder: Path) -> None:
    """Floors that differ from the default, the KDS, how much is stored, and the unsafe switch."""
    said = {one["check"]: one["found"] for one in findings(folder)}
    assert said["SNP floors"] == "the strict default"
    assert said["AMD's KDS"] == "https://kdsintf.amd.com"
    assert said["endorsements"] == "0 stored"
    ours("import", folder, written(folder, "a", CHIP.vcek))
    changed = findings(folder, ROOMKEY_SNP_MAX_VMPL="1", ROOMKEY_SNP_KDS_URL="", ROOMKEY_SNP_UNSAFE_DEBUG="true")
    said = {one["check"]: one["found"] for one in changed}
    assert said["SNP floors"] == "not as by default: unsafe_debug, max_vmpl"
    assert said["AMD's KDS"].startswith("off")
    assert said["endorsements"] == "1 stored"
    assert said["switches"] == "snp.unsafe_debug"
    (folder / "broker/roomkey.db").unlink()
    assert "endorsements" not in {one["check"] for one in findings(folder)}


def test_the_doctor_misses_lists_that_are_required(folder: Path) -> None:
    """Where guests are refused without a current list, and nobody fetches one, each line that lacks it is named."""
    required = {"ROOMKEY_SNP_REQUIRE_CRL": "true", "ROOMKEY_SNP_PRODUCTS": "Genoa", "ROOMKEY_SNP_KDS_URL": ""}

    def missing(**environ: str) -> list[str]:
        return [one["found"] for one in findings(folder, **required | environ) if one["check"] == "revocation list"]

    assert missing() == ["Genoa: none, so its guests are refused"]
    assert len(missing(ROOMKEY_SNP_PRODUCTS="")) == 3
    assert missing(ROOMKEY_SNP_KDS_URL="https://kds.internal") == missing(ROOMKEY_SNP_REQUIRE_CRL="false") == []
    ours("import", folder, written(folder, "old", AMD.crl(end=START + timedelta(days=1))))
    assert missing() == ["Genoa: past its time"]
    ours("import", folder, written(folder, "new", AMD.crl(number=2)))
    assert missing() == []
