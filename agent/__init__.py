# SPDX-License-Identifier: Apache-2.0
"""The attester's side: runs in the guest, before the root disk exists."""
