# SPDX-License-Identifier: Apache-2.0
"""`roomkey owner`: whom this broker keeps keys for. The operator's side, directly on the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from broker.cli.operator import OPERATOR, note_change, now_ms, opened
from broker.cli.options import config_file, json_flag, read_input, why
