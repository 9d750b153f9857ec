# SPDX-License-Identifier: Apache-2.0
"""`/v1/rules/.../lint`: whom a rule would let in and should not. Nothing is changed."""

from __future__ import annotations

import msgspec

from broker.appraisal.image_life import named_versions
from broker.appraisal.lint import Weakness, lint
from broker.appraisal.lint_guests import Terms
from broker.appraisal.rules import ImageRef, Rule, read_rule, rule_name
from broker.claims import Trusted
from broker.gather import image_lives, known_guest, rule_images
from broker.http import lint_types
from broker.http.call import Call
from broker.http.types import RuleTerms
from broker.store.protocols import RecordKind
from broker.verifiers.snp_floors import Floors
from keys.tee import Tee


def lint_rule(call: Call, _: None) -> lint_types.Lint:
    record = call.services.store.record(RecordKind.RULE, call.who.owner, rule_name(call.path))
    return _lint(call, Rule.from_body(record.body or {}))


def lint_candidate(call: Call, request: RuleTerms) -> lint_types.Lint:
    return _lint(call, read_rule(msgspec.to_builtins(request)))


def _lint(call: Call, rule: Rule) -> lint_types.Lint:
    store, owner, path = call.services.store, call.who.owner, call.path
    newest: dict[str, int] = {}
    for name in {reference.name for reference in rule.images}:
        last = store.newest_version(RecordKind.IMAGE, owner, name)
        meant = named_versions(ImageRef(name, None), image_lives(owner, name, store), last, call.now)
        newest |= {name: meant[0]} if meant else {}
    found = lint(
        Terms(
            path=path,
            rule=rule,
            images=rule_images(owner, rule, store, call.now),
            guests=tuple(map(known_guest, store.records(RecordKind.INSTANCE, owner))),
            floors=call.services.trusted.get(Tee.SNP, Trusted()).floors or Floors(),
            newest=newest,
            at=call.now,
        )
    )
    return lint_types.Lint([*found.examined], [_weakness(weakness) for weakness in found.weaknesses])


def _weakness(weakness: Weakness) -> lint_types.Weakness:
    return lint_types.Weakness(
        weakness.kind,
        weakness.what,
        weakness.image,
        weakness.platform,
        [lint_types.WeakValue(*change) for change in weakness.changes],
        weakness.mend,
        weakness.case.claims.to_json(),
    )
