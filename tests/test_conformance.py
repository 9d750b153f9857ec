# SPDX-License-Identifier: Apache-2.0
"""Recorded evidence gets the recorded verdicts, and the runner itself takes nothing for granted."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from broker.verifiers.tpm_structures import SHA256
from broker.verifiers.uki import predict_pcr11
from keys.errors import VerificationError
from tests.conformance import kinds, runner
from tests.conformance.kinds import DisagreementError
from tests.conformance.manifest import BadEntryError, Case, Folder
from tests.conformance.runner import FAILED, PASSED, SKIPPED, Result, judge_folder, run
from tests.fakes import tpm_forge as forge
from tests.vectors import VECTORS, needs_vectors

FOLDERS = sorted(path.parent for path in VECTORS.rglob("manifest.json")) if VECTORS.is_dir() else []


@needs_vectors
@pytest.mark.filterwarnings("ignore:Attribute's length must be:UserWarning")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(VECTORS)))
def test_recorded_evidence(folder: Path) -> None:
    """Every entry of a folder gets its recorded verdict and claims, or is skipped because its kind is not judged."""
    results = list(judge_folder(folder))
    assert results
    assert [result for result in results if result.outcome == FAILED] == []
    if folder.name in {"tpm", "snp", "azure"}:
        assert [result for result in results if result.outcome != PASSED] == []


QUOTE = forge.Quote(forge.ec_key())
ENTRY: dict[str, Any] = {
    "name": "good",
    "kind": "quote",
    "files": {"attest": "attest", "signature": "signature", "ak_public": "ak", "pcrs": "pcrs.json"},
    "expect": "valid",
    "claims": {"nonce": QUOTE.extra_data.hex(), "ak_name": forge.name(QUOTE.public).hex(), "clock": 1234},
}


def folder(path: Path, *entries: dict[str, Any] | object) -> list[Result]:
    """The results of a folder with a good quote and these entries."""
    pcrs = {bank: {str(i): v.hex() for i, v in values.items()} for bank, values in QUOTE.values.items()}
    (path / "attest").write_bytes(QUOTE.attest())
    (path / "signature").write_bytes(QUOTE.signature())
    (path / "ak").write_bytes(QUOTE.public)
    (path / "pcrs.json").write_text(json.dumps(pcrs))
    (path / "manifest.json").write_text(json.dumps([ENTRY, *entries]))
    return list(judge_folder(path))


def derived(*operations: dict[str, Any], expect: str = "invalid") -> dict[str, Any]:
    return {"name": "derived", "base": "good", "mutation": list(operations), "expect": expect}


def op(name: str, **members: object) -> dict[str, Any]:
    return {"op": name, **members}


@pytest.mark.parametrize(
    "operation",
    [
        op("xor", file="attest", offset=0, mask="01"),
        op("xor", file="attest", offset=-1, mask="80"),
        op("set", file="signature", offset=2, hex="000c"),
        op("truncate", file="attest", bytes=1),
        op("append", file="ak_public", hex="00"),
        op("swap_file", file="attest", **{"with": "signature"}),
        op("json_set", file="pcrs", path=["sha256", "4"], value="00" * 32),
        op("json_del", file="pcrs", path=["sha256", "4"]),
        op("claim", key="nonce", value="00"),
        op("claim", key="clock", value=1),
    ],
    ids=lambda operation: operation["op"],
)
def test_mutations(operation: dict[str, Any], tmp_path: Path) -> None:
    """Each operation is applied, so that good evidence turns bad, and back where it changes nothing."""
    assert [result.outcome for result in folder(tmp_path, derived(operation))] == [PASSED, PASSED]
    assert folder(tmp_path, derived(operation, expect="valid"))[1].outcome == FAILED


def test_mutations_that_change_nothing(tmp_path: Path) -> None:
    """Operations that end where they began leave the evidence good; they apply in order, also over several bases."""
    twice = op("xor", file="attest", offset=9, mask="ff")
    results = folder(
        tmp_path,
        derived(twice, twice, expect="valid"),
        derived(op("truncate", file="ak_public", bytes=0), expect="valid"),
        {"name": "one", "base": "good", "mutation": [twice], "expect": "invalid"},
        {"name": "two", "base": "one", "mutation": [twice], "expect": "valid"},
    )
    assert {result.outcome for result in results} == {PASSED}


@pytest.mark.parametrize(
    "operation",
    [
        {"target": "attest", "offset": 0, "xor": "01"},
        {"target": "attest", "truncate": 12},
        {"target": "attest", "truncate": 0},
        {"target": "ak_public", "append": "00"},
        {"replace": {"attest": "signature"}},
    ],
    ids=str,
)
def test_short_mutations(operation: dict[str, Any], tmp_path: Path) -> None:
    """The shorter form of each mutation is applied, so that good evidence turns bad."""
    assert [result.outcome for result in folder(tmp_path, derived(operation))] == [PASSED, PASSED]
    assert folder(tmp_path, derived(operation, expect="valid"))[1].outcome == FAILED


def test_short_mutations_that_change_nothing(tmp_path: Path) -> None:
    """`truncate` says how many bytes stay; an entry can name the target of its mutations, and mix both forms."""
    size = len(QUOTE.attest())
    again = op("xor", file="attest", offset=9, mask="ff")
    results = folder(
        tmp_path,
        {**derived({"truncate": size}, expect="valid"), "target": "attest"},
        {**derived({"offset": 9, "xor": "ff"}, again, expect="valid"), "target": "attest"},
        {**derived({"append": "0000"}, {"truncate": size}, expect="valid"), "target": "attest"},
        derived({"verify_at": "2026-01-01T00:00:00Z"}, expect="valid"),
    )
    assert {result.outcome for result in results} == {PASSED}


def test_what_a_judge_is_given(tmp_path: Path) -> None:
    """A case knows its time, which a mutation can change, its origin, and has one signer's certificate."""
    entry = {"name": "a", "files": {"vcek": "ak", "report": "ak"}, "verify_at": "2025-06-01T00:00:00Z"}
    other = {"name": "b", "base": "a", "mutation": [{"replace": {"vlek": "attest"}}, {"verify_at": "2049-01-01"}]}
    folder(tmp_path, entry, other)
    held = Folder(tmp_path)
    first, second = held.case(entry), held.case(other)
    assert (first.at, second.at) == (datetime(2025, 6, 1, tzinfo=UTC), datetime(2049, 1, 1, tzinfo=UTC))
    assert (first.files.keys(), second.files.keys()) == ({"vcek", "report"}, {"vlek", "report"})
    assert second.origin == entry
    with pytest.raises(BadEntryError):
        _ = held.case(ENTRY).at


def test_members_that_are_no_lists(tmp_path: Path) -> None:
    """A section makes entries of a manifest's member; members that no section knows and that are no lists are words."""
    (tmp_path / "manifest.json").write_text(json.dumps({"about": {"x": 1}, "answers": {"a": 1, "b": 2}}))
    assert Folder(tmp_path).entries == []
    made = Folder(tmp_path, {"answers": lambda value: [{"name": name} for name in value]})
    assert made.entries == [{"name": "a"}, {"name": "b"}]


def test_policies_and_disagreements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every policy case gets its verdict, and a claim read otherwise than recorded fails whatever is expected."""

    def judge(case: Case) -> None:
        if case.claims["clock"] != 1234:
            raise DisagreementError("claim clock")

    def policy(value: object, case: Case) -> None:
        if not value:
            raise VerificationError("no")

    monkeypatch.setitem(kinds.KINDS, "quote", kinds.Kind(frozenset({"attest"}), judge, policy=policy))  # type: ignore[arg-type]
    yes, no = {"policy": {"a": 1}, "expect": "valid"}, {"policy": {}, "expect": "invalid"}
    results = folder(
        tmp_path,
        {**ENTRY, "name": "x", "policy_cases": [yes, no]},
        {**ENTRY, "name": "x", "policy_cases": [yes, {**no, "expect": "valid"}]},
        derived(op("claim", key="clock", value=1)),
        {**ENTRY, "name": "x", "expect_default_policy": "valid"},
    )
    assert [result.outcome for result in results] == [PASSED, PASSED, FAILED, FAILED, FAILED]
    assert [result.why for result in results[2:]] == [
        "policy {}: expected valid, found invalid (no)",
        "claim clock",
        "bad entry: a quote has no default policy",
    ]


def test_mutation_of_one_file_of_several(tmp_path: Path) -> None:
    """A file inside an object of files is mutated under its own name; a list of files has no names."""
    (tmp_path / "kernel").write_bytes(b"kernel")
    value = predict_pcr11({".linux": b"kernel"}, [], SHA256).hex()
    uki = {"name": "uki", "kind": "pcr11", "files": {"sections": {".linux": "kernel"}, "ca": ["ak"]},
           "claims": {"sha256": {"": value}}, "expect": "valid"}  # fmt: skip
    changed = {**derived(op("append", file=".linux", hex="00")), "base": "uki"}
    listed = {**derived(op("append", file="ca", hex="00")), "base": "uki"}
    results = folder(tmp_path, uki, changed, listed)
    assert [result.outcome for result in results] == [PASSED, PASSED, PASSED, FAILED]
    assert "not a single file" in results[-1].why


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (derived(op("rotate", file="attest")), "unknown mutation 'rotate'"),
        (derived(op("xor", file="nothing", offset=0, mask="01")), "mutation of a file that the base has not"),
        (derived(op("xor", file="attest", offset=99999, mask="01")), "outside the file"),
        (derived(op("xor", file="attest", offset=-99999, mask="01")), "outside the file"),
        (derived(op("set", file="attest", offset=0, hex="")), "outside the file"),
        (derived(op("xor", file="attest", offset="x", mask="01")), "makes no sense"),
        (derived(op("xor", file="attest", offset=0, mask="zz")), "makes no sense"),
        (derived(op("truncate", file="attest", bytes=99999)), "drops 99999"),
        (derived(op("json_del", file="pcrs", path=["sha1", "4"])), "makes no sense"),
        (derived(op("json_set", file="attest", path=["x"], value=1)), "makes no sense"),
        (derived(op("json_set", file="pcrs", path=[], value=1)), "makes no sense"),
        (derived(op("swap_file", file="attest", **{"with": "missing"})), "no file 'missing'"),
        (derived(op("swap_file", file="attest", **{"with": "../../etc/passwd"})), "no file"),
        (derived(op("swap_file", file="attest", **{"with": ["ak"]})), "no single file 'attest'"),
        (derived({"file": "attest"}), "makes no sense"),
        (derived(*["xor"]), "makes no sense"),  # type: ignore[arg-type]
        (derived({}), "makes no sense"),
        (derived({"target": "attest", "rotate": 1}), "makes no sense"),
        (derived({"target": "attest", "xor": "01"}), "makes no sense"),
        (derived({"target": "attest", "offset": "0", "xor": "01"}), "makes no sense"),
        (derived({"target": "attest", "truncate": 99999}), "drops -"),
        (derived({"append": "00"}), "mutation of 'report', which is not"),
        (derived({"target": "nothing", "offset": 0, "xor": "01"}), "mutation of 'nothing', which is not"),
        (derived({"replace": {"attest": "missing"}}), "no file 'missing'"),
        (derived({"replace": "attest"}), "makes no sense"),
        ({**ENTRY, "name": "x", "policy_cases": [{"policy": {}}]}, "a quote has no policies"),
        ({"name": "x", "base": "missing", "expect": "invalid"}, "no base 'missing'"),
        ({"name": "x", "base": "x", "expect": "invalid"}, "no base 'x'"),
        ({**ENTRY, "name": "x", "expect": "perhaps"}, "expected perhaps, found valid"),
        ({key: value for key, value in ENTRY.items() if key != "expect"}, "expected None, found valid"),
        ({**ENTRY, "name": "x", "claims": {"nonce": "zz"}}, "claims.nonce is not hex"),
        ({**ENTRY, "name": "x", "files": {"attest": "attest"}}, "no single file"),
        ({**ENTRY, "name": "x", "expect_default_policy": "valid"}, "default policy: expected valid, found invalid"),
        ({**ENTRY, "name": "x", "expect_if_sha1_allowed": "valid"}, "refused for SHA-1 alone"),
    ],
)
def test_nonsense_fails(entry: dict[str, Any], why: str, tmp_path: Path) -> None:
    """An entry that makes no sense, or whose expectation is not met, fails with the reason and stops nothing."""
    good, result = folder(tmp_path, entry)
    assert (good.outcome, result.outcome) == (PASSED, FAILED)
    assert why in result.why


def test_default_policy(tmp_path: Path) -> None:
    """A key that nothing beside it vouches for is genuine, and refused by default."""
    assert folder(tmp_path, {**ENTRY, "name": "x", "expect_default_policy": "invalid"})[1].outcome == PASSED


@pytest.mark.parametrize(
    "entry",
    [
        {**ENTRY, "name": "x", "kind": "hcl"},
        {**ENTRY, "name": "x", "kind": "quote", "files": {"quote": "attest"}},
        {**ENTRY, "name": "x", "tee": "sgx"},
        {**ENTRY, "name": "x", "files": None},
        {"name": "x"},
        {"name": "x", "base": "good", "kind": "mutation", "mutation": {"xor": 1}},
    ],
)
def test_what_no_verifier_knows_is_skipped(entry: dict[str, Any], tmp_path: Path) -> None:
    """An entry of a kind, of a platform or with files that no verifier of this house judges is skipped."""
    assert folder(tmp_path, entry)[1].outcome == SKIPPED


def test_same_kinds_of_other_platforms(tmp_path: Path) -> None:
    """The same kinds are judged in a folder of any name, also where the manifest is an object that holds lists."""
    for tee in ("az-snp-vtpm", "tpm"):
        folder(tmp_path)
        (tmp_path / "manifest.json").write_text(json.dumps({"about": "x", "cases": [{**ENTRY, "tee": tee}]}))
        assert [result.outcome for result in judge_folder(tmp_path)] == [PASSED]


@pytest.mark.parametrize("manifest", ["{", "7"])
def test_unreadable_manifest(manifest: str, tmp_path: Path) -> None:
    """A manifest that cannot be read fails as such."""
    (tmp_path / "manifest.json").write_text(manifest)
    assert [result.outcome for result in judge_folder(tmp_path)] == [FAILED]


def test_exceptions_that_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception outside our error tree is a failure even where a refusal is expected."""

    def crash(_case: object) -> None:
        raise ValueError("from a library")

    monkeypatch.setitem(kinds.KINDS, "quote", kinds.Kind(frozenset({"attest"}), crash))  # type: ignore[arg-type]
    results = folder(tmp_path, {**ENTRY, "name": "x", "expect": "invalid"})
    assert [result.outcome for result in results] == [FAILED, FAILED]
    assert "from a library" in results[0].why


def test_report(tmp_path: Path) -> None:
    """The report has a table for each folder, names what failed and what was skipped, and ends with the totals."""
    for name, entries in (("one", [{**ENTRY, "expect": "invalid", "name": "bad"}]), ("two", [])):
        (tmp_path / name).mkdir()
        folder(tmp_path / name, *entries)
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "manifest.json").write_text(json.dumps([{"name": "x", "kind": "hcl"}]))
    out = io.StringIO()
    assert run(tmp_path, out) == 1
    lines = out.getvalue().splitlines()
    assert lines[-1] == "2 passed, 1 failed, 1 skipped"
    assert "  FAILED bad: expect: expected invalid, found valid" in lines
    assert "  skipped: no verifier for three (1 entries)" in lines
    assert {"one", "two", "three"} <= set(lines)


def test_exit_status(tmp_path: Path) -> None:
    """A run succeeds only if something was judged and nothing failed."""
    folder(tmp_path)
    assert run(tmp_path, io.StringIO()) == 0
    (tmp_path / "manifest.json").write_text("[]")
    assert run(tmp_path, io.StringIO()) == 1
    assert runner.PASSED == "passed"
