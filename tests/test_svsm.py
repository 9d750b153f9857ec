# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.svsm: the binding of an SVSM's vTPM to the SNP report, and the table of services."""

from __future__ import annotations

import hashlib
import struct
from contextlib import suppress
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.verifiers.svsm import (
    MAX_MANIFEST_BYTES,
    SERVICES_TABLE,
    VTPM_SERVICE,
    endorsed_ek,
    parse_services,
    report_data,
)
from keys.errors import VerificationError
from tests.fakes import tpm_forge as forge

NONCE = bytes(range(64))
EK = forge.storage_area(forge.rsa_key())
OTHER = UUID(int=7)


def table(
    entries: list[tuple[UUID, int, int]], data: bytes, *, guid: UUID = SERVICES_TABLE, size: int | None = None
) -> bytes:
    body = b"".join(one.bytes_le + struct.pack("<II", offset, length) for one, offset, length in entries) + data
    length = 24 + len(body) if size is None else size
    return guid.bytes_le + struct.pack("<II", length, len(entries)) + body


def test_endorsed_key() -> None:
    """The manifest that the report speaks of gives the vTPM's endorsement key."""
    assert endorsed_ek(EK, NONCE, hashlib.sha512(NONCE + EK).digest()).raw == EK


def test_other_report() -> None:
    """A report about another nonce or another key says nothing about this one."""
    for reported in (report_data(bytes(64), EK), report_data(NONCE, EK + b"\0"), bytes(64), b""):
        with pytest.raises(VerificationError, match="not about this manifest"):
            endorsed_ek(EK, NONCE, reported)


def test_manifest_that_is_no_endorsement_key() -> None:
    """A manifest with another kind of key is refused although the report speaks of it."""
    ak = forge.public_area(forge.ec_key())
    with pytest.raises(VerificationError, match="wrong attributes"):
        endorsed_ek(ak, NONCE, report_data(NONCE, ak))


@pytest.mark.parametrize("size", [0, 63, 65])
def test_nonce_of_another_size(size: int) -> None:
    """Nonce and manifest stand behind one another unseparated, so the nonce has exactly 64 bytes."""
    with pytest.raises(VerificationError, match="nonce has another size"):
        report_data(bytes(size), EK)


def test_table_of_services() -> None:
    """The table gives each service's manifest."""
    manifest = table([(VTPM_SERVICE, 72, 4), (OTHER, 76, 2)], b"vtpmok")
    assert parse_services(manifest) == {VTPM_SERVICE: b"vtpm", OTHER: b"ok"}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (table([], b"", guid=OTHER), "not a services manifest"),
        (table([], b"", size=25), "not a services manifest"),
        (table([(UUID(int=n), 24 + 24 * 17, 0) for n in range(17)], b""), "not a services manifest"),
        (table([(OTHER, 72, 1), (OTHER, 72, 1)], b"x"), "listed twice"),
        (table([(OTHER, 47, 1)], b"x"), "outside"),
        (table([(OTHER, 48, 2)], b"x"), "outside"),
        (table([], b"")[:-1], "cut short"),
        (bytes(MAX_MANIFEST_BYTES + 1), "too long"),
    ],
)
def test_tables_that_no_svsm_writes(manifest: bytes, message: str) -> None:
    """Table, sizes and offsets are those of the protocol; no entry reaches into the table or beyond the end."""
    with pytest.raises(VerificationError, match=message):
        parse_services(manifest)


@given(st.binary(max_size=120), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_changed_tables_raise_only_our_error(noise: bytes, at: int) -> None:
    """A table with changed bytes is read or refused with our error."""
    good = table([(VTPM_SERVICE, 72, 4), (OTHER, 76, 2)], b"vtpmok")
    with suppress(VerificationError):
        parse_services(good[:at] + noise + good[at + len(noise) :])
