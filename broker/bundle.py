# SPDX-License-Identifier: Apache-2.0
"""Decision bundles: one decision about a guest with all that it stood on, signed by the broker.

    {"roomkey": version, "line": the ledger's line, "dossier": the evidence behind it (`broker.dossier`), null for SEV,
     "case": what appraisal judged (`broker.appraisal.case`, whole) or null}

It is a statement of type `keys.envelope.BUNDLE`, which no agent takes for a release. No secret is in it: neither key,
nor activation secret, nor ticket. What is in it may be read by its owner only, who has all of it already.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from broker import dossiers, ledger
from broker.appraisal.rules import rule_name
from broker.services import Services
from broker.store.protocols import LedgerEntry, RecordKind, Store
from keys import envelope
from keys.errors import Conflict, NotFound
from keys.messages import ResourcePath
from keys.tee import Tee

MAX_BUNDLE_BYTES = 6 * 1024 * 1024  # signed


def export(entry: LedgerEntry, services: Services) -> str:
    """The bundle of one line of the ledger.

    Raises Conflict (the line is no decision about a guest, or too long with all this), NotFound (nothing of what it
    stood on is kept), Unavailable.
    """
    if entry.kind not in {ledger.ATTEST, ledger.RELEASE}:
        raise Conflict("only a decision about a guest can be exported", found=entry.kind)
    case: dict[str, Any] | None = entry.body.get("case")
    attestation = entry.id if case is None else case["attestation"]
    try:
        dossier = dossiers.find(services.store, attestation)
    except NotFound:
        # A launch's measurement is under keys that belong to that launch and are kept nowhere. Its appraisal can be
        # repeated all the same.
        if case is None or entry.body["tee"] != Tee.SEV:
            raise
        dossier = None
    payload = {
        "roomkey": version("roomkey"),
        "line": asdict(entry),
        "dossier": dossier,
        "case": None if case is None else _whole(case, services.store),
    }
    signed = services.signer.sign(payload, envelope.BUNDLE)
    if len(signed) > MAX_BUNDLE_BYTES:
        raise Conflict("the bundle is too long", expected=f"at most {MAX_BUNDLE_BYTES} bytes", found=str(len(signed)))
    return signed


def _whole(case: dict[str, Any], store: Store) -> dict[str, Any]:
    """`case` with the rule and the images that it only names. Versions never change. Raises NotFound."""
    owner, rule = case["owner"], None
    if case["rule_version"] is not None:
        name = rule_name(ResourcePath.parse(case["path"]))
        rule = store.record(RecordKind.RULE, owner, name, case["rule_version"]).body
    images = [store.record(RecordKind.IMAGE, owner, name, number).body for name, number, *_ in case["images"]]
    return {**case, "rule": rule, "image_bodies": images}
