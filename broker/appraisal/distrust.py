# SPDX-License-Identifier: Apache-2.0
"""What an owner does not trust any more, whatever the rules say: effective with the next request, until it is undone.

platform    sev                  a platform
product     Milan                a product line of processors
chip        4d1c...              one processor, by its hardware id in hex (snp-chip) or of its CEK (sev-cek)
tcb-below   Genoa snp=24         every machine of the line whose reported TCB is below that in any component
image       debian-12@3          an image's version; without a version all of them
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from broker.appraisal.rules import PLATFORMS, check_name
from broker.claims import Claims
from broker.trace import Stage, Trace
from broker.verifiers.snp_floor_settings import tcb_floors
from broker.verifiers.snp_report import TCB_LAYOUT, Line
from keys import strictjson
from keys.errors import ProtocolError

KINDS = ("platform", "product", "chip", "tcb-below", "image")
MAX_VALUE_CHARS = 200

_CHIP = re.compile(r"[0-9a-f]{16}|[0-9a-f]{64}|[0-9a-f]{128}")
_IMAGE = re.compile(r"[^@]+(@[1-9][0-9]{0,8})?\Z")


class Distrust(NamedTuple):
    """`value` in the one spelling that `parse_distrust` gives it. `why` is its owner's word."""

    kind: str
    value: str
    why: str = ""

    @property
    def name(self) -> str:
        """Under what name the owner's record is kept."""
        return f"{self.kind}:{self.value}"


def parse_distrust(kind: object, value: object, why: str = "") -> Distrust:
    """What an owner posts. Raises ProtocolError."""
    if kind not in KINDS:
        raise ProtocolError("cannot distrust that", expected=", ".join(KINDS), found=str(kind)[:64])
    text = strictjson.string(value, name="what to distrust", max_chars=MAX_VALUE_CHARS).strip()
    return Distrust(str(kind), _READERS[str(kind)](text), why)


def hit(distrust: Distrust, claims: Claims, image: str | None) -> str | None:
    """What of the machine, or of the `image` (name@version) that it runs, is distrusted; None where nothing is."""
    if distrust.kind == "platform":
        return str(claims.tee) if claims.tee == distrust.value else None
    if distrust.kind == "product":
        product = claims.facts.get("product")
        return product if isinstance(product, str) and product == distrust.value else None
    if distrust.kind == "chip":
        ids = (f"snp-chip:{distrust.value}", f"sev-cek:{distrust.value}")
        shown = (*claims.instance_ids, f"snp-chip:{claims.facts.get('chip_id')}")
        return next((one for one in shown if one in ids), None)
    if distrust.kind == "tcb-below":
        return _below(distrust.value, claims)
    named = image is not None and distrust.value in {image, image.partition("@")[0]}
    return image if named else None


def check_distrust(distrusted: Iterable[Distrust], claims: Claims, image: str | None, trace: Trace) -> bool:
    """Whether nothing of it is distrusted; one line in `trace` for each thing that is, or one that nothing is."""
    trusted = True
    for distrust in distrusted:
        found = hit(distrust, claims, image)
        if found is not None:
            trusted = trace.check(
                Stage.TRUST,
                f"{distrust.kind.replace('-', ' ')} is not distrusted by the key's owner",
                False,
                expected=f"not {distrust.value}" if distrust.kind != "tcb-below" else f"at least {distrust.value}",
                found=f"{found}; distrusted: {distrust.why}" if distrust.why else found,
                mend=f"if you trust it again: roomkey distrust undo {distrust.name!r}",
            )
    if trusted:
        trace.check(Stage.TRUST, "nothing of it is distrusted by the key's owner", True)
    return trusted


def _below(value: str, claims: Claims) -> str | None:
    [(line, least)] = tcb_floors("tcb-below", (value,)).items()
    if claims.facts.get("product") != line:
        return None
    found = {part: claims.facts.get(f"reported_tcb_{part}") for part in least}
    low = [part for part, number in found.items() if type(number) is not int or number < least[part]]
    return f"{line} " + " ".join(f"{part}={found[part]}" for part in low) if low else None


def _platform(text: str) -> str:
    if text.lower() not in PLATFORMS:
        raise ProtocolError("no platform of this broker", expected=", ".join(sorted(PLATFORMS)), found=text[:64])
    return text.lower()


def _product(text: str) -> str:
    line = next((line for line in Line if line.lower() == text.lower()), None)
    if line is None:
        raise ProtocolError("no product line that this broker knows", expected=", ".join(Line), found=text[:64])
    return str(line)


def _chip(text: str) -> str:
    if not _CHIP.fullmatch(text.lower()):
        raise ProtocolError("no hardware id", expected="128, 64 or 16 hex digits", found=text[:64])
    return text.lower()


def _tcb(text: str) -> str:
    line, *components = text.split() or [""]
    spelled = next((known for known in Line if known.lower() == line.lower()), line)
    [(known, least)] = tcb_floors("tcb-below", (" ".join((spelled, *components)),)).items()
    return " ".join((known, *(f"{part}={least[part]}" for part in TCB_LAYOUT[known] if part in least)))


def _image(text: str) -> str:
    if not _IMAGE.match(text):
        raise ProtocolError("no image", expected="NAME or NAME@VERSION", found=text[:64])
    check_name(text.partition("@")[0], what="an image")
    return text


_READERS = {"platform": _platform, "product": _product, "chip": _chip, "tcb-below": _tcb, "image": _image}
