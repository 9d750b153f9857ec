# SPDX-License-Identifier: Apache-2.0
"""Images: what an owner says a good guest looks like, as reference values (RFC 9334).

    platform = "tpm"                  # or snp, az-snp-vtpm, sev
    description = "Debian 12, kernel 6.1.0-31"

    [tpm]                             # `image_tpm`; with az-snp-vtpm the bank sha256, and [snp] for the paravisor
    bank = "sha256"

    [tpm.pcrs]
    0 = "5f3a..."                     # the value, or a list of the values that are all right
    7 = ["9c1d...", "77aa..."]

    [[tpm.events]]                    # instead of a value, or beside one that it must then lead to:
    pcr = 4                           # the exact sequence of digests that leads to PCR 4
    digests = [
      { digest = "ab12...", type = "EV_EFI_BOOT_SERVICES_APPLICATION", what = "\\\\EFI\\\\debian\\\\shimx64.efi" },
      { component = "kernel", digests = ["31aa...", "9d0c..."] },  # or one for each version of a component
    ]

    [[tpm.components]]                # what an update replaces as one (`image_components`, `components`)
    name = "kernel"
    versions = ["6.1.0-31", "6.1.0-32"]

    [snp]                             # `image_snp`
    measurement = "8e01..."

    [snp.floors]                      # what the operator's floors do not ask for already
    min_guest_svn = 2

    [sev]                             # `image_sev`
    launch_digest = "31ff..."

`type` and `what` only explain. `start_locality` (0, 3 or 4) belongs beside the events of PCR 0 where the machine starts
from another locality than 0. What cannot protect a key is refused when the image is loaded, with what would mend it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from broker import tomltext
from broker.appraisal.components import Combinations
from broker.appraisal.image_sev import read_sev
from broker.appraisal.image_snp import read_snp
from broker.appraisal.image_tpm import read_tpm
from broker.appraisal.registers import ExpectedEvent, Register
from keys import strictjson
from keys.errors import ProtocolError
from keys.tee import Tee

MAX_IMAGE_CHARS = 200 * 1024
MAX_DESCRIPTION_CHARS = 500

_Parts = tuple[dict[str, Register], dict[str, Any], Combinations | None]  # registers, floors, combinations

# What an image of the Azure paravisor must pin: at VMPL 0 anybody can run his own code, and sign quotes in software.
_PARAVISOR_PINS = frozenset(("measurement", "id_key_digest"))


@dataclass(frozen=True, slots=True)
class Image:
    """`registers` by the names that claims use for them ("sha256:4"), in the order of `registers.order`. `floors` is
    what the image demands besides, as JSON of the platform's own kind (`broker.appraisal.floors`).

    Where the image has components, a register may have more values than go together: `combinations` says which do, and
    `broker.appraisal.fit` judges by that.
    """

    platform: Tee
    description: str
    registers: Mapping[str, Register]
    floors: Mapping[str, Any] = field(default_factory=dict)
    combinations: Combinations | None = None

    def to_body(self) -> dict[str, Any]:
        """Of a register that depends on the combination only the newest release's value stands among the registers: a
        release of Roomkey that knows no combinations reads that one, and lets no mixture pass.
        """
        joint = {} if self.combinations is None else self.combinations.values
        body = {
            "platform": str(self.platform),
            "description": self.description,
            "registers": {
                name: {"values": [joint[name][-1]], "events": []}
                if name in joint
                else {"values": list(register.values), "events": [list(event) for event in register.events]}
                for name, register in self.registers.items()
            },
            "floors": dict(self.floors),
        }
        return body if self.combinations is None else body | {"combinations": self.combinations.to_body()}

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Image:
        """What `to_body` wrote, earlier releases' without floors or combinations too; other members are left alone.
        Only the store's bodies come here.
        """
        joint = Combinations.from_body(body["combinations"]) if "combinations" in body else None
        return cls(
            Tee(body["platform"]),
            body["description"],
            {
                name: Register(tuple(item["values"]), tuple(ExpectedEvent(*event) for event in item["events"]))
                for name, item in body["registers"].items()
            }
            | ({} if joint is None else joint.registers()),
            body.get("floors", {}),
            joint,
        )


def parse_image(text: str) -> Image:
    """The image that an owner wrote in TOML. Raises ProtocolError that says what would mend it."""
    if len(text) > MAX_IMAGE_CHARS:
        raise ProtocolError("the image is too long", expected=f"at most {MAX_IMAGE_CHARS} characters")
    table = tomltext.loads(text, name="the image")
    if "platform" not in table:
        raise ProtocolError("the image lacks a member", expected="platform")
    name = table["platform"]
    if not isinstance(name, str) or name not in _READERS:
        found = str(name)[:64]
        raise ProtocolError("images of this platform are not supported", expected=", ".join(_READERS), found=found)
    platform = Tee(name)
    parts, read = _READERS[platform]
    image = strictjson.members(
        table, name="the image", required=frozenset(("platform", *parts)), optional=frozenset(("description",))
    )
    description = strictjson.string(image.get("description", ""), name="description", max_chars=MAX_DESCRIPTION_CHARS)
    return Image(platform, description, *read(image))


def _tpm(image: Mapping[str, Any]) -> _Parts:
    registers, combinations = read_tpm(image["tpm"])
    return registers, {}, combinations


def _snp(image: Mapping[str, Any]) -> _Parts:
    return *read_snp(image["snp"]), None


def _az_snp_vtpm(image: Mapping[str, Any]) -> _Parts:
    registers, floors = read_snp(image["snp"], pins=_PARAVISOR_PINS)
    pcrs, _ = read_tpm(image["tpm"], banks=("sha256",), events=False)  # such evidence has no log
    return registers | pcrs, floors, None


def _sev(image: Mapping[str, Any]) -> _Parts:
    return *read_sev(image["sev"]), None


_READERS: Mapping[Tee, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], _Parts]]] = {  # tables, what reads them
    Tee.TPM: (("tpm",), _tpm),
    Tee.SNP: (("snp",), _snp),
    Tee.AZ_SNP_VTPM: (("snp", "tpm"), _az_snp_vtpm),
    Tee.SEV: (("sev",), _sev),
}
