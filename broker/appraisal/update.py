# SPDX-License-Identifier: Apache-2.0
"""The next version of an image, out of the one before and the evidence of a machine after an update.

 (1) The image says how its values come to be (it has events), and the evidence fits none of its combinations yet.
 (2) Each PCR with another value has events in the image and no value beside them, and a log in the evidence that leads
     to its value: else it would be open what has changed.
 (3) Those events are laid beside the newest release's. What changed belongs to a component: the one that the event was
     in, else one that the owner names, else the one that it looks like (`component_names`).
 (4) A component with a change gets a new version, the others keep theirs; together they are the newest release.

The new image allows what the one before did, the new release, and all states in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from broker.appraisal.component_names import Naming, component_of
from broker.appraisal.components import Combination, Component, Part, Step, event_in, events_in
from broker.appraisal.enrol import logged_events
from broker.appraisal.event_steps import steps as differences
from broker.appraisal.fit import fit
from broker.appraisal.image_text import TpmImage, start_locality
from broker.appraisal.images import Image, parse_image
from broker.appraisal.registers import ExpectedEvent, Register, title
from broker.claims import Claims
from keys.errors import ProtocolError
from keys.tee import Tee

_ANEW = "enrol it anew, with a log: roomkey image enrol NAME --from EVIDENCE"
_NONE = ExpectedEvent("")  # no event


class _Row(NamedTuple):
    """An event of the old image, the new release or both. `component`: its name, "" where it is the same in all
    releases. `before` and `now`: digests in the newest release of the old image and in the new one, "" for none.
    """

    step: Step
    component: str
    before: str
    now: str


def updated_image(image: Image, claims: Claims, version: int, own: Sequence[Naming] = ()) -> str:
    """TOML of the version after `version`, which is `image`. `own`: how the owner names components. New versions of
    components are called after the image's, "v4". Raises ProtocolError.
    """
    _check_worth(image, claims)  # (1)
    rows = {name: tuple(_rows(image, name, claims, own)) for name in image.registers}  # (2) (3)
    components, releases = _versions(image, [row for listed in rows.values() for row in listed], version)  # (4)
    steps = {name: tuple(_widened(row, components) for row in listed) for name, listed in rows.items()}
    text = _text(image, claims.measurements, steps, components, releases)
    parse_image(text)
    return text


def finished_image(image: Image) -> str:
    """TOML of an image that allows the newest release of `image` and nothing else. Raises ProtocolError."""
    if image.combinations is None:
        raise ProtocolError("the image has no components, so no update is under way")
    newest = {name: values[-1] for name, values in image.combinations.values.items()}
    text = _text(image, newest, {name: register.events for name, register in image.registers.items()})
    parse_image(text)
    return text


def _check_worth(image: Image, claims: Claims) -> None:
    if image.platform is not Tee.TPM or not any(register.events for register in image.registers.values()):
        raise ProtocolError("the image has no events, so it is not known what an update would change", mend=_ANEW)
    if claims.tee is not image.platform:
        raise ProtocolError("the evidence is of another platform", expected=image.platform, found=claims.tee)
    nearest = fit(image, claims)
    if not nearest.differing:
        raise ProtocolError(
            "the evidence fits the image already",
            found=nearest.combination or "no register differs",
            mend="make the evidence on a machine that was restarted after the update",
        )


def _rows(image: Image, name: str, claims: Claims, own: Sequence[Naming]) -> Iterator[_Row]:
    """The events of one register, in an order that is the old image's and the new release's at once."""
    steps, newest = _steps(image, name), _newest(image)
    found = claims.measurements.get(name)
    if found is None:
        raise ProtocolError(f"the evidence has no {title(name)}", mend="make it in a guest with this bank of PCRs")
    if found in _allowed(image, name).values:
        yield from (_row(step, image, _digest(newest, step)) for step in steps)
        return
    logged = logged_events(claims, name)
    _check_explained(name, _allowed(image, name), logged, found)  # (2)
    waiting = iter(steps)
    for before, after in _side_by_side(events_in(newest, steps), logged):  # (3)
        if before is _NONE:
            yield _Row(after, component_of(name, after, own), "", after.digest)
            continue
        step = next(waiting)
        while event_in(newest, step) is None:  # what only earlier releases have stays where it is
            yield _row(step, image, "")
            step = next(waiting)
        yield from _changed(step, before, after, image, name, own)
    yield from (_row(step, image, "") for step in waiting)


def _side_by_side(
    old: Sequence[ExpectedEvent], new: Sequence[ExpectedEvent]
) -> Iterator[tuple[ExpectedEvent, ExpectedEvent]]:
    """Every event of both, once and in the order of both, with _NONE beside what only one has. What has moved has gone
    at one place and come at another.
    """
    apart = [step for step in differences(old, new) if step.kind != "changed"]
    gone, come = {step.before for step in apart}, {step.after for step in apart}
    i = j = 0
    while i < len(old) or j < len(new):
        before = _NONE if i not in gone and j in come else old[i]
        after = _NONE if i in gone else new[j]
        i, j = i + (before is not _NONE), j + (after is not _NONE)
        yield before, after


def _changed(
    step: Step, before: ExpectedEvent, after: ExpectedEvent, image: Image, name: str, own: Sequence[Naming]
) -> Iterator[_Row]:
    """`step`, whose event `before` is `after` in the new release."""
    if before.digest == after.digest:
        yield _row(step, image, after.digest)
        return
    component = _component(step, image) or component_of(name, before if after is _NONE else after, own)
    if after is _NONE or before[1:] == after[1:]:
        yield _Row(step, component, before.digest, after.digest)
    else:  # described in other words: two events, so that each release keeps its own
        yield _Row(step, component, before.digest, "")
        yield _Row(after, component, "", after.digest)


def _check_explained(name: str, register: Register, logged: Sequence[ExpectedEvent], found: str) -> None:
    if not register.events:
        raise ProtocolError(f"{title(name)} has changed, and the image has no events of it", mend=_ANEW)
    if len(register.values) > 1:
        raise ProtocolError(
            f"{title(name)} has changed, and the image has values of it beside that of its events",
            found=", ".join(register.values),
            mend="take the other values out: roomkey image show NAME, edit, roomkey image put NAME FILE",
        )
    if _start(name, logged, (found,)) is None:
        raise ProtocolError(
            f"{title(name)} has changed, and no log in the evidence leads to its value",
            mend="make the evidence anew, in a guest whose kernel gives its boot log",
        )


def _versions(
    image: Image, rows: Sequence[_Row], version: int
) -> tuple[tuple[Component, ...], tuple[Combination, ...]]:
    """The components and releases of the new image."""
    joint = image.combinations
    old = () if joint is None else joint.components
    known = [component.name for component in old]
    changed = dict.fromkeys(row.component for row in rows if row.before != row.now)
    fresh = [name for name in changed if name not in known]
    components = tuple(
        Component(name, (*versions, _label(version + 1, versions))) if name in changed else Component(name, versions)
        for name, versions in (*old, *((name, (f"v{version}",)) for name in fresh))
    )
    releases = [(*release, *(0 for _ in fresh)) for release in (((),) if joint is None else joint.releases)]
    newest = tuple(
        len(component.versions) - 1 if component.name in changed else at
        for component, at in zip(components, releases[-1], strict=True)
    )
    return components, (*releases, newest)


def _label(version: int, versions: Sequence[str]) -> str:
    """A name for the new version of a component that none of its versions has."""
    label = f"v{version}"
    return f"{label}+{len(versions)}" if label in versions else label


def _widened(row: _Row, components: Sequence[Component]) -> Step:
    """The row's step with a digest for each version of its component."""
    if not row.component:
        return row.step
    at = next(at for at, component in enumerate(components) if component.name == row.component)
    width = len(components[at].versions)
    if isinstance(row.step, Part):
        return row.step._replace(digests=(*row.step.digests, row.now)[:width])
    return Part(at, (*[row.before] * (width - 1), row.now), row.step.type, row.step.what)


def _text(
    image: Image,
    newest: Mapping[str, str],
    steps: Mapping[str, Sequence[Step]],
    components: tuple[Component, ...] = (),
    releases: tuple[Combination, ...] = (),
) -> str:
    """`newest`: what the registers are in the newest release."""
    values, sequences = {}, {}
    for name, register in image.registers.items():
        bank, _, number = name.partition(":")
        listed = tuple(steps[name])
        parted = any(isinstance(step, Part) for step in listed)
        in_joint = image.combinations is not None and name in image.combinations.values
        allowed = (newest[name],) if parted or in_joint else register.values
        if not parted:
            values[int(number)] = allowed
        if listed:
            start = _start(name, events_in(releases[-1] if releases else (), listed), allowed)
            sequences[int(number)] = start or 0, listed
    return TpmImage(image.description, bank, values, sequences, components, releases).text()


def _start(name: str, events: Sequence[ExpectedEvent], values: Iterable[str]) -> int | None:
    bank, _, number = name.partition(":")
    digests = [event.digest for event in events]
    starts = (start_locality(bank, int(number), digests, value) for value in values)
    return next((start for start in starts if start is not None), None)


def _steps(image: Image, name: str) -> tuple[Step, ...]:
    joint = image.combinations
    return joint.steps[name] if joint is not None and name in joint.steps else image.registers[name].events


def _newest(image: Image) -> Combination:
    return () if image.combinations is None else image.combinations.releases[-1]


def _allowed(image: Image, name: str) -> Register:
    """What the register is in the newest release."""
    joint = image.combinations
    return joint.register(name, -1) if joint is not None and name in joint.values else image.registers[name]


def _component(step: Step, image: Image) -> str:
    """The name of the component that the step is a part of, "" where it is of none."""
    if isinstance(step, Part) and image.combinations is not None:
        return image.combinations.components[step.component].name
    return ""


def _row(step: Step, image: Image, digest: str) -> _Row:
    """A step that is in the new release as it was in the newest."""
    return _Row(step, _component(step, image), digest, digest)


def _digest(newest: Combination, step: Step) -> str:
    event = event_in(newest, step)
    return "" if event is None else event.digest
