# SPDX-License-Identifier: Apache-2.0
"""Does this host name mean this machine? Only then may a line go without TLS."""

from __future__ import annotations


def is_loopback(host: str) -> bool:
    """True for "localhost" and for literal loopback addresses; any other name could lead anywhere."""
    from ipaddress import ip_address  # noqa: PLC0415  rarely asked, and 3 ms to import

    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
