# SPDX-License-Identifier: Apache-2.0
"""The agent and the Python that runs it, as the files of an initramfs: what the agent can import, and nothing else.

Interpreter and `cryptography` are Debian's, whose security updates they get; the library that does the work, libcrypto,
is the one that cryptsetup brings along anyway.

Debian's interpreter imports every module that the agent's code names, also inside functions, and tells where each came
from. Python files go in compiled, without docstrings and times; the agent's own ones start as a folder, isolated.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import marshal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from deploy.boot.cpio import Entry, regular

PYTHON = Path("/usr/bin/python3.11")
STDLIB = Path("/usr/lib/python3.11")
HOME = "usr/lib/roomkey"  # of the agent, in the image
PROGRAM = "usr/sbin/roomkey-agent"
REPOSITORY = Path(__file__).resolve().parent.parent.parent
LEGACY = Path("/usr/lib/x86_64-linux-gnu/ossl-modules/legacy.so")  # without it Debian's cryptography does not start
SITE = Path("/usr/lib/python3/dist-packages")
ROOMS = ("agent", "keys")
NOT_IN_A_GUEST = ("custody", "sev_launch", "sev_chain", "qmp")  # the broker's, and what runs on a host
# What the standard library and cryptography import once they are used, and so nobody names.
UNNAMED = ("encodings.idna", "encodings.ascii", "encodings.latin_1", "encodings.utf_8", "locale", "gettext", "textwrap",
           "shutil", "copy", "signal", "stringprep", "unicodedata", "_cffi_backend",
           "cryptography.hazmat.backends.openssl.backend")  # fmt: skip
START = f"import sys\nsys.path.insert(0, '/{HOME}')\nfrom agent.cli import main\nsys.exit(main())\n"
SCRIPT = f'#!/bin/sh\n# Isolated: nothing but this image\'s own files.\nexec {PYTHON} -I -S /{HOME}/start.pyc "$@"\n'
PROBE = """
import importlib, json, sys
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        pass  # a name inside a module, or what another system has
json.dump({n: m.__file__ for n, m in sys.modules.items() if getattr(m, "__file__", None)}, sys.stdout)
"""


def agent_files() -> list[Entry]:
    """The agent with its Python, its shared objects stripped, and the libraries that those need."""
    entries = [regular(PROGRAM, SCRIPT.encode(), executable=True), regular(f"{HOME}/start.pyc", _compiled(START))]
    objects = [PYTHON]
    for name, file in sorted(_loaded().items()):
        path = Path(file)
        if name == "__main__":
            continue
        place = _place(name, path)
        if path.suffix == ".py":
            entries.append(regular(str(Path(place).with_suffix(".pyc")), _compiled(path.read_text("utf-8"))))
        else:
            objects.append(path)
            entries.append(regular(place, stripped(path), executable=True))
    entries.append(regular(str(PYTHON)[1:], stripped(PYTHON), executable=True))
    entries.append(regular(str(LEGACY)[1:], stripped(LEGACY), executable=True))
    return entries + list(libraries(objects))


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


def _place(name: str, path: Path) -> str:
    """Where a module goes: beside the interpreter's own, or to the agent."""
    if path.is_relative_to(STDLIB):
        return str(path)[1:]
    root = REPOSITORY if name.partition(".")[0] in ROOMS else SITE
    return f"{HOME}/{path.relative_to(root)}"


def _loaded() -> dict[str, str]:
    """Module name -> file, of everything that Debian's interpreter loads for the agent."""
    paths = [str(REPOSITORY), str(SITE)]
    probe = f"import sys\nsys.path += {paths!r}\n{PROBE}"
    done = subprocess.run(
        [str(PYTHON), "-I", "-S", "-c", probe], input=json.dumps(_named()), check=True, capture_output=True, text=True
    )
    files: dict[str, str] = json.loads(done.stdout)
    return files


def _named() -> list[str]:
    """Every module that the agent's code names in an import."""
    names = set(UNNAMED)
    for room in ROOMS:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            if set(parts) & set(NOT_IN_A_GUEST):
                continue
            module = ".".join(part for part in parts if part != "__init__")
            if parts[-1] != "__main__":
                names.add(module)
            for statement in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(statement, ast.Import):
                    names.update(alias.name for alias in statement.names)
                elif isinstance(statement, ast.ImportFrom) and statement.module:
                    names.add(statement.module)
                    names.update(f"{statement.module}.{alias.name}" for alias in statement.names)
    return sorted(name for name in names if not set(name.split(".")) & set(NOT_IN_A_GUEST))


def _compiled(source: str) -> bytes:
    """A .pyc that nobody compares with a source: PEP 552, unchecked."""
    code = compile(source, "", "exec", dont_inherit=True, optimize=2)
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + marshal.dumps(code)
