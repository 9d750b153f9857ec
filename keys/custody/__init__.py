# SPDX-License-Identifier: Apache-2.0
"""Custody: how an owner's keys are sealed while nobody uses them. Only the broker comes here.

What seals them is the key-encryption key (KEK) of whoever runs the broker. The store holds what `seal` gives; it can
neither open it nor put it in another key's place, because owner, path and version are authenticated with it.
"""

from __future__ import annotations

from typing import Protocol


class Custody(Protocol):
    """One way to hold the KEK: a file, an HSM."""

    def seal(self, owner: str, type_: str, tag: str, version: int, plaintext: bytes) -> bytes:
        """`plaintext` sealed for this version of owner/type/tag and no other place."""
        ...

    def open(self, owner: str, type_: str, tag: str, version: int, sealed: bytes) -> bytes:
        """What `seal` was given. Raises VerificationError (changed, or of another place) or Unavailable (sealed under
        a KEK that is not listed).
        """
        ...

    def needs_rewrap(self, sealed: bytes) -> bool:
        """Whether `sealed` is under another KEK than the current one."""
        ...

    def derive(self, purpose: bytes, context: bytes) -> bytes:
        """32 bytes that only this KEK gives for `purpose` and `context`: for secrets that need not be stored."""
        ...


def rewrap(custody: Custody, owner: str, type_: str, tag: str, version: int, sealed: bytes) -> bytes:
    """`sealed` under the current KEK. Here, and not with the caller, so that the plaintext stays in this room.

    Raises what `Custody.open` raises.
    """
    return custody.seal(owner, type_, tag, version, custody.open(owner, type_, tag, version, sealed))
