# SPDX-License-Identifier: Apache-2.0
"""What vendors vouch for (RFC 9334: endorsements): fetched, kept in the store, handed to verifiers.

Everything has a name that says what it is; the part before the first slash says whose ("amd/..."), and which source
and which check go with it.
"""
