# SPDX-License-Identifier: Apache-2.0
"""How the story is told: headings, the commands as a user would type them, their output, and what was expected."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

COMMAND_SECONDS = 30.0
BIN = Path(sys.executable).parent


class Failed(Exception):  # noqa: N818
    """A step came out otherwise than told."""


class Stage:
    """Prints the story and remembers how each step came out."""

    def __init__(self, shorten: dict[str, str]) -> None:
        self._colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._shorten = shorten
        self._chapter = 0
        self.steps: list[str] = []

    def chapter(self, title: str) -> None:
        self._chapter += 1
        print(f"\n{self._paint('1', f'{self._chapter}. {title}')}", flush=True)

    def tell(self, text: str) -> None:
        print(textwrap.fill(" ".join(text.split()), 96, initial_indent="   ", subsequent_indent="   "), flush=True)

    def expect(self, happened: bool, what: str) -> None:
        """A step of the story. Anything else than what is told ends it."""
        if not happened:
            print(f"   {self._paint('31;1', '✗')} {what}: it came out otherwise", flush=True)
            raise Failed(what)
        self.steps.append(what)
        print(f"   {self._paint('32;1', '✓')} {what}", flush=True)

    def run(
        self,
        *arguments: str | Path,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
        quiet: bool = False,
        after: str = "",
        silent: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """One command, printed with its output, from the words `after` on. `stdin` is never printed. `silent` prints
        nothing, for what happens beside the story.
        """
        words = [str(argument) for argument in arguments]
        piped = "… | " if stdin is not None else ""
        if not silent:
            line = f"   $ {piped}{self._short(' '.join(_quoted(word) for word in words))}"
            print(self._paint("36", line), flush=True)
        program = BIN / words[0] if (BIN / words[0]).exists() else shutil.which(words[0], path=_path()) or words[0]
        done = subprocess.run(
            [str(program), *words[1:]],
            input=b"" if stdin is None else stdin,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
            env={"PATH": _path(), "LANG": "C.UTF-8", "COLUMNS": "110", **(env or {})},
        )
        result = subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(), done.stderr.decode())
        if not (quiet or silent):
            said = result.stdout + result.stderr
            self.show(said[max(said.find(after), 0) :])
        return result

    def show(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            print(self._paint("2", f"     {self._short(line)}"), flush=True)

    def _short(self, text: str) -> str:
        for long, short in self._shorten.items():
            text = text.replace(long, short)
        return text

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def _quoted(word: str) -> str:
    return f"'{word}'" if " " in word else word
