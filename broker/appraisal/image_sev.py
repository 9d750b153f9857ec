# SPDX-License-Identifier: Apache-2.0
"""The [sev] part of an image: which launches of SEV or SEV-ES get a secret.

    launch_digest = "..."     # or a list: SHA-256 over firmware, kernel hashes and, with SEV-ES, the first CPU states
    es = true                 # SEV-ES: registers are encrypted too. The digests of the two differ
    policy = 0x05             # bits that the guest's policy must have, NODBG always (AMD 55766, table 2)
    min_api = "1.49"          # the platform's firmware, as its host states it
    min_build = 6             # ... and the build, of exactly that version

Refused: no launch digest, one of zeros, policy bits that contradict `es` or do not exist, a build of no version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from broker.appraisal.registers import LAUNCH_DIGEST, LAUNCH_DIGEST_BYTES, Register, digest, values
from broker.claims import Claims
from broker.trace import Stage, Trace
from broker.verifiers.sev_launch import ES, NODBG, POLICY_BITS
from keys import strictjson
from keys.errors import ProtocolError

_KNOWN = (1 << len(POLICY_BITS)) - 1
_API = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\Z")
_MEMBERS = frozenset(("es", "policy", "min_api", "min_build"))


def read_sev(table: object) -> tuple[dict[str, Register], dict[str, Any]]:
    """The register and floors of [sev]: `policy` (all bits that must be set), `es`, and where they are given `min_api`
    ("1.49") and `min_build`. Raises ProtocolError.
    """
    sev = strictjson.members(table, name="sev", required=frozenset((LAUNCH_DIGEST,)), optional=_MEMBERS)
    allowed = values(sev[LAUNCH_DIGEST], f"sev.{LAUNCH_DIGEST}", partial(digest, size=LAUNCH_DIGEST_BYTES))
    if any(set(value) == {"0"} for value in allowed):
        raise ProtocolError("sev.launch_digest is zero", mend="compute it: roomkey image measure sev")
    es, policy = sev.get("es", False), sev.get("policy", 0)
    if type(es) is not bool:
        raise ProtocolError("sev.es must be true or false", found=str(es)[:64])
    if type(policy) is not int or policy & ~_KNOWN:
        raise ProtocolError("sev.policy has unknown bits", expected=f"0 to {_KNOWN:#x}", found=str(policy)[:64])
    if policy & ES and not es:
        raise ProtocolError("sev.policy asks for SEV-ES, sev.es does not", mend="write es = true")
    floors: dict[str, Any] = {"es": es, "policy": policy | NODBG | (ES if es else 0)}
    if "min_api" in sev:
        text = strictjson.string(sev["min_api"], name="sev.min_api", max_chars=16)
        if not _API.match(text):
            raise ProtocolError("sev.min_api is not a version", expected='"MAJOR.MINOR"', found=text)
        floors["min_api"] = text
    if "min_build" in sev:
        build = sev["min_build"]
        if type(build) is not int or build not in range(256) or "min_api" not in floors:
            raise ProtocolError("sev.min_build is not a build of sev.min_api", expected="0 to 255, beside min_api")
        floors["min_build"] = build
    return {LAUNCH_DIGEST: Register(allowed)}, floors


def check_sev(floors: Mapping[str, Any], claims: Claims, image: str, trace: Trace) -> bool:
    """Whether a launch meets the `floors` that `read_sev` made. A fact that is missing is not met."""
    facts = claims.facts
    text = facts.get("policy")
    policy = int(text, 16) if isinstance(text, str) else 0
    required = floors["policy"]
    good = trace.check(
        Stage.TRUST,
        f"policy has the bits of image {image}, and SEV-ES only if the image has",
        policy & required == required and bool(policy & ES) == floors["es"],
        expected=f"{required:#x} ({', '.join(name for name, bit in POLICY_BITS.items() if required >> bit & 1)})",
        found=text or "not stated",
        mend="launch the guest with the policy that the broker gave",
    )
    if "min_api" not in floors:
        trace.not_required(Stage.TRUST, "platform's firmware version", found=_version(claims))
        return good
    least = [*(int(part) for part in floors["min_api"].split(".")), floors.get("min_build", 0)]
    found = [facts.get(name) for name in ("api_major", "api_minor", "build_id")]
    new = trace.check(
        Stage.TRUST,
        f"platform's firmware is at least that of image {image}",
        all(type(part) is int for part in found) and found >= least,
        expected=f"{floors['min_api']} build {least[2]}",
        found=_version(claims),
        mend="let the host install newer SEV firmware",
    )
    return good and new


def _version(claims: Claims) -> str:
    facts = claims.facts
    return f"{facts.get('api_major')}.{facts.get('api_minor')} build {facts.get('build_id')}, as the host states it"
