# SPDX-License-Identifier: Apache-2.0
"""Reading the small files that the settings name: bounded, and every failure in words that name the file."""

from __future__ import annotations

from keys.errors import ConfigError


def read(path: str, *, what: str, max_bytes: int) -> bytes | None:
    """The bytes of `path`, or None where there is no such file. `what` names it in errors. Raises ConfigError."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  pathlib would cost milliseconds at boot
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what} {path} cannot be read", found=str(error)) from None
    if len(data) > max_bytes:
        raise ConfigError(f"{what} {path} is too long", expected=f"at most {max_bytes} bytes")
    return data
