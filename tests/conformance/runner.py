# SPDX-License-Identifier: Apache-2.0
"""Walks folders of recorded evidence and compares the verifiers' verdicts with the recorded ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from keys.errors import RoomkeyError
from keys.tee import Tee
from tests.conformance.kinds import KINDS, ClaimDiffersError, judge_by_default
from tests.conformance.manifest import BadEntryError, Case, Folder

Judge = Callable[[Case], None]
WITHOUT_TPM = frozenset(Tee) - {Tee.TPM, Tee.AZ_SNP_VTPM, Tee.AZ_TDX_VTPM}  # an entry's "tee", where it has one
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


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
        folder = Folder(path)
    except (ValueError, AttributeError) as error:
        yield Result("manifest.json", "", FAILED, f"cannot be read: {error!r:.120}")
        return
    known = any(_judge_of(entry) for entry in folder.entries)
    for entry in folder.entries:
        try:
            origin = folder.origin(entry)
        except BadEntryError as error:
            yield Result(str(entry.get("name")), "", FAILED if known else SKIPPED, f"bad entry: {error}")
            continue
        kind = str(entry.get("kind", origin.get("kind")))
        judge = _judge_of({**origin, "kind": kind})
        if judge is None:
            yield Result(str(entry.get("name")), kind, SKIPPED)
        else:
            wrong = judge_entry(folder, entry, judge)
            yield Result(str(entry.get("name")), kind, FAILED if wrong else PASSED, wrong)


def _judge_of(entry: Mapping[str, Any]) -> Judge | None:
    """How an entry that is not derived is judged; None where no verifier knows this kind of evidence.

    Other platforms name their kinds alike, "quote" say: an entry's platform and the files it has tell them apart.
    """
    kind, files = KINDS.get(str(entry.get("kind"))), entry.get("files")
    if kind is None or not isinstance(files, dict) or kind.files.isdisjoint(files) or entry.get("tee") in WITHOUT_TPM:
        return None
    return kind.judge


def judge_entry(folder: Folder, entry: Mapping[str, Any], judge: Judge) -> str:
    """What is wrong, with expected and found; "" where the verifiers say what is recorded."""
    try:
        case = folder.case(entry)
        wrong = _compare("expect", entry.get("expect"), _verdict(judge, case))
        if not wrong and "expect_default_policy" in entry:
            wrong = _compare("default policy", entry["expect_default_policy"], _verdict(judge_by_default, case))
        if not wrong and entry.get("expect_if_sha1_allowed") == "valid" and "sha1" not in _verdict(judge, case)[1]:
            wrong = f"expected to be refused for SHA-1 alone, found {_verdict(judge, case)[1]}"
    except BadEntryError as error:
        return f"bad entry: {error}"
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
