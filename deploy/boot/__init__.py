# SPDX-License-Identifier: Apache-2.0
"""A measured VM made of Debian's packages: firmware, TPM, kernel, an initramfs with the agent, an encrypted disk."""
