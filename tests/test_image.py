# SPDX-License-Identifier: Apache-2.0
"""Images: what an owner writes, what is refused because it cannot protect a key, and drafts from evidence."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.appraisal.enrol import enrol_image
from broker.appraisal.image_tpm import replay
from broker.appraisal.images import Image, parse_image
from broker.appraisal.registers import ExpectedEvent, Register
from broker.claims import Claims, LoggedEvent
from keys.errors import ProtocolError
from keys.tee import Tee
from tests.fakes import tcg_log

A, B, C = ("aa" * 32, "bb" * 32, "cc" * 32)
ZERO = "00" * 32


def toml(pcrs: dict[Any, Any], *, bank: str = "sha256", events: str = "", head: str = 'platform = "tpm"') -> str:
    values = "\n".join(f"{index} = {json.dumps(value)}" for index, value in pcrs.items())
    return f'{head}\n[tpm]\nbank = "{bank}"\n[tpm.pcrs]\n{values}\n{events}\n'


def events_of(pcr: int, *digests: str, extra: str = "") -> str:
    listed = ", ".join(f'{{digest = "{digest}"}}' for digest in digests)
    return f"[[tpm.events]]\npcr = {pcr}\n{extra}\ndigests = [{listed}]\n"


def extended(*digests: str, start: bytes = bytes(32)) -> str:
    value = start
    for digest in digests:
        value = hashlib.sha256(value + bytes.fromhex(digest)).digest()
    return value.hex()


def test_an_image_reads_as_it_was_written() -> None:
    """Single values, lists of values, events beside or instead of values, description: all arrive, by register."""
    image = parse_image(
        toml(
            {0: A, 7: [B, C], 4: extended(A, B)},
            head='platform = "tpm"\ndescription = "Debian 12"',
            events=events_of(4, A, B)
            + '[[tpm.events]]\npcr = 9\ndigests = [{digest = "' + C + '", type = "EV_IPL", what = "/initrd"}]\n',
        )
    )  # fmt: skip
    assert image == Image(
        Tee.TPM,
        "Debian 12",
        {
            "sha256:0": Register((A,)),
            "sha256:4": Register((extended(A, B),), (ExpectedEvent(A), ExpectedEvent(B))),
            "sha256:7": Register((B, C)),
            "sha256:9": Register((extended(C),), (ExpectedEvent(C, "EV_IPL", "/initrd"),)),
        },
    )
    assert list(image.registers) == ["sha256:0", "sha256:4", "sha256:7", "sha256:9"]


def test_an_image_survives_the_store() -> None:
    """What goes into a record's body, through JSON, comes out as the same image, also with other members beside it."""
    image = parse_image(toml({4: extended(A)}, events=events_of(4, A)))
    assert Image.from_body(json.loads(json.dumps(image.to_body() | {"toml": "..."}))) == image


def test_upper_case_hex_is_the_same_value() -> None:
    """Tools print digests in either case; claims have lower case."""
    assert parse_image(toml({4: A.upper()})).registers["sha256:4"].values == (A,)


@pytest.mark.parametrize(("bank", "chars"), [("sha256", 64), ("sha384", 96), ("sha512", 128)])
def test_every_bank_but_sha1(bank: str, chars: int) -> None:
    """Values have the bank's length, and registers its name."""
    assert parse_image(toml({4: "ab" * (chars // 2)}, bank=bank)).registers[f"{bank}:4"].values == (
        "ab" * (chars // 2),
    )
    with pytest.raises(ProtocolError, match=f"not a {bank} digest"):
        parse_image(toml({4: "ab" * (chars // 2 - 1)}, bank=bank))


def test_one_of_several_values_may_have_the_events() -> None:
    """Events must lead to one of the listed values, not to all of them."""
    image = parse_image(toml({4: [B, extended(A)]}, events=events_of(4, A)))
    assert image.registers["sha256:4"].values == (B, extended(A))


@pytest.mark.parametrize("locality", [3, 4])
def test_pcr_0_may_start_at_another_locality(locality: int) -> None:
    """With start_locality the replay of PCR 0 begins at that value."""
    image = parse_image(toml({4: A}, events=events_of(0, A, extra=f"start_locality = {locality}")))
    start = bytes(31) + bytes((locality,))
    assert image.registers["sha256:0"].values == (extended(A, start=start),)
    assert replay("sha256", [A], locality) == extended(A, start=start)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("x = ", "not TOML"),
        ("a = " + "[" * 3000, "not TOML"),
        ("#" * (200 * 1024 + 1), "too long"),
        ("", "lacks a member"),
        (toml({4: A}, head='platform = "tpm"\nfirmware = 1'), "unknown member"),
        (toml({4: A}, head='platform = "tdx"'), "images of this platform are not supported"),
        (toml({4: A}, head='platform = ["tpm"]'), "images of this platform are not supported"),
        (toml({4: A}, head='platform = "snp"'), "lacks a member"),
        (toml({4: A}, head=f'platform = "tpm"\ndescription = "{"d" * 501}"'), "description is too long"),
        ('platform = "tpm"\ntpm = 1\n', "must be a JSON object"),
        ('platform = "tpm"\n[tpm]\npcrs = {}\n', "lacks a member"),
        (toml({4: A}, bank="sha1"), "bank is not usable"),
        (toml({4: A}, bank="md5"), "bank is not usable"),
        ('platform = "tpm"\n[tpm]\nbank = "sha256"\npcrs = 4\n', "must be a table"),
        ('platform = "tpm"\n[tpm]\nbank = "sha256"\nevents = 4\n', "tables"),
        ('platform = "tpm"\n[tpm]\nbank = "sha256"\nregisters = 4\n', "unknown member"),
        (toml({}), "no PCR"),
        (toml({"04": A}), "no PCR"),
        (toml({24: A}), "no PCR"),
        (toml({'"four"': A}), "no PCR"),
        (toml({4: []}), "needs a value"),
        (toml({4: [A] * 65}), "needs a value"),
        (toml({4: A[:-2]}), "not a sha256 digest"),
        (toml({4: A[:-1] + "g"}), "not a sha256 digest"),
        (toml({4: A[:-1] + " "}), "not a sha256 digest"),
        (toml({4: 7}), "not a sha256 digest"),
        (toml({4: [A, 7]}), "not a sha256 digest"),
        (toml({4: A, 16: A}), "PCR 16 cannot"),
        (toml({4: A, 23: A}), "PCR 23 cannot"),
        (toml({4: A, 10: A}), "PCR 10 cannot"),
        *((toml({4: A, index: A}), f"PCR {index} cannot") for index in range(17, 23)),
        *((toml({0: A, index: A}), "proves nothing without") for index in (1, 2, 3, 5, 6, 8, 9, 11, 12, 13, 14, 15)),
        (toml({0: A}), "proves nothing without"),
        *((toml({(4 if index == 7 else 7): A, index: ZERO}), f"PCR {index} is zero") for index in range(8)),
        (toml({4: [A, ZERO]}), "PCR 4 is zero"),
        (toml({4: A}, events=events_of(4, B)), "do not lead"),
        (toml({4: extended(A, B)}, events=events_of(4, B, A)), "do not lead"),
        (toml({}, events=events_of(24, A)), "names no PCR"),
        (toml({}, events=events_of(-1, A)), "names no PCR"),
        (toml({}, events="[[tpm.events]]\npcr = true\ndigests = []\n"), "names no PCR"),
        (toml({}, events="[[tpm.events]]\npcr = 4\n"), "lacks a member"),
        (toml({}, events=events_of(4, A) + events_of(4, A)), "given twice"),
        (toml({}, events=events_of(4, A, extra="start_locality = 3")), "start_locality"),
        (toml({}, events=events_of(0, A, extra="start_locality = 1")), "start_locality"),
        (toml({}, events=events_of(0, A, extra="start_locality = false")), "start_locality"),
        (toml({}, events=events_of(4)), "needs a list of digests"),
        (toml({}, events="[[tpm.events]]\npcr = 4\ndigests = 1\n"), "needs a list of digests"),
        (toml({}, events=events_of(4, *[A] * 1025)), "needs a list of digests"),
        (toml({}, events=events_of(4, A[:-2])), "not a sha256 digest"),
        (toml({}, events="[[tpm.events]]\npcr = 4\ndigests = [1]\n"), "JSON object"),
        (toml({}, events="[[tpm.events]]\npcr = 4\ndigests = [{}]\n"), "lacks a member"),
        (toml({}, events=f'[[tpm.events]]\npcr = 4\ndigests = [{{digest = "{A}", pcr = 4}}]\n'), "unknown member"),
        (toml({}, events=f'[[tpm.events]]\npcr = 4\ndigests = [{{digest = "{A}", type = 4}}]\n'), "type must be"),
        (toml({}, events=f'[[tpm.events]]\npcr = 4\ndigests = [{{digest = "{A}", what = 4}}]\n'), "what must be"),
    ],
)
def test_what_cannot_protect_a_key_is_refused(text: str, word: str) -> None:
    """Every image that is no image, or that proves nothing, is refused with a word on what is wrong."""
    with pytest.raises(ProtocolError, match=word):
        parse_image(text)


@pytest.mark.parametrize("index", [8, 9, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("anchor", [4, 7])
def test_later_pcrs_stand_on_pcr_4_or_7(index: int, anchor: int) -> None:
    """Beside PCR 4 or PCR 7 the later PCRs are welcome, zero too: nothing there is a statement."""
    assert f"sha256:{index}" in parse_image(toml({anchor: A, index: ZERO})).registers


@pytest.mark.parametrize("value", [b"", b"\0"])
@pytest.mark.parametrize("bank", ["sha256", "sha384"])
def test_pcr_7_with_secure_boot_off_is_no_anchor(bank: str, value: bytes) -> None:
    """Where the events of PCR 7 say that Secure Boot was off, PCR 4 must say what booted; with it on, PCR 7 may."""

    def events(value: bytes) -> str:
        digest = hashlib.new(bank, tcg_log.variable("SecureBoot", value)).hexdigest()
        return events_of(7, digest, hashlib.new(bank, b"PK").hexdigest())

    with pytest.raises(ProtocolError, match="Secure Boot was off"):
        parse_image(toml({}, bank=bank, events=events(value)))
    assert parse_image(toml({4: hashlib.new(bank).hexdigest()}, bank=bank, events=events(value)))
    assert parse_image(toml({}, bank=bank, events=events(b"\1")))


def test_refusals_say_what_would_mend_them() -> None:
    """An owner who names PCR 11 alone, SHA-1 or an unmeasured boot is told what to write instead."""
    for text, mend in (
        (toml({11: A}), "PCR 4"),
        (toml({4: A}, bank="sha1"), "sha256"),
        (toml({4: ZERO}), "measured boot"),
        (toml({}), "PCR 4"),
    ):
        with pytest.raises(ProtocolError) as caught:
            parse_image(text)
        assert caught.value.mend is not None
        assert mend in caught.value.mend


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=120))
def test_no_text_escapes_the_error_tree(text: str) -> None:
    """Any text, also after a good beginning, gives an image with a register or a ProtocolError."""
    for candidate in (text, toml({4: A}) + text, f'platform = "tpm"\n[tpm]\nbank = "sha256"\n{text}'):
        try:
            image = parse_image(candidate)
        except ProtocolError:
            continue
        assert image.registers


def claims(events: list[LoggedEvent], **values: str) -> Claims:
    measured = {f"sha256:{name[1:]}": value for name, value in values.items()}
    return Claims(Tee.TPM, ("tpm-ak:00",), "enrolled", measured, events=tuple(events))


def logged(pcr: int, digest: str, what: str = "kernel") -> LoggedEvent:
    return LoggedEvent(f"sha256:{pcr}", "EV_IPL", digest, what)


def test_a_draft_accepts_exactly_its_evidence() -> None:
    """The draft names the chosen PCRs with the evidence's values, and their events where the log leads to them."""
    log = [logged(4, A, "shim"), logged(7, C), logged(4, B)]
    image = parse_image(enrol_image(claims(log, p4=extended(A, B), p7=B, p8=C), [7, 4], description='my "x"'))
    assert image.description == 'my "x"'
    assert image.registers == {
        "sha256:4": Register(
            (extended(A, B),), (ExpectedEvent(A, "EV_IPL", "shim"), ExpectedEvent(B, "EV_IPL", "kernel"))
        ),
        "sha256:7": Register((B,)),
    }


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_a_draft_finds_the_start_locality(locality: int) -> None:
    """Where PCR 0 started from another locality, the draft says so and its events lead to the value."""
    value = extended(A, start=bytes(31) + bytes((locality,)))
    text = enrol_image(claims([logged(0, A)], p0=value, p4=B), [0, 4])
    assert ("start_locality" in text) == (locality != 0)
    assert parse_image(text).registers["sha256:0"] == Register((value,), (ExpectedEvent(A, "EV_IPL", "kernel"),))


def test_a_start_locality_is_for_pcr_0_only() -> None:
    """Events of another PCR that fit only from another start are left out, the value stays."""
    value = extended(A, start=bytes(31) + b"\3")
    assert parse_image(enrol_image(claims([logged(4, A)], p4=value), [4])).registers["sha256:4"] == Register((value,))


def test_a_draft_of_a_missing_pcr_is_refused() -> None:
    """A PCR that the evidence does not have, or a bank that no image may have, is no draft."""
    with pytest.raises(ProtocolError, match="no PCR 4"):
        enrol_image(claims([], p7=A), [4])
    with pytest.raises(ProtocolError, match="PCR 16 cannot"):
        enrol_image(claims([], p4=A, p16=A), [4, 16])
    sha1 = Claims(
        Tee.TPM, ("x",), "enrolled", {"sha1:4": "00" * 20}, events=(LoggedEvent("sha1:4", "", "00" * 20, ""),)
    )
    with pytest.raises(ProtocolError, match="bank"):
        enrol_image(sha1, [4], bank="sha1")


def test_a_draft_that_would_be_too_long_keeps_its_values() -> None:
    """A log with hundreds of long events leaves an image without events, not a failed enrolment."""
    log = [logged(8, hashlib.sha256(bytes((n % 256, n // 256))).hexdigest(), "x" * 400) for n in range(500)]
    value = extended(*[event.digest for event in log])
    image = parse_image(enrol_image(claims(log, p4=A, p8=value), [4, 8]))
    assert image.registers == {"sha256:4": Register((A,)), "sha256:8": Register((value,))}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.text(st.characters(exclude_categories=["Cs"])))))
def test_a_draft_is_always_loadable(steps: list[tuple[bytes, str]]) -> None:
    """Whatever a log calls its events, the draft loads and accepts the evidence."""
    log = [LoggedEvent("sha256:8", what, digest.hex(), what) for digest, what in steps]
    value = extended(*[event.digest for event in log])
    image = parse_image(enrol_image(claims(log, p4=A, p8=value), [4, 8], description=steps[0][1] if steps else ""))
    assert image.registers["sha256:8"].values == (value,)
    assert [event.digest for event in image.registers["sha256:8"].events] == [event.digest for event in log]
