# SPDX-License-Identifier: Apache-2.0
"""broker.verifiers.uki: what a unified kernel image leaves in PCR 11."""

from __future__ import annotations

import hashlib

import pytest

from broker.verifiers.tpm_structures import SHA256, SHA384
from broker.verifiers.uki import SECTIONS, predict_pcr11
from keys.errors import ConfigError
from tests.vectors import needs_vectors, vector


def extended(*measured: bytes) -> bytes:
    value = bytes(32)
    for data in measured:
        value = hashlib.sha256(value + hashlib.sha256(data).digest()).digest()
    return value


def test_sections_and_phases() -> None:
    """Sections are measured in their fixed order, name first, and then the phases that were passed."""
    sections = {".osrel": b"os", ".linux": b"kernel"}
    assert predict_pcr11(sections, ["enter-initrd"], SHA256) == extended(
        b".linux\0", b"kernel", b".osrel\0", b"os", b"enter-initrd"
    )
    assert predict_pcr11({}, [], SHA256) == bytes(32)


def test_every_section_counts() -> None:
    """Each section that systemd-stub measures changes the value."""
    values = {predict_pcr11({name: b"x"}, [], SHA256) for name in SECTIONS}
    assert len(values) == len(SECTIONS)


@pytest.mark.parametrize(("sections", "phases"), [({".pcrsig": b""}, []), ({"linux": b""}, []), ({}, ["initrd"])])
def test_what_is_not_measured(sections: dict[str, bytes], phases: list[str]) -> None:
    """A section or phase that is not measured is an error of the caller, not a silent other value."""
    with pytest.raises(ConfigError, match="not measured"):
        predict_pcr11(sections, phases, SHA256)


@needs_vectors
def test_known_value() -> None:
    """The prediction is the value that systemd-measure gives."""
    names = ("linux", "osrel", "cmdline", "initrd", "uname", "sbat")
    sections = {f".{name}": vector(f"swtpm/uki.{name}.section") for name in names}
    known = "8c30de872cb86abb78d7b382055562e5d64a1dabd820372293e18a970430d8e85338346b2f629bfd53130255d39f8b2d"
    assert predict_pcr11(sections, ["enter-initrd"], SHA384).hex() == known
