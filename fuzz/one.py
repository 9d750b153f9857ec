# SPDX-License-Identifier: Apache-2.0
"""One target under atheris: `python -m fuzz.one NAME [libFuzzer's options and folders]`."""

from __future__ import annotations

import sys
import warnings

import atheris


def main() -> None:
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["agent", "broker", "keys"]):
        from fuzz.targets import TARGETS  # noqa: PLC0415  what is imported here is what is traced
        from keys.errors import RoomkeyError  # noqa: PLC0415
    read = TARGETS[name].read
    warnings.simplefilter("ignore")

    def once(data: bytes) -> None:
        try:
            read(data)
        except RoomkeyError:
            return

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
