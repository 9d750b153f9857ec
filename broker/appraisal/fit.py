# SPDX-License-Identifier: Apache-2.0
"""How far measurements are from an image. Pure.

 (1) Each register that no component has a part in must have one of its values.
 (2) The others must all have the values of one combination: values that are each all right, but of two different
     combinations, are a machine that no update makes.

Where no combination fits, the nearest is that with the fewest other registers, of equally near ones the later.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import ne
from typing import NamedTuple

from broker.appraisal.images import Image
from broker.appraisal.registers import Register
from broker.claims import Claims


class Fit(NamedTuple):
    """`differing`: registers, in the image's order, that have another value than they should; () means that it fits.
    `expected`: what each register of the image should be. `combination`: in which of the states that an update passes
    through that is so ("shim 15.8, kernel 6.1.0-31"), "" where the image has one state only.
    """

    differing: tuple[str, ...]
    expected: Mapping[str, Register]
    combination: str


def fit(image: Image, claims: Claims) -> Fit:
    """The nearest combination of `image`."""
    expected, words = image.registers, ""
    if image.combinations is not None:
        joint = image.combinations
        found = tuple([claims.measurements.get(name) for name in joint.values])
        distances = [sum(map(ne, found, values)) for values in zip(*joint.values.values(), strict=True)]
        nearest = max(range(len(distances)), key=lambda at: (-distances[at], at))  # (2)
        expected = {**expected, **{name: joint.register(name, nearest) for name in joint.values}}
        words = joint.words(joint.all[nearest])
    differing = tuple(
        [name for name, allowed in expected.items() if claims.measurements.get(name) not in allowed.values]  # (1)
    )
    return Fit(differing, expected, words)
