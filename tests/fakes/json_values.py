# SPDX-License-Identifier: Apache-2.0
"""Arbitrary JSON values and texts, for tests that throw them at readers."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=12)
values: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


def mutated(draw: st.DrawFn, value: Any) -> Any:
    """`value` with one member, at any depth, replaced, removed or added."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        action = draw(st.sampled_from(["descend", "descend", "replace", "remove", "add"]))
        rest = {other: item for other, item in value.items() if other != key}
        if action == "remove":
            return rest
        if action == "add":
            return value | {draw(st.text(max_size=8)): draw(values)}
        return rest | {key: mutated(draw, value[key]) if action == "descend" else draw(values)}
    return draw(values)


@st.composite
def mutations(draw: st.DrawFn, value: Any) -> bytes:
    """The JSON text of a mutation of `value`; it may hold NaN, floats and lone surrogates."""
    return json.dumps(mutated(draw, value)).encode()
