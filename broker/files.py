# SPDX-License-Identifier: Apache-2.0
"""The files that an operator's config names: bounded, and if private then not open to others."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography import x509

from broker.verifiers.x509 import load_certificates
from keys.errors import ConfigError, EndorsementError

MAX_FILE_BYTES = 256 * 1024  # of a key or certificate file


def read_file(path: Path, *, private: bool = False) -> bytes:
    """The bytes of `path`; a `private` one must be closed to group and others. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", found=str(error.strerror)) from None
    if private and mode & 0o077:
        raise ConfigError(
            f"{path} can be read by others", expected="mode 0400 or 0600", found=f"{mode:04o}", mend=f"chmod 400 {path}"
        )
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is too long", expected=f"at most {MAX_FILE_BYTES} bytes")
    return data


def read_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """All certificates in `path`: a PEM bundle, or one in DER. Raises ConfigError."""
    try:
        return load_certificates(read_file(path))
    except EndorsementError as error:
        raise ConfigError(f"{path} holds no certificate", expected="PEM or DER", found=error.found) from None
