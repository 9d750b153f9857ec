# SPDX-License-Identifier: Apache-2.0
"""How `roomkey` speaks: tables, times, traces and errors, for people and (`--json`) for programs.

Names of events and files come out of guests, so nothing is printed before its control characters are escaped: a
measured boot path must not be able to redraw the owner's terminal. Colour only where standard output is a terminal.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from broker.trace import Stage
from keys.errors import RoomkeyError

WIDTH = 100  # columns that prose is wrapped at
LABEL = 13  # characters of the longest name before a value
PASSED, FAILED = "passed", "failed"
_COLOURS = {
    PASSED: "green", "genuine": "green", "released": "green", "ok": "green", "active": "green",
    FAILED: "red", "refused": "red", "denied": "red", "fail": "red",
    "not judged": "yellow", "warn": "yellow", "destroyed": "yellow",
}  # fmt: skip


def printable(value: object) -> str:
    """`value` as text on one line: what is not a printable character is shown as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(value))


def verdict(word: str, *, width: int = 0) -> str:
    """`word` padded to `width` characters, in the colour of what it says."""
    return click.style(printable(word).ljust(width), fg=_COLOURS.get(word), bold=word in _COLOURS or None)


def when(milliseconds: int) -> str:
    """A time of the wire (milliseconds since the epoch) in UTC, to the second."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows under headings in aligned columns; nothing is cut off. `empty` is the hint where there are none."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        click.echo(empty)
        return
    widths = [max(len(cell) for cell in column) for column in zip(headings, *cells, strict=True)]
    widths[-1] = 0  # nothing to align after the last column
    headline = "  ".join(name.upper().ljust(width) for name, width in zip(headings, widths, strict=True))
    click.secho(headline, bold=True)
    for row in cells:
        click.echo("  ".join(verdict(cell, width=width) for cell, width in zip(row, widths, strict=True)))


def fields(pairs: Iterable[tuple[str, object]], *, indent: int = 0) -> None:
    """Print `name  value` lines, aligned; a pair whose value is empty is left out."""
    shown = [(name, printable(value)) for name, value in pairs if value not in ("", None)]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{' ' * indent}{name.ljust(width)}  {value}")


def print_json(value: Any) -> None:
    """Print `value` for programs: ASCII only, so that no reader's terminal or locale matters."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def next_step(text: str) -> None:
    """Say what to do next, on standard error: standard output is for results."""
    click.echo(text, err=True)


def show_error(error: RoomkeyError) -> None:
    """Print one error on standard error: the cause, what was expected and found, and what mends it."""
    click.echo(click.style("Error: ", fg="red", bold=True) + printable(error.message), err=True)
    for name, value in (("expected", error.expected), ("found", error.found), ("to mend it", error.mend)):
        if value:
            click.echo(f"  {name.ljust(10)}  {printable(value)}", err=True)


def headline(text: str, word: str) -> None:
    """Print a sentence that comes before all else, in the colour of the verdict `word`."""
    for line in textwrap.wrap(printable(text), WIDTH, break_long_words=False, break_on_hyphens=False):
        click.secho(line, fg=_COLOURS.get(word), bold=True)


def section(title: str) -> None:
    """Print a heading."""
    click.secho(f"\n{title}", bold=True)


def paragraph(text: str, *, indent: int, label: str = "") -> None:
    """Print `text`, after `label` where there is one, wrapped at words; what follows the first line is indented with
    it. What has no spaces is never broken.
    """
    first = " " * indent + (label.ljust(LABEL) + "  " if label else "")
    then = " " * (len(first) if label else indent + 2)
    for line in textwrap.wrap(
        printable(text), WIDTH, initial_indent=first, subsequent_indent=then, break_long_words=False,
        break_on_hyphens=False,
    ):  # fmt: skip
        click.echo(line)


def trace(checks: Sequence[dict[str, str]], *, verbose: bool) -> None:
    """Print a decision's checks by stage, a line each, then what failed with its values, and at the end what mends it.

    `verbose`: the values of all the other checks too.
    """
    stages(checks, verbose=verbose)
    failed = [check for check in checks if check["verdict"] == FAILED]
    if failed:
        _summary(failed)


def stages(checks: Sequence[dict[str, str]], *, verbose: bool) -> None:
    """Print checks by stage, a line each. `verbose`: the values of those that did not fail too."""
    width = max((len(check["verdict"]) for check in checks), default=0)
    for stage in Stage:
        of_stage = [check for check in checks if check["stage"] == stage]
        if of_stage:
            click.secho(f"\n{stage}", bold=True)
        for check in of_stage:
            click.echo(f"  {verdict(check['verdict'], width=width)}  {printable(check['name'])}")
            text = printable(check["found"] or check["expected"])
            if verbose and text and check["verdict"] != FAILED:
                click.secho(f"{' ' * (width + 6)}{text}", dim=True)


def _summary(failed: Sequence[dict[str, str]]) -> None:
    click.secho(f"\nWhat failed ({len(failed)} check{'s' if len(failed) > 1 else ''})", bold=True)
    for number, check in enumerate(failed, 1):
        click.echo(f"  {number}. {click.style(printable(check['name']), fg='red')}")
        fields([("expected", check["expected"]), ("found", check["found"])], indent=5)
    mends = dict.fromkeys(check["mend"] for check in failed if check["mend"])  # one mend may be for several checks
    if mends:
        click.secho("\nTo mend it", bold=True)
    for mend in mends:
        click.echo(f"  {printable(mend)}")
