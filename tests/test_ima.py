# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.ima: the ASCII list, template by template, and its replay."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.verifiers.ima import MAX_LINE_BYTES, MAX_LOG_BYTES, parse_ima, replay_ima
from broker.verifiers.tpm_structures import SHA1, SHA256
from keys.errors import VerificationError
from tests.vectors import needs_vectors, vector

DIGEST = "ab" * 32


def fields(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


NG = fields(b"sha256:\0" + bytes.fromhex(DIGEST), b"/usr/bin/true\0")


def line(template: str, data: bytes, text: str, pcr: str = "10") -> bytes:
    return f"{pcr} {SHA1.digest(data).hex()} {template} {text}\n".encode()


GOOD = line("ima-ng", NG, f"sha256:{DIGEST} /usr/bin/true")


@pytest.mark.parametrize(
    ("template", "data", "text"),
    [
        ("ima", bytes(20) + b"/bin/true".ljust(256, b"\0"), f"{'00' * 20} /bin/true"),
        ("ima", bytes(20) + b"x" * 256, f"{'00' * 20} {'x' * 300}"),
        ("ima-ng", NG, f"sha256:{DIGEST} /usr/bin/true"),
        ("ima-sig", NG + fields(b"\3\2"), f"sha256:{DIGEST} /usr/bin/true 0302"),
        ("ima-sig", NG + fields(b""), f"sha256:{DIGEST} /usr/bin/true "),
        ("ima-buf", NG + fields(b"key"), f"sha256:{DIGEST} /usr/bin/true 6b6579"),
    ],
)
def test_templates(template: str, data: bytes, text: str) -> None:
    """The template data of each template is put together from its fields, so that any bank can be replayed."""
    (entry,) = parse_ima(line(template, data, text))
    assert (entry.pcr, entry.template, entry.template_data) == (10, template, data)
    assert replay_ima((entry,), SHA256) == hashlib.sha256(bytes(32) + hashlib.sha256(data).digest()).digest()


def test_violation() -> None:
    """A violation extends all ones."""
    entries = parse_ima(f"10 {'0' * 40} ima-ng sha1:{'0' * 40} /var/log\n".encode())
    assert entries[0].template_data is None
    assert replay_ima(entries, SHA256) == hashlib.sha256(bytes(32) + b"\xff" * 32).digest()


def test_registers() -> None:
    """Only the entries of the asked register count; a list may be empty or lack the last line's end."""
    entries = parse_ima(GOOD + line("ima-ng", NG, f"sha256:{DIGEST} /usr/bin/true", "9").rstrip(b"\n"))
    assert [entry.pcr for entry in entries] == [10, 9]
    assert replay_ima(entries, SHA256) == replay_ima(entries[:1], SHA256) == replay_ima(entries[1:], SHA256, 9)
    assert replay_ima(parse_ima(b""), SHA256) == bytes(32)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (GOOD.replace(b"true", b"fals"), "not of its fields"),
        (GOOD.replace(b"ima-ng", b"ima-xx"), "unknown template"),
        (GOOD.replace(b" /usr", b"  /usr"), "unknown template or another number"),
        (GOOD.replace(b" /usr/bin/true", b""), "unknown template or another number"),
        (GOOD.replace(b"sha256:", b"SHA256:"), "without its algorithm"),
        (GOOD.replace(DIGEST.encode(), b"AB" * 32), "not lower-case hex"),
        (GOOD.replace(b"10 ", b"24 ", 1), "without PCR"),
        (GOOD.replace(b"10 ", b"-1 ", 1), "without PCR"),
        (GOOD.replace(b"10 ", b"010 ", 1), "without PCR"),
        (GOOD[:30], "without PCR and template hash"),
        (GOOD + b"\n", "without PCR"),
        (GOOD.replace(b"true", b"\xc3\xa4"), "does not write"),
        (b"10 " + b"z" * 40 + b" ima-ng a b\n", "not lower-case hex"),
        (b"1" * (MAX_LINE_BYTES + 1), "does not write"),
        (bytes(MAX_LOG_BYTES + 1), "too long"),
    ],
)
def test_lists_that_ima_does_not_write(log: bytes, message: str) -> None:
    """A line with other fields than its template hash says, or that is no line of IMA's, is refused."""
    with pytest.raises(VerificationError, match=message):
        parse_ima(log)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_changed_lists_raise_only_our_error(data: st.DataObject) -> None:
    """A list with changed bytes is read or refused with our error."""
    log = bytearray(GOOD * 2)
    for _ in range(data.draw(st.integers(1, 4))):
        log[data.draw(st.integers(0, len(log) - 1))] = data.draw(st.integers(0, 255))
    with suppress(VerificationError):
        parse_ima(bytes(log))


@needs_vectors
def test_real_list() -> None:
    """A real list with signatures and buffers replays to its known value."""
    entries = parse_ima(vector("keylime/ima-sig-buf.ascii"))
    assert replay_ima(entries, SHA1).hex() == "3071bc1579d80e38ff478dbccdd82e95b3f669a2"
