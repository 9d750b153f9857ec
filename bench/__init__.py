# SPDX-License-Identifier: Apache-2.0
"""`make bench`: what a release costs, beside the bare cryptography, in one run."""
