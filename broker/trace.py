# SPDX-License-Identifier: Apache-2.0
"""The trace of one decision: every check in order, what was expected, what was found, and what would mend it.

Verifiers and appraisal write into the same trace. The owner reads it; the guest never does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from keys.errors import RoomkeyError, VerificationError

MAX_VALUE_CHARS = 512  # characters of an expected or found value that a trace keeps


class Stage(StrEnum):
    """What a check is about, in the order in which trust is built."""

    ROOT_OF_TRUST = "root of trust"
    ENDORSEMENT = "endorsement"
    MEASUREMENT = "measurement"
    IDENTITY = "identity"
    TRUST = "trust"
    SECRET = "secret"  # noqa: S105  a stage of the trace, not a secret


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_REQUIRED = "not required"
    NOT_JUDGED = "not judged"


class Check(NamedTuple):
    """One line of a trace. `expected`, `found` and `mend` are words for the owner; empty means nothing to say."""

    stage: Stage
    name: str
    verdict: Verdict
    expected: str = ""
    found: str = ""
    mend: str = ""


@dataclass(slots=True)
class Trace:
    """The checks of one decision. Only ever appended to."""

    checks: list[Check] = field(default_factory=list)

    def check(
        self,
        stage: Stage,
        name: str,
        passed: bool,
        *,
        expected: object = "",
        found: object = "",
        mend: str = "",
    ) -> bool:
        """Record one check and hand its verdict back, for appraisal, which goes on after a failed check."""
        verdict = Verdict.PASSED if passed else Verdict.FAILED
        self.checks.append(Check(stage, name, verdict, _short(expected), _short(found), "" if passed else mend))
        return passed

    def require(
        self,
        stage: Stage,
        name: str,
        passed: bool,
        *,
        expected: object = "",
        found: object = "",
        mend: str = "",
        error: type[RoomkeyError] = VerificationError,
    ) -> None:
        """Record one check and raise `error` if it failed, for verifiers, where later steps stand on earlier ones."""
        if not self.check(stage, name, passed, expected=expected, found=found, mend=mend):
            raise error(name, expected=_short(expected) or None, found=_short(found) or None, mend=mend or None)

    @contextmanager
    def recording(self, stage: Stage) -> Iterator[None]:
        """Record what the body raises, a parser's refusal say, as a failed check of `stage`."""
        try:
            yield
        except RoomkeyError as error:
            self.fail(stage, error)
            raise

    def fail(self, stage: Stage, error: RoomkeyError) -> None:
        """Record an error that came from elsewhere (a parser, a library) as a failed check."""
        self.checks.append(
            Check(stage, error.message, Verdict.FAILED, _short(error.expected or ""), _short(error.found or ""),
                  error.mend or "")
        )  # fmt: skip

    def not_required(self, stage: Stage, name: str, *, found: object = "") -> None:
        """Record a check that the owner's settings leave out, so that nothing passes in silence."""
        self.checks.append(Check(stage, name, Verdict.NOT_REQUIRED, "", _short(found)))

    def not_judged(self, stage: Stage, name: str) -> None:
        """Record a check that an earlier failure made meaningless."""
        self.checks.append(Check(stage, name, Verdict.NOT_JUDGED))

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.verdict is Verdict.FAILED]

    def to_json(self) -> list[dict[str, str]]:
        return [
            {
                "stage": check.stage.value,
                "name": check.name,
                "verdict": check.verdict.value,
                "expected": check.expected,
                "found": check.found,
                "mend": check.mend,
            }
            for check in self.checks
        ]

    @classmethod
    def from_json(cls, items: list[dict[str, Any]]) -> Trace:
        """The trace that `to_json` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            [Check(**{**item, "stage": Stage(item["stage"]), "verdict": Verdict(item["verdict"])}) for item in items]
        )


def _short(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "…"
