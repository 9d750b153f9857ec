# SPDX-License-Identifier: Apache-2.0
"""The [tpm] part of an image: reference values of PCRs, or the events that lead to them.

What cannot protect a key is refused, with what would mend it:

 (1) no PCR at all, or a bank with SHA-1
 (2) PCRs that prove nothing: 16 and 23 (anybody resets them), 10 (needs a policy for IMA), 17 to 22 (DRTM)
 (3) neither PCR 4 nor PCR 7: without those it is open what booted, and who wrote the later PCRs; and PCR 7 without
     PCR 4 where its events say that Secure Boot was off, so that it admits every loader
 (4) a PCR 0 to 7 that is still zero: that machine does not measure its boot
 (5) events that do not lead to the stated value; of a PCR whose events differ from version to version of a component,
     any stated value, since it would hold for one combination only
 (6) a component without an event: it would say nothing

Each check is made for every combination that the image allows (`broker.appraisal.components`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from broker.appraisal.components import (
    Combination,
    Combinations,
    Component,
    Part,
    Step,
    combinations,
    joint_values,
)
from broker.appraisal.image_components import read_components, read_releases
from broker.appraisal.registers import PURPOSES, ExpectedEvent, Register, digest, values
from keys import strictjson
from keys.errors import ProtocolError

MAX_EVENTS = 1024  # events of one PCR
MAX_TYPE_CHARS = 64
MAX_WHAT_CHARS = 400

BANKS = {"sha256": 32, "sha384": 48, "sha512": 64}  # bytes of a digest
LOCALITIES = (0, 3, 4)  # TCG PC Client Platform Firmware Profile: StartupLocality

_ANCHORS = frozenset((4, 7))
_SECURE_BOOT_OFF = tuple(  # UEFI_VARIABLE_DATA of the variable SecureBoot, with no value or 0
    bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c 0a00000000000000")
    + len(value).to_bytes(8, "little")
    + "SecureBoot".encode("utf-16-le")
    + value
    for value in (b"", b"\0")
)
_MEASURED_BOOT = frozenset(range(8))
_USELESS = {
    10: "PCR 10 grows with every file that IMA measures; without a policy for IMA no value of it stays right",
    16: "anybody in the guest can reset PCR 16",
    23: "anybody in the guest can reset PCR 23",
} | {index: f"PCR {index} belongs to a dynamic launch (DRTM), which is not judged yet" for index in range(17, 23)}


_COMPONENTS = frozenset(("components", "releases"))


class _Sequence(NamedTuple):
    """The events of a PCR. `led_to`: the value that they lead to, "" where that depends on the combination."""

    steps: tuple[Step, ...] = ()
    start_locality: int = 0
    led_to: str = ""


def read_tpm(
    table: object, *, banks: Collection[str] = tuple(BANKS), events: bool = True
) -> tuple[dict[str, Register], Combinations | None]:
    """The registers of [tpm], ascending, and the combinations that it allows where it has components. `banks` and
    `events`: what the platform's evidence has. Raises ProtocolError.
    """
    tpm = strictjson.members(
        table,
        name="tpm",
        required=frozenset(("bank",)),
        optional=frozenset(("pcrs", "events", *_COMPONENTS) if events else ("pcrs",)),
    )
    bank = tpm["bank"]
    if bank not in banks:  # (1)
        mend = "use the bank sha256" if bank == "sha1" else ""
        raise ProtocolError("tpm.bank is not usable", expected=", ".join(banks), found=str(bank)[:64], mend=mend)
    components = read_components(tpm.get("components", []))
    releases = read_releases(tpm.get("releases"), components)
    given, sequences = _values(tpm.get("pcrs", {}), bank), _events(tpm.get("events", []), bank, components)
    joint = _joint(components, releases, sequences, bank) if components else None
    return _registers(given, sequences, joint, bank), joint


def replay(bank: str, digests: Iterable[str], start_locality: int = 0) -> str:
    """The register's value in hex after extending it with `digests` (hex) in order, from its value at start-up."""
    value = bytes(BANKS[bank] - 1) + bytes((start_locality,))
    for step in digests:
        value = hashlib.new(bank, value + bytes.fromhex(step)).digest()
    return value.hex()


def _joint(
    components: tuple[Component, ...], releases: tuple[Combination, ...], sequences: Mapping[int, _Sequence], bank: str
) -> Combinations:
    """What the PCRs with parts of components are in each combination."""
    parted = {
        index: sequence
        for index, sequence in sorted(sequences.items())
        if any(isinstance(step, Part) for step in sequence.steps)
    }
    used = {step.component for sequence in parted.values() for step in sequence.steps if isinstance(step, Part)}
    for at, component in enumerate(components):  # (6)
        if at not in used:
            raise ProtocolError(
                f"component {component.name} has no event",
                mend=f'give one, {{ component = "{component.name}", digests = [...] }}, or leave the component out',
            )
    every = combinations(releases)
    return Combinations(
        components,
        releases,
        every,
        {f"{bank}:{index}": sequence.steps for index, sequence in parted.items()},
        {
            f"{bank}:{index}": joint_values(bank, sequence.start_locality, sequence.steps, every)
            for index, sequence in parted.items()
        },
    )


def _registers(
    given: Mapping[int, tuple[str, ...]], sequences: Mapping[int, _Sequence], joint: Combinations | None, bank: str
) -> dict[str, Register]:
    indices = sorted(given.keys() | sequences.keys())
    if not indices:
        raise ProtocolError("the image names no PCR", mend="name at least PCR 4 or PCR 7 under [tpm.pcrs]")
    for index in indices:  # (2)
        if index in _USELESS:
            raise ProtocolError(f"PCR {index} cannot be in an image", found=_USELESS[index], mend="leave it out")
    if not _ANCHORS & set(indices):  # (3)
        raise ProtocolError(
            "the image proves nothing without PCR 4 or PCR 7",
            found="any program that boots can show the same values",
            mend="add PCR 4, or PCR 7 where Secure Boot admits only loaders that you trust",
        )
    off = {hashlib.new(bank, data).hexdigest() for data in _SECURE_BOOT_OFF}
    if 4 not in indices and any(not off.isdisjoint(_digests(step)) for step in sequences.get(7, _Sequence()).steps):
        raise ProtocolError(
            "PCR 7 proves nothing without PCR 4: Secure Boot was off",
            found="any loader boots with the same value",
            mend="add PCR 4, or switch Secure Boot on and enrol the image again",
        )
    parted = {} if joint is None else joint.registers()
    registers = {}
    for index in indices:
        name = f"{bank}:{index}"
        register = parted.get(name) or _register(index, given, sequences.get(index, _Sequence()))
        if name in parted and index in given:  # (5)
            raise ProtocolError(
                f"PCR {index} has a value beside events of components",
                found="the value would hold for one combination only",
                mend="remove the value: the events give it for each combination",
            )
        if index in _MEASURED_BOOT and any(set(value) == {"0"} for value in register.values):  # (4)
            raise ProtocolError(
                f"PCR {index} is zero: the machine does not measure its boot",
                mend="leave it out, or switch measured boot on in the firmware",
            )
        registers[name] = register
    return registers


def _register(index: int, given: Mapping[int, tuple[str, ...]], sequence: _Sequence) -> Register:
    """A register without parts of components."""
    allowed = given.get(index, (sequence.led_to,))
    if sequence.led_to and sequence.led_to not in allowed:  # (5)
        raise ProtocolError(
            f"the events of PCR {index} do not lead to its value",
            expected=" or ".join(allowed),
            found=sequence.led_to,
            mend="enrol the image again, or remove the value or the events",
        )
    return Register(allowed, tuple(step for step in sequence.steps if isinstance(step, ExpectedEvent)))


def _digests(step: Step) -> tuple[str, ...]:
    """The step's digests in all versions."""
    return step.digests if isinstance(step, Part) else (step.digest,)


def _values(pcrs: object, bank: str) -> dict[int, tuple[str, ...]]:
    if not isinstance(pcrs, dict):
        raise ProtocolError("tpm.pcrs must be a table")
    parse = partial(digest, size=BANKS[bank], what=f"{bank} digest")
    result = {}
    for name, value in pcrs.items():
        if name not in {str(index) for index in range(len(PURPOSES))}:
            raise ProtocolError("tpm.pcrs names no PCR", expected="0 to 23", found=name[:64])
        result[int(name)] = values(value, f"PCR {name}", parse)
    return result


def _events(tables: object, bank: str, components: Sequence[Component]) -> dict[int, _Sequence]:
    if not isinstance(tables, list):
        raise ProtocolError("tpm.events must be [[tpm.events]] tables")
    result: dict[int, _Sequence] = {}
    for table in tables:
        members = strictjson.members(
            table,
            name="tpm.events",
            required=frozenset(("pcr", "digests")),
            optional=frozenset(("start_locality",)),
        )
        index, locality, digests = members["pcr"], members.get("start_locality", 0), members["digests"]
        if type(index) is not int or index not in range(len(PURPOSES)):
            raise ProtocolError("tpm.events names no PCR", expected="pcr = 0 to 23", found=str(index)[:64])
        if index in result:
            raise ProtocolError(f"the events of PCR {index} are given twice")
        if type(locality) is not int or locality not in LOCALITIES or (locality and index):
            raise ProtocolError("start_locality is not one", expected="0, 3 or 4, and only for PCR 0")
        if not isinstance(digests, list) or not 1 <= len(digests) <= MAX_EVENTS:
            raise ProtocolError(f"PCR {index} needs a list of digests", expected=f"1 to {MAX_EVENTS} events")
        steps = tuple(_step(item, bank, f"an event of PCR {index}", components) for item in digests)
        plain = [step.digest for step in steps if isinstance(step, ExpectedEvent)]
        led_to = replay(bank, plain, locality) if len(plain) == len(steps) else ""
        result[index] = _Sequence(steps, locality, led_to)
    return result


def _step(item: object, bank: str, name: str, components: Sequence[Component]) -> Step:
    required = ("component", "digests") if isinstance(item, dict) and "component" in item else ("digest",)
    members = strictjson.members(item, name=name, required=frozenset(required), optional=frozenset(("type", "what")))
    parse = partial(digest, size=BANKS[bank], what=f"{bank} digest")
    kind = strictjson.string(members.get("type", ""), name=f"{name}: type", max_chars=MAX_TYPE_CHARS)
    what = strictjson.string(members.get("what", ""), name=f"{name}: what", max_chars=MAX_WHAT_CHARS)
    if "digest" in members:
        return ExpectedEvent(parse(members["digest"], name), kind, what)
    names = [component.name for component in components]
    if members["component"] not in names:
        raise ProtocolError(
            f"{name} is of no component", expected=", ".join(names), found=str(members["component"])[:64]
        )
    at, digests = names.index(members["component"]), members["digests"]
    versions = components[at].versions
    if not isinstance(digests, list) or len(digests) != len(versions):
        raise ProtocolError(
            f"{name} needs one digest for each version of {names[at]}",
            expected=f'{len(versions)} digests, "" where a version has no such event',
        )
    return Part(at, tuple("" if item == "" else parse(item, name) for item in digests), kind, what)
