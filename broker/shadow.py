# SPDX-License-Identifier: Apache-2.0
"""Shadow rules: a rule that is judged beside the one in force, and never changes what comes of a request.

What the shadow says stands in the decision's line and nowhere else. It is judged on the same case, with its own images;
an image version that is only proposed counts in it, if it names that version. A fault in it is noted in the line.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from broker.appraisal.case import Case, Lease
from broker.appraisal.image_life import ImageState, KnownImage, Life
from broker.appraisal.judge import judge
from broker.appraisal.rules import Rule, rule_name
from broker.gather import image_lives, known_image, lease_name, rule_images
from broker.store.protocols import RecordKind, Store
from broker.trace import Trace
from keys.errors import NotFound

MAX_FAILED = 64  # checks named in one line


def beside(case: Case, verified: Trace, live: bool, store: Store) -> dict[str, Any] | None:
    """What the shadow of the key's rule says of `case`, None where there is no shadow. `verified` is the verifier's
    trace, `live` whether the rule in force would let the guest in.
    """
    version = None
    try:
        record = store.record(RecordKind.SHADOW, case.owner, rule_name(case.path))
        version = record.version
        judged, trace = _judge(case, Rule.from_body(record.body or {}), verified, store)
    except NotFound:
        return None
    except Exception as error:  # noqa: BLE001  whatever it is, the request is decided without it
        return {"version": version, "live": live, "error": type(error).__name__}
    failed = [check.name for check in trace.failed[len(verified.failed) :]]
    return {"version": version, "live": live, "allowed": judged, "failed": failed[:MAX_FAILED]}


def _judge(case: Case, rule: Rule, verified: Trace, store: Store) -> tuple[bool, Trace]:
    shadowed = replace(case, rule=rule, rule_version=None, images=_images(case, rule, store))
    # A rule in force that allows clones leaves the lease alone; then there is none that the shadow could meet either.
    if rule.clones != "allow" and case.lease is None and (held := store.lease(lease_name(case))) is not None:
        shadowed = replace(shadowed, lease=Lease(held.holder, held.until))
    trace = Trace([*verified.checks])
    return judge(shadowed, trace).allowed, trace


def _images(case: Case, rule: Rule, store: Store) -> tuple[KnownImage, ...]:
    images = {known.ref: known for known in rule_images(case.owner, rule, store, case.at)}
    for reference in rule.images:
        if reference.version is None or str(reference) in images:
            continue
        lives = image_lives(case.owner, reference.name, store)
        known = known_image(case.owner, reference.name, reference.version, lives, store)
        if known is not None and known.life.state is ImageState.PROPOSED:
            tried = Life(ImageState.ACTIVE, case.at, "nobody: it is only tried")
            images[known.ref] = known._replace(life=tried)
    return tuple(images.values())
