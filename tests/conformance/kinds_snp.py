# SPDX-License-Identifier: Apache-2.0
"""How recorded SEV-SNP evidence is judged."""

from __future__ import annotations

from collections.abc import Mapping

from tests.conformance.kinds import Kind
from tests.conformance.manifest import Section

KINDS: Mapping[str, Kind] = {}
SECTIONS: Mapping[str, Section] = {}
UNNAMED: Mapping[frozenset[str], str] = {frozenset(("report", "ark")): "snp-report"}
