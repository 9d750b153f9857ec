# SPDX-License-Identifier: Apache-2.0
"""What changed between the floors of two images of one platform, and whether the newer demands less.

A floor is a list of choices, of which a guest must show one, or it is taken apart into demands that each hold by
themselves: a number, a component of a TCB, a bit, a chip that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from broker.appraisal.change import FLOORS, Change
from broker.verifiers.sev_launch import ES, POLICY_BITS
from broker.verifiers.snp_floor_settings import MAX_VMPL, numbers, tcb_floors
from broker.verifiers.snp_report import VERSIONS
from keys.tee import Tee

_AT_MOST = "max_vmpl"  # the one number that is a ceiling
_NOTHING = {_AT_MOST: MAX_VMPL, "min_report_version": VERSIONS[0]}  # what every report meets; 0 elsewhere
_BASE = 1000  # parts of a version have at most three digits
_BITS = 64


class _Demand(NamedTuple):
    """`text` as an owner writes it, `number` to compare it by."""

    text: str
    number: int = 1


_Demands = Iterator[tuple[tuple[str, str], _Demand]]  # under the setting's name, and which of its demands it is


def floor_changes(platform: Tee, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """In the order of the settings in the older image, then those of the newer alone."""
    if platform is Tee.SEV:
        return [*_es(old, new), *_compared(dict(_sev(old)), dict(_sev(new)))]
    found = []
    for name in dict.fromkeys([*old, *new]):
        if name in CHOICES:
            found += _choices(name, old.get(name, []), new.get(name, []))
        else:
            read = DEMANDS[name]
            was, now = (dict(read(name, floors[name])) if name in floors else {} for floors in (old, new))
            found += _compared(was, now)
    return found


def _compared(old: Mapping[tuple[str, str], _Demand], new: Mapping[tuple[str, str], _Demand]) -> list[Change]:
    found = []
    for key in dict.fromkeys([*old, *new]):
        was, now = old.get(key), new.get(key)
        if was == now:
            continue
        name = key[0]
        nothing = _NOTHING.get(name, 0)
        before, after = (nothing if demand is None else demand.number for demand in (was, now))
        weaker = after > before if name == _AT_MOST else after < before
        if was is None or now is None:
            kind = "added" if was is None else "removed"
        else:
            kind = "raised" if after > before else "lowered" if after < before else "changed"
        old_text, new_text = ("" if demand is None else demand.text for demand in (was, now))
        found.append(Change(FLOORS, kind, name, old_text, new_text, weaker))
    return found


def _choices(name: str, old: Sequence[str], new: Sequence[str]) -> list[Change]:
    """A list of which one must be shown. Without the list anything may be."""
    if not old or not new:
        before, after = ", ".join(old), ", ".join(new)
        return [Change(FLOORS, "added" if new else "removed", name, before, after, bool(old))]
    gone = [Change(FLOORS, "removed", name, item, "") for item in dict.fromkeys(old) if item not in new]
    return gone + [Change(FLOORS, "added", name, "", item, True) for item in dict.fromkeys(new) if item not in old]


def _number(name: str, value: int) -> _Demands:
    yield (name, ""), _Demand(str(value), value)


def _flag(name: str, value: bool) -> _Demands:
    yield (name, ""), _Demand(str(value).lower(), int(value))


def _each(name: str, items: Sequence[str]) -> _Demands:
    for item in items:
        yield (name, item), _Demand(item)


def _mask(name: str, value: int) -> _Demands:
    for bit in range(_BITS):
        if value >> bit & 1:
            yield (name, str(bit)), _Demand(f"bit {bit}")


def _tcb(name: str, texts: Sequence[str]) -> _Demands:
    for line, components in tcb_floors(name, tuple(texts)).items():
        for component, least in components.items():
            yield (f"{name} {line}", component), _Demand(f"{component}={least}", least)


def _version(name: str, text: str) -> _Demands:
    yield (name, ""), _Demand(text, _ordered(numbers(text)))


def _version_by_line(name: str, texts: Sequence[str]) -> _Demands:
    for text in texts:
        line, version = text.split()
        yield (f"{name} {line}", ""), _Demand(version, _ordered(numbers(version)))


def _ordered(parts: Sequence[int]) -> int:
    number = 0
    for part in parts:
        number = number * _BASE + part
    return number


def _sev(floors: Mapping[str, Any]) -> _Demands:
    for name, bit in POLICY_BITS.items():
        if floors["policy"] >> bit & 1 and 1 << bit != ES:  # that bit goes with `es`
            yield ("policy", name), _Demand(name)
    if "min_api" in floors:
        build = floors.get("min_build", 0)
        text = floors["min_api"] + (f" build {build}" if "min_build" in floors else "")
        yield ("min_api", ""), _Demand(text, _ordered((*numbers(floors["min_api"]), build)))


def _es(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Never weaker: a guest must be exactly what `es` says."""
    was, now = (str(floors["es"]).lower() for floors in (old, new))
    return [] if was == now else [Change(FLOORS, "changed", "es", was, now)]


CHOICES = frozenset(("products", "chip_ids", "csp_ids", "id_key_digests", "author_key_digests", "host_data"))
DEMANDS: Mapping[str, Callable[[str, Any], _Demands]] = {
    "min_report_version": _number,
    "max_vmpl": _number,
    "policy_forbidden": _each,
    "policy_required": _each,
    "min_abi": _version,
    "platform_forbidden": _each,
    "platform_required": _each,
    **dict.fromkeys((f"min_{which}_tcb" for which in ("reported", "current", "committed", "launch")), _tcb),
    "committed_is_current": _flag,
    "min_firmware": _version_by_line,
    "launch_mitigations": _mask,
    "current_mitigations": _mask,
    "denied_chip_ids": _each,
    "min_guest_svn": _number,
}
