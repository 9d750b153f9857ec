# SPDX-License-Identifier: Apache-2.0
"""What changed from one image to another, as an owner would tell it: the log of changes behind a new version.

(1) description and platform; between two platforms nothing else can be compared
(2) registers that are compared no longer, or from now on, or in another bank
(3) each register's events, laid side by side over their whole sequences (`event_steps`), and its values, as far as no
    event explains them
(4) which of the values go together (`combination_changes`)
(5) floors (`floor_changes`)
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.appraisal.change import IMAGE, Change
from broker.appraisal.combination_changes import combination_changes
from broker.appraisal.difference import apart
from broker.appraisal.event_steps import Step, steps
from broker.appraisal.floor_changes import floor_changes
from broker.appraisal.image_tpm import LOCALITIES, replay
from broker.appraisal.images import Image
from broker.appraisal.registers import PURPOSES, ExpectedEvent, Register, order, title

_LABELS = {"kernel_cmdline:": "kernel command line", "grub_cmd:": "GRUB command"}  # what GRUB puts before its texts
_FREE = {  # what is free to change where a register is not compared; of other PCRs what they are for
    "6": "what the manufacturer measures",
    "measurement": "what is launched",
    "id_key_digest": "the key that signs the launch",
    "author_key_digest": "the key that vouches for the ID key",
    "host_data": "what the host gives at the launch",
    "family_id": "the family that the ID block names",
    "image_id": "the image that the ID block names",
}


def changes(old: Image, new: Image) -> list[Change]:
    """All changes, registers in the order of `registers.order`. [] where `new` says the same."""
    found = []
    if old.description != new.description:  # (1)
        found.append(Change(IMAGE, "changed", "description", old.description, new.description))
    if old.platform is not new.platform:
        found.append(Change(IMAGE, "changed", "platform, so nothing else can be compared", old.platform, new.platform))
        return found
    found += combination_changes(old, new)  # (4)
    before, after = ({_place(name): name for name in image.registers} for image in (old, new))
    for place in sorted({*before, *after}, key=lambda place: order((after | before)[place])):
        if place not in before:
            found.append(_taken_up(after[place], new))
        elif place not in after:
            found.append(_dropped(before[place], old))
        elif before[place] != after[place]:
            found.append(_other_bank(before[place], after[place]))
        else:
            name = after[place]
            found += _same_register(name, old.registers[name], new.registers[name])
    return found + floor_changes(old.platform, old.floors, new.floors)  # (5)


def unchanged(old: Image, new: Image, found: Iterable[Change]) -> list[str]:
    """The registers of both images that `found`, all changes, does not touch."""
    touched = {change.where for change in found}
    return [
        name
        for name in sorted(old.registers.keys() & new.registers.keys(), key=order)
        if old.platform is new.platform and title(name) not in touched
    ]


def _place(name: str) -> str:
    """A register's name without the bank."""
    return name.rpartition(":")[2]


def _taken_up(name: str, image: Image) -> Change:  # (2)
    words = f"compared from now on: {_free(name)} cannot change without notice"
    return Change(title(name), "added", words, "", _either(image.registers[name]))


def _dropped(name: str, image: Image) -> Change:
    words = f"no longer compared: {_free(name)} can change without notice"
    return Change(title(name), "removed", words, _either(image.registers[name]), "", True)


def _other_bank(was: str, now: str) -> Change:
    banks = was.partition(":")[0], now.partition(":")[0]
    return Change(title(now), "changed", "bank, so the values cannot be compared", *banks)


def _same_register(name: str, was: Register, now: Register) -> list[Change]:  # (3)
    where = title(name)
    gone = [value for value in was.values if value not in now.values]
    come = [value for value in now.values if value not in was.values]
    if was.events and now.events:
        found = [_event(where, step, was, now) for step in steps(was.events, now.events)]
        left, led = _led_to(name, was), _led_to(name, now)
        if left in gone and led in come:  # the one instead of the other: that is what the events say
            gone.remove(left)
            come.remove(led)
    elif was.events or now.events:
        kind = "added" if now.events else "removed"
        found = [Change(where, kind, "the events that lead to its value")]
    else:
        found = []
    instead = min(len(gone), len(come))
    found += [Change(where, "changed", "value", *pair) for pair in zip(gone[:instead], come[:instead], strict=True)]
    found += [Change(where, "removed", "value", value, "") for value in gone[instead:]]
    return found + [Change(where, "added", "value", "", value, True) for value in come[instead:]]


def _event(where: str, step: Step, was: Register, now: Register) -> Change:
    if step.before is None:
        event = now.events[step.at]
        return Change(where, step.kind, _words(event), "", event.digest)
    old = was.events[step.before]
    if step.after is None:
        return Change(where, step.kind, _words(old), old.digest, "")
    if step.kind == "moved":
        return Change(where, step.kind, _words(old), f"event {step.before + 1}", f"event {step.after + 1}")
    new = now.events[step.after]
    return Change(where, step.kind, _both(old, new), old.digest, new.digest)


def _led_to(name: str, register: Register) -> str:
    """The value to which the register's events lead."""
    bank, _, index = name.partition(":")
    digests = [event.digest for event in register.events]
    reached = [replay(bank, digests, start) for start in (LOCALITIES if index == "0" else LOCALITIES[:1])]
    return next((value for value in reached if value in register.values), "")


def _words(event: ExpectedEvent) -> str:
    label, text = _labelled(event)
    return f'{label} "{text}"' if label else text


def _both(old: ExpectedEvent, new: ExpectedEvent) -> str:
    """What an event was and is, in as many words as differ."""
    (label, was), (other, now) = _labelled(old), _labelled(new)
    if label != other:
        return f"{_words(old)} -> {_words(new)}"
    if was == now:
        return _words(old)
    was, now = apart(was, now)
    return f'{label} "{was}" -> "{now}"' if label else f"{was} -> {now}"


def _labelled(event: ExpectedEvent) -> tuple[str, str]:
    """What kind of text it is, "" where that needs no word, and the text."""
    first, _, rest = event.what.partition(" ")
    if first in _LABELS:
        return _LABELS[first], rest
    return "", event.what or event.type or "an event"


def _free(name: str) -> str:
    """What is free to change where the register is not compared."""
    place = _place(name)
    return _FREE[place] if place in _FREE else PURPOSES[int(place)]


def _either(register: Register) -> str:
    return " or ".join(register.values)
