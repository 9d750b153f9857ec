# SPDX-License-Identifier: Apache-2.0
"""The judges of recorded SEV-SNP evidence compare everything that is recorded, and know all of its claims."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.conformance import kinds_snp, runner
from tests.conformance.manifest import Folder
from tests.vectors import VECTORS, needs_vectors

pytestmark = needs_vectors

WORDS = {"name", "kind", "source", "source_commit", "source_licence", "reason", "reference_code", "origin", "role"}
SETTING = {"files", "expect", "verify_at", "policy_cases", "parse_only", "encoding"}  # used, not compared
NOT_READ = {"hwid_encoding", "spl4", "spl5", "spl6", "spl7", "page_type", "contents", "gpa", "step"}
EMPTY = {"kernel_hex", "initrd_hex", "cmdline", "vcpu_type", "vcpu_sig"}  # may be null, and are tried as they are
LAUNCH = {"mode", "ovmf", "vcpus", "guest_features", "vmm", *EMPTY}  # inputs


def folder() -> Folder:
    return Folder(VECTORS / "snp", kinds_snp.SECTIONS)


def outcome(held: Folder, entry: Mapping[str, Any]) -> str:
    kind = runner._kind_of(entry)
    assert kind is not None
    return runner.judge_entry(held, entry, kind)


def leaves(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all recorded values that the product has an opinion on."""
    skipped = WORDS | SETTING | NOT_READ | LAUNCH
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if members is None:
        yield way
        return
    for key, inner in members:
        if key not in skipped:
            yield from leaves(inner, (*way, key))


def changed(entry: Mapping[str, Any], way: tuple[Any, ...]) -> dict[str, Any]:
    made = copy.deepcopy(dict(entry))
    holder: Any = made
    for step in way[:-1]:
        holder = holder[step]
    value = holder[way[-1]]
    match value:
        case bool():
            holder[way[-1]] = not value
        case int():
            holder[way[-1]] = value ^ 1
        case _:  # no hex and no time any more either
            holder[way[-1]] = "x" + str(value)
    return made


def test_every_recorded_value_counts() -> None:
    """Each value that is recorded of evidence fails its entry when it is another, genuine evidence or not."""
    held = folder()
    checked = 0
    for entry in held.entries:
        if "base" in entry:
            continue
        assert outcome(held, entry) == "", entry["name"]
        for way in leaves(entry):
            checked += 1
            assert outcome(held, changed(entry, way)), (entry["name"], way)
    assert checked > 1000


def test_every_claim_is_known() -> None:
    """No recorded claim about a report is a remark: the product reads all of them."""
    held = folder()
    for entry in held.entries:
        if runner._name_of(entry) != "snp-report":
            continue
        report = kinds_snp.parse_report(held.case(entry).bytes("report"))
        known = kinds_snp._report_claims(report, kinds_snp.Line(entry["product"]))
        assert entry["claims"].keys() == known.keys()
        for name, value in known.items():
            if isinstance(value, dict):
                assert entry["claims"][name].keys() == value.keys()


@pytest.mark.parametrize(
    ("policy", "expect"),
    [
        ({"allow_debug": False}, "valid"),
        ({"vmpl": 0, "allow_migrate_ma": False}, "valid"),
        ({"allow_smt": True}, "valid"),
        ({"allow_smt": False}, "invalid"),
        ({"min_report_version": 3}, "invalid"),
    ],
)
def test_policies(policy: dict[str, Any], expect: str) -> None:
    """A policy case is judged by the product's floors, under recorded names or the floors' own."""
    held = folder()
    entry = next(e for e in held.entries if e.get("claims", {}).get("version") == 2 and e["expect"] == "valid"
                 and not e["claims"]["policy_bits"]["debug_allowed"])  # fmt: skip
    assert outcome(held, {**entry, "policy_cases": [{"policy": policy, "expect": expect}]}) == ""
    other = "valid" if expect == "invalid" else "invalid"
    assert "policy" in outcome(held, {**entry, "policy_cases": [{"policy": policy, "expect": other}]})
    assert "unknown policy 'mood'" in outcome(held, {**entry, "policy_cases": [{"policy": {"mood": 1}}]})


def test_chain_of_ours() -> None:
    """An entry without CA certificates is judged under the built-in ones, one with a wrong one under that alone."""
    held = folder()
    entry = next(e for e in held.entries if e.get("product") == "Genoa" and "vcek" in e["files"])
    alone = {name: path for name, path in entry["files"].items() if name not in {"ask", "ark"}}
    assert outcome(held, {**entry, "files": alone}) == ""
    for name, path in (("ask", "certs/milan-ask.der"), ("ark", "certs/milan-ark.der")):
        assert outcome(held, {**entry, "files": {**alone, name: path}})


def test_sections_of_other_shapes() -> None:
    """What the manifests hold beside lists becomes entries, of any names and values."""
    launches = kinds_snp._launches({"cases": [{"ovmf": "x"}, {"ovmf": "y", "expect": "invalid"}], "tool": "t"})
    assert [(entry["expect"], entry["files"]) for entry in launches] == [
        ("valid", {"ovmf": "x"}),
        ("invalid", {"ovmf": "y"}),
    ]
    manifest = json.loads((VECTORS / "snp" / "manifest.json").read_text())
    made = len(kinds_snp._launches(manifest["launch_digest"]))
    assert made == len(manifest["launch_digest"]["cases"]) + 1
    assert len(folder().entries) == made + sum(len(value) for value in manifest.values() if isinstance(value, list))
