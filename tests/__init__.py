# SPDX-License-Identifier: Apache-2.0
"""Tests; `tests.fakes` serves the demo and the benchmark too."""
