# SPDX-License-Identifier: Apache-2.0
"""AMD's CA keys for SEV and SEV-ES, which come with the product: ARK and ASK of each generation, as AMD published them
(`amd/sev/`, in AMD's own format; the keys of Milan, Genoa and Turin are those of the X.509 certificates for SEV-SNP).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from broker.verifiers.sev_certificates import Ca, Generation, parse_ca, verify_ca


@cache
def built_in() -> tuple[Ca, ...]:
    """Every generation's pair, checked against the pins like one from outside. Raises EndorsementError."""
    folder = files("broker.verifiers") / "amd" / "sev"
    pairs = (
        tuple(parse_ca((folder / f"{generation.lower()}-{which}.cert").read_bytes()) for which in ("ark", "ask"))
        for generation in Generation
    )
    return tuple(verify_ca(ark, ask) for ark, ask in pairs)
