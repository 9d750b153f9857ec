# SPDX-License-Identifier: Apache-2.0
"""`python -I -m agent`."""

import sys

from agent.cli import main

sys.exit(main())
