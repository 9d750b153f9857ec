# SPDX-License-Identifier: Apache-2.0
"""The agent and the Python that runs it, as the files of an initramfs.

Interpreter and `cryptography` are Debian's, whose security updates they get; the library that does the work, libcrypto,
is the one that cryptsetup brings along anyway.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from deploy.boot.cpio import Entry, regular
from deploy.boot.python_files import HOME, PYTHON, python_files

LEGACY = Path("/usr/lib/x86_64-linux-gnu/ossl-modules/legacy.so")  # without it Debian's cryptography does not start
PROGRAM = "usr/sbin/roomkey-agent"
REPOSITORY = Path(__file__).resolve().parent.parent.parent
SCRIPT = f'#!/bin/sh\n# Isolated: nothing but this image\'s own files.\nexec {PYTHON} -I -S /{HOME}/start.pyc "$@"\n'


def agent_files() -> list[Entry]:
    """The agent with its Python, its shared objects stripped, and the libraries that those need."""
    found = python_files(REPOSITORY)
    objects = {str(PYTHON)[1:]: PYTHON, str(LEGACY)[1:]: LEGACY, **found.objects}
    return [
        regular(PROGRAM, SCRIPT.encode(), executable=True),
        *(regular(place, data) for place, data in found.compiled.items()),
        *(regular(place, stripped(path), executable=True) for place, path in objects.items()),
        *libraries(objects.values()),
    ]


def libraries(objects: Iterable[Path]) -> Iterator[Entry]:
    """The shared libraries that `objects` are linked with, each once, where the loader looks for it."""
    found: dict[str, Path] = {}
    for path in objects:
        said = subprocess.run(["ldd", str(path)], check=True, capture_output=True, text=True).stdout
        for word in said.split():
            if word.startswith("/"):
                found[word] = Path(word).resolve()
    for name, path in sorted(found.items()):
        yield regular(name[1:], path.read_bytes(), executable=True)


def stripped(path: Path) -> bytes:
    """An ELF file without what only a debugger reads."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "object"
        subprocess.run(["strip", "--strip-unneeded", "-o", str(target), str(path)], check=True, capture_output=True)
        return target.read_bytes()
