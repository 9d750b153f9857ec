# SPDX-License-Identifier: Apache-2.0
"""`/v1/.../try`: what a rule or an image would change, before it is in force. Nothing is changed."""

from __future__ import annotations

import msgspec

from broker import what_if
from broker.appraisal.images import parse_image
from broker.appraisal.rules import check_name, read_rule
from broker.http import types
from broker.http.call import Call
from broker.requests import DAY_MS


def try_rule(call: Call, request: types.TryRule) -> types.TryReport:
    path = call.path
    rule = read_rule({key: value for key, value in msgspec.to_builtins(request).items() if key != "days"})
    return _report(call, what_if.Candidate({str(path): rule}, {}), request.days)


def try_image(call: Call, request: types.TryImage) -> types.TryReport:
    name = check_name(call.name, what="an image")
    return _report(call, what_if.Candidate({}, {name: parse_image(request.toml)}), request.days)


def _report(call: Call, candidate: what_if.Candidate, days: int) -> types.TryReport:
    since = call.now - days * DAY_MS
    found = what_if.what_if(call.who.owner, candidate, call.services.store, since=since, now=call.now)
    refused, let_in = ([types.Turned(*turned) for turned in turneds] for turneds in (found.refused, found.let_in))
    return types.TryReport(found.looked_at, found.judged, refused, let_in, found.truncated)
