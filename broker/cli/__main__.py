# SPDX-License-Identifier: Apache-2.0
"""`python -m broker.cli`, where the `roomkey` script is not installed."""

from broker.cli import main

main(prog_name="roomkey")
