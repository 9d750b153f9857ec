# SPDX-License-Identifier: Apache-2.0
"""Is this evidence genuine? Pure: bytes, trust anchors and a time come in, claims come out."""
