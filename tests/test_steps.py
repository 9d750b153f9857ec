# SPDX-License-Identifier: Apache-2.0
"""What a verifier did not come to stands in the trace as not judged."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from broker.evidence import STEPS as ATTEMPT
from broker.trace import Check, Stage, Trace, Verdict
from broker.verifiers import az_snp_vtpm, snp, tpm
from broker.verifiers.steps import in_steps
from keys.errors import FreshnessError, VerificationError

STEPS = ((Stage.ROOT_OF_TRUST, "first"), (Stage.TRUST, "second"), (Stage.MEASUREMENT, "third"))


def left(begun: int, error: Exception | None) -> list[Check]:
    """The trace after so many steps were begun, the last of which ended in `error`."""
    trace = Trace()
    expected: Any = pytest.raises(type(error)) if error is not None else nullcontext()
    with expected, in_steps(trace, STEPS, genuine=FreshnessError) as next_step:
        for _ in range(begun):
            next_step()
        if error is not None:
            raise error
    return trace.checks


@pytest.mark.parametrize("begun", range(4))
@pytest.mark.parametrize("error", [VerificationError("no"), ValueError("a fault of our own")])
def test_the_steps_behind_a_failed_one_are_not_judged(begun: int, error: Exception) -> None:
    """In their order, and the failed one, which stands there already, not again."""
    assert left(begun, error) == [Check(stage, name, Verdict.NOT_JUDGED) for stage, name in STEPS[begun:]]


@pytest.mark.parametrize("error", [None, FreshnessError("genuine all the same")])
def test_where_all_was_judged_nothing_is_added(error: Exception | None) -> None:
    """After the last step, and after an error that comes when all steps are done."""
    assert left(3, error) == []
    assert left(1, FreshnessError("genuine")) == []


@pytest.mark.parametrize("steps", [tpm.STEPS, snp.STEPS, az_snp_vtpm.STEPS, ATTEMPT])
def test_each_step_has_a_name_of_its_own(steps: tuple[tuple[Stage, str], ...]) -> None:
    """An owner can tell them apart."""
    assert len({name for _, name in steps}) == len(steps)
