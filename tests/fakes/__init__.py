# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for what surrounds Roomkey: software TPMs, certificate authorities, peers that misbehave."""
