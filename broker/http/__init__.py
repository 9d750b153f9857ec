# SPDX-License-Identifier: Apache-2.0
"""The only room that knows HTTP: the guests' protocol, the owners' API, operations."""
