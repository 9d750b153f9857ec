# SPDX-License-Identifier: Apache-2.0
"""Recorded evidence against the verifiers: `python -m tests.conformance DIR`."""
