# SPDX-License-Identifier: Apache-2.0
"""What a genuine SEV-SNP report must show besides: the appraisal policy for evidence of one broker, or of one image.

The operator's floors hold for every guest; an owner's image can add its own and take none away. Each floor leaves one
line in the trace: passed, failed, or not required. Why the defaults are what they are: docs/platforms/snp.md. How each
is written: `snp_floor_settings`.

TCB components are compared each by itself, never as one number. A floor by product line says nothing about another
line: `products` says which lines are let in at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TypeVar

from broker.claims import Fact
from broker.trace import Stage, Trace
from broker.verifiers.snp_floor_settings import (
    MAX_VMPL,
    READERS,
    TURIN_CHIP_DIGITS,
    firmware_floors,
    nearest,
    numbers,
    tcb_floors,
)
from broker.verifiers.snp_report import TCB_LAYOUT, Line, SigningKey
from keys.errors import ProtocolError

HOST_REQUESTED = 0xFFFFFFFF  # VMPL of a report that no guest has asked for
TCBS = ("reported", "current", "committed", "launch")

_FIRMWARE = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){2}")
_VECTOR = re.compile(r"0x[0-9a-f]{1,16}")
_WHOLE = {"policy": "policy", "platform": "platform_info"}  # the fact that has all bits
_NOTHING_SAID = "nothing"
_BY_LINE = frozenset((*(f"min_{which}_tcb" for which in TCBS), "min_firmware"))

_Floor = TypeVar("_Floor")


@dataclass(frozen=True, slots=True)
class Floors:
    """The strict default. An empty list, 0, "" or None requires nothing; `NOTHING` is all of that.

    `unsafe_debug` lets guests in whose host may read their memory: for development. `named_only` are the lines whose
    machines count only where a rule names them, never as "any". `min_*_tcb` and `min_firmware` ("Milan 1.55.29") are by
    line. `min_abi` is the least that the guest's POLICY asks of the firmware's ABI ("1.55"). Lists of digests and ids
    are lower-case hex; the report's value must be one of them.
    """

    unsafe_debug: bool = False
    min_report_version: int = 3
    products: tuple[str, ...] = tuple(Line)
    named_only: tuple[str, ...] = (Line.MILAN,)
    max_vmpl: int | None = 0
    policy_forbidden: tuple[str, ...] = ("migrate_ma", "cxl_allowed")
    policy_required: tuple[str, ...] = ()
    min_abi: str = ""
    platform_forbidden: tuple[str, ...] = ("tio_enabled",)
    platform_required: tuple[str, ...] = ("alias_check_complete",)
    min_reported_tcb: tuple[str, ...] = ("Milan snp=24", "Genoa snp=23")
    min_current_tcb: tuple[str, ...] = ()
    min_committed_tcb: tuple[str, ...] = ()
    min_launch_tcb: tuple[str, ...] = ("Milan snp=24", "Genoa snp=23")
    committed_is_current: bool = False
    min_firmware: tuple[str, ...] = ()
    launch_mitigations: int = 0
    current_mitigations: int = 0
    masked_chip_id: bool = False
    chip_ids: tuple[str, ...] = ()
    denied_chip_ids: tuple[str, ...] = ()
    csp_ids: tuple[str, ...] = ()
    id_key_digests: tuple[str, ...] = ()
    author_key_digests: tuple[str, ...] = ()
    min_guest_svn: int = 0
    host_data: tuple[str, ...] = ()
    require_crl: bool = False


NOTHING = Floors(
    unsafe_debug=True, min_report_version=0, products=(), named_only=(), max_vmpl=None, policy_forbidden=(),
    platform_forbidden=(), platform_required=(), min_reported_tcb=(), min_launch_tcb=(), masked_chip_id=True,
)  # fmt: skip
NAMES = tuple(field.name for field in fields(Floors))
# What only the operator can say: an image is compared with claims, after these were decided.
OPERATOR_ONLY = frozenset(("unsafe_debug", "named_only", "masked_chip_id", "require_crl"))


def parse_floors(table: Mapping[str, object], base: Floors) -> Floors:
    """`base` with the settings in `table`, each checked. Raises ProtocolError that names the setting.

    A floor by product line replaces that of its own line only: who sets Genoa's does not mean to drop Milan's. An empty
    list drops them all.
    """
    for name in table:
        if name not in READERS:
            raise ProtocolError("there is no such floor", found=name[:64], mend=nearest(name, NAMES))
    given = {name: READERS[name](name, value) for name, value in table.items()}
    floors = replace(
        base, **given | {name: _merged(getattr(base, name), given[name]) for name in _BY_LINE & given.keys()}
    )
    for kind in ("policy", "platform"):
        forbidden, required = (getattr(floors, f"{kind}_{word}") for word in ("forbidden", "required"))
        if both := sorted(set(forbidden).intersection(required)):
            raise ProtocolError(
                f"{kind}_required and {kind}_forbidden name the same bit, so that nothing is left",
                found=both[0],
                mend=f"set {kind}_forbidden without it, or take it out of {kind}_required",
            )
    return floors


def _merged(base: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """Floors by line, each text beginning with its line: what is given, and for other lines the base's."""
    named = {text.split()[0] for text in given}
    return (*(text for text in base if given and text.split()[0] not in named), *given)


def check_floors(
    facts: Mapping[str, Fact], measurements: Mapping[str, str], floors: Floors, trace: Trace, *, quiet: bool = False
) -> bool:
    """Whether verified claims meet `floors`. One line of the trace for each; `quiet` leaves out what is not required.

    A fact that is missing meets no floor. `named_only`, `masked_chip_id` and `require_crl` are not judged here: they
    speak of the way to the claims, and the verifier has decided them.
    """
    judge = _Judge(facts, measurements, floors, trace, quiet)
    for check in _CHECKS:
        check(judge)
    return judge.passed


@dataclass(slots=True)
class _Judge:
    facts: Mapping[str, Fact]
    measurements: Mapping[str, str]
    floors: Floors
    trace: Trace
    quiet: bool
    passed: bool = True

    def line(
        self, name: str, required: object, passed: bool, *, expected: object = "", found: object, mend: str = "",
        stage: Stage = Stage.TRUST,
    ) -> None:  # fmt: skip
        """The line of one floor, which is in force where `required` is true, not empty, not 0."""
        if required:
            if not self.trace.check(stage, name, passed, expected=expected, found=found, mend=mend):
                self.passed = False
        elif not self.quiet:
            self.trace.not_required(stage, name, found=found)

    def by_line(
        self, name: str, setting: str, floors: Mapping[Line, _Floor], meets: Callable[[_Floor], bool], *,
        words: Callable[[_Floor], str], found: str, mend: str,
    ) -> None:  # fmt: skip
        """The line of a floor that differs from one product line to another."""
        product = self.product()
        if product is None:  # no floor of any line is met
            self.line(name, floors, False, expected="a known product line", found=found, mend=mend)
        elif product in floors:
            least = floors[product]
            self.line(name, True, meets(least), expected=f"{product} at least {words(least)}", found=found, mend=mend)
        elif floors or not self.quiet:  # also said where quiet: there is a floor, and it is not this machine's
            self.trace.not_required(Stage.TRUST, name, found=f"{found}; {setting} has nothing for {product}")

    def number(self, fact: str) -> int:
        """-1, which no floor admits, where there is none."""
        value = self.facts.get(fact)
        return value if type(value) is int else -1

    def text(self, fact: str) -> str:
        value = self.facts.get(fact)
        return value if isinstance(value, str) else ""

    def product(self) -> Line | None:
        text = self.text("product")
        return Line(text) if text in set(Line) else None

    def tcb(self, which: str) -> dict[str, int]:
        """The components by name; -1 where the fact is missing."""
        line = self.product()
        return {} if line is None else {part: self.number(f"{which}_tcb_{part}") for part in TCB_LAYOUT[line]}


def _debug(judge: _Judge) -> None:
    allowed = judge.facts.get("policy_debug_allowed")
    judge.line(
        "debugging is off",
        not judge.floors.unsafe_debug,
        allowed is False,
        expected="DEBUG clear in the guest's POLICY",
        found=_on(allowed),
        mend="launch the guest with bit 19 of its policy clear: until then its host can read its memory",
    )


def _report_version(judge: _Judge) -> None:
    version, least = judge.number("report_version"), judge.floors.min_report_version
    judge.line(
        "report's version is new enough",
        least,
        version >= least,
        expected=f"at least {least}",
        found=_said(version),
        mend="update the host's SEV firmware: version 2 says neither what processor it is nor whether its memory was "
        "checked; or lower min_report_version",
    )


def _products(judge: _Judge) -> None:
    product = judge.text("product")
    judge.line(
        "product line is trusted",
        judge.floors.products,
        product in judge.floors.products,
        expected=", ".join(judge.floors.products),
        found=product or _NOTHING_SAID,
        mend="move the guest to another machine, or add the line to products if you trust it",
    )


def _vmpl(judge: _Judge) -> None:
    vmpl, most = judge.number("vmpl"), judge.floors.max_vmpl
    from_host = vmpl == HOST_REQUESTED
    limit = MAX_VMPL if most is None else most
    judge.line(
        "privilege level (VMPL) that asked is trusted",
        most is not None or from_host,  # a guest is needed in any case
        0 <= vmpl <= limit,
        expected=f"VMPL 0 to {limit}" if limit else "VMPL 0",
        found="none: the host asked for it" if from_host else _said(vmpl),
        mend="ask for the report from a more privileged level, or raise max_vmpl where an SVSM makes that right",
    )


def _bits(judge: _Judge, kind: str, word: str, wanted: bool, names: tuple[str, ...], mend: str) -> None:
    """One of the four floors of bits: those of `kind` that are required (`wanted`) or forbidden."""
    facts = judge.facts
    wrong = [name for name in names if facts.get(f"{kind}_{name}") is not wanted]
    if wanted and "alias_check_complete" in names and judge.number("report_version") < 3:
        # what version 2 has in that place says nothing
        wrong = sorted({*wrong, "alias_check_complete"})
    judge.line(
        f"{word} has the required bits" if wanted else f"{word} has no forbidden bit",
        names,
        not wrong,
        expected=("" if wanted else "without ") + ", ".join(names),
        found=("lacks " if wanted else "") + ", ".join(wrong) if wrong else judge.text(_WHOLE[kind]) or _NOTHING_SAID,
        mend=mend,
    )


def _policy(judge: _Judge) -> None:
    floors = judge.floors
    _bits(judge, "policy", "POLICY", False, floors.policy_forbidden,
          "launch the guest with a policy without them, or take them out of policy_forbidden")  # fmt: skip
    _bits(judge, "policy", "POLICY", True, floors.policy_required,
          "launch the guest with a policy that has them, or take them out of policy_required")  # fmt: skip
    abi = judge.number("policy_abi_major"), judge.number("policy_abi_minor")
    judge.line(
        "POLICY asks for a firmware ABI that is new enough",
        floors.min_abi,
        min(abi) >= 0 and abi >= numbers(floors.min_abi or "0"),
        expected=f"at least {floors.min_abi}",
        found=_said(*abi),
        mend="launch the guest with that ABI version in its policy, or lower min_abi",
    )


def _platform(judge: _Judge) -> None:
    floors = judge.floors
    _bits(judge, "platform", "PLATFORM_INFO", False, floors.platform_forbidden,
          "switch it off in the host's firmware settings, or take it out of platform_forbidden")  # fmt: skip
    _bits(judge, "platform", "PLATFORM_INFO", True, floors.platform_required,
          "switch it on in the host's firmware settings (alias_check_complete: update the firmware, and have reports "
          "of version 3 or later), or take it out of platform_required")  # fmt: skip


def _tcbs(judge: _Judge) -> None:
    for which in TCBS:
        setting, found = f"min_{which}_tcb", judge.tcb(which)
        judge.by_line(
            f"{which.upper()}_TCB is new enough",
            setting,
            tcb_floors(setting, getattr(judge.floors, setting)),
            partial(_all_at_least, found),
            words=_words,
            found=_words(found),
            mend=f"update the host's firmware and microcode, and boot the guest again, or lower {setting}",
        )


def _all_at_least(found: Mapping[str, int], least: Mapping[str, int]) -> bool:
    return all(found[part] >= value for part, value in least.items())


def _committed(judge: _Judge) -> None:
    current, committed = judge.tcb("current"), judge.tcb("committed")
    versions = judge.text("current_version"), judge.text("committed_version")
    known = bool(current) and min((*current.values(), *committed.values())) >= 0 and all(versions)
    judge.line(
        "firmware cannot be rolled back below what runs",
        judge.floors.committed_is_current,
        known and current == committed and versions[0] == versions[1],
        expected=f"COMMITTED as CURRENT: {_words(current)}, {versions[0] or _NOTHING_SAID}",
        found=f"{_words(committed)}, {versions[1] or _NOTHING_SAID}",
        mend="commit the firmware on the host (snphost commit), or clear committed_is_current",
    )


def _firmware(judge: _Judge) -> None:
    found = judge.text("current_version")
    judge.by_line(
        "SEV firmware is new enough",
        "min_firmware",
        firmware_floors("min_firmware", judge.floors.min_firmware),
        lambda least: bool(_FIRMWARE.fullmatch(found)) and numbers(found) >= least,
        words=lambda least: _said(*least),
        found=found or _NOTHING_SAID,
        mend="update the host's SEV firmware, or lower min_firmware",
    )


def _mitigations(judge: _Judge) -> None:
    for when, mask in (("launch", judge.floors.launch_mitigations), ("current", judge.floors.current_mitigations)):
        found = judge.text(f"{when}_mit_vector")
        judge.line(
            f"{when.upper()}_MIT_VECTOR has the required mitigations",
            mask,
            bool(_VECTOR.fullmatch(found)) and int(found, 16) & mask == mask,
            expected=f"all of {mask:#x}",
            found=found or "none: the report is older than version 5",
            mend=f"update the host's firmware, and boot the guest again, or lower {when}_mitigations",
        )


def _chip(judge: _Judge) -> None:
    floors, chip, key = judge.floors, _chip_name(judge.text("chip_id")), judge.text("signing_key")
    found = chip or ("a VLEK, which names no chip" if key == SigningKey.VLEK else "masked by the host")
    judge.line(
        "chip is one of chip_ids",
        floors.chip_ids,
        chip in map(_chip_name, floors.chip_ids),
        expected=f"one of {len(floors.chip_ids)} chips",
        found=found,
        mend=f"move the guest to one of these chips, or add {chip or 'its chip'} to chip_ids",
        stage=Stage.IDENTITY,
    )
    name = "chip is not one of denied_chip_ids"
    if floors.denied_chip_ids and not chip and key == SigningKey.VLEK:
        # also said where quiet: here the list cannot do what it is for
        judge.trace.not_judged(Stage.IDENTITY, f"{name} (a VLEK names no chip; its provider: csp_ids)")
        return
    judge.line(
        name,
        floors.denied_chip_ids,
        chip not in map(_chip_name, floors.denied_chip_ids) and bool(chip),
        expected=f"none of {len(floors.denied_chip_ids)} chips",
        found=found,
        mend="move the guest to another chip" if chip else "let the host show CHIP_ID: it could be a denied one",
        stage=Stage.IDENTITY,
    )


def _csp(judge: _Judge) -> None:
    csp = judge.text("csp_id")
    judge.line(
        "provider that loaded the VLEK is one of csp_ids",
        judge.floors.csp_ids,
        csp in judge.floors.csp_ids,
        expected=", ".join(judge.floors.csp_ids),
        found=csp or "no provider: the chip's own key (VCEK)",
        mend="move the guest to this provider, or add its id to csp_ids",
        stage=Stage.IDENTITY,
    )


def _key(judge: _Judge, name: str, measurement: str, allowed: tuple[str, ...], used: bool) -> None:
    """`used`: whether there was such a key at the launch at all."""
    found = judge.measurements.get(measurement, "")
    judge.line(
        name,
        allowed,
        used and found in allowed,
        expected=" or ".join(allowed),
        found=(found or _NOTHING_SAID) if used else "none was used",
        mend=f"launch the guest with an ID block that this key signed, or add the digest to {measurement}s",
        stage=Stage.MEASUREMENT,
    )


def _launch(judge: _Judge) -> None:
    floors, facts = judge.floors, judge.facts
    _key(judge, "ID key that signed the launch is trusted", "id_key_digest", floors.id_key_digests, True)
    _key(judge, "author key that certified the ID key is trusted", "author_key_digest", floors.author_key_digests,
         facts.get("author_key_en") is True)  # fmt: skip
    svn = judge.number("guest_svn")
    judge.line(
        "GUEST_SVN is new enough",
        floors.min_guest_svn,
        svn >= floors.min_guest_svn,
        expected=f"at least {floors.min_guest_svn}",
        found=_said(svn),
        mend="launch a newer image, whose ID block has a higher SVN, or lower min_guest_svn",
        stage=Stage.MEASUREMENT,
    )
    found = judge.measurements.get("host_data", "")
    judge.line(
        "HOST_DATA is allowed",
        floors.host_data,
        found in floors.host_data,
        expected=" or ".join(floors.host_data),
        found=found or _NOTHING_SAID,
        mend="launch the guest with one of these values, or add it to host_data",
        stage=Stage.MEASUREMENT,
    )


_CHECKS: tuple[Callable[[_Judge], None], ...] = (
    _debug, _report_version, _products, _vmpl, _policy, _platform, _tcbs, _committed, _firmware, _mitigations, _chip,
    _csp, _launch,
)  # fmt: skip


def _on(fact: Fact) -> str:
    if not isinstance(fact, bool):
        return _NOTHING_SAID
    return "on" if fact else "off"


def _said(*numbers: int) -> str:
    return _NOTHING_SAID if min(numbers) < 0 else ".".join(map(str, numbers))


def _words(components: Mapping[str, int]) -> str:
    return " ".join(f"{part}={_said(value)}" for part, value in components.items()) or _NOTHING_SAID


def _chip_name(chip_id: str) -> str:
    """A Turin chip has 8 bytes, which some write with the zeros that fill CHIP_ID."""
    short, rest = chip_id[:TURIN_CHIP_DIGITS], chip_id[TURIN_CHIP_DIGITS:]
    return chip_id if rest.strip("0") else short
