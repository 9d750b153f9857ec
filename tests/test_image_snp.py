# SPDX-License-Identifier: Apache-2.0
"""Images of SEV-SNP and Azure guests: what an owner writes, what is refused, and drafts from evidence."""

import json
from dataclasses import replace
from typing import Any

import pytest

from broker.appraisal.enrol import enrol_image
from broker.appraisal.image_snp import PINS, floors_of
from broker.appraisal.images import Image, parse_image
from broker.appraisal.registers import SNP_BYTES, Register, order
from broker.claims import Claims
from broker.verifiers.snp_floors import NAMES, NOTHING, OPERATOR_ONLY
from keys.errors import ProtocolError
from keys.tee import Tee

DIGEST, OTHER, SHORT = "aa" * 48, "bb" * 48, "cc" * 32
ZERO = "00" * 48
PCRS = f'[tpm]\nbank = "sha256"\n[tpm.pcrs]\n4 = "{SHORT}"\n'


def toml(*lines: str, platform: str = "snp", floors: dict[str, Any] | None = None, tail: str = "") -> str:
    table = "" if floors is None else "[snp.floors]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in floors.items())
    return "\n".join((f'platform = "{platform}"', "[snp]", *lines, table, tail))


def pinned(floors: dict[str, Any] | None = None, *more: str) -> str:
    return toml(f'measurement = "{DIGEST}"', *more, floors=floors)


def test_an_image_reads_as_it_was_written() -> None:
    """Every field of the report that an image can name arrives as a register, single or as a list, in either case."""
    lines = [f'{name} = "{"Ab" * size}"' for name, size in SNP_BYTES.items() if name != "measurement"]
    image = parse_image(toml(f'measurement = ["{DIGEST.upper()}", "{OTHER}"]', *reversed(lines)))
    assert image == Image(
        Tee.SNP,
        "",
        {"measurement": Register((DIGEST, OTHER))}
        | {name: Register(("ab" * size,)) for name, size in SNP_BYTES.items() if name != "measurement"},
    )
    assert list(image.registers) == list(SNP_BYTES) == sorted(image.registers, key=order)


@pytest.mark.parametrize("pin", sorted(PINS))
def test_each_of_three_digests_says_what_boots(pin: str) -> None:
    """The launch digest, or who signed the launch, is enough; for a key no least version is demanded."""
    assert parse_image(toml(f'{pin} = "{DIGEST}"')).registers == {pin: Register((DIGEST,))}


def test_floors_are_kept_as_json_and_mean_the_same_later() -> None:
    """What the owner demands besides goes through the store and comes back as floors over nothing."""
    floors = {"min_guest_svn": 2, "products": ["Genoa"], "max_vmpl": 0, "min_reported_tcb": ["Genoa snp=25"]}
    image = parse_image(pinned(floors))
    assert image.floors == floors
    stored = Image.from_body(json.loads(json.dumps(image.to_body() | {"toml": "..."})))
    assert stored == image
    assert floors_of(stored.floors) == replace(
        NOTHING, min_guest_svn=2, products=("Genoa",), max_vmpl=0, min_reported_tcb=("Genoa snp=25",)
    )


def test_an_image_of_an_earlier_release_has_no_floors() -> None:
    """A body that was stored before there were floors still loads."""
    body = parse_image(pinned()).to_body()
    del body["floors"]
    assert Image.from_body(body) == parse_image(pinned())


ALONE = [f'{name} = "{"ab" * size}"' for name, size in SNP_BYTES.items() if name not in PINS]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (toml(), "does not say what boots"),
        *((toml(line), "does not say what boots") for line in ALONE),
        (toml(*ALONE, floors={"min_guest_svn": 2}), "does not say what boots"),
        (toml(floors={"id_key_digests": [DIGEST]}), "does not say what boots"),
        *((toml(f'{pin} = "{ZERO}"'), f"snp.{pin} is zero") for pin in sorted(PINS)),
        (toml(f'measurement = ["{DIGEST}", "{ZERO}"]'), "snp.measurement is zero"),
        (pinned(None, f'id_key_digest = "{ZERO}"'), "snp.id_key_digest is zero"),
        (toml("measurement = []"), "snp.measurement needs a value"),
        (toml(f"measurement = {json.dumps([DIGEST] * 65)}"), "snp.measurement needs a value"),
        (toml(f'measurement = "{DIGEST[2:]}"'), "snp.measurement is not a value"),
        (toml(f'measurement = "{DIGEST[1:]}g"'), "snp.measurement is not a value"),
        (toml("measurement = 7"), "snp.measurement is not a value"),
        (pinned(None, f'host_data = "{DIGEST}"'), "snp.host_data is not a value"),
        (pinned(None, "guest_svn = 2"), "snp has an unknown member"),
        (pinned(None, "floors = 7"), "snp.floors must be a JSON object"),
        (pinned({"min_svn": 2}), "snp.floors has an unknown member"),
        *((pinned({name: True}), f"snp.floors.{name} is the operator's") for name in sorted(OPERATOR_ONLY)),
        (pinned({"min_guest_svn": "two"}), "min_guest_svn"),
        (pinned({"min_guest_svn": 0}), "snp.floors.min_guest_svn requires nothing"),
        (pinned({"products": []}), "snp.floors.products requires nothing"),
        (pinned({"committed_is_current": False}), "snp.floors.committed_is_current requires nothing"),
        ('platform = "snp"\nsnp = 7\n', "snp must be a JSON object"),
        (pinned() + PCRS, "unknown member"),
        ('platform = "snp"\n' + PCRS, "lacks a member"),
        ('platform = "az-snp-vtpm"\n' + PCRS, "lacks a member"),
    ],
)  # fmt: skip
def test_what_cannot_protect_a_key_is_refused(text: str, word: str) -> None:
    """Images that anything could boot as, values that every report shows, floors that require nothing: refused."""
    with pytest.raises(ProtocolError, match=word):
        parse_image(text)


def test_every_floor_that_is_not_the_operators_is_an_images() -> None:
    """A floor that is added to the product is in images too, and the four that are not are named."""
    assert frozenset(NAMES) > OPERATOR_ONLY
    for name in set(NAMES) - OPERATOR_ONLY:
        with pytest.raises(ProtocolError) as caught:
            parse_image(pinned({name: []} if isinstance(getattr(NOTHING, name), tuple) else {name: None or {}}))
        assert "unknown member" not in str(caught.value)


# --- Azure ---


def azure(*lines: str, tail: str = PCRS) -> str:
    return toml(*lines, platform="az-snp-vtpm", tail=tail)


@pytest.mark.parametrize("pin", ["measurement", "id_key_digest"])
def test_an_azure_image_has_the_paravisor_and_the_boot(pin: str) -> None:
    """The report's fields, the PCRs and the floors of both tables are in one image."""
    image = parse_image(azure(f'{pin} = "{DIGEST}"', tail=f"[snp.floors]\nmin_guest_svn = 2\n{PCRS}"))
    assert image == Image(
        Tee.AZ_SNP_VTPM,
        "",
        {pin: Register((DIGEST,)), "sha256:4": Register((SHORT,))},
        {"min_guest_svn": 2},
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (azure(), "does not say what boots"),
        (azure(f'author_key_digest = "{DIGEST}"'), "expected measurement or id_key_digest"),
        (azure(f'host_data = "{SHORT}"'), "does not say what boots"),
        (azure(f'measurement = "{ZERO}"'), "zero"),
        (azure(f'measurement = "{DIGEST}"', tail=""), "lacks a member"),
        (azure(f'measurement = "{DIGEST}"', tail=PCRS.replace("4 =", "0 =")), "proves nothing without PCR 4 or PCR 7"),
        (azure(f'measurement = "{DIGEST}"', tail=PCRS.replace("256", "384").replace(SHORT, DIGEST)), "bank is not"),
        (azure(f'measurement = "{DIGEST}"', tail=PCRS + "[[tpm.events]]\npcr = 4\ndigests = []\n"), "unknown member"),
    ],
)
def test_an_azure_image_must_pin_the_paravisor(text: str, word: str) -> None:
    """PCRs that a paravisor of the host's own could quote in software, or no PCRs, are no image."""
    with pytest.raises(ProtocolError, match=word):
        parse_image(text)


# --- drafts ---

VALUES = {
    "measurement": DIGEST, "host_data": "00" * 32, "id_key_digest": ZERO, "author_key_digest": ZERO,
    "family_id": "00" * 16, "image_id": "00" * 16,
}  # fmt: skip
CLAIMS = Claims(
    Tee.SNP,
    ("snp-chip:01",),
    "vcek",
    VALUES,
    facts={"product": "Genoa", "guest_svn": 0, "reported_tcb_snp": 23, "reported_tcb_microcode": 84},
)


def uncommented(text: str) -> str:
    """The draft with its suggestions taken up."""
    lines = text.splitlines()
    return "\n".join(line.removeprefix("# ") if " = " in line or line.startswith("# [") else line for line in lines)


def test_a_draft_accepts_exactly_this_launch() -> None:
    """The launch digest alone where there is nothing else, and floors as suggestions only."""
    text = enrol_image(CLAIMS, description='from "guest".json')
    assert parse_image(text) == Image(Tee.SNP, 'from "guest".json', {"measurement": Register((DIGEST,))})
    assert parse_image(uncommented(text)).floors == {
        "products": ["Genoa"], "min_reported_tcb": ["Genoa snp=23 microcode=84"]
    }  # fmt: skip


def test_a_draft_keeps_what_the_host_was_told() -> None:
    """HOST_DATA that is not zero is in the image; the keys that signed the launch are suggestions."""
    measured = VALUES | {"host_data": SHORT, "id_key_digest": OTHER, "author_key_digest": DIGEST}
    text = enrol_image(replace(CLAIMS, measurements=measured, facts={**CLAIMS.facts, "guest_svn": 7}))
    assert list(parse_image(text).registers) == ["measurement", "host_data"]
    image = parse_image(uncommented(text).replace("; instead", "  # instead"))
    assert image.registers["id_key_digest"] == Register((OTHER,))
    assert image.registers["author_key_digest"] == Register((DIGEST,))
    assert image.floors["min_guest_svn"] == 7


def test_a_draft_of_an_azure_guest_has_both_tables() -> None:
    """The paravisor's launch digest and the chosen PCRs, without events."""
    claims = replace(CLAIMS, tee=Tee.AZ_SNP_VTPM, measurements=VALUES | {"sha256:4": SHORT, "sha256:7": SHORT})
    image = parse_image(enrol_image(claims, [4, 7]))
    assert image.platform is Tee.AZ_SNP_VTPM
    assert image.registers == {
        "measurement": Register((DIGEST,)), "sha256:4": Register((SHORT,)), "sha256:7": Register((SHORT,))
    }  # fmt: skip


def test_there_is_no_draft_of_other_platforms() -> None:
    """A launch before SNP is measured by computing, not enrolled."""
    with pytest.raises(ProtocolError, match="no image can be drafted"):
        enrol_image(replace(CLAIMS, tee=Tee.SEV))
