# SPDX-License-Identifier: Apache-2.0
"""Walks folders of recorded evidence and compares the verifiers' verdicts with the recorded ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TextIO

from keys.errors import RoomkeyError
from keys.tee import Tee
from tests.conformance import kinds, kinds_azure, kinds_sev, kinds_snp
from tests.conformance.kinds import ClaimDiffersError, DisagreementError, Kind
from tests.conformance.manifest import BadEntryError, Case, Folder, Section

# Each has KINDS, and may have SECTIONS (manifests' members that are no lists of entries) and UNNAMED (the kind of
# entries that name none, by the files that they have).
MODULES: tuple[ModuleType, ...] = (kinds, kinds_snp, kinds_sev, kinds_azure)
SECTIONS: Mapping[str, Section] = {
    name: section for module in MODULES for name, section in getattr(module, "SECTIONS", {}).items()
}
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


Judge = Callable[[Case], None]


class Result(NamedTuple):
    name: str
    kind: str
    outcome: str
    why: str = ""


def run(root: Path, out: TextIO) -> int:
    """Judge every folder below `root` that has a manifest.json; 0 if something was judged and nothing failed."""
    totals: Counter[str] = Counter()
    for manifest in sorted(root.rglob("manifest.json")):
        name = str(manifest.parent.relative_to(root))
        results = list(judge_folder(manifest.parent))
        _print(root.name if name == "." else name, results, out)
        totals.update(result.outcome for result in results)
    print(f"{totals[PASSED]} passed, {totals[FAILED]} failed, {totals[SKIPPED]} skipped", file=out)
    return 0 if totals[PASSED] and not totals[FAILED] else 1


def judge_folder(path: Path) -> Iterator[Result]:
    """One result for each entry of the folder's manifest."""
    try:
        folder = Folder(path, SECTIONS)
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        yield Result("manifest.json", "", FAILED, f"cannot be read: {error!r:.120}")
        return
    known = any(_kind_of(entry) for entry in folder.entries)
    for entry in folder.entries:
        try:
            origin = folder.origin(entry)
        except BadEntryError as error:
            yield Result(str(entry.get("name")), "", FAILED if known else SKIPPED, f"bad entry: {error}")
            continue
        name = str(entry.get("kind", _name_of(origin)))
        kind = _kind_of({**origin, "kind": name})
        if kind is None:
            yield Result(str(entry.get("name")), name, SKIPPED)
        else:
            wrong = judge_entry(folder, entry, kind)
            yield Result(str(entry.get("name")), name, FAILED if wrong else PASSED, wrong)


def _name_of(entry: Mapping[str, Any]) -> object:
    """The name of the kind of an entry that is not derived, which may stand nowhere but in its files."""
    files = entry.get("files")
    if "kind" not in entry and isinstance(files, dict):
        for module in MODULES:
            for needed, name in getattr(module, "UNNAMED", {}).items():
                if needed <= files.keys():
                    return name
    return entry.get("kind")


def _kind_of(entry: Mapping[str, Any]) -> Kind | None:
    """How an entry that is not derived is judged; None where no verifier knows this kind of evidence."""
    name, files, tee = str(_name_of(entry)), entry.get("files"), entry.get("tee")
    for module in MODULES:
        kind: Kind | None = module.KINDS.get(name)
        if kind is None or (tee in set(Tee) and tee not in kind.tees):
            continue
        if not kind.files or (isinstance(files, dict) and not kind.files.isdisjoint(files)):
            return kind
    return None


def judge_entry(folder: Folder, entry: Mapping[str, Any], kind: Kind) -> str:
    """What is wrong, with expected and found; "" where the verifiers say what is recorded."""
    try:
        case = folder.case(entry)
        wrong = _compare("expect", entry.get("expect"), _verdict(kind.judge, case))
        if not wrong and "expect_default_policy" in entry:
            if kind.by_default is None:
                raise BadEntryError(f"a {case.kind} has no default policy")
            wrong = _compare("default policy", entry["expect_default_policy"], _verdict(kind.by_default, case))
        if not wrong and entry.get("expect_if_sha1_allowed") == "valid" and "sha1" not in _verdict(kind.judge, case)[1]:
            wrong = f"expected to be refused for SHA-1 alone, found {_verdict(kind.judge, case)[1]}"
        for one in entry.get("policy_cases", []):
            if kind.policy is None:
                raise BadEntryError(f"a {case.kind} has no policies")
            under = partial(kind.policy, one.get("policy"))
            wrong = wrong or _compare(f"policy {one.get('policy')}", one.get("expect"), _verdict(under, case))
    except BadEntryError as error:
        return f"bad entry: {error}"
    except DisagreementError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  an exception that is not ours is the product's failure, not the runner's
        return f"expected a verdict, found {error!r:.200}"
    return wrong


def _verdict(judge: Judge, case: Case) -> tuple[str, str]:
    try:
        judge(case)
    except (RoomkeyError, ClaimDiffersError) as error:
        return "invalid", str(error)
    return "valid", ""


def _compare(what: str, expected: object, verdict: tuple[str, str]) -> str:
    found, reason = verdict
    if expected == found:
        return ""
    return f"{what}: expected {expected}, found {found}" + (f" ({reason})" if reason else "")


def _print(folder: str, results: list[Result], out: TextIO) -> None:
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        table[result.kind][result.outcome] += 1
    print(f"\n{folder}\n  {'kind':<28}{PASSED:>8}{FAILED:>8}{SKIPPED:>9}", file=out)
    for kind, counts in sorted(table.items()):
        print(f"  {kind:<28.27}{counts[PASSED]:>8}{counts[FAILED]:>8}{counts[SKIPPED]:>9}", file=out)
    if results and all(result.outcome == SKIPPED for result in results):
        print(f"  skipped: no verifier for {folder} ({len(results)} entries)", file=out)
    for result in results:
        if result.outcome == FAILED:
            print(f"  FAILED {result.name}: {result.why}", file=out)
