# SPDX-License-Identifier: Apache-2.0
"""Which values of several registers go together: what changed of that, where the values themselves are all known.

An image with components lets in only values that belong to one state of an update. Two images can have the same values
in every register and still let in other machines. A state with a value that the other image does not have is no matter
here: that value has a line of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from broker.appraisal.change import IMAGE, Change
from broker.appraisal.images import Image

_State = Mapping[str, str]  # the value of each register that depends on the combination


def combination_changes(old: Image, new: Image) -> list[Change]:
    """Nothing where neither image has components."""
    gone = [
        Change(IMAGE, "removed", "combination", words, "")
        for words, state in _states(old)
        if _known(new, state) and not _admits(new, state)
    ]
    come = [
        Change(IMAGE, "added", "combination", "", words, True)
        for words, state in _states(new)
        if _known(old, state) and not _admits(old, state)
    ]
    together = "which values go together"
    if _looser(old, new):
        come.append(Change(IMAGE, "removed", together, weaker=True))
    if _looser(new, old):
        come.append(Change(IMAGE, "added", together))
    return gone + come


def _states(image: Image) -> Iterator[tuple[str, _State]]:
    """Each once, with the words for it."""
    joint = image.combinations
    if joint is None:
        return
    states = {values: at for at, values in enumerate(zip(*joint.values.values(), strict=True))}
    for values, at in states.items():
        yield joint.words(joint.all[at]), dict(zip(joint.values, values, strict=True))


def _known(image: Image, state: _State) -> bool:
    """Whether each value by itself is one of the image's."""
    return all(name in image.registers and value in image.registers[name].values for name, value in state.items())


def _admits(image: Image, state: _State) -> bool:
    """Whether the values, all known, may be shown by one machine."""
    return image.combinations is None or any(
        all(found[name] == value for name, value in state.items() if name in found) for _, found in _states(image)
    )


def _looser(tight: Image, loose: Image) -> bool:
    """Whether `loose` knows no combinations, so that registers may show any of the values that go together in
    `tight`.
    """
    states = [state for _, state in _states(tight) if _known(loose, state)]
    if not states or loose.combinations is not None:
        return False
    return prod(len({state[name] for state in states}) for name in states[0]) > len(states)
