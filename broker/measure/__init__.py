# SPDX-License-Identifier: Apache-2.0
"""What a boot will leave in the registers of a TPM, from the files that will be booted. Pure."""
