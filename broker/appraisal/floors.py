# SPDX-License-Identifier: Apache-2.0
"""What an image demands besides its registers, judged on the claims alone. Each platform has floors of its own kind.

They come on top of the operator's, which held before there were any claims, and take none of those away.
"""

from __future__ import annotations

from broker.appraisal.image_sev import check_sev
from broker.appraisal.image_snp import floors_of
from broker.appraisal.images import Image
from broker.claims import Claims
from broker.trace import Stage, Trace
from broker.verifiers.snp_floors import Floors, check_floors
from keys.tee import Tee

_SNP = frozenset((Tee.SNP, Tee.AZ_SNP_VTPM))


def check_image_floors(image: Image, name: str, claims: Claims, trace: Trace) -> bool:
    """Whether `claims` meet the floors of `image`, which is `name` (name@version); one line in `trace` each."""
    if image.platform is Tee.SEV:
        return check_sev(image.floors, claims, name, trace)
    if image.platform not in _SNP:
        return True
    if "min_guest_svn" not in image.floors:
        svn = claims.facts.get("guest_svn")
        trace.not_required(Stage.MEASUREMENT, f"GUEST_SVN, of image {name}", found=svn)
    return check_floors(claims.facts, claims.measurements, floors_of(image.floors), trace, quiet=True)


def floors_of_image(image: Image) -> Floors:
    """The floors of an image of SEV-SNP."""
    floors: Floors = floors_of(image.floors)
    return floors


def unmet_floors(image: Image, name: str, claims: Claims) -> int:
    """How many floors of `image` these claims do not meet."""
    scratch = Trace()
    check_image_floors(image, name, claims, scratch)
    return len(scratch.failed)
