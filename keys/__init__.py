# SPDX-License-Identifier: Apache-2.0
"""The joint: what agent and broker both say, and all code that touches key bytes."""
