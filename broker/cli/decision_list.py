# SPDX-License-Identifier: Apache-2.0
"""`roomkey decision list` and `roomkey decision follow`: what was decided, and what is being decided."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import click

from broker.cli.options import as_owner, json_flag
from broker.ledger import ATTEST, CHANGE, READMIT, RELEASE
from broker.owner_client import Caller, path_of
from broker.requests import DAY_MS
from broker.services import now_ms
from broker.terminal import next_step, print_json, printable, show_error, table, verdict, when
from keys.errors import Unavailable

PAUSE_S = 1.0  # between two looks
MAX_PAGE = 200
MAX_SUBJECT_CHARS = 24

Command = Callable[..., Any]
Query = dict[str, Any]


def _filters(command: Command) -> Command:
    """The options that say which decisions, as `query`."""

    @click.option("--kind", type=click.Choice([ATTEST, RELEASE, READMIT, CHANGE]), help="Only these.")
    @click.option("--denied", is_flag=True, help="Only what was refused or denied.")
    @click.option("--key", metavar="OWNER/TYPE/TAG", help="Only requests for this key.")
    @click.option("--guest", metavar="NAME", help="Only about this guest: its name or an instance id.")
    @click.option("--subject", help="Only about this instance id or thing.")
    @functools.wraps(command)
    def run(
        *args: Any, kind: str | None, denied: bool, key: str | None, guest: str | None, subject: str | None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        query: Query = {"kind": kind, "denied": "true" if denied else None, "key": key, "guest": guest,
                        "subject": subject}  # fmt: skip
        return command(*args, query={name: value for name, value in query.items() if value is not None}, **kwargs)

    return run


@click.command("list")
@_filters
@click.option("--days", type=click.IntRange(1, 36_500), help="Only of the last days.")
@click.option("--limit", type=click.IntRange(1, MAX_PAGE), default=20, show_default=True, help="How many.")
@click.option("--before", type=click.IntRange(1), help="Go on from here: the `next` of an earlier answer.")
@json_flag
@as_owner
def list_(client: Caller, query: Query, days: int | None, limit: int, before: int | None, as_json: bool) -> None:
    """List decisions, the newest first.

    \b
    Examples:
      roomkey decision list --denied
      roomkey decision list --guest web-1 --key acme/disk/web-root --days 7
    """
    since = {} if days is None else {"since": now_ms() - days * DAY_MS}
    page = _newest(client, query | since, limit, before)
    if as_json:
        print_json(page)
        return
    table(
        ("id", "at", "kind", "verdict", "key", "about", "why"),
        [(d["id"], when(d["at"]), d["kind"], d["verdict"], d["key"] or "", _about(d), _why(d))
         for d in page["decisions"]],
        empty="No decisions.",
    )  # fmt: skip
    if page["next"] is not None:
        next_step(f"More: --before {page['next']}")
    if any(d["failed"] for d in page["decisions"]):
        next_step("All checks, and what would mend it: roomkey decision show ID")


@click.command()
@_filters
@click.option("--last", type=click.IntRange(0, MAX_PAGE), default=0, help="Begin with so many that there are already.")
@click.option("--for", "seconds", type=click.IntRange(1), metavar="SECONDS", help="How long. [default: until Ctrl-C]")
@json_flag
@as_owner
def follow(client: Caller, query: Query, last: int, seconds: int | None, as_json: bool) -> None:
    """Print each decision as it is made; with --json one object a line. Ctrl-C ends it.

    \b
    Examples:
      roomkey decision follow --denied
      roomkey decision follow --last 20 --json
    """
    end = None if seconds is None else time.monotonic() + seconds
    try:
        for decision in decisions(client, query, last, time.sleep, lambda: end is None or time.monotonic() < end):
            click.echo(json.dumps(decision) if as_json else _line(decision))
    except KeyboardInterrupt:
        return


def decisions(
    client: Caller, query: Query, last: int, pause: Callable[[float], None], going: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """The last ones, then each new one, the oldest first, while `going`. A broker that does not answer is asked again
    after a pause, and that is said once.
    """
    newest = _call(client, {"limit": 1})["decisions"]
    after = newest[0]["sequence"] if newest else 0
    if last:
        yield from reversed(_newest(client, query | {"before": after + 1}, last, after + 1)["decisions"])
    silent = False
    while going():
        try:
            page = _call(client, query | {"after": after, "limit": MAX_PAGE})
        except Unavailable as error:
            if not silent:
                show_error(error)
            silent = True
            pause(PAUSE_S)
            continue
        silent = False
        yield from page["decisions"]
        caught_up = page["next"] == after
        after = page["next"]
        if caught_up:
            pause(PAUSE_S)


def _newest(client: Caller, query: Query, limit: int, before: int | None) -> dict[str, Any]:
    """One page of `limit`, however many answers that takes: one looks at so many lines and no more."""
    found: list[dict[str, Any]] = []
    while True:
        start = {} if before is None else {"before": before}
        page = _call(client, query | start | {"limit": limit - len(found)})
        found += page["decisions"]
        before = page["next"]
        if before is None or len(found) >= limit:
            return {"decisions": found, "next": before}


def _call(client: Caller, query: Query) -> dict[str, Any]:
    page: dict[str, Any] = client.call("GET", path_of("decisions") + "?" + urlencode(query))
    return page


def _about(decision: dict[str, Any]) -> str:
    if decision["guests"]:
        return ", ".join(decision["guests"])
    subject: str = decision["subject"]
    return subject if len(subject) <= MAX_SUBJECT_CHARS else subject[:MAX_SUBJECT_CHARS] + "…"


def _why(decision: dict[str, Any]) -> str:
    why: str = decision["why"]
    return why + (f" (+{decision['more']} more)" if decision["more"] else "")


def _line(decision: dict[str, Any]) -> str:
    words = [when(decision["at"]), decision["id"], decision["kind"].ljust(7), verdict(decision["verdict"], width=8)]
    words += [printable(word) for word in (decision["key"] or "", _about(decision)) if word]
    return "  ".join(words) + (f": {printable(_why(decision))}" if decision["why"] else "")
