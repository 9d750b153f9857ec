# SPDX-License-Identifier: Apache-2.0
"""The states that a machine passes through while it is updated, and what all its PCRs are in each of them.

A component (shim, kernel) is what an update replaces as one: its parts, in whatever PCR, change together. A release is
a choice of one version of each. An update takes a machine from one release to a later one, component by component and
in any order; so the combinations that can really come to be are

 (1) the releases themselves
 (2) for each two releases, every choice of the one's or the other's version per component

and never the free product over three releases. A combination gives every PCR's value jointly: a new kernel in PCR 4
beside an old initrd in PCR 9 is no state of any update, though each of the values alone is one that is all right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from broker.appraisal.registers import ExpectedEvent, Register
from keys.errors import ProtocolError

MAX_COMBINATIONS = 256

_HASHES = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}

Combination = tuple[int, ...]  # for each component, which of its versions: counted from 0


class Component(NamedTuple):
    """`versions`: their names, oldest first."""

    name: str
    versions: tuple[str, ...]


class Part(NamedTuple):
    """An event of a component. `digests`: lower-case hex for each of its versions, "" where that has no such event."""

    component: int
    digests: tuple[str, ...]
    type: str = ""
    what: str = ""


Step = ExpectedEvent | Part


@dataclass(frozen=True, slots=True)
class Combinations:
    """`releases`: oldest first. `all`: the combinations that can come to be, the newest release last. `steps`: by
    register the events that lead to it, of registers with parts only. `values`: by register its value in each of `all`.
    """

    components: tuple[Component, ...]
    releases: tuple[Combination, ...]
    all: tuple[Combination, ...]
    steps: Mapping[str, tuple[Step, ...]]
    values: Mapping[str, tuple[str, ...]]

    def words(self, combination: Combination) -> str:
        """ "shim 15.8, kernel 6.1.0-31"."""
        return ", ".join(
            f"{component.name} {component.versions[version]}"
            for component, version in zip(self.components, combination, strict=True)
        )

    def register(self, name: str, at: int) -> Register:
        """What the register is in the combination at `at` of `all`."""
        return Register((self.values[name][at],), events_in(self.all[at], self.steps[name]))

    def registers(self) -> dict[str, Register]:
        """All registers with parts: the values that any combination has, the newest release's events."""
        return {
            name: Register(tuple(dict.fromkeys(values)), events_in(self.releases[-1], self.steps[name]))
            for name, values in self.values.items()
        }

    def to_body(self) -> dict[str, Any]:
        """For the store: every value once, and by combination which of them."""
        distinct = {name: list(dict.fromkeys(values)) for name, values in self.values.items()}
        return {
            "components": [[component.name, list(component.versions)] for component in self.components],
            "releases": [list(release) for release in self.releases],
            "all": [list(combination) for combination in self.all],
            "registers": {
                name: {
                    "steps": [list(step) for step in self.steps[name]],
                    "values": distinct[name],
                    "of": [distinct[name].index(value) for value in values],
                }
                for name, values in self.values.items()
            },
        }

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Combinations:
        """What `to_body` wrote. Only the store's bodies come here."""
        registers = body["registers"]
        return cls(
            tuple(Component(name, tuple(versions)) for name, versions in body["components"]),
            tuple(map(tuple, body["releases"])),
            tuple(map(tuple, body["all"])),
            {name: tuple(map(_step, item["steps"])) for name, item in registers.items()},
            {name: tuple([item["values"][at] for at in item["of"]]) for name, item in registers.items()},
        )


def combinations(releases: Sequence[Combination]) -> tuple[Combination, ...]:
    """All that can come to be between any two of `releases` (oldest first), each once, the newest release last. Raises
    ProtocolError where they are too many.
    """
    found: dict[Combination, None] = {}  # latest first
    for later in range(len(releases) - 1, -1, -1):
        found[releases[later]] = None  # (1)
        for earlier in range(later - 1, -1, -1):
            both = zip(releases[later], releases[earlier], strict=True)
            found |= dict.fromkeys(product(*(dict.fromkeys(versions) for versions in both)))  # (2)
            if len(found) > MAX_COMBINATIONS:
                raise ProtocolError(
                    "the components have too many combinations",
                    expected=f"at most {MAX_COMBINATIONS}",
                    mend="take out the oldest [[tpm.releases]], or join components that are updated together",
                )
    return tuple(reversed(found))


def events_in(combination: Combination, steps: Iterable[Step]) -> tuple[ExpectedEvent, ...]:
    """The events of a machine in this combination."""
    events = [event_in(combination, step) for step in steps]
    return tuple([event for event in events if event is not None])


def event_in(combination: Combination, step: Step) -> ExpectedEvent | None:
    """The step's event in this combination, None where there is none."""
    if isinstance(step, ExpectedEvent):
        return step
    digest = step.digests[combination[step.component]]
    return ExpectedEvent(digest, step.type, step.what) if digest else None


def joint_values(
    bank: str, start_locality: int, steps: Iterable[Step], every: Iterable[Combination]
) -> tuple[str, ...]:
    """The register's value (hex) in each combination of `every`. Beginnings that are the same are extended once."""
    every, make = tuple(every), _HASHES[bank]
    seen: Combination = ()  # the components met so far; two combinations part where they differ in one of these
    reached: dict[Combination, bytes] = {(): bytes(make().digest_size - 1) + bytes((start_locality,))}
    for step in steps:
        if isinstance(step, ExpectedEvent):
            digest = bytes.fromhex(step.digest)
            reached = {versions: make(value + digest).digest() for versions, value in reached.items()}
            continue
        if step.component not in seen:
            before, seen = seen, (*seen, step.component)
            reached = {_of(seen, combination): reached[_of(before, combination)] for combination in every}
        at, digests = seen.index(step.component), [bytes.fromhex(digest) for digest in step.digests]
        reached = {
            versions: make(value + digests[versions[at]]).digest() if digests[versions[at]] else value
            for versions, value in reached.items()
        }
    return tuple(reached[_of(seen, combination)].hex() for combination in every)


def _of(components: Iterable[int], combination: Combination) -> Combination:
    return tuple([combination[component] for component in components])


def _step(item: Sequence[Any]) -> Step:
    if isinstance(item[0], str):
        return ExpectedEvent(*item)
    component, digests, kind, what = item
    return Part(component, tuple(digests), kind, what)
