# SPDX-License-Identifier: Apache-2.0
"""Images of SEV and SEV-ES launches: what an owner writes, what is refused, what a launch must show."""

import json
from dataclasses import replace
from typing import Any

import pytest

from broker.appraisal.floors import check_image_floors, unmet_floors
from broker.appraisal.images import Image, parse_image
from broker.appraisal.registers import Register
from broker.claims import Claims, Fact
from broker.trace import Trace, Verdict
from keys.errors import ProtocolError
from keys.tee import Tee

DIGEST, OTHER = "aa" * 32, "bb" * 32


def toml(*lines: str, digest: Any = DIGEST) -> str:
    return "\n".join(('platform = "sev"', "[sev]", f"launch_digest = {json.dumps(digest)}", *lines, ""))


@pytest.mark.parametrize(
    ("lines", "floors"),
    [
        ((), {"es": False, "policy": 0x01}),
        (("es = true",), {"es": True, "policy": 0x05}),
        (("es = true", "policy = 0x0c"), {"es": True, "policy": 0x0D}),
        (
            ('min_api = "1.49"', "min_build = 6"),
            {"es": False, "policy": 0x01, "min_api": "1.49", "min_build": 6},
        ),
    ],
)
def test_an_image_reads_as_it_was_written(lines: tuple[str, ...], floors: dict[str, Any]) -> None:
    """The digests are the register; NODBG is always asked for, and the bit of SEV-ES exactly where it is said."""
    image = parse_image(toml(*lines, digest=[DIGEST.upper(), OTHER]))
    assert image == Image(Tee.SEV, "", {"launch_digest": Register((DIGEST, OTHER))}, floors)
    assert Image.from_body(json.loads(json.dumps(image.to_body()))) == image


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('platform = "sev"\n[sev]\n', "lacks a member"),
        ('platform = "sev"\nsev = 7\n', "must be a JSON object"),
        (toml(digest=[]), "needs a value"),
        (toml(digest=DIGEST[2:]), "not a value"),
        (toml(digest="00" * 32), "is zero"),
        (toml(digest=[DIGEST, "00" * 32]), "is zero"),
        (toml("es = 1"), "true or false"),
        (toml("policy = 0x40"), "unknown bits"),
        (toml("policy = -1"), "unknown bits"),
        (toml("policy = true"), "unknown bits"),
        (toml("policy = 0x04"), "asks for SEV-ES"),
        (toml("min_api = 1"), "must be a string"),
        (toml('min_api = "1"'), "not a version"),
        (toml('min_api = "1.49.6"'), "not a version"),
        (toml("min_build = 6"), "not a build"),
        (toml('min_api = "1.49"', "min_build = 256"), "not a build"),
        (toml('min_api = "1.49"', "min_build = true"), "not a build"),
        (toml("nodbg = true"), "unknown member"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, word: str) -> None:
    """No digest, one that is no digest, bits that do not exist or contradict each other, a build of no version."""
    with pytest.raises(ProtocolError, match=word):
        parse_image(text)


FACTS: dict[str, Fact] = {"policy": "0x310100ff", "api_major": 1, "api_minor": 49, "build_id": 6}
ES = {"es": True, "policy": 0x05}
CLAIMS = Claims(Tee.SEV, ("sev-cek:01",), "sev-cek", {"launch_digest": DIGEST}, facts=FACTS)


@pytest.mark.parametrize(
    ("floors", "facts", "met"),
    [
        (ES, {}, True),
        (ES, {"policy": "0x5"}, True),
        (ES, {"policy": "0x4"}, False),
        (ES, {"policy": "0x1"}, False),
        (ES, {"policy": None}, False),
        ({"es": False, "policy": 0x01}, {"policy": "0x1"}, True),
        ({"es": False, "policy": 0x01}, {"policy": "0x5"}, False),
        (ES | {"min_api": "1.49"}, {"build_id": 0}, True),
        (ES | {"min_api": "1.49", "min_build": 6}, {}, True),
        (ES | {"min_api": "1.49", "min_build": 7}, {}, False),
        (ES | {"min_api": "1.49", "min_build": 7}, {"api_minor": 50, "build_id": 1}, True),
        (ES | {"min_api": "1.50"}, {}, False),
        (ES | {"min_api": "2.0"}, {}, False),
        (ES | {"min_api": "1.49"}, {"policy": "0x1"}, False),
        (ES | {"min_api": "1.49"}, {"api_major": None}, False),
        (ES | {"min_api": "0.0"}, {"build_id": "6"}, False),
    ],
)
def test_a_launch_must_meet_the_images_floors(floors: dict[str, Any], facts: dict[str, Fact], met: bool) -> None:
    """Policy bits, SEV-ES or not, the firmware's version and build; a fact that is missing meets nothing."""
    image = Image(Tee.SEV, "", {"launch_digest": Register((DIGEST,))}, floors)
    claims = replace(CLAIMS, facts={**FACTS, **facts})
    trace = Trace()
    assert check_image_floors(image, "debian@1", claims, trace) is met
    assert len(trace.failed) == unmet_floors(image, "debian@1", claims) == (not met)
    required = [check.verdict is not Verdict.NOT_REQUIRED for check in trace.checks]
    assert required == [True, "min_api" in floors]


def test_other_platforms_have_no_floors() -> None:
    """An image of a TPM demands nothing beside its registers."""
    trace = Trace()
    assert check_image_floors(Image(Tee.TPM, "", {}), "debian@1", CLAIMS, trace)
    assert trace.checks == []
