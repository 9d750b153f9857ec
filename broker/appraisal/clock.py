# SPDX-License-Identifier: Apache-2.0
"""Has a machine been put back to an earlier state? A TPM's counters and clock only go on. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.claims import Claims
from broker.trace import Stage, Trace

_CLOCK = ("reset_count", "restart_count", "clock")
_BOOT = 2  # the first of them stay the same until the machine is reset or suspended


def clock_not_behind(previous: Mapping[str, Any] | None, claims: Claims, challenged_at: int, trace: Trace) -> bool:
    """Whether the TPM's clock goes on from where it was last seen: a lower reset or restart count, or at the same
    counts a lower clock, means a machine put back to a snapshot or a TPM that was cleared.

    `previous` is what `clock_mark` gave at the last decision about the same machine for the same owner. Evidence whose
    challenge was issued before that one was shown may be older than it, but not from an earlier boot: who gets a
    challenge, and then boots an old snapshot to answer it, is still refused.
    """
    name = "TPM's clock goes on from where it was last seen"
    if previous is None or "clock" not in claims.facts:
        trace.not_judged(Stage.IDENTITY, name)
        return True
    before, now = _counts(previous), _counts(claims.facts)
    if challenged_at < previous["attested_at"] and now[:_BOOT] >= before[:_BOOT]:
        trace.not_judged(Stage.IDENTITY, name)
        return True
    return trace.check(
        Stage.IDENTITY,
        name,
        now >= before,
        expected=f"at least {_clock_words(before)}",
        found=_clock_words(now),
        mend=f"if the machine was restored or its TPM cleared on purpose: roomkey guest readmit NAME, "
        f"NAME being the instance with {claims.instance_ids[0]}",
    )


def clock_mark(previous: Mapping[str, Any] | None, claims: Claims, attested_at: int) -> dict[str, Any] | None:
    """The latest clock seen of this machine, for the next `clock_not_behind`; None where it has none."""
    if "clock" not in claims.facts:
        return None
    if previous is not None and _counts(previous) > _counts(claims.facts):
        return dict(previous)
    return dict(zip(_CLOCK, _counts(claims.facts), strict=True)) | {"attested_at": attested_at}


def _counts(facts: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(facts[name] for name in _CLOCK)


def _clock_words(counts: tuple[int, ...]) -> str:
    return ", ".join(f"{name} {count}" for name, count in zip(_CLOCK, counts, strict=True))
