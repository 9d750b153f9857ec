# SPDX-License-Identifier: Apache-2.0
"""Which disk gets the key: the pure judgement of a guest's report, and what the volume's record becomes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.appraisal.volume import CURRENT, GRANTED, MADE, PINNED, SOUND, Judged, Volume, judge_volume
from broker.trace import Trace
from keys.report import Report, Step

PATH, PIN, OTHER = "acme/disk/root", "5a" * 32, "12" * 32
US, THEM = ("tpm-ek:aa", "tpm-ak:bb"), ("tpm-ek:cc",)
ORDERED = Volume(None, grant=3)
BEGUN = replace(ORDERED, granted=US)
KNOWN = Volume(PIN)


def judged(volume: Volume | None, report: Report | None, *, version: int = 3, guest: tuple[str, ...] = US) -> Judged:
    return judge_volume(PATH, volume, report, version, guest, Trace())


def refused(check: str, volume: Volume | None, report: Report | None, **more: object) -> str:
    """What the owner reads as found; the check that failed is `check`, and says what would mend it."""
    trace = Trace()
    told = judge_volume(PATH, volume, report, more.get("version", 3), more.get("guest", US), trace)  # type: ignore[arg-type]
    assert told == Judged(False)
    [failed] = trace.failed
    assert failed.name == check
    assert failed.mend
    return failed.found


def test_without_a_record_a_sound_disk_is_enough() -> None:
    """Where nobody knows a volume, a guest that tells of a sound one, or of none, gets the key; nothing changes."""
    assert judged(None, None) == judged(None, Report(PIN)) == Judged(True)


@pytest.mark.parametrize("report", [Report(), Report(found="no LUKS2 header")])
def test_without_a_record_no_disk_is_made(report: Report) -> None:
    """An empty or damaged disk gets no key: nobody has ordered a new volume."""
    assert refused(SOUND, None, report) == (report.found or "an empty disk")


def test_one_guest_is_granted_a_new_volume() -> None:
    """The first guest gets the key to make it with, again and again, under any of its ids; a second one does not."""
    assert judged(ORDERED, Report()) == Judged(True, BEGUN, format=True)
    assert judged(BEGUN, Report()) == Judged(True, BEGUN, format=True)
    assert judged(BEGUN, Report(), guest=(US[1], "tpm-ek:dd")).format
    assert US[0] in refused(GRANTED, BEGUN, Report(), guest=THEM)


def test_a_volume_that_may_be_begun_is_no_obstacle() -> None:
    """A guest that was interrupted has a sound volume, and goes on."""
    assert judged(BEGUN, Report(PIN)) == Judged(True, BEGUN, format=True)


def test_a_made_volume_is_known_from_then_on() -> None:
    """The report of the guest that was granted it sets the pin; nothing else stays of the order."""
    assert judged(BEGUN, Report(PIN, "", Step.FORMAT, 3)) == Judged(True, KNOWN)


@pytest.mark.parametrize(
    ("volume", "report"),
    [
        (BEGUN, None),
        (BEGUN, Report(found="not empty: ext4")),
        (BEGUN, Report(PIN, "", Step.FORMAT, 2)),
        (BEGUN, Report(PIN, "", Step.ADD, 3)),
        (ORDERED, Report(PIN, "", Step.FORMAT, 3)),
    ],
)
def test_a_new_volume_is_made_by_the_book(volume: Volume, report: Report | None) -> None:
    """A guest that says nothing of its disk, has a full one, made it with another version, or was never granted it."""
    refused(MADE, volume, report)


def test_a_new_volume_wants_the_key_that_was_made_for_it() -> None:
    """A version that was put after the order is not what the volume was to be made with."""
    assert refused(CURRENT, ORDERED, Report(), version=4) == "version 4"


@pytest.mark.parametrize(
    ("report", "found"),
    [
        (Report(OTHER), f"pin {OTHER}"),
        (Report(), "an empty disk"),
        (Report(found="no LUKS2 header"), "no LUKS2 header"),
        (Report(OTHER, "", Step.FORMAT, 3), f"pin {OTHER}"),
        (Report(OTHER, "", Step.ADD, 1), f"pin {OTHER}"),
    ],
)
def test_another_disk_is_refused(report: Report, found: str) -> None:
    """Of a volume that is known a missing header is no reason to make a new one, nor is another volume taken for it."""
    assert refused(PINNED, replace(KNOWN, next=1), report) == found


def test_a_guest_that_tells_nothing_is_bound_by_the_pin_in_its_release() -> None:
    """`get` and stock guests have no disk to tell of."""
    assert judged(KNOWN, None) == Judged(True)


def test_what_was_done_to_the_keyslots_counts_once() -> None:
    """Each step that waited, under its own version, changes the record; a stale or unasked one changes nothing."""
    waiting = replace(KNOWN, next=5, recovery=2)
    assert judged(waiting, Report(PIN, "", Step.ADD, 5)) == Judged(True, replace(waiting, last=3))
    assert judged(waiting, Report(PIN, "", Step.RECOVERY, 2)) == Judged(True, replace(waiting, recovery=None))
    leaving = replace(KNOWN, last=2)
    assert judged(leaving, Report(PIN, "", Step.REMOVE, 2)) == Judged(True, KNOWN)
    for volume, step, version in (
        (waiting, Step.ADD, 4), (waiting, Step.RECOVERY, 1), (leaving, Step.REMOVE, 1), (KNOWN, Step.ADD, 1),
        (KNOWN, Step.REMOVE, 1), (KNOWN, Step.RECOVERY, 1), (KNOWN, Step.FORMAT, 3),
    ):  # fmt: skip
        assert judged(volume, Report(PIN, "", step, version)) == Judged(True)


def test_a_record_comes_back() -> None:
    """Every member survives the store, and a record of an earlier Roomkey is a known volume."""
    for volume in (ORDERED, BEGUN, Volume(PIN, next=1, last=2, recovery=3)):
        assert Volume.from_body(volume.to_body()) == volume
    assert Volume.from_body({"pin": PIN}) == KNOWN
