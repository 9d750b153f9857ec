# SPDX-License-Identifier: Apache-2.0
"""`roomkey decision show`: what came of one attempt and why, first in a sentence, then check by check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from broker import decision_words as words
from broker.cli.options import as_owner, json_flag, verbose_flag
from broker.owner_client import Caller, path_of
from broker.terminal import fields, headline, paragraph, print_json, printable, section, stages, when

# What of a line's body is shown under the head, and under which name; --json has all of it.
_BODY = {
    "version": "key version",
    "image": "image",
    "tee": "platform",
    "who": "by",
    "why": "why",
}


@click.command()
@click.argument("id_", metavar="ID")
@verbose_flag
@json_flag
@as_owner
def show(client: Caller, id_: str, verbose: bool, as_json: bool) -> None:
    """Show one decision: what came of it and why, what differs, what would mend it, and how all checks ended.

    \b
    Example:
      roomkey decision show d-mfrggzdfmztwq2lknnwg
    """
    shown = client.call("GET", path_of("decisions", id_))
    if as_json:
        print_json(shown)
        return
    trace = shown["body"].get("trace", [])
    headline(words.head(shown, when(shown["at"])), shown["verdict"])
    _about(shown, verbose=verbose)
    if words.failures(trace):
        _differences(shown, verbose=verbose)
        _mends(trace)
    if verbose:
        stages(trace, verbose=True)
    elif trace:
        _checks(trace)


def _about(shown: Mapping[str, Any], *, verbose: bool) -> None:
    body = shown["body"]
    about = [
        ("decision", f"{shown['id']} ({shown['kind']}, {shown['verdict']})"),
        ("subject", shown["subject"]),
        *((label, body.get(name)) for name, label in _BODY.items()),
        ("what follows", words.follows(body)),
    ]
    if verbose:
        about += [("ids", ", ".join(body.get("instances", []))), ("evidence's SHA-256", body.get("evidence"))]
    fields([(name, _told(str(value), verbose)) for name, value in about if value is not None], indent=2)


def _differences(shown: Mapping[str, Any], *, verbose: bool) -> None:
    section("What differs")
    for line in words.nearest(shown["body"]["trace"]):
        paragraph(line, indent=2)
    for difference in words.differences(shown):
        click.secho(f"  {printable(_told(difference.title, verbose))}", fg="red")
        for name, value in difference.rows:
            paragraph(_told(value, verbose), indent=4, label=name)


def _mends(trace: list[dict[str, str]]) -> None:
    found = words.mends(trace)
    if found:
        section("What would mend it, if you agree")
    for text, command in found:
        if text:
            paragraph(text, indent=2)
        if command:
            click.echo(f"{' ' * 4 if text else ' ' * 2}{printable(command)}")


def _checks(trace: list[dict[str, str]]) -> None:
    section("All checks (--verbose shows each)")
    for stage in words.stages(trace):
        paragraph(stage.counts or "none made", indent=2, label=stage.stage)
        for verdict, names in stage.names:
            paragraph(words.short(f"{verdict}: {names}"), indent=4)


def _told(text: str, verbose: bool) -> str:
    return text if verbose else words.short(text)
