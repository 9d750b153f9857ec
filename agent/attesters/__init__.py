# SPDX-License-Identifier: Apache-2.0
"""One platform a file: how evidence is made where the agent runs."""
