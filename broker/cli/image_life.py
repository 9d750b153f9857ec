# SPDX-License-Identifier: Apache-2.0
"""`roomkey image approve`, `retire`, `revoke`, `history`: which versions of an image count, and which ever did."""

from __future__ import annotations

import re
from typing import Any

import click

from broker.cli.options import as_owner, confirmed, json_flag, why
from broker.http.image_types import MAX_AFTER_S
from broker.owner_client import Caller, path_of
from broker.services import now_ms
from broker.terminal import next_step, print_json, printable, table, when

SECONDS = {"m": 60, "h": 3600, "d": 24 * 3600}

_REFERENCE = re.compile(r"([^@]+)@([1-9][0-9]{0,15})\Z", re.ASCII)
_DURATION = re.compile(r"([0-9]{1,6})([mhd])\Z", re.ASCII)


class Reference(click.ParamType[tuple[str, int]]):
    """NAME@VERSION."""

    name = "reference"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        match = _REFERENCE.match(str(value))
        if match is None:
            self.fail(f"{value!r} is no version of an image, like debian-12@3", param, ctx)
        return match[1], int(match[2])


class Duration(click.ParamType[int]):
    """Minutes, hours or days, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _DURATION.match(str(value))
        seconds = 0 if match is None else int(match[1]) * SECONDS[match[2]]
        if not 0 < seconds <= MAX_AFTER_S:
            self.fail(
                f"{value!r} is no time like 30m, 12h or 7d, of at most {MAX_AFTER_S // SECONDS['d']}d", param, ctx
            )
        return seconds


reference = click.argument("version", type=Reference(), metavar="NAME@VERSION")


@click.command()
@reference
@why
@as_owner
def approve(client: Caller, version: tuple[str, int], why: str) -> None:
    """Let a proposed version count; also one that was retired.

    See first what it changes: roomkey image diff debian-12@3 debian-12@4

    \b
    Example:
      roomkey image approve debian-12@4 --why "kernel 6.1.0-31, tried on staging"
    """
    _change(client, version, {"state": "active", "why": why})


@click.command()
@reference
@click.option("--after", type=Duration(), default=None, metavar="TIME", help="Let it in for so long: 30m, 12h, 7d.")
@click.option("--now", "at_once", is_flag=True, help="Let it in no more.")
@why
@as_owner
def retire(client: Caller, version: tuple[str, int], after: int | None, at_once: bool, why: str) -> None:
    """Let a version count until a time, beside newer ones, so that guests can be updated one by one.

    \b
    Example:
      roomkey image retire debian-12@3 --after 7d --why "kernel 6.1.0-31 replaces it"
    """
    if (after is None) is not at_once:
        raise click.UsageError("Say --after TIME or --now.")
    _change(client, version, {"state": "retiring", "after_s": after or 0, "why": why})


@click.command()
@reference
@confirmed
@why
@as_owner
def revoke(client: Caller, version: tuple[str, int], yes: bool, why: str) -> None:
    """Let a version count nowhere, for ever: not under its name, not where a rule names it.

    \b
    Example:
      roomkey image revoke debian-12@3 --why CVE-2026-1234
    """
    name, number = version
    if not yes:
        click.confirm(f"Refuse all guests of {name}@{number} from now on, for ever?", abort=True, err=True)
    _change(client, version, {"state": "revoked", "why": why})


@click.command()
@click.argument("name")
@json_flag
@as_owner
def history(client: Caller, name: str, as_json: bool) -> None:
    """Show all versions of image NAME, and where each of them stood: since when, by whom and why.

    \b
    Example:
      roomkey image history debian-12
    """
    shown = client.call("GET", path_of("images", name, "history"))
    if as_json:
        print_json(shown)
        return
    table(
        ("version", "state", "since", "until", "by", "why"),
        [
            (v["version"], state_of(life), when(life["at"]),
             "" if life["until"] is None else when(life["until"]), life["who"], life["why"])
            for v in shown["versions"]
            for life in v["lives"]
        ],
        empty="",
    )  # fmt: skip
    next_step(meaning(name, shown["counting"]))


def _change(client: Caller, version: tuple[str, int], body: dict[str, Any]) -> None:
    name, number = version
    told = client.call("POST", path_of("images", name, str(number), "state"), body)
    life = told["life"]
    until = "" if life["until"] is None or state_of(life) == "retired" else f" until {when(life['until'])}"
    click.echo(printable(f"image {name}@{number} is {state_of(life)}{until}"))
    next_step(meaning(name, told["counting"]))


def state_of(life: dict[str, Any]) -> str:
    """Its state in a word; a retirement that is over, by this machine's clock, is called so."""
    over = life["until"] is not None and life["until"] <= now_ms()
    return "retired" if over else str(life["state"])


def meaning(name: str, counting: list[int]) -> str:
    """What a rule that names the image without a version lets in."""
    versions = ", ".join(f"{name}@{number}" for number in counting)
    nothing = f"no version: a rule that names it so lets nobody in before the next version, or names one ({name}@N)"
    return f"{name} now means {versions or nothing}"
