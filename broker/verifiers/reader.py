# SPDX-License-Identifier: Apache-2.0
"""A strict reader of binary structures: every length is checked against what is there and against its cap."""

from __future__ import annotations

from typing import Literal

from keys.errors import VerificationError


class Reader:
    """Reads `data` from the front. `what` names the structure in errors; every method raises VerificationError.

    Integers are big-endian, as the TPM writes them, unless `order` says "little".
    """

    __slots__ = ("_at", "_data", "_order", "_what")

    def __init__(self, data: bytes, what: str, order: Literal["big", "little"] = "big") -> None:
        self._data = data
        self._what = what
        self._order = order
        self._at = 0

    @property
    def at(self) -> int:
        """How many bytes have been read."""
        return self._at

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self._at + size
        if end > len(self._data):
            raise VerificationError(
                f"{self._what} is cut short", expected=f"{size} more bytes at offset {self._at}", found=str(self.left)
            )
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def uint(self, size: int) -> int:
        """An unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size), self._order)

    def sized(self, prefix: int, at_most: int, field: str) -> bytes:
        """A buffer after its own length, an integer of `prefix` bytes, of at most `at_most` bytes."""
        size = self.uint(prefix)
        if size > at_most:
            raise VerificationError(
                f"{self._what}: {field} is too long", expected=f"at most {at_most} bytes", found=str(size)
            )
        return self.take(size)

    def end(self) -> None:
        """Nothing may follow."""
        if self.left:
            raise VerificationError(f"{self._what} has trailing bytes", expected="0", found=str(self.left))
