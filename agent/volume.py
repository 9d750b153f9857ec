# SPDX-License-Identifier: Apache-2.0
"""From a disk to the key of its volume, and on the way whatever the broker wants done to it: a conversation of one or
more rounds, each attested.

    look at the disk        its pin, or what is wrong with it, goes along with the question
    the key                 released by a broker that has compared
    make the volume         where the broker's signed word orders a new one and the caller came for that; its pin goes
                            back, and only from then on anything is entrusted to it
    change its keyslots     the next key, the older one, the owner's recovery passphrase: one thing a round

What goes wrong with the keyslots is told and left for the next boot: the key that opens the volume is there already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from agent.enroll import Disk, make_file_system, make_volume, not_empty, what_is_on
from agent.luks import checked_header
from agent.release import Opened
from agent.slots import change
from agent.unlock import close_volume, open_volume
from keys.errors import ConfigError, RoomkeyError, VolumeError
from keys.report import Report, Step, printable
from keys.secrecy import wipe

MAX_CHANGES = 4  # of keyslots in one boot: the next key, the older one, a recovery passphrase


class Ask(Protocol):
    """Asks for the key, with a report on its disk; `session` is that of an answer to go on from."""

    def __call__(self, report: Report, session: str) -> Opened: ...


class Making(NamedTuple):
    """How a volume is made. `whole`: look at every byte of the disk first. `file_system`: that is made in it, as the
    volume `name`; "" for none.
    """

    whole: bool
    file_system: str
    name: str


def key_for(device: str, ask: Ask, say: Callable[[str], None], making: Making | None = None) -> Opened:
    """The key that opens the volume on `device`. `making`: if it is new, make it. Raises RoomkeyError."""
    report, defect = _look(device) if making is None else _look_for_room(device, making)
    try:
        got = ask(report, "")
    except RoomkeyError as refused:
        if defect is not None:
            defect.decision = refused.decision
            if refused.decision is not None:
                say(f"told the broker: decision {refused.decision}")
            raise defect from None
        raise
    try:
        if defect is not None:
            raise defect
        if got.format:
            got = _make(device, got, ask, say, making)
        return keyslots_changed(device, got, ask, say)
    except BaseException:
        wipe(got.secret)
        raise


def _look(device: str) -> tuple[Report, VolumeError | None]:
    try:
        with checked_header(device, repair=True) as header:
            return Report(header.volume.pin), None
    except VolumeError as error:
        return Report(found=printable(error.found or error.message)), error


def _look_for_room(device: str, making: Making) -> tuple[Report, VolumeError | None]:
    state = what_is_on(device, whole=making.whole)
    if state is Disk.OTHER:
        _, error = _look(device)
        error = error or not_empty(device)
        return Report(found=printable(f"not empty: {error.found or error.message}")), error
    return (_look(device)[0] if state is Disk.SOUND else Report()), None


def _make(device: str, got: Opened, ask: Ask, say: Callable[[str], None], making: Making | None) -> Opened:
    if making is None or got.version is None:
        mend = "make it: roomkey-agent enroll DEVICE --key OWNER/TYPE/TAG"
        raise ConfigError("the volume is not made yet", mend=mend)
    say(f"the broker orders a new volume: making it on {device}")
    pin = make_volume(device, got.secret, whole=making.whole)
    if making.file_system:
        open_volume(device, making.name, bytearray(got.secret), device_mapper=True, pin=pin)
        try:
            make_file_system(making.file_system, f"/dev/mapper/{making.name}")
        finally:
            close_volume(making.name)
    known = ask(Report(pin, "", Step.FORMAT, got.version), got.session)
    wipe(got.secret)
    say(f"the broker knows the volume now: {pin}")
    return known


def keyslots_changed(device: str, got: Opened, ask: Ask, say: Callable[[str], None]) -> Opened:
    """What the broker releases once the keyslots are as it wants them, `got` where that cannot be had."""
    for _ in range(MAX_CHANGES):
        other, pin = got.other, got.volume
        if other is None or pin is None:
            break
        try:
            change(device, pin, got.secret, other)
            now = ask(Report(pin, "", other.step, other.version), got.session)
        except RoomkeyError as error:
            say(f"keyslots not changed ({other.step}), the next boot tries again: {error}")
            break
        finally:
            wipe(other.secret)
        wipe(got.secret)
        got = now
        say(_DONE[other.step])
    return got


_DONE = {
    Step.ADD: "the next version of the key opens the volume now",
    Step.REMOVE: "the older version of the key opens the volume no more",
    Step.RECOVERY: "the owner's recovery passphrase opens the volume now",
}
