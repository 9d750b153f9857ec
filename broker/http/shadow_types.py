# SPDX-License-Identifier: Apache-2.0
"""Messages of `/v1/rules/.../shadow`."""

from __future__ import annotations

from msgspec import Struct

from broker.http.types import DEFAULT_DAYS, Days, Rule, Turned


class ShadowQuery(Struct, forbid_unknown_fields=True):
    """Of which days the decisions are told."""

    days: Days = DEFAULT_DAYS


class Shadow(Struct):
    """`rule`: the shadow. Of the decisions that it was judged beside (`judged`), `failed` are those where that was a
    fault; `refused` and `let_in` where its verdict was another. `truncated`: there were more decisions.
    """

    rule: Rule
    judged: int
    failed: int
    refused: list[Turned]
    let_in: list[Turned]
    truncated: bool
