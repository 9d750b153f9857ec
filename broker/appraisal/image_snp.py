# SPDX-License-Identifier: Apache-2.0
"""The [snp] part of an image: reference values of an SEV-SNP report's fields, and floors above the operator's.

What cannot protect a key is refused, with what would mend it:

 (1) nothing that says what booted: HOST_DATA is chosen by the host, FAMILY_ID and IMAGE_ID mean something only under a
     trusted ID key, and floors say how a guest was launched but not which
 (2) a digest of zeros: the report shows it wherever there is no ID block or no author key
 (3) a floor that only the operator can set, and one that requires nothing

An ID or author key pins every image that its holder ever signed, old ones with known holes too. Such an image is
allowed without `min_guest_svn`, because a key may have signed one image only; the trace then shows GUEST_SVN as not
required.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from broker.appraisal.registers import SNP_BYTES, Register, digest, values
from broker.verifiers.snp_floors import NAMES, NOTHING, OPERATOR_ONLY, parse_floors
from keys import strictjson
from keys.errors import ProtocolError

PINS = frozenset(("measurement", "id_key_digest", "author_key_digest"))


def read_snp(table: object, *, pins: frozenset[str] = PINS) -> tuple[dict[str, Register], dict[str, Any]]:
    """The registers and floors of [snp], of which at least one of `pins` must be there. Raises ProtocolError."""
    snp = strictjson.members(
        table, name="snp", required=frozenset(), optional=frozenset(SNP_BYTES) | frozenset(("floors",))
    )
    registers = {
        name: Register(values(snp[name], f"snp.{name}", partial(digest, size=size)))
        for name, size in SNP_BYTES.items()
        if name in snp
    }
    if not pins & registers.keys():  # (1)
        raise ProtocolError(
            "the image does not say what boots",
            expected=" or ".join(name for name in SNP_BYTES if name in pins),
            found=", ".join(registers) or "no value",
            mend="add the launch digest as snp.measurement, or the digest of the ID key that signs your launches",
        )
    for name, register in registers.items():
        if name in PINS and any(set(value) == {"0"} for value in register.values):  # (2)
            raise ProtocolError(
                f"snp.{name} is zero: anything shows that",
                mend="leave it out, or launch the guest with an ID block and enrol it again",
            )
    return registers, _floors(snp.get("floors", {}))


def _floors(table: object) -> dict[str, Any]:
    """The floors as JSON, under the names of `snp_floors.NAMES`."""
    own = [name for name in NAMES if name not in OPERATOR_ONLY]
    if isinstance(table, dict) and (others := sorted(OPERATOR_ONLY & table.keys())):  # (3)
        raise ProtocolError(
            f"snp.floors.{others[0]} is the operator's to say", mend="leave it out; an image can only demand more"
        )
    given = strictjson.members(table, name="snp.floors", required=frozenset(), optional=frozenset(own))
    floors = parse_floors(given, NOTHING)
    result: dict[str, Any] = {}
    for name in own:
        if name not in given:
            continue
        value = getattr(floors, name)
        if value == getattr(NOTHING, name):
            raise ProtocolError(f"snp.floors.{name} requires nothing", found=str(given[name])[:64], mend="leave it out")
        result[name] = list(value) if isinstance(value, tuple) else value
    return result


def floors_of(image: Mapping[str, Any]) -> Any:
    """`snp_floors.Floors` of an image's stored floors."""
    return parse_floors(image, NOTHING)
