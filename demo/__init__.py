# SPDX-License-Identifier: Apache-2.0
"""The story that `make demo` tells, through the real parts only."""
