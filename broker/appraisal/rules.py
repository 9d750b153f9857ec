# SPDX-License-Identifier: Apache-2.0
"""Release rules: for one key, which images it goes to, on which platforms, to which instances.

    images = ["debian-12", "debian-12@3"]   # a bare name: the newest version, if active, and those that retire
    platforms = ["tpm"]                     # each by name; "sev" is the weakest, and in no default
    instances = ["web-1", "web-2"]          # or exactly ["enrolled"]: every guest that its owner enrolled for this key;
                                            # or exactly ["any"]: any guest that a configured vendor vouches for
    clones = "refuse"                       # one identity, two live leases: "allow" (default), "refuse", "quarantine"
    lease_s = 300                           # how long a release counts as live, in seconds
    sticky_failure = true                   # a guest that failed stays failed until its owner readmits it
    unsafe_first_use = true                 # whoever comes first with a right image is enrolled; for development

All three lists must be there, and none may be empty: what a rule does not name, it does not allow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from broker import tomltext
from broker.verifiers.registry import VERIFIERS
from keys import strictjson
from keys.errors import ProtocolError
from keys.messages import MAX_SEGMENT_CHARS, ResourcePath
from keys.tee import Tee

MAX_RULE_CHARS = 16 * 1024
MAX_ENTRIES = 64  # in each list
ANY = "any"
ENROLLED = "enrolled"
CLONES = ("allow", "refuse", "quarantine")
DEFAULT_LEASE_S = 300
MAX_LEASE_S = 7 * 24 * 3600  # seconds
# What a rule can name: platforms whose evidence is judged, and SEV, which is judged when its host launches the guest.
PLATFORMS = frozenset(VERIFIERS) | {Tee.SEV}

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\Z")
_IMAGE = re.compile(r"(?P<name>[^@]*)(?:@(?P<version>[1-9][0-9]{0,8}))?\Z")
_MEMBERS = frozenset(("images", "platforms", "instances"))
_OPTIONS = frozenset(("clones", "lease_s", "sticky_failure", "unsafe_first_use"))


class ImageRef(NamedTuple):
    """An image that a rule names. `version` None means whichever is newest when the key is asked for."""

    name: str
    version: int | None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Rule:
    """`instances` are names of instance records, or exactly (ANY,) or (ENROLLED,). `clones` is one of CLONES; a lease
    lasts `lease_s` seconds, and is only taken where clones are not allowed.
    """

    images: tuple[ImageRef, ...]
    platforms: tuple[Tee, ...]
    instances: tuple[str, ...]
    clones: str = CLONES[0]
    lease_s: int = DEFAULT_LEASE_S
    sticky_failure: bool = False
    unsafe_first_use: bool = False

    def to_body(self) -> dict[str, Any]:
        return {
            "images": [str(image) for image in self.images],
            "platforms": [str(platform) for platform in self.platforms],
            "instances": list(self.instances),
            "clones": self.clones,
            "lease_s": self.lease_s,
            "sticky_failure": self.sticky_failure,
            "unsafe_first_use": self.unsafe_first_use,
        }

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Rule:
        """What `to_body` wrote, earlier releases' without the options too; other members are left alone. Only the
        store's bodies come here.
        """
        return cls(
            tuple(_image(text) for text in body["images"]),
            tuple(Tee(name) for name in body["platforms"]),
            tuple(body["instances"]),
            **{name: body[name] for name in _OPTIONS & body.keys()},
        )


def read_rule(value: object) -> Rule:
    """The rule in an object with the three lists, any of the options, and nothing else. Raises ProtocolError that says
    what would mend it.
    """
    rule = strictjson.members(value, name="the rule", required=_MEMBERS, optional=_OPTIONS)
    if rule.get("unsafe_first_use") is True and rule["instances"] != [ENROLLED]:
        raise ProtocolError(
            "unsafe_first_use enrols whoever comes first, and this rule names who may come",
            expected=f"instances = [{ENROLLED!r}]",
            mend="leave unsafe_first_use out",
        )
    return Rule(
        tuple(_image(text) for text in _list(rule, "images")),
        tuple(_platform(text) for text in _list(rule, "platforms")),
        _instances(_list(rule, "instances")),
        **_options(rule),
    )


def parse_rule(text: str) -> Rule:
    """The rule that an owner wrote in TOML. Raises what `read_rule` raises."""
    if len(text) > MAX_RULE_CHARS:
        raise ProtocolError("the rule is too long", expected=f"at most {MAX_RULE_CHARS} characters")
    return read_rule(tomltext.loads(text, name="the rule"))


def rule_name(path: ResourcePath) -> str:
    """Under what name the owner's record of a key's rule is kept."""
    return f"{path.type}/{path.tag}"


def check_name(text: object, *, what: str) -> str:
    """`text` as the name of an image or instance: letters, digits, `_`, `-` and, not first, `.`. Raises
    ProtocolError.
    """
    name = strictjson.string(text, name=what, max_chars=MAX_SEGMENT_CHARS)
    if not _NAME.match(name):
        raise ProtocolError(f"{what} is not a name", expected="letters, digits, '_', '-', '.'", found=name)
    return name


def check_instance_name(text: object) -> str:
    """`text` as the name of an instance. "any" and "enrolled" are none: a rule that names them means many. Raises
    ProtocolError.
    """
    if check_name(text, what="an instance") in {ANY, ENROLLED}:
        raise ProtocolError(f"an instance cannot be called {text!r}", mend="choose another name")
    return str(text)


def _options(rule: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: rule[name] for name in _OPTIONS & rule.keys()}
    if given.get("clones", CLONES[0]) not in CLONES:
        raise ProtocolError("clones is not one", expected=", ".join(CLONES), found=str(given["clones"])[:64])
    lease = given.get("lease_s", DEFAULT_LEASE_S)
    if type(lease) is not int or not 1 <= lease <= MAX_LEASE_S:
        raise ProtocolError("lease_s is no length of a lease", expected=f"1 to {MAX_LEASE_S}", found=str(lease)[:64])
    for name in ("sticky_failure", "unsafe_first_use"):
        if type(given.get(name, False)) is not bool:
            raise ProtocolError(f"{name} must be true or false", found=str(given[name])[:64])
    return given


def _list(rule: Mapping[str, Any], member: str) -> list[str]:
    values = rule[member]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ProtocolError(f"{member} must be a list of strings")
    if not values:
        mend = f"name at least one, or remove the rule to deny everybody; {ANY!r} is for instances only"
        raise ProtocolError(f"{member} is empty", expected="an empty list would allow nothing", mend=mend)
    if len(values) > MAX_ENTRIES:
        raise ProtocolError(f"{member} is too long", expected=f"at most {MAX_ENTRIES}", found=str(len(values)))
    if len(set(values)) != len(values):
        raise ProtocolError(f"{member} names something twice")
    return values


def _image(text: str) -> ImageRef:
    match = _IMAGE.match(text)
    if match is None:
        raise ProtocolError("images holds no image", expected="NAME or NAME@VERSION", found=text[:128])
    version = match["version"]
    return ImageRef(check_name(match["name"], what="an image"), None if version is None else int(version))


def _platform(text: str) -> Tee:
    if text not in PLATFORMS:
        raise ProtocolError(
            "platforms holds a platform that this broker does not judge",
            expected=", ".join(sorted(PLATFORMS)),
            found=text[:64],
        )
    return Tee(text)


def _instances(values: list[str]) -> tuple[str, ...]:
    for word in (ANY, ENROLLED):
        if word in values and len(values) > 1:
            raise ProtocolError(
                f"instances names {word!r} and others",
                expected=f"names, or exactly [{word!r}]",
                mend=f"leave {word!r} out",
            )
    return tuple(check_name(value, what="an instance") for value in values)
