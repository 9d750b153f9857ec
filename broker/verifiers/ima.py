# SPDX-License-Identifier: Apache-2.0
"""The ASCII list of Linux IMA (securityfs ima/ascii_runtime_measurements), and its replay to PCR 10.

One line a file: PCR, SHA-1 of the template data, template name, template fields. The list shows the SHA-1 template hash
only; other banks are extended with their own hash of the template data, which is put together again from the fields.
Source: Linux, Documentation/security/IMA-templates.rst, security/integrity/ima/ima_template_lib.c. Checks:

    (1) every line is ASCII, complete, and of a known template, whose fields are rebuilt to the exact template data
    (2) the template hash is the SHA-1 of that data; an all-zero one marks a violation
"""

from __future__ import annotations

import re
from typing import NamedTuple

from broker.verifiers.tpm_structures import PCR_COUNT, SHA1, Hash
from keys.errors import VerificationError

MAX_LOG_BYTES = 16 * 1024 * 1024
MAX_LINE_BYTES = 64 * 1024

_FIELDS = {"ima": 2, "ima-ng": 2, "ima-sig": 3, "ima-buf": 3}  # template -> number of fields
_OLD_NAME_BYTES = 256  # the "ima" template pads or cuts the name to this
_PCR = re.compile(r"[0-9]{1,2}\Z")
_HASH_NAME = re.compile(r"[a-z0-9-]{1,32}\Z")
_HEX = re.compile(r"(?:[0-9a-f]{2})*\Z")


class ImaEntry(NamedTuple):
    """One measured file. `template_data` is None for a violation, where every bank is extended with all ones."""

    pcr: int
    template: str
    template_data: bytes | None
    path: str


def parse_ima(log: bytes) -> tuple[ImaEntry, ...]:
    """The entries of a whole list. Raises VerificationError."""
    if len(log) > MAX_LOG_BYTES:
        raise VerificationError("IMA list is too long", expected=f"at most {MAX_LOG_BYTES} bytes", found=str(len(log)))
    return tuple(_entry(line) for line in log.removesuffix(b"\n").split(b"\n")) if log else ()


def replay_ima(entries: tuple[ImaEntry, ...], bank: Hash, pcr: int = 10) -> bytes:
    """The value of `pcr` in `bank` after all entries."""
    value = bytes(bank.size)
    for entry in entries:
        if entry.pcr == pcr:
            data = entry.template_data
            value = bank.digest(value + (b"\xff" * bank.size if data is None else bank.digest(data)))
    return value


def _entry(line: bytes) -> ImaEntry:
    if len(line) > MAX_LINE_BYTES or not line.isascii():
        raise VerificationError("IMA list has a line that IMA does not write")
    pcr, _, rest = line.decode("ascii").partition(" ")
    template_hash, _, rest = rest.partition(" ")
    template, *fields = rest.split(" ")
    if not _PCR.match(pcr) or int(pcr) >= PCR_COUNT or len(template_hash) != 2 * SHA1.size:
        raise VerificationError("IMA list has a line without PCR and template hash", found=pcr[:32])
    shown, data = _unhex(template_hash), _template_data(template, fields)
    if not any(shown):
        return ImaEntry(int(pcr), template, None, fields[1])
    if SHA1.digest(data) != shown:
        raise VerificationError(
            "IMA list: a template hash is not of its fields", expected=SHA1.digest(data).hex(), found=template_hash
        )
    return ImaEntry(int(pcr), template, data, fields[1])


def _template_data(template: str, fields: list[str]) -> bytes:
    """Check (1): what the kernel hashed."""
    if template not in _FIELDS or len(fields) != _FIELDS[template]:
        raise VerificationError(
            "IMA list has an unknown template or another number of fields",
            expected=" ".join(_FIELDS),
            found=f"{template[:32]}, {len(fields)} fields",
        )
    digest, path, *more = fields
    name = path.encode("ascii")
    if template == "ima":
        return _unhex(digest) + name[:_OLD_NAME_BYTES].ljust(_OLD_NAME_BYTES, b"\0")
    algorithm, _, value = digest.partition(":")
    if not _HASH_NAME.match(algorithm):
        raise VerificationError("IMA list has a digest without its algorithm", found=digest[:32])
    parts = [f"{algorithm}:".encode() + b"\0" + _unhex(value), name + b"\0", *map(_unhex, more)]
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def _unhex(text: str) -> bytes:
    if not _HEX.match(text):
        raise VerificationError("IMA list has a field that is not lower-case hex", found=text[:32])
    return bytes.fromhex(text)
