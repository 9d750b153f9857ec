# SPDX-License-Identifier: Apache-2.0
"""Every error that crosses a room's border.

    RoomkeyError
    ├── ProtocolError        the message is not what the protocol allows
    ├── FreshnessError       challenge, session or token is unknown, used or too old
    ├── VerificationError    the evidence is not genuine
    │   └── EndorsementError     what vouches for it (certificate, revocation list) is missing or bad
    ├── ReleaseDenied        the key does not go to this guest
    │   └── AppraisalDenied      genuine, but not what the owner approved
    ├── Unauthorized         an owner's request that its signature does not carry
    ├── Conflict             somebody else changed it first
    ├── NotFound             no such thing in the caller's namespace
    ├── Unavailable          try again later
    ├── ConfigError          the operator's settings cannot be used
    ├── AttesterError        this machine cannot make evidence
    └── VolumeError          the volume could not be opened

Misuse of our own functions is `RuntimeError`, never one of these. A message may name what was expected and found: it is
for owners and operators. The broker's guest interface never passes it on (see `broker.http.guest`).
"""

from __future__ import annotations

from typing import ClassVar


class RoomkeyError(Exception):
    """Base of all; never raised itself.

    `code` is the word on the wire, `http_status` the owner API's status, `retry` says whether the same request may
    succeed later without anybody changing anything, `exit_status` is what the agent's process returns. `decision` is
    the id of the ledger's line about it, where there is one: all that a guest gets to see of a refusal.
    """

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    retry: ClassVar[bool] = False
    exit_status: ClassVar[int] = 1

    def __init__(
        self, message: str, *, expected: str | None = None, found: str | None = None, mend: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.found = found
        self.mend = mend
        self.decision: str | None = None

    def __str__(self) -> str:
        parts = [self.message]
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.found is not None:
            parts.append(f"found {self.found}")
        return ": ".join(parts[:1]) + (" (" + ", ".join(parts[1:]) + ")" if len(parts) > 1 else "")


class ProtocolError(RoomkeyError):
    code = "protocol"
    http_status = 400
    exit_status = 10


class FreshnessError(RoomkeyError):
    code = "freshness"
    http_status = 401
    retry = True
    exit_status = 11


class VerificationError(RoomkeyError):
    code = "verification"
    http_status = 422
    exit_status = 12


class EndorsementError(VerificationError):
    code = "endorsement"


class ReleaseDenied(RoomkeyError):  # noqa: N818
    code = "release"
    http_status = 403
    exit_status = 14


class AppraisalDenied(ReleaseDenied):
    code = "appraisal"
    exit_status = 13


class NotFound(RoomkeyError):  # noqa: N818
    code = "not-found"
    http_status = 404
    exit_status = 15


class Unavailable(RoomkeyError):  # noqa: N818
    code = "unavailable"
    http_status = 503
    retry = True
    exit_status = 16


class ConfigError(RoomkeyError):
    code = "config"
    exit_status = 17


class AttesterError(RoomkeyError):
    code = "attester"
    exit_status = 18


class VolumeError(RoomkeyError):
    code = "volume"
    exit_status = 19


class Unauthorized(RoomkeyError):  # noqa: N818
    code = "unauthorized"
    http_status = 401
    exit_status = 20


class Conflict(RoomkeyError):  # noqa: N818
    code = "conflict"
    http_status = 409
    exit_status = 21
