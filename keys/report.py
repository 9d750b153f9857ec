# SPDX-License-Identifier: Apache-2.0
"""What a guest says of its disk when it asks for the disk's key, and later of what it has done to it.

It travels as the `additional_evidence` of the KBS attestation protocol, a text that the evidence is bound to together
with nonce and key (`keys.binding`): the host can neither write nor change it.

    {"roomkey-volume": {"done": "", "found": "", "pin": "5a0c...", "version": 0}}

A broker that knows which volume a key is for compares before it releases, and its owner reads what was found instead.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from keys import strictjson
from keys.errors import ProtocolError

MAX_REPORT_BYTES = 1024
MAX_FOUND_CHARS = 200
MAX_VERSION = (1 << 53) - 1

_PIN = re.compile(r"[0-9a-f]{64}\Z")
_FOUND = re.compile(r"[ -~]*\Z")
_MEMBERS = frozenset(("done", "found", "pin", "version"))


class Step(StrEnum):
    """What a guest does to the keyslots of its volume, and says when it is done.

    FORMAT: made the volume with the key of that version. ADD: put a keyslot for the next key into it. REMOVE: took the
    keyslot of an older version away. RECOVERY: put the owner's recovery passphrase into a keyslot of its own.
    """

    FORMAT = "format"
    ADD = "add"
    REMOVE = "remove"
    RECOVERY = "recovery"


class Report(NamedTuple):
    """`pin`: the volume's (`agent.luks_metadata`), None where there is no sound volume; then `found` says what is there
    instead, "" for an empty disk. `done`: the step that was done, for the `version` that the release named.
    """

    pin: str | None = None
    found: str = ""
    done: Step | None = None
    version: int = 0

    def to_text(self) -> str:
        """As additional evidence."""
        members = self._asdict() | {"done": self.done or "", "found": printable(self.found)}
        return strictjson.canonical({"roomkey-volume": members}).decode("ascii")

    @classmethod
    def from_text(cls, text: str) -> Report:
        """Raises ProtocolError."""
        name = "the additional evidence"
        outer = strictjson.loads(text.encode("utf-8", "replace"), name=name, max_bytes=MAX_REPORT_BYTES)
        value = strictjson.members(outer, name=name, required=frozenset(("roomkey-volume",)))["roomkey-volume"]
        members = strictjson.members(value, name="the report on a volume", required=_MEMBERS)
        pin, found, done, version = (members[one] for one in cls._fields)
        if pin is not None and not (isinstance(pin, str) and _PIN.match(pin)):
            raise ProtocolError("the pin in the report is malformed")
        if not isinstance(found, str) or len(found) > MAX_FOUND_CHARS or not _FOUND.match(found):
            raise ProtocolError("what was found is no short line of ASCII")
        if not isinstance(done, str) or (done != "" and done not in set(Step)):
            raise ProtocolError("the report tells of an unknown step")
        if type(version) is not int or not 0 <= version <= MAX_VERSION:
            raise ProtocolError("the version in the report is no whole number")
        if (done != "") != (version > 0) or (done != "" and pin is None):
            raise ProtocolError("a step that is done has a volume and a version")
        return cls(pin, found, Step(done) if done else None, version)


def printable(text: str) -> str:
    """`text`, cut to what a report can hold."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:MAX_FOUND_CHARS])
