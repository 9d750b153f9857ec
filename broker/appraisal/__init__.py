# SPDX-License-Identifier: Apache-2.0
"""Is this guest wanted? Pure: claims, reference values and rules come in, a judged trace comes out."""
