# SPDX-License-Identifier: Apache-2.0
"""What a broker must remember, behind protocols that every store implements alike."""
