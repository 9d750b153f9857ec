# SPDX-License-Identifier: Apache-2.0
"""Cases for the judge, without a store: a key that is there, and whatever else the test says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.appraisal.case import Case, KnownGuest
from broker.appraisal.image_life import ImageState, KnownImage, Life
from broker.appraisal.images import Image
from broker.appraisal.instances import Standing
from broker.appraisal.rules import Rule
from broker.claims import Claims
from keys.messages import ResourcePath

PATH = ResourcePath("acme", "disk", "root")
NOW = 1_800_000_000_000  # milliseconds since the epoch
ACTIVE = Life(ImageState.ACTIVE, NOW - 1000, "alice")


def known(name: str, image: Image, life: Life = ACTIVE, *, counts: bool = True) -> KnownImage:
    """`name` is NAME@VERSION."""
    bare, _, version = name.partition("@")
    return KnownImage(bare, int(version), life, image, counts)


def guest(name: str, ids: tuple[str, ...], standing: Standing = Standing.ENROLLED, **more: Any) -> KnownGuest:
    return KnownGuest(name, ids, standing, more.get("bound"), NOW - 1000, "alice", more.get("why", ""))


def case_of(
    claims: Claims,
    *,
    images: Mapping[str, Image],
    rule: Mapping[str, Any] | None = None,
    enrolled: Mapping[str, tuple[str, ...]] | None = None,
    **more: Any,
) -> Case:
    """A case of the key `PATH`, version 3. `rule` overwrites members of one for image debian on a TPM, any instance;
    `enrolled` are the owner's machines with their ids; `more` are other members of the case.
    """
    body = {"images": ["debian"], "platforms": ["tpm"], "instances": ["any"]} | dict(rule or {})
    standard: dict[str, Any] = {
        "path": PATH,
        "at": NOW,
        "claims": claims,
        "announced": None,
        "session": "5e55",
        "challenged_at": NOW - 20,
        "attested_at": NOW - 10,
        "attestation": "d-attested",
        "evidence": "e1" * 32,
        "owner": "acme",
        "key": (3, "active"),
        "rule": Rule.from_body(body),
        "rule_version": 7,
        "images": tuple(known(name, image) for name, image in images.items()),
        "guests": tuple(
            guest(name, ids) for name, ids in (enrolled or {}).items() if not set(ids).isdisjoint(claims.instance_ids)
        ),
    }
    return Case(**standard | more)
