# SPDX-License-Identifier: Apache-2.0
"""Which files the agent needs to run where there is no Python: what it can import, and nothing else.

The interpreter imports every module that the agent's code names, also inside functions, and tells where each came from.
Python files go along compiled, without docstrings and times; shared objects as they are.

Standard library only: the agent's package carries this file, for initramfs generators:

    python3 -I python_files.py ROOT TARGET    compiled files into TARGET; prints "object PATH PLACE" of all others
"""

from __future__ import annotations

import ast
import importlib.util
import json
import marshal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

PYTHON = Path("/usr/bin/python3.11") if Path("/usr/bin/python3.11").exists() else Path("/usr/bin/python3").resolve()
STDLIB = Path(f"/usr/lib/python{sysconfig.get_python_version()}")
SITE = Path("/usr/lib/python3/dist-packages")
HOME = "usr/lib/roomkey"  # of the agent, where it runs
ROOMS = ("agent", "keys")
NOT_IN_A_GUEST = ("custody", "sev_launch", "sev_chain", "qmp")  # the broker's, and what runs on a host
# What the standard library and cryptography import once they are used, and so nobody names.
UNNAMED = ("encodings.idna", "encodings.ascii", "encodings.latin_1", "encodings.utf_8", "locale", "gettext", "textwrap",
           "shutil", "copy", "signal", "stringprep", "unicodedata", "_cffi_backend",
           "cryptography.hazmat.backends.openssl.backend")  # fmt: skip
START = f"import sys\nsys.path.insert(0, '/{HOME}')\nfrom agent.cli import main\nsys.exit(main())\n"
PROBE = """
import importlib, json, sys
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        pass  # a name inside a module, or what another system has
json.dump({n: m.__file__ for n, m in sys.modules.items() if getattr(m, "__file__", None)}, sys.stdout)
"""


class PythonFiles(NamedTuple):
    """`compiled`: place -> bytes. `objects`: place -> the shared object that goes there. Places are relative to /."""

    compiled: dict[str, bytes]
    objects: dict[str, Path]


def python_files(root: Path) -> PythonFiles:
    """All that the agent in `root` needs, beside the interpreter itself."""
    compiled, objects = {f"{HOME}/start.pyc": _compiled(START)}, {}
    for name, file in sorted(_loaded(root).items()):
        path = Path(file)
        if name == "__main__":
            continue
        place = _place(root, name, path)
        if path.suffix == ".py":
            compiled[str(Path(place).with_suffix(".pyc"))] = _compiled(path.read_text("utf-8"))
        else:
            objects[place] = path
    return PythonFiles(compiled, objects)


def _place(root: Path, name: str, path: Path) -> str:
    """Where a module goes: beside the interpreter's own, or to the agent."""
    if path.is_relative_to(STDLIB):
        return str(path)[1:]
    return f"{HOME}/{path.relative_to(root if name.partition('.')[0] in ROOMS else SITE)}"


def _loaded(root: Path) -> dict[str, str]:
    """Module name -> file, of everything that the system's interpreter loads for the agent."""
    probe = f"import sys\nsys.path += {[str(root), str(SITE)]!r}\n{PROBE}"
    done = subprocess.run(
        [str(PYTHON), "-I", "-S", "-c", probe], input=json.dumps(_named(root)), check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    files: dict[str, str] = json.loads(done.stdout)
    return files


def _named(root: Path) -> list[str]:
    """Every module that the agent's code names in an import."""
    names = set(UNNAMED)
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
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


def main(root: str, target: str) -> None:
    """Put the compiled files into `target`, and say which shared objects go where."""
    found = python_files(Path(root))
    for place, data in found.compiled.items():
        path = Path(target) / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for place, source in found.objects.items():
        print("object", source, f"/{place}")
    print("object", PYTHON, PYTHON)


if __name__ == "__main__":
    main(*sys.argv[1:])
