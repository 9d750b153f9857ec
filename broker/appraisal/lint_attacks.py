# SPDX-License-Identifier: Apache-2.0
"""The ways in which a good guest is spoiled. Each attack yields guests that no careful owner wants; whether the rule
lets them in is for the engine to say. Pure.

    machines     any machine; whoever comes first; an enrolled one that was meant for no key in particular; any of a
                 provider's; one of a line whose chips can be forged
    measurements a register that says what booted and that the image does not pin; values of several states mixed
    SEV-SNP      debug, another VMPL, a TCB of zeros, a migration agent, no alias check, a report that says too little;
                 whatever else the holder of an ID key ever signed
    images       an older version, one that is on its way out
    SEV          all of it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from broker.appraisal.case import Case
from broker.appraisal.image_life import ImageState, when
from broker.appraisal.lint_guests import Good, Terms, made_up, spoiled, stranger, tcb_facts
from broker.appraisal.registers import title
from broker.appraisal.rules import ANY, ENROLLED
from broker.claims import Fact
from broker.verifiers.snp_report import Line
from keys.tee import Tee

_SNP = frozenset((Tee.SNP, Tee.AZ_SNP_VTPM))
_ANCHORS = {
    0: "firmware of the host's choice",
    2: "boot code of a device's own (an option ROM)",
    4: "another boot loader or kernel",
    7: "Secure Boot off, or keys of the host's",
}
_LOADED = {
    8: "another kernel command line",
    9: "another initrd, or another configuration of the boot loader",
    11: "another unified kernel image",
    12: "a command line or credentials from outside",
}
_WAYS = ((8, 9), (11, 12))  # either says what the loader loaded: GRUB's way, and that of a unified kernel image


class Attempt(NamedTuple):
    """A spoiled guest. `detail` tells attempts of one `kind` apart."""

    kind: str
    detail: str
    what: str
    mend: str
    case: Case


Attack = Callable[[Terms, Good], Iterator[Attempt]]


# --- machines ---


def _anybody(terms: Terms, good: Good) -> Iterator[Attempt]:
    """A machine that nobody enrolled."""
    claims = good.case.claims
    case = replace(spoiled(good.case, instance_ids=(stranger(claims.tee, "the host's own machine"),)), guests=())
    if terms.rule.instances == (ANY,):
        yield Attempt("any machine", "", "any machine in the world that a vendor vouches for, if it runs this image",
                      f"name machines: roomkey rule set {terms.path} --instance NAME ..., or --instance enrolled",
                      case)  # fmt: skip
    if terms.rule.unsafe_first_use:
        yield Attempt("first use", "", "whoever comes first with this image is enrolled, and gets the key",
                      "take unsafe_first_use out of the rule, and issue tickets: roomkey guest ticket NAME "
                      f"--key {terms.path} --image {good.known.name}", case)  # fmt: skip


def _meant_for_nothing(terms: Terms, good: Good) -> Iterator[Attempt]:
    """A machine that was enrolled, but not for this key."""
    if terms.rule.instances != (ENROLLED,):
        return
    for guest in good.case.guests:
        if guest.bound is None:
            yield Attempt(
                "any enrolled machine",
                guest.name,
                f"{guest.name} was enrolled for no key in particular, and gets this one, too",
                f"name machines: roomkey rule set {terms.path} --instance NAME ..., or enrol {guest.name} by a ticket",
                good.case,
            )


def _provider(terms: Terms, good: Good) -> Iterator[Attempt]:
    """Another machine whose provider's key (VLEK) signs for it."""
    if terms.rule.instances == (ANY,) or good.case.claims.tee is not Tee.SNP:
        return
    providers = tuple(one for one in good.case.claims.instance_ids if one.startswith("snp-csp:"))
    if providers:
        yield Attempt(
            "any machine of a provider",
            providers[0],
            f"any machine of {providers[0].removeprefix('snp-csp:')}, for whichever of its customers it runs",
            "enrol machines by their chips: roomkey instance add NAME --chip-id HEX",
            spoiled(
                good.case,
                instance_ids=providers,
                facts={"chip_id": made_up("chip_id", "another machine's") * 2},
            ),
        )


def _forged(terms: Terms, good: Good) -> Iterator[Attempt]:
    """A report under a key that was read out of a chip (arXiv 2605.12990), of a machine that nobody named."""
    if good.case.claims.tee in _SNP and terms.rule.instances == (ANY,):
        facts: dict[str, Fact] = {"product": str(Line.MILAN), **tcb_facts(Line.MILAN, 255)}
        case = spoiled(good.case, facts=facts, instance_ids=(stranger(good.case.claims.tee, "a broken chip"),),
                       trust="vcek-named" if Line.MILAN in terms.floors.named_only else "vcek")  # fmt: skip
        yield Attempt("forged reports", "", "reports that were forged with the secret of a broken Milan processor",
                      "let the operator name Milan in snp.named_only, or the image other products", case)  # fmt: skip


# --- measurements ---


def _free_registers(_terms: Terms, good: Good) -> Iterator[Attempt]:
    """A machine that booted something else, where that shows in no register that the image pins."""
    image = good.known.image
    banks = sorted({name.partition(":")[0] for name in image.registers if ":" in name})
    for bank in banks:
        pinned = {int(name.partition(":")[2]) for name in image.registers if name.startswith(f"{bank}:")}
        way = max(_WAYS, key=lambda pair: len(pinned.intersection(pair)))
        words = _ANCHORS | {index: _LOADED[index] for index in way}
        for index in sorted(words.keys() - pinned):
            register = f"{bank}:{index}"
            yield Attempt(
                "register that is not pinned",
                register,
                f"a guest with {words[index]}: {title(register)} is not in the image",
                f"name PCR {index} in the image, zero where nothing is measured into it: roomkey image enrol "
                f"{good.known.name} --from EVIDENCE --pcrs ...",
                spoiled(good.case, measurements={register: made_up(register, "the host's")}),
            )


def _mixed(_terms: Terms, good: Good) -> Iterator[Attempt]:
    """Values that are each all right, of different states."""
    image = good.known.image
    if image.combinations is not None:
        return
    several = [name for name, register in image.registers.items() if len(register.values) > 1]
    for name in several[1:]:
        yield Attempt(
            "values that do not belong together",
            "",
            f"a guest that is in two states at once: {title(several[0])} of one, {title(name)} of another",
            f"make the states one by one: roomkey image update {good.known.name} ..., or an image each",
            spoiled(good.case, measurements={name: image.registers[name].values[-1]}),
        )


# --- SEV-SNP ---


def _snp(_terms: Terms, good: Good) -> Iterator[Attempt]:
    """How a genuine processor launched a guest that protects nothing."""
    if good.case.claims.tee not in _SNP:
        return
    floors = "let the operator set it in [snp], or the image in [snp.floors]: "
    spoils: tuple[tuple[str, str, dict[str, Fact]], ...] = (
        ("debug", "a guest whose memory its host can read and write", {"policy_debug_allowed": True}),
        ("VMPL 1", "code at a lower privilege level of the guest, below software of the host's", {"vmpl": 1}),
        ("VMPL 3", "code at the lowest privilege level of the guest", {"vmpl": 3}),
        ("migration agent", "a guest that its host can move, with its memory, to where it likes",
         {"policy_migrate_ma": True}),
        ("no alias check", "a guest on memory modules that lie about their size, and so show two pages as one (BadRAM)",
         {"platform_alias_check_complete": False}),
        ("version 2", "a report that says neither which processor it is nor whether its memory was checked",
         {"report_version": 2}),
    )  # fmt: skip
    names = {
        "debug": "unsafe_debug = false (the operator's alone)",
        "VMPL 1": "max_vmpl = 0",
        "VMPL 3": "max_vmpl = 0",
        "migration agent": 'policy_forbidden = ["migrate_ma"]',
        "no alias check": 'platform_required = ["alias_check_complete"]',
        "version 2": "min_report_version = 3",
    }
    for kind, what, facts in spoils:
        yield Attempt(kind, "", what, floors + names[kind], spoiled(good.case, facts=facts))
    for line in Line:
        facts = {"product": str(line), **tcb_facts(line, 0)}
        yield Attempt("TCB of zeros", str(line), f"a {line} machine with firmware of the first day, and all its holes",
                      f'{floors}min_reported_tcb = ["{line} snp=..."], or products without {line}',
                      spoiled(good.case, facts=facts))  # fmt: skip


def _signed_before(_terms: Terms, good: Good) -> Iterator[Attempt]:
    """Another image of whoever signed this one."""
    if good.case.claims.tee in _SNP and "measurement" not in good.known.image.registers:
        yield Attempt(
            "anything that was signed",
            "",
            "every image that the holder of the ID key ever signed, those with known holes too",
            f"add min_guest_svn to [snp.floors] of {good.known.name}, or the measurement to [snp]",
            spoiled(
                good.case, measurements={"measurement": made_up("measurement", "an old image")}, facts={"guest_svn": 0}
            ),
        )


# --- images, platforms ---


def _on_its_way_out(terms: Terms, good: Good) -> Iterator[Attempt]:
    """A version that is not the newest."""
    known = good.known
    newest = terms.newest.get(known.name, known.version)
    if known.life.state is ImageState.RETIRING:
        until = "for ever" if known.life.until is None else f"until {when(known.life.until)}"
        yield Attempt("image that retires", "", f"guests of {known.ref}, which is on its way out, {until}",
                      f"once all guests are updated: roomkey image retire {known.ref} --now", good.case)  # fmt: skip
    elif known.version < newest:
        yield Attempt("older image", "", f"guests of {known.ref}, though there is {known.name}@{newest}",
                      f"roomkey rule set {terms.path} --image {known.name} ..., or roomkey image retire {known.ref}",
                      good.case)  # fmt: skip


def _sev(terms: Terms, good: Good) -> Iterator[Attempt]:
    """A guest whose memory nothing protects from being changed."""
    if good.case.claims.tee is Tee.SEV:
        yield Attempt("SEV", "", "a guest whose host can change its memory while it runs, and states its own firmware",
                      f"run it on SEV-SNP: roomkey rule set {terms.path} --platform snp ...", good.case)  # fmt: skip


ATTACKS: tuple[Attack, ...] = (
    _anybody,
    _meant_for_nothing,
    _provider,
    _forged,
    _free_registers,
    _mixed,
    _snp,
    _signed_before,
    _on_its_way_out,
    _sev,
)
