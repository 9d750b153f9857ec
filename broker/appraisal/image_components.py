# SPDX-License-Identifier: Apache-2.0
"""The [[tpm.components]] and [[tpm.releases]] of an image: what an update replaces, and what belongs together.

    [[tpm.components]]
    name = "shim"
    versions = ["15.7", "15.8"]       # oldest first

    [[tpm.releases]]                  # oldest first; without them: the first versions, the second versions, ...
    shim = "15.7"
    kernel = "6.1.0-31"

A version that no release names is never accepted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from broker.appraisal.components import Combination, Component
from keys import strictjson
from keys.errors import ProtocolError

MAX_COMPONENTS = 8
MAX_VERSIONS = 16  # of one component
MAX_RELEASES = 16

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~:-]{0,63}")  # of components and versions: Debian's versions have these
_NAME_WORDS = "1 to 64 letters, digits and . _ + ~ : -, with a letter or a digit first"


def read_components(tables: object) -> tuple[Component, ...]:
    """The components in the order given. Raises ProtocolError."""
    if not isinstance(tables, list):
        raise ProtocolError("tpm.components must be [[tpm.components]] tables")
    if len(tables) > MAX_COMPONENTS:
        raise ProtocolError(
            "the image has too many components",
            expected=f"at most {MAX_COMPONENTS}",
            found=str(len(tables)),
            mend="join those that are updated together",
        )
    components = tuple(map(_component, tables))
    _no_twins([component.name for component in components], "component")
    return components


def read_releases(tables: object, components: Sequence[Component]) -> tuple[Combination, ...]:
    """The releases in the order given; `tables` may be None. Raises ProtocolError."""
    if tables is None:
        return _by_place(components)
    if not isinstance(tables, list):
        raise ProtocolError("tpm.releases must be [[tpm.releases]] tables")
    if not components or not 1 <= len(tables) <= MAX_RELEASES:
        raise ProtocolError(
            "tpm.releases says which versions of the components belong together",
            expected=f"1 to {MAX_RELEASES} releases, and components",
            found=f"{len(tables)} releases, {len(components)} components",
            mend="take out the oldest releases, or end the update: roomkey image update NAME --finish",
        )
    releases = tuple(_release(table, components) for table in tables)
    if len(set(releases)) != len(releases):
        raise ProtocolError("two releases have the same versions", mend="take one of them out")
    return releases


def _component(table: object) -> Component:
    members = strictjson.members(table, name="a component", required=frozenset(("name", "versions")))
    name, versions = _name(members["name"], "a component's name"), members["versions"]
    if not isinstance(versions, list) or not 1 <= len(versions) <= MAX_VERSIONS:
        raise ProtocolError(
            f"component {name} needs a list of versions",
            expected=f"1 to {MAX_VERSIONS} versions",
            mend="take out the oldest, or end the update: roomkey image update NAME --finish",
        )
    listed = tuple(_name(version, f"a version of {name}") for version in versions)
    _no_twins(listed, f"version of {name}")
    return Component(name, listed)


def _by_place(components: Sequence[Component]) -> tuple[Combination, ...]:
    counts = {len(component.versions) for component in components}
    if len(counts) > 1:
        raise ProtocolError(
            "the components have not equally many versions",
            found=", ".join(f"{component.name} {len(component.versions)}" for component in components),
            mend="say in [[tpm.releases]] which versions belong together",
        )
    return tuple((at,) * len(components) for at in range(max(counts, default=0)))


def _release(table: object, components: Sequence[Component]) -> Combination:
    release = strictjson.members(table, name="a release", required=frozenset(one.name for one in components))
    for name, versions in components:
        if release[name] not in versions:
            raise ProtocolError(
                f"a release names no version of {name}", expected=", ".join(versions), found=str(release[name])[:64]
            )
    return tuple(versions.index(release[name]) for name, versions in components)


def _name(value: object, what: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ProtocolError(f"{what} is not one", expected=_NAME_WORDS, found=str(value)[:64])
    return value


def _no_twins(names: Sequence[str], what: str) -> None:
    twins = [name for at, name in enumerate(names) if name in names[:at]]
    if twins:
        raise ProtocolError(f"a {what} is given twice", found=twins[0])
