# SPDX-License-Identifier: Apache-2.0
"""An image of TPM measurements as its owner reads and edits it: TOML, which `parse_image` takes back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from broker.appraisal.components import Combination, Component, Part, Step
from broker.appraisal.image_tpm import BANKS, LOCALITIES, replay
from broker.appraisal.registers import PURPOSES
from keys.tee import Tee


@dataclass(frozen=True, slots=True)
class TpmImage:
    """The parts of the text. `values` by PCR (hex) and `steps` by PCR: each with the locality that it starts from."""

    description: str
    bank: str
    values: Mapping[int, tuple[str, ...]]
    steps: Mapping[int, tuple[int, tuple[Step, ...]]]
    components: tuple[Component, ...] = ()
    releases: tuple[Combination, ...] = ()

    def text(self) -> str:
        lines = [*head(Tee.TPM, self.description), "", "[tpm]", f"bank = {string(self.bank)}", "", "[tpm.pcrs]"]
        lines += [f"{index} = {_values(self.values[index])}  # {PURPOSES[index]}" for index in sorted(self.values)]
        for component in self.components:
            lines += ["", "[[tpm.components]]", f"name = {string(component.name)}"]
            lines.append(f"versions = {_list(component.versions)}")
        for release in self.releases:
            lines += ["", "[[tpm.releases]]"]
            lines += [
                f"{string(component.name)} = {string(component.versions[version])}"
                for component, version in zip(self.components, release, strict=True)
            ]
        for index in sorted(self.steps):
            lines += events(index, *self.steps[index], self.components)
        return "\n".join(lines) + "\n"


def head(platform: Tee, description: str) -> list[str]:
    """The lines that any image begins with."""
    return [f"platform = {string(platform)}", f"description = {string(description)}"]


def events(index: int, start_locality: int, steps: Iterable[Step], components: Sequence[Component] = ()) -> list[str]:
    """The lines of one [[tpm.events]]."""
    lines = ["", "[[tpm.events]]", f"pcr = {index}"] + (
        [f"start_locality = {start_locality}"] if start_locality else []
    )
    return [*lines, "digests = [", *(_step(step, components) for step in steps), "]"]


def start_locality(bank: str, index: int, digests: Sequence[str], value: str) -> int | None:
    """The locality from which the digests lead to the value of PCR `index`, None where there is none."""
    localities = LOCALITIES if index == 0 else LOCALITIES[:1]
    return next((start for start in localities if bank in BANKS and replay(bank, digests, start) == value), None)


def string(text: str) -> str:
    """A TOML basic string. JSON's escapes are TOML's, except that TOML wants DEL escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _step(step: Step, components: Sequence[Component]) -> str:
    if isinstance(step, Part):
        name = components[step.component].name
        which = f"component = {string(name)}, digests = {_list(step.digests)}"
    else:
        which = f"digest = {string(step.digest)}"
    return f"  {{ {which}, type = {string(step.type)}, what = {string(step.what)} }},"


def _values(values: Sequence[str]) -> str:
    return string(values[0]) if len(values) == 1 else _list(values)


def _list(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(string, texts))}]"
