# SPDX-License-Identifier: Apache-2.0
"""Is the disk that a guest tells of the one that the key is for, and what does the record of it become? Pure.

A record is in one of two states. Its owner has ordered a new volume (`grant`): one guest, whoever comes first of those
that the rule lets in, gets the key to make it with, and nobody else. Or the volume is known by its pin: then a disk
that is empty, damaged or another one is no reason to make a new one. It is refused, and its owner reads what was found.

Checks, in this order:

    no record        (1) the guest has a sound volume, if it tells of one: nobody has ordered a new one
    a new volume     (2) the key is still the version that the volume is to be made with
                     (3) no other guest has been granted it
                     (4) the guest tells of a disk that is empty or may be one that it has begun, or of the volume that
                         it has made with that key
    a known volume   (5) the guest's disk is that volume, if it tells of one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from broker.trace import Stage, Trace
from keys.report import Report, Step

SOUND = "the disk has a sound LUKS2 volume"
CURRENT = "the key is the one that the new volume is to be made with"
GRANTED = "the new volume is granted to no other guest"
MADE = "the guest makes the new volume"
PINNED = "the disk is the volume that the key is for"
CHECKS = frozenset((SOUND, CURRENT, GRANTED, MADE, PINNED))

LOST = "do not trust this disk; if it is lost: roomkey volume provision {path} --again"


@dataclass(frozen=True, slots=True)
class Volume:
    """What is known of the volume that a key is for. `pin`: SHA-256 in hex, None as long as it is not made. `grant`:
    the version of the key to make it with, None once it is made; `granted`: the ids of the guest that has begun to.

    What is to be done to its keyslots: `next` waits to be added (a version of the staged key), `last` to be removed (a
    version of the key itself), `recovery` to be added (a version of the staged passphrase).
    """

    pin: str | None
    grant: int | None = None
    granted: tuple[str, ...] = ()
    next: int | None = None
    last: int | None = None
    recovery: int | None = None

    def to_body(self) -> dict[str, Any]:
        return asdict(self) | {"granted": [*self.granted]}

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Volume:
        """What `to_body` wrote; a body of an earlier release of Roomkey has a pin and no more."""
        return cls(**{**body, "granted": tuple(body.get("granted", ()))})


class Judged(NamedTuple):
    """`volume`: what the record becomes; None where it stays. `format`: the guest may make the volume."""

    allowed: bool
    volume: Volume | None = None
    format: bool = False


def judge_volume(
    path: str, volume: Volume | None, report: Report | None, version: int, guest: Sequence[str], trace: Trace
) -> Judged:
    """Checks (1) to (5). `version`: of the key at `path` that would be released, `guest`: all ids of who asks.
    `report`: what it tells of its disk; None from guests that do not.
    """
    if volume is None:
        if report is None or report.pin is not None:
            return Judged(True)
        mend = f"if the disk is to be made anew: roomkey volume provision {path}"
        return Judged(trace.check(Stage.SECRET, SOUND, False, found=_found(report), mend=mend))  # (1)
    if volume.grant is not None:
        return _new(path, volume, volume.grant, report, version, guest, trace)
    return _known(path, volume, report, version, trace)


def _new(
    path: str, volume: Volume, grant: int, report: Report | None, version: int, guest: Sequence[str], trace: Trace
) -> Judged:
    again = f"roomkey volume provision {path} --again"
    if not trace.check(
        Stage.SECRET, CURRENT, version == grant, expected=f"version {grant}", found=f"version {version}", mend=again
    ):  # (2)
        return Judged(False)
    mine = not volume.granted or not set(volume.granted).isdisjoint(guest)
    mend = f"if that guest will not finish it: {again}"
    if not trace.check(Stage.SECRET, GRANTED, mine, found=volume.granted[0] if volume.granted else "nobody", mend=mend):
        return Judged(False)  # (3)
    if report is not None and report.done is None and not report.found:
        # A sound volume may be what this guest began and did not finish. The key tells, and only the guest has both.
        trace.check(Stage.SECRET, MADE, True, found=_found(report))  # (4)
        return Judged(True, volume if volume.granted else replace(volume, granted=tuple(guest)), format=True)
    told = report is not None and report.done is Step.FORMAT and report.version == grant and volume.granted != ()
    found = "nothing was told of the disk" if report is None else _found(report)
    mend = f"run there: roomkey-agent enroll DEVICE --key {path}"
    if not trace.check(Stage.SECRET, MADE, told, expected="an empty disk, or what it made", found=found, mend=mend):
        return Judged(False)
    assert report is not None  # narrowing: it told of the volume
    return Judged(True, Volume(report.pin))


def _known(path: str, volume: Volume, report: Report | None, version: int, trace: Trace) -> Judged:
    if report is None:
        return Judged(True)
    if not trace.check(
        Stage.SECRET, PINNED, report.pin == volume.pin, expected=f"pin {volume.pin}", found=_found(report),
        mend=LOST.format(path=path),
    ):  # (5)  # fmt: skip
        return Judged(False)
    match report.done:
        case Step.ADD if report.version == volume.next:
            return Judged(True, replace(volume, last=version))
        case Step.REMOVE if report.version == volume.last:
            return Judged(True, replace(volume, last=None))
        case Step.RECOVERY if report.version == volume.recovery:
            return Judged(True, replace(volume, recovery=None))
    return Judged(True)


def _found(report: Report) -> str:
    return f"pin {report.pin}" if report.pin is not None else report.found or "an empty disk"
