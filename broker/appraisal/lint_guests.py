# SPDX-License-Identifier: Apache-2.0
"""Good guests, made up: what a machine would show that runs one of the rule's images as its owner meant it. Pure.

Values that the image pins are the image's; what the floors ask for is met; everything else is as harmless as can be,
and the same every time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from broker.appraisal.case import Case, KnownGuest
from broker.appraisal.floors import floors_of_image
from broker.appraisal.identity import TRUSTED_BY_VENDOR, means
from broker.appraisal.image_life import KnownImage
from broker.appraisal.images import Image
from broker.appraisal.instances import Bound, Standing
from broker.appraisal.registers import LAUNCH_DIGEST, SNP_BYTES
from broker.appraisal.rules import ANY, ENROLLED, Rule
from broker.claims import Claims, Fact
from broker.verifiers.sev_launch import NODBG
from broker.verifiers.snp_floors import Floors
from broker.verifiers.snp_report import PLATFORM_BITS, POLICY_BITS, TCB_LAYOUT, VERSIONS, Line
from keys.messages import ResourcePath
from keys.tee import Tee

TCBS = ("reported", "current", "committed", "launch")
LINES = (Line.GENOA, Line.TURIN, Line.MILAN)  # in the order in which a good guest tries them
MAX_ALIKE = 3  # machines of one owner, for one image
NEW, ALL_BITS = 255, (1 << 64) - 1
BANK_BYTES = {"sha256": 32, "sha384": 48, "sha512": 64}
_PREFIXES = {
    Tee.TPM: ("tpm-ek:", "tpm-ak:"),
    Tee.SNP: ("snp-chip:", "snp-csp:"),
    Tee.AZ_SNP_VTPM: ("az-ak:",),
    Tee.SEV: ("sev-cek:",),
}
_SNP = frozenset((Tee.SNP, Tee.AZ_SNP_VTPM))


class Terms(NamedTuple):
    """What is linted: the rule of the key at `path`, the versions that its images mean, the owner's machines, the
    operator's floors for SEV-SNP. `newest`: the newest version of each image by name. `at` in milliseconds.
    """

    path: ResourcePath
    rule: Rule
    images: tuple[KnownImage, ...]
    guests: tuple[KnownGuest, ...]
    floors: Floors
    newest: Mapping[str, int]
    at: int


class Good(NamedTuple):
    """A guest that the owner could mean, with its image."""

    case: Case
    known: KnownImage


def good_guests(terms: Terms) -> Iterator[Good]:
    """Guests for each image on its platform: for each machine that may come, one of each product line."""
    for known in terms.images:
        tee = known.image.platform
        for guest in _machines(terms, known):
            for line in LINES if tee in _SNP else (Line.GENOA,):
                claims = _claims(known.image, tee, guest, line, terms)
                yield Good(_case(terms, claims, guest), known)


def stranger(tee: Tee, word: str) -> str:
    """The id of a machine that nobody knows."""
    digest = hashlib.sha512(f"{word} {tee}".encode()).hexdigest()
    return _PREFIXES[tee][0] + (digest if tee in _SNP else digest[:64])


def made_up(register: str, word: str) -> str:
    """A value of a register that nobody measured."""
    bank = register.partition(":")[0]
    size = BANK_BYTES.get(bank) or SNP_BYTES.get(register, 32)
    return hashlib.shake_256(f"{word} {register}".encode()).hexdigest(size)


def _machines(terms: Terms, known: KnownImage) -> Iterator[KnownGuest | None]:
    """The owner's machines that may come with this image, of those that no attack tells apart a few; None for one that
    nobody needs to know.
    """
    if terms.rule.instances == (ANY,):
        yield None
        return
    alike: dict[tuple[bool, bool], int] = {}
    for guest in terms.guests:
        named = terms.rule.instances == (ENROLLED,) or guest.name in terms.rule.instances
        bound: Bound | None = guest.bound
        fits = bound is None or (bound.key == str(terms.path) and means(bound.image, known.ref))
        if named and fits and guest.standing is Standing.ENROLLED and _of(known.image.platform, guest):
            kind = (bound is None, any(one.startswith("snp-csp:") for one in guest.ids))
            alike[kind] = alike.get(kind, 0) + 1
            if alike[kind] <= MAX_ALIKE:
                yield guest
    if terms.rule.unsafe_first_use:
        yield None


def _of(tee: Tee, guest: KnownGuest) -> bool:
    return any(one.startswith(_PREFIXES[tee]) for one in guest.ids)


def _case(terms: Terms, claims: Claims, guest: KnownGuest | None) -> Case:
    return Case(
        path=terms.path,
        at=terms.at,
        claims=claims,
        announced=str(terms.path),
        session="",
        challenged_at=terms.at,
        attested_at=terms.at,
        attestation="",
        evidence="",
        owner=terms.path.owner,
        key=(1, "active"),
        rule=terms.rule,
        images=terms.images,
        guests=() if guest is None else (guest,),
    )


def _claims(image: Image, tee: Tee, guest: KnownGuest | None, line: Line, terms: Terms) -> Claims:
    measurements = {**_registers(tee, image), **_pinned(image)}
    facts: dict[str, Fact] = {}
    ids = (stranger(tee, "a machine of the owner's"),) if guest is None else guest.ids
    if tee in _SNP:
        floors = (floors_of_image(image), terms.floors)
        facts = snp_facts(line, floors, ids)
        _meet_lists(measurements, floors, image)
    elif tee is Tee.SEV:
        facts = {"policy": f"{image.floors['policy'] | NODBG:#x}", "api_major": NEW, "api_minor": NEW, "build_id": NEW}
    vouched = TRUSTED_BY_VENDOR.get(tee, ("sev-cek",))[0]
    if tee in _SNP and line in terms.floors.named_only:
        vouched = f"{vouched}-named"
    return Claims(
        tee=tee,
        instance_ids=ids,
        trust=vouched,
        measurements=measurements,
        facts=facts,
        init_data=None if guest is None or guest.bound is None else guest.bound.init_data,
    )


def _registers(tee: Tee, image: Image) -> dict[str, str]:
    """All that a machine of this platform shows, whether the image names it or not."""
    if tee is Tee.SEV:
        return {LAUNCH_DIGEST: ""}
    banks = {name.partition(":")[0] for name in image.registers if ":" in name}
    shown = {f"{bank}:{index}": made_up(f"{bank}:{index}", "good") for bank in sorted(banks) for index in range(16)}
    if tee in _SNP:
        shown |= {name: made_up(name, "good") for name in SNP_BYTES}
    return shown


def _pinned(image: Image) -> dict[str, str]:
    joint = {} if image.combinations is None else image.combinations.values
    return {
        name: joint[name][-1] if name in joint else register.values[0] for name, register in image.registers.items()
    }


def snp_facts(line: Line, floors: tuple[Floors, ...], ids: tuple[str, ...]) -> dict[str, Fact]:
    """What a report on a machine of `line` says that is as new and as strict as can be, with what `floors` require."""
    required = {name for floor in floors for name in (*floor.policy_required, *floor.platform_required)}
    chips = [one.removeprefix("snp-chip:") for one in ids if one.startswith("snp-chip:")]
    providers = [one.removeprefix("snp-csp:") for one in ids if one.startswith("snp-csp:")]
    facts: dict[str, Any] = {
        "product": str(line),
        "report_version": VERSIONS[-1],
        "signing_key": "vlek" if providers else "vcek",
        "chip_id": chips[0] if chips else made_up("chip_id", "good") * 2,
        "csp_id": providers[0] if providers else None,
        "vmpl": 0,
        "guest_svn": (1 << 32) - 1,
        "author_key_en": True,
        "policy_abi_major": NEW,
        "policy_abi_minor": NEW,
        "current_version": f"{NEW}.{NEW}.{NEW}",
        "committed_version": f"{NEW}.{NEW}.{NEW}",
        "launch_mit_vector": f"{ALL_BITS:#x}",
        "current_mit_vector": f"{ALL_BITS:#x}",
    }
    facts |= {f"policy_{name}": name in required for name in POLICY_BITS}
    facts |= {f"platform_{name}": name in required for name in PLATFORM_BITS}
    facts |= tcb_facts(line, NEW)
    for floor in reversed(floors):
        facts |= {"chip_id": floor.chip_ids[0]} if floor.chip_ids else {}
        facts |= {"csp_id": floor.csp_ids[0], "signing_key": "vlek"} if floor.csp_ids else {}
    return facts


def tcb_facts(line: Line, value: int) -> dict[str, Fact]:
    """All components of all four TCBs."""
    return {f"{which}_tcb_{part}": value for which in TCBS for part in TCB_LAYOUT[line]}


def _meet_lists(measurements: dict[str, str], floors: tuple[Floors, ...], image: Image) -> None:
    """Digests of which the floors want one, where the image does not pin them itself."""
    for floor in reversed(floors):
        for name, allowed in (
            ("id_key_digest", floor.id_key_digests),
            ("author_key_digest", floor.author_key_digests),
            ("host_data", floor.host_data),
        ):
            if allowed and name not in image.registers:
                measurements[name] = allowed[0]


def spoiled(
    case: Case,
    *,
    measurements: Mapping[str, str] | None = None,
    facts: Mapping[str, Fact] | None = None,
    **members: Any,
) -> Case:
    """`case` with other values in its claims; `members` are others of the claims."""
    claims = case.claims
    changed = replace(
        claims,
        measurements={**claims.measurements, **(measurements or {})},
        facts={**claims.facts, **(facts or {})},
        **members,
    )
    return replace(case, claims=changed)
