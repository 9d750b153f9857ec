# SPDX-License-Identifier: Apache-2.0
"""`roomkey verify`: the broker's own judgement of an evidence file, without a broker."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from broker.claims import Claims
from broker.cli.options import endorsement_files, floors_file, json_flag, read_floors, read_input, verbose_flag
from broker.terminal import fields, print_json, show_error, trace, verdict
from broker.trace import Verdict
from broker.verifiers.offline import MAX_FILE_BYTES, judge
from keys.errors import ConfigError

GENUINE, REFUSED, CANNOT_BE_JUDGED = 0, 1, 2  # exit statuses

_file = click.Path(path_type=Path)


class Time(click.ParamType[datetime]):
    """An ISO 8601 time; without a zone it is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not an ISO 8601 time, like 2026-11-23T18:00:00Z", param, ctx)
        return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


class Expectation(click.ParamType[tuple[str, str]]):
    """NAME=VALUE."""

    name = "expectation"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, equals, expected = str(value).partition("=")
        if not (name and equals):
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, expected


@click.command()
@click.argument("tee")
@click.argument("evidence", type=_file)
@endorsement_files
@click.option(
    "--trust-root",
    "roots",
    type=_file,
    multiple=True,
    metavar="FILE",
    help="A certificate that you trust, for a TPM; AMD's are built in. [repeatable]",
)
@floors_file
@click.option("--at", type=Time(), default=None, metavar="TIME", help="Judge as of this time. [default: now]")
@click.option(
    "--expect",
    "expectations",
    type=Expectation(),
    multiple=True,
    metavar="NAME=VALUE",
    help="What a claim must be, like ak_name=HEX, sha256:4=HEX, measurement=HEX. [repeatable]",
)
@verbose_flag
@json_flag
@click.pass_context
def verify(
    ctx: click.Context, tee: str, evidence: Path, endorsements: tuple[Path, ...], roots: tuple[Path, ...],
    floors: Path | None, at: datetime | None, expectations: tuple[tuple[str, str], ...], verbose: bool, as_json: bool,
) -> None:  # fmt: skip
    """Judge the evidence file EVIDENCE (- for standard input) of the platform TEE, with the broker's own verifier.

    TEE is tpm, snp (EVIDENCE may also be a bare report of 1184 bytes) or az-snp-vtpm. Of SEV-SNP the strict floors must
    be met, or those of --floors; what your broker asks for stands in its config.

    Ends with status 0 if it is genuine and all that was expected, 1 if it is refused, 2 if it cannot be judged:
    then something is missing that only you can say, like whose attestation key it is.

    \b
    Examples:
      roomkey verify tpm guest.json --expect ak_name=000b1f...
      roomkey verify snp guest.json --endorsement vcek.der
      roomkey verify snp report.bin --endorsement vcek.der --expect report_data=5f3a...
    """
    try:
        judgement = judge(
            tee,
            read_input(evidence, max_bytes=MAX_FILE_BYTES),
            [read_input(file) for file in endorsements],
            [read_input(file) for file in roots],
            at or datetime.now(UTC),
            dict(expectations),
            floors=read_floors(floors),
        )
    except ConfigError as error:
        if as_json:
            print_json({"verdict": "cannot be judged", "cause": error.message, "mend": error.mend})
        else:
            show_error(error)
        ctx.exit(CANNOT_BE_JUDGED)
    genuine = judgement.verdict is Verdict.PASSED
    word = "genuine" if genuine else "refused"
    if as_json:
        claims = None if judgement.claims is None else judgement.claims.to_json()
        print_json({"verdict": word, "claims": claims, "trace": judgement.trace.to_json()})
    else:
        click.echo(verdict(word))
        if judgement.claims is not None:
            _print(judgement.claims)
        trace(judgement.trace.to_json(), verbose=verbose)
    ctx.exit(GENUINE if genuine else REFUSED)


def _print(claims: Claims) -> None:
    click.secho("\nclaims", bold=True)
    fields(
        [("instance", ", ".join(claims.instance_ids)), ("trusted by", claims.trust)]
        + [(name, str(value)) for name, value in claims.facts.items() if value is not None]
        + [(name, value) for name, value in claims.measurements.items() if set(value) != {"0"}],
        indent=2,
    )
