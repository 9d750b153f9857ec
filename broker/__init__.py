# SPDX-License-Identifier: Apache-2.0
"""Verifier and relying party: judges evidence and releases keys."""
