# SPDX-License-Identifier: Apache-2.0
"""The linter shows guests that a rule lets in and should not: of weak rules some, of strong ones none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.appraisal import lint as module
from broker.appraisal.case import KnownGuest
from broker.appraisal.image_life import ImageState, Life
from broker.appraisal.images import parse_image
from broker.appraisal.instances import Bound
from broker.appraisal.judge import judge
from broker.appraisal.lint import accepted, lint
from broker.appraisal.lint_guests import Terms, good_guests
from broker.appraisal.rules import read_rule
from broker.trace import Trace
from broker.verifiers.snp_floors import NOTHING, Floors, check_floors
from tests.fakes.boot import Boot
from tests.fakes.cases import ACTIVE, NOW, PATH, guest, known
from tests.fakes.desk import KEY, Desk, open_desk
from tests.fakes.evidence_file import booted, write_evidence

GRUB, UKI = (0, 2, 4, 7, 8, 9), (0, 2, 4, 7, 11, 12)
RETIRING = Life(ImageState.RETIRING, NOW - 1000, "alice", "", NOW + 1000)
STRICT = Floors()
LOOSE = replace(STRICT, min_reported_tcb=(), min_launch_tcb=())
SNP_BYTES = {"measurement": 48, "id_key_digest": 48, "author_key_digest": 48, "host_data": 32, "family_id": 16}
GENOA = {"products": ["Genoa"]}


def value(word: str, size: int = 32) -> str:
    return hashlib.shake_256(word.encode()).hexdigest(size)


def tpm(pcrs: Sequence[int], *, bank: str = "sha256", two: Sequence[int] = (), zero: Sequence[int] = ()) -> str:
    """An image of a TPM that pins `pcrs`, those of `two` to one of two values, and `zero` to nothing measured."""
    size = int(bank.removeprefix("sha")) // 8
    lines = ['platform = "tpm"', "[tpm]", f'bank = "{bank}"', "[tpm.pcrs]"]
    for index in sorted({*pcrs, *two, *zero}):
        values = [value(f"{index}", size)] + ([value(f"{index}, later", size)] if index in two else [])
        lines.append(f"{index} = {['0' * 2 * size] if index in zero else values}")
    return "\n".join(lines) + "\n"


def toml(given: Any) -> str:
    return json.dumps(given)


def snp(*pins: str, platform: str = "snp", **floors: Any) -> str:
    """An image of SEV-SNP that pins these fields, with these floors."""
    lines = [f'platform = "{platform}"', "[snp]", *(f'{pin} = "{value(pin, SNP_BYTES[pin])}"' for pin in pins)]
    if floors:
        lines += ["[snp.floors]", *(f"{name} = {toml(floor)}" for name, floor in floors.items())]
    return "\n".join(lines) + "\n"


def azure(pcrs: Sequence[int], *pins: str, **floors: Any) -> str:
    return snp(*pins, platform="az-snp-vtpm", **floors) + '[tpm]\nbank = "sha256"\n[tpm.pcrs]\n' + "".join(
        f'{index} = "{value(str(index))}"\n' for index in pcrs
    )  # fmt: skip


def sev(*, es: bool) -> str:
    return f'platform = "sev"\n[sev]\nlaunch_digest = "{value("launch")}"\nes = {toml(es)}\n'


ROLLING = f"""
platform = "tpm"
[tpm]
bank = "sha256"
[tpm.pcrs]
0 = "{value("0")}"
2 = "{value("2")}"
7 = "{value("7")}"
8 = "{value("8")}"
[[tpm.events]]
pcr = 4
digests = [
  {{ component = "shim", digests = ["{value("shim 1")}", "{value("shim 2")}"] }},
  {{ component = "kernel", digests = ["{value("kernel 1")}", "{value("kernel 2")}"] }},
]
[[tpm.events]]
pcr = 9
digests = [{{ component = "kernel", digests = ["{value("initrd 1")}", "{value("initrd 2")}"] }}]
[[tpm.components]]
name = "shim"
versions = ["15.7", "15.8"]
[[tpm.components]]
name = "kernel"
versions = ["31", "32"]
"""


class Setting(NamedTuple):
    """A rule with what stands around it. `images`: NAME@VERSION to text, or to text and life."""

    images: Mapping[str, Any]
    instances: Sequence[str] = ("web-1",)
    platforms: Sequence[str] = ("tpm",)
    bound: Mapping[str, Bound] = {}
    ids: Mapping[str, str] = {}
    floors: Floors = STRICT
    named: Sequence[str] = ()
    options: Mapping[str, Any] = {}

    def terms(self) -> Terms:
        texts = {name: one if isinstance(one, tuple) else (one, ACTIVE) for name, one in self.images.items()}
        bare = list(dict.fromkeys(name.partition("@")[0] for name in texts))
        newest: dict[str, int] = {}
        for name in texts:
            newest[name.partition("@")[0]] = max(newest.get(name.partition("@")[0], 0), int(name.partition("@")[2]))
        rule = {"images": [*(self.named or bare)], "platforms": [*self.platforms], "instances": [*self.instances]}
        return Terms(
            path=PATH,
            rule=read_rule(rule | dict(self.options)),
            images=tuple(known(name, parse_image(text), life) for name, (text, life) in texts.items()),
            guests=tuple(self._machine(name) for name in ("web-1", "web-2")),
            floors=self.floors,
            newest=newest,
            at=NOW,
        )

    def _machine(self, name: str) -> KnownGuest:
        prefix = {"tpm": "tpm-ek:", "snp": "snp-chip:", "az-snp-vtpm": "az-ak:", "sev": "sev-cek:"}
        ids = tuple(f"{prefix[one]}{value(name, 64 if one == 'snp' else 32)}" for one in self.platforms)
        return guest(name, (self.ids[name],) if name in self.ids else ids, bound=self.bound.get(name))


def one(text: str, **more: Any) -> Setting:
    """A rule of one image for one named machine."""
    return Setting({"a@1": text}, **more)


SNP: dict[str, Any] = {"platforms": ["snp"]}
AZ: dict[str, Any] = {"platforms": ["az-snp-vtpm"]}
FREE = "register that is not pinned"
HERE = Bound(str(PATH), "a", None)
BOTH = {"web-1": HERE, "web-2": HERE}
CSP = "snp-csp:Some Cloud"

WEAK: dict[str, tuple[Setting, str]] = {
    "no PCR 0": (one(tpm((2, 4, 7, 8, 9))), FREE),
    "no PCR 2": (one(tpm((0, 4, 7, 8, 9))), FREE),
    "no PCR 4": (one(tpm((0, 2, 7, 8, 9))), FREE),
    "no PCR 7": (one(tpm((0, 2, 4, 8, 9))), FREE),
    "no PCR 8": (one(tpm((0, 2, 4, 7, 9))), FREE),
    "no PCR 9": (one(tpm((0, 2, 4, 7, 8))), FREE),
    "nothing that was loaded": (one(tpm((0, 2, 4, 7))), FREE),
    "nothing but PCR 4": (one(tpm((4,))), FREE),
    "nothing but PCR 7": (one(tpm((7,))), FREE),
    "boot chain without firmware": (one(tpm((4, 7, 8, 9))), FREE),
    "UKI without PCR 11": (one(tpm((0, 2, 4, 7, 12))), FREE),
    "UKI without PCR 12": (one(tpm((0, 2, 4, 7, 11))), FREE),
    "UKI without firmware": (one(tpm((4, 7, 11, 12))), FREE),
    "half of both ways": (one(tpm((0, 2, 4, 7, 8, 11))), FREE),
    "configuration without code": (one(tpm((1, 3, 4, 5, 6, 7, 8, 9))), FREE),
    "SHA-384 without PCR 7": (one(tpm((0, 2, 4, 8, 9), bank="sha384")), FREE),
    "SHA-512 without PCR 9": (one(tpm((0, 2, 4, 7, 8), bank="sha512")), FREE),
    "one of two images": (Setting({"a@1": tpm(GRUB), "b@1": tpm((0, 4, 7, 8, 9))}), FREE),
    "a capped PCR in place of a real one": (one(tpm((0, 2, 4, 7, 9), zero=(15,))), FREE),
    "kernels and initrds freely mixed": (one(tpm(GRUB, two=(4, 9))), "values that do not belong together"),
    "firmware and Secure Boot freely mixed": (one(tpm(GRUB, two=(0, 7))), "values that do not belong together"),
    "three registers freely mixed": (one(tpm(UKI, two=(4, 11, 12))), "values that do not belong together"),
    "any machine": (one(tpm(GRUB), instances=["any"]), "any machine"),
    "any machine with a weak image": (one(tpm((4, 7)), instances=["any"]), "any machine"),
    "first use": (one(tpm(GRUB), instances=["enrolled"], options={"unsafe_first_use": True}), "first use"),
    "first use without clones": (
        one(tpm(UKI), instances=["enrolled"], options={"unsafe_first_use": True, "clones": "refuse"}), "first use"
    ),
    "enrolled for nothing": (one(tpm(GRUB), instances=["enrolled"]), "any enrolled machine"),
    "one enrolled for nothing": (
        one(tpm(GRUB), instances=["enrolled"], bound={"web-1": HERE}), "any enrolled machine"
    ),
    "an image on its way out": (Setting({"a@2": tpm(UKI), "a@1": (tpm(GRUB), RETIRING)}), "image that retires"),
    "only an image on its way out": (one((tpm(GRUB), RETIRING)), "image that retires"),  # type: ignore[arg-type]
    "an older version": (
        Setting({"a@2": tpm(UKI), "a@1": tpm(GRUB)}, named=["a@1", "a@2"]), "older image"
    ),
    "several platforms, one weak": (
        Setting({"a@1": tpm(GRUB), "b@1": snp("id_key_digest", **GENOA)}, platforms=["tpm", "snp"]),
        "anything that was signed",
    ),
    "debug": (one(snp("measurement", **GENOA), floors=replace(STRICT, unsafe_debug=True), **SNP), "debug"),
    "VMPL 1": (one(snp("measurement", **GENOA), floors=replace(STRICT, max_vmpl=1), **SNP), "VMPL 1"),
    "VMPL 3": (one(snp("measurement", **GENOA), floors=replace(STRICT, max_vmpl=3), **SNP), "VMPL 3"),
    "any VMPL": (one(snp("measurement", **GENOA), floors=replace(STRICT, max_vmpl=None), **SNP), "VMPL 3"),
    "Turin of the first day": (one(snp("measurement"), **SNP), "TCB of zeros"),
    "Turin of the first day, by name": (one(snp("measurement", products=["Turin"]), **SNP), "TCB of zeros"),
    "Genoa of the first day": (one(snp("measurement", **GENOA), floors=LOOSE, **SNP), "TCB of zeros"),
    "Milan of the first day": (one(snp("measurement", products=["Milan"]), floors=LOOSE, **SNP), "TCB of zeros"),
    "a floor for another line": (
        one(snp("measurement", min_reported_tcb=["Genoa snp=25"]), **SNP), "TCB of zeros"
    ),
    "migration agents": (
        one(snp("measurement", **GENOA), floors=replace(STRICT, policy_forbidden=()), **SNP), "migration agent"
    ),
    "no alias check": (
        one(snp("measurement", **GENOA), floors=replace(STRICT, platform_required=()), **SNP), "no alias check"
    ),
    "reports of version 2": (
        one(snp("measurement", **GENOA), floors=replace(STRICT, platform_required=(), min_report_version=0), **SNP),
        "version 2",
    ),
    "no floors at all": (one(snp("measurement"), floors=NOTHING, **SNP), "debug"),
    "an ID key": (one(snp("id_key_digest", **GENOA), **SNP), "anything that was signed"),
    "an author key": (one(snp("author_key_digest", **GENOA), **SNP), "anything that was signed"),
    "both keys": (one(snp("id_key_digest", "author_key_digest", **GENOA), **SNP), "anything that was signed"),
    "an ID key and a family": (one(snp("id_key_digest", "family_id", **GENOA), **SNP), "anything that was signed"),
    "any SEV-SNP machine": (one(snp("measurement", **GENOA), instances=["any"], **SNP), "any machine"),
    "forged Milan reports": (
        one(snp("measurement"), instances=["any"], floors=replace(STRICT, named_only=()), **SNP), "forged reports"
    ),
    "a provider's machines": (
        one(snp("measurement", **GENOA), ids={"web-1": CSP}, **SNP), "any machine of a provider"
    ),
    "enrolled for nothing, SEV-SNP": (
        one(snp("measurement", **GENOA), instances=["enrolled"], **SNP), "any enrolled machine"
    ),
    "Azure without PCR 7": (one(azure((0, 2, 4, 8, 9), "measurement", **GENOA), **AZ), FREE),
    "Azure with an ID key": (one(azure(GRUB, "id_key_digest", **GENOA), **AZ), "anything that was signed"),
    "any Azure machine": (one(azure(GRUB, "measurement", **GENOA), instances=["any"], **AZ), "any machine"),
    "SEV": (one(sev(es=False), platforms=["sev"]), "SEV"),
    "SEV-ES": (one(sev(es=True), platforms=["sev"]), "SEV"),
}  # fmt: skip

SVN = {"min_guest_svn": 3, **GENOA}
STRONG: dict[str, Setting] = {
    "GRUB": one(tpm(GRUB)),
    "UKI": one(tpm(UKI)),
    "both ways": one(tpm((*GRUB, 11, 12))),
    "configuration, too": one(tpm(range(10))),
    "MOK lists, too": one(tpm((*GRUB, 14))),
    "system extensions, too": one(tpm((*UKI, 13))),
    "once in a boot": one(tpm(GRUB, zero=(15,))),
    "a UKI once in a boot": one(tpm(UKI, zero=(15,))),
    "no GRUB": one(tpm((0, 2, 4, 7, 9), zero=(8,))),
    "nothing from outside": one(tpm((0, 2, 4, 7, 11), zero=(12,))),
    "SHA-384": one(tpm(GRUB, bank="sha384")),
    "SHA-512": one(tpm(UKI, bank="sha512")),
    "two machines": one(tpm(GRUB), instances=["web-1", "web-2"]),
    "a machine that is not there yet": one(tpm(GRUB), instances=["web-1", "web-9"]),
    "enrolled for this key": one(tpm(GRUB), instances=["enrolled"], bound=BOTH),
    "enrolled for this version": one(
        tpm(GRUB), instances=["enrolled"], bound=dict.fromkeys(BOTH, Bound(str(PATH), "a@1", None))
    ),
    "enrolled with init-data": one(
        tpm(GRUB), instances=["enrolled"], bound=dict.fromkeys(BOTH, Bound(str(PATH), "a", "ab" * 32))
    ),
    "enrolled for another key": one(
        tpm(GRUB), instances=["enrolled"], bound=BOTH | {"web-2": Bound("acme/disk/other", "a", None)}
    ),
    "named and bound": one(tpm(UKI), bound=BOTH),
    "no clones": one(tpm(GRUB), options={"clones": "refuse"}),
    "clones set apart": one(tpm(GRUB), options={"clones": "quarantine", "lease_s": 60}),
    "failures that stay": one(tpm(UKI), options={"sticky_failure": True}),
    "all options": one(tpm(UKI), instances=["enrolled"], bound=BOTH,
                       options={"sticky_failure": True, "clones": "refuse"}),
    "two kernels, one register": one(tpm(UKI, two=(4,))),
    "two firmwares, one register": one(tpm(GRUB, two=(0,))),
    "an update in components": one(ROLLING),
    "two images": Setting({"a@1": tpm(GRUB), "b@1": tpm(UKI)}),
    "the newest of several versions": Setting({"a@7": tpm(GRUB)}, named=["a@7"]),
    "a bare name": Setting({"a@7": tpm(GRUB)}, named=["a"]),
    "two platforms": Setting({"a@1": tpm(GRUB), "b@1": snp("measurement", **GENOA)}, platforms=["tpm", "snp"]),
    "a measurement on Genoa": one(snp("measurement", **GENOA), **SNP),
    "a measurement on Milan, by name": one(snp("measurement", products=["Milan"]), **SNP),
    "a measurement on either": one(snp("measurement", products=["Milan", "Genoa"]), **SNP),
    "a measurement with a floor for Turin": one(snp("measurement", min_reported_tcb=["Turin snp=2"]), **SNP),
    "floors for all lines": one(
        snp("measurement", min_reported_tcb=["Turin snp=2", "Genoa snp=25", "Milan snp=25"]), **SNP
    ),
    "an ID key with a version": one(snp("id_key_digest", **SVN), **SNP),
    "both keys with a version": one(snp("id_key_digest", "author_key_digest", **SVN), **SNP),
    "measurement and ID key": one(snp("measurement", "id_key_digest", **GENOA), **SNP),
    "measurement and HOST_DATA": one(snp("measurement", "host_data", **GENOA), **SNP),
    "a least ABI": one(snp("measurement", min_abi="1.55", **GENOA), **SNP),
    "a least firmware": one(snp("measurement", min_firmware=["Genoa 1.55.29"], **GENOA), **SNP),
    "one chip": one(snp("measurement", chip_ids=[value("web-1", 64)], **GENOA), **SNP),
    "no rolling back": one(snp("measurement", committed_is_current=True, **GENOA), **SNP),
    "one socket": one(snp("measurement", policy_required=["single_socket"], **GENOA), **SNP),
    "stricter operator": one(
        snp("measurement"), floors=replace(STRICT, products=("Genoa",), min_guest_svn=1, require_crl=True), **SNP
    ),
    "an operator's ID keys": one(
        snp("measurement", **GENOA), floors=replace(STRICT, id_key_digests=(value("k", 48),)), **SNP
    ),
    "enrolled for this key, SEV-SNP": one(snp("measurement", **GENOA), instances=["enrolled"], bound=BOTH, **SNP),
    "no clones, SEV-SNP": one(snp("measurement", **GENOA), options={"clones": "refuse"}, **SNP),
    "two measurements": Setting({"a@1": snp("measurement", **GENOA), "b@1": snp("id_key_digest", **SVN)}, **SNP),
    "Azure": one(azure(GRUB, "measurement", **GENOA), **AZ),
    "Azure with a UKI": one(azure(UKI, "measurement", **GENOA), **AZ),
    "Azure with an ID key and a version": one(azure(GRUB, "id_key_digest", **SVN), **AZ),
    "Azure, enrolled": one(azure(GRUB, "measurement", **GENOA), instances=["enrolled"], bound=BOTH, **AZ),
}  # fmt: skip


def test_the_tables_are_long_enough() -> None:
    """At least 50 rules that are weak, and 50 that are strong, each with a name of its own."""
    assert len(WEAK) >= 50
    assert len(STRONG) >= 50


def test_nearly_all_weak_rules_are_found() -> None:
    """At least 48 of 50: in fact every one."""
    found = [kind in {one.kind for one in lint(setting.terms()).weaknesses} for setting, kind in WEAK.values()]
    assert sum(found) >= len(WEAK) * 48 / 50


@pytest.mark.parametrize("name", WEAK)
def test_a_weak_rule_is_shown_with_a_guest_that_it_lets_in(name: str) -> None:
    """The weakness has its name, and each guest that is shown is let in by the judge and by the operator's floors."""
    setting, kind = WEAK[name]
    terms = setting.terms()
    weaknesses = lint(terms).weaknesses
    assert kind in {weakness.kind for weakness in weaknesses}
    for weakness in weaknesses:
        claims = weakness.case.claims
        assert judge(weakness.case, Trace()).allowed
        if claims.tee in {"snp", "az-snp-vtpm"}:
            assert check_floors(claims.facts, claims.measurements, terms.floors, Trace())
        assert weakness.what
        assert weakness.mend


@pytest.mark.parametrize("name", STRONG)
def test_a_strong_rule_raises_no_alarm(name: str) -> None:
    """A guest is let in by it, and none that should not be."""
    linted = lint(STRONG[name].terms())
    assert linted.examined
    assert [(one.kind, one.what) for one in linted.weaknesses] == []


@pytest.mark.parametrize(
    "setting",
    [
        one(tpm(GRUB), instances=["web-9"]),
        one(tpm(GRUB), platforms=["snp"]),
        one(snp("measurement", chip_ids=["ab" * 64]), floors=replace(STRICT, denied_chip_ids=("ab" * 64,)), **SNP),
    ],
)
def test_a_rule_that_lets_nobody_in_has_no_weakness(setting: Setting) -> None:
    """Without a guest that is let in there is nothing to spoil."""
    assert lint(setting.terms()) == ((), ())


def test_a_made_up_guest_shows_what_differs() -> None:
    """Beside the good guest's value stands the bad one's, for measurements, facts and machines."""
    [weakness] = lint(one(tpm((0, 2, 4, 7, 8))).terms()).weaknesses
    [change] = weakness.changes
    assert change.what == "sha256:9"
    assert change.good != change.bad == weakness.case.claims.measurements["sha256:9"]
    [anybody] = [w for w in lint(one(tpm(GRUB), instances=["any"]).terms()).weaknesses if w.kind == "any machine"]
    assert [change.what for change in anybody.changes] == ["instance"]
    debug = lint(WEAK["debug"][0].terms()).weaknesses
    assert [[*change] for w in debug if w.kind == "debug" for change in w.changes] == [
        ["policy_debug_allowed", "False", "True"]
    ]


def test_a_report_has_a_bounded_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images a rule has, and however weak they are."""
    monkeypatch.setattr(module, "MAX_WEAKNESSES", 3)
    assert len(lint(one(tpm((4,))).terms()).weaknesses) == 3


_PCRS = st.sets(st.sampled_from(range(10)), min_size=1).map(lambda some: tpm(tuple(some | {4})))
_SNP_PINS = st.sets(st.sampled_from(["measurement", "id_key_digest", "host_data"])).map(
    lambda some: snp(*sorted(some | {"measurement"}))
)
_FLOORS = st.builds(
    lambda debug, vmpl, tcb: replace(STRICT, unsafe_debug=debug, max_vmpl=vmpl, min_reported_tcb=tcb),
    st.booleans(),
    st.sampled_from([0, 1, 3, None]),
    st.sampled_from([(), ("Genoa snp=23",)]),
)


@settings(max_examples=100, deadline=None)
@given(
    images=st.lists(_PCRS | _SNP_PINS, min_size=1, max_size=3),
    instances=st.sampled_from([["any"], ["enrolled"], ["web-1"], ["web-1", "web-2"]]),
    clones=st.sampled_from(["allow", "refuse"]),
    floors=_FLOORS,
)
def test_whatever_is_shown_is_let_in(
    images: list[str], instances: list[str], clones: str, floors: Floors
) -> None:  # fmt: skip
    """Whatever the rule: nothing is called a weakness that the engine would refuse."""
    setting = Setting(
        {f"i{number}@1": text for number, text in enumerate(images)}, instances=instances, platforms=["tpm", "snp"],
        floors=floors, options={"clones": clones},
    )  # fmt: skip
    terms = setting.terms()
    for weakness in lint(terms).weaknesses:
        assert accepted(weakness.case, floors)
    for good in good_guests(terms):
        assert good.case.rule == terms.rule


# --- as an owner sees it ---


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        evidence = write_evidence(tmp_path / "guest.json", booted(Boot()))
        desk.run("key", "generate", KEY)
        desk.run("image", "enrol", "whole", "--from", evidence, "--pcrs", "0,2,4,7,8,9", "--yes")
        desk.run("image", "enrol", "part", "--from", evidence, "--pcrs", "0,4,7", "--yes")
        desk.run("instance", "add", "web-1", "--from", evidence)
        yield desk


def test_an_owner_sees_whom_the_rule_lets_in(desk: Desk) -> None:
    """What a guest could do, the value by which it shows, what would mend it; and how many there are."""
    desk.run("rule", "set", KEY, "--image", "part", "--instance", "web-1")
    shown = desk.run("rule", "lint", KEY, status=1).stdout
    assert "part@1 on tpm: register that is not pinned" in shown
    assert "lets in: a guest with boot code of a device's own (an option ROM)" in shown
    assert "to mend it: name PCR 2 in the image" in shown
    assert "3 weaknesses found; looked at part@1 on tpm." in shown
    told = desk.run("rule", "lint", KEY, "--json", status=1).stdout
    assert '"measurements"' in told


def test_a_rule_is_linted_before_it_is_set(desk: Desk) -> None:
    """The options describe a rule that need not be in force; a strong one ends with 0."""
    assert "1 weakness found" in desk.run(
        "rule", "lint", KEY, "--image", "whole", "--instance", "any", status=1
    ).stdout  # fmt: skip
    shown = desk.run("rule", "lint", KEY, "--image", "whole", "--instance", "web-1").stdout
    assert "No weakness found; looked at whole@1 on tpm." in shown


def test_a_rule_that_lets_nobody_in_is_told(desk: Desk) -> None:
    """Neither strong nor weak: there is no guest for it."""
    told = desk.run("rule", "lint", KEY, "--image", "none", "--instance", "web-1")
    assert "Nobody is let in" in told.stdout
    desk.run("rule", "lint", KEY, status=15)


def test_an_older_version_is_measured_by_what_counts(desk: Desk, tmp_path: Path) -> None:
    """A version that is only proposed makes none older; an active one does."""
    new = write_evidence(tmp_path / "new.json", booted(Boot(kernel=b"new")))
    text = desk.run("image", "enrol", "whole", "--from", new, "--pcrs", "0,2,4,7,8,9", "--draft").stdout
    (tmp_path / "new.toml").write_text(text)
    desk.run("image", "put", "whole", tmp_path / "new.toml", "--propose")
    rule = (KEY, "--image", "whole@1", "--instance", "web-1")
    desk.run("rule", "lint", *rule)
    desk.run("image", "approve", "whole@2")
    assert "older image" in desk.run("rule", "lint", *rule, status=1).stdout


def test_a_fleet_is_linted_by_a_few_of_its_machines() -> None:
    """Hundreds of machines that no attack tells apart cost no more than a few, and the odd one out is still found."""
    setting = one(tpm((0, 2, 4, 7, 8)), instances=["enrolled"], bound=BOTH)
    terms = setting.terms()
    fleet = tuple(guest(f"m-{n}", (f"tpm-ek:{value(str(n))}",), bound=HERE) for n in range(500))
    odd = guest("odd", (f"tpm-ek:{value('odd')}",))
    terms = terms._replace(guests=(*fleet, odd))
    assert len(list(good_guests(terms))) == 4
    assert {weakness.kind for weakness in lint(terms).weaknesses} == {FREE, "any enrolled machine"}
