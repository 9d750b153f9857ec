# SPDX-License-Identifier: Apache-2.0
"""`roomkey verify`: exit statuses, claims and trace of evidence files of a guest in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from broker.cli import main
from tests.fakes.evidence_file import booted, evidence_document, write_evidence
from tests.fakes.tpm_guest import FakeTpm


def verify(*args: object, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(main, ["verify", *map(str, args)], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def tpm() -> FakeTpm:
    return booted()


@pytest.fixture
def file(tmp_path: Path, tpm: FakeTpm) -> Path:
    return write_evidence(tmp_path / "guest.json", tpm)


def test_genuine_evidence_ends_with_status_0(file: Path, tpm: FakeTpm) -> None:
    """With the attestation key named, the file is genuine, and claims and checks are shown."""
    result = verify("tpm", file, "--expect", f"ak_name={tpm.ak_name.hex()}")
    assert result.exit_code == 0
    assert result.stdout.startswith("genuine\n")
    assert tpm.pcrs[4].hex() in result.stdout
    assert "root of trust" in result.stdout
    assert "What failed" not in result.stdout


def test_json_holds_verdict_claims_and_trace(file: Path, tpm: FakeTpm) -> None:
    """--json is one JSON document with the three."""
    result = verify("tpm", file, "--expect", f"ak_name={tpm.ak_name.hex()}", "--json")
    document = json.loads(result.stdout)
    assert document["verdict"] == "genuine"
    assert document["claims"]["measurements"]["sha256:4"] == tpm.pcrs[4].hex()
    assert {check["verdict"] for check in document["trace"]} <= {"passed", "not required"}


def test_evidence_is_read_from_standard_input_too(tpm: FakeTpm) -> None:
    """`-` is standard input."""
    document = json.dumps(evidence_document(tpm))
    assert verify("tpm", "-", "--expect", f"ak_name={tpm.ak_name.hex()}", stdin=document).exit_code == 0


def test_another_key_is_refused_with_status_1(file: Path) -> None:
    """A wrong Name refuses, and the end of the output says what was expected and found."""
    result = verify("tpm", file, "--expect", f"ak_name={'00' * 34}")
    assert result.exit_code == 1
    assert result.stdout.startswith("refused\n")
    assert "What failed (1 check)" in result.stdout


def test_a_changed_register_is_refused(tmp_path: Path, tpm: FakeTpm) -> None:
    """A PCR value that the quote does not cover is not believed."""
    document = evidence_document(tpm)
    document["evidence"]["pcrs"]["sha256"]["4"] = "00" * 32
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(document))
    result = verify("tpm", path, "--expect", f"ak_name={tpm.ak_name.hex()}", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["claims"] is None


def test_an_unmet_expectation_is_refused_and_named(file: Path, tpm: FakeTpm) -> None:
    """Genuine but not as expected ends with status 1, with both values."""
    result = verify("tpm", file, "--expect", f"ak_name={tpm.ak_name.hex()}", "--expect", f"sha256:4={'ab' * 32}")
    assert result.exit_code == 1
    assert "ab" * 32 in result.stdout
    assert tpm.pcrs[4].hex() in result.stdout


def test_without_an_anchor_nothing_can_be_judged(file: Path) -> None:
    """Status 2, with the mend, and no verdict; as JSON too."""
    result = verify("tpm", file)
    assert result.exit_code == 2
    assert "ak_name" in result.stderr
    assert result.stdout == ""
    document = json.loads(verify("tpm", file, "--json").stdout)
    assert document["verdict"] == "cannot be judged"
    assert "ak_name" in document["mend"]


@pytest.mark.parametrize(
    "args",
    [
        ("tdx", "FILE", "--expect", "ak_name=00"),
        ("snp", "FILE", "--trust-root", "FILE"),
        ("snp", "FILE", "--endorsement", "FILE"),
        ("snp", "FILE", "--floors", "missing.toml"),
        ("snp", "FILE", "--floors", "FILE"),
        ("tpm", "missing.json", "--expect", "ak_name=00"),
        ("tpm", "FILE", "--at", "yesterday", "--expect", "ak_name=00"),
        ("tpm", "FILE", "--expect", "ak_name"),
        ("tpm", "FILE", "--trust-root", "missing.pem"),
        ("tpm", "FILE", "--endorsement", "FILE", "--expect", "ak_name=00"),
    ],
)
def test_what_cannot_be_judged_ends_with_status_2(file: Path, args: tuple[str, ...]) -> None:
    """An unknown platform, a missing file, a bad time or expectation: never 0 and never 1."""
    assert verify(*(file if arg == "FILE" else arg for arg in args)).exit_code == 2


@pytest.mark.parametrize("at", ["2026-11-23", "2026-11-23T18:00:00Z", "2026-11-23T18:00:00+01:00"])
def test_times_are_iso_8601(file: Path, tpm: FakeTpm, at: str) -> None:
    """A date, a time in UTC and one with an offset are understood."""
    assert verify("tpm", file, "--at", at, "--expect", f"ak_name={tpm.ak_name.hex()}").exit_code == 0


def test_a_guests_words_cannot_move_the_cursor(file: Path, tpm: FakeTpm, tmp_path: Path) -> None:
    """A file full of escapes prints none of them."""
    document = evidence_document(tpm)
    document["tee"] = "tpm\x1b[2J"
    path = tmp_path / "escape.json"
    path.write_text(json.dumps(document))
    assert "\x1b" not in verify("tpm", path, "--expect", f"ak_name={tpm.ak_name.hex()}").output
