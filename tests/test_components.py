# SPDX-License-Identifier: Apache-2.0
"""Components of images: which combinations an update makes, what the PCRs are in each, what is refused."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.appraisal.components import Combination, Part, combinations, events_in, joint_values
from broker.appraisal.fit import fit
from broker.appraisal.image_components import read_components, read_releases
from broker.appraisal.image_tpm import replay
from broker.appraisal.images import Image, parse_image
from broker.appraisal.registers import ExpectedEvent
from broker.claims import Claims
from keys.errors import ProtocolError
from keys.tee import Tee
from tests.fakes import tcg_log

OLD_SHIM, NEW_SHIM, OLD_KERNEL, NEW_KERNEL = ("a1" * 32, "a2" * 32, "b1" * 32, "b2" * 32)
OLD_INITRD, NEW_INITRD, FIXED, MODULE = ("c1" * 32, "c2" * 32, "d0" * 32, "e0" * 32)

COMPONENTS = """[[tpm.components]]
name = "shim"
versions = ["15.7", "15.8"]
[[tpm.components]]
name = "kernel"
versions = ["6.1.0-31", "6.1.0-32"]
"""
EVENTS = f"""[[tpm.events]]
pcr = 4
digests = [
  {{ digest = "{FIXED}", type = "EV_SEPARATOR" }},
  {{ component = "shim", digests = ["{OLD_SHIM}", "{NEW_SHIM}"], what = "shimx64.efi" }},
  {{ component = "kernel", digests = ["{OLD_KERNEL}", "{NEW_KERNEL}"], what = "vmlinuz" }},
]
[[tpm.events]]
pcr = 9
digests = [
  {{ component = "kernel", digests = ["{OLD_INITRD}", "{NEW_INITRD}"], what = "initrd" }},
  {{ component = "kernel", digests = ["", "{MODULE}"], what = "only the new kernel has it" }},
]
"""
HEAD = 'platform = "tpm"\n[tpm]\nbank = "sha256"\n'
PCRS = f'[tpm.pcrs]\n0 = "{FIXED}"\n7 = ["{OLD_SHIM}", "{NEW_SHIM}"]\n'
IMAGE = HEAD + PCRS + COMPONENTS + EVENTS


def pcr_4(shim: str, kernel: str) -> str:
    return replay("sha256", [FIXED, shim, kernel])


OLD_PCR_9, NEW_PCR_9 = replay("sha256", [OLD_INITRD]), replay("sha256", [NEW_INITRD, MODULE])


def claims(pcr4: str, pcr9: str, pcr0: str = FIXED, pcr7: str = NEW_SHIM) -> Claims:
    values = {"sha256:0": pcr0, "sha256:4": pcr4, "sha256:7": pcr7, "sha256:9": pcr9}
    return Claims(Tee.TPM, ("tpm-ak:00",), "enrolled", values)


# --- which combinations ---


def test_between_two_releases_every_choice_of_versions_can_come_to_be() -> None:
    """Two components that are updated in any order pass through four states, the newest release last."""
    assert combinations([(0, 0), (1, 1)]) == ((0, 0), (0, 1), (1, 0), (1, 1))


def test_what_no_update_makes_is_no_combination() -> None:
    """Of three releases only two are ever mixed: never the free product."""
    every = combinations([(0, 0, 0), (1, 1, 1), (2, 2, 2)])
    assert (0, 1, 2) not in every
    assert (0, 2, 2) in every
    assert len(every) == 3 * 8 - 3
    assert every[-1] == (2, 2, 2)


releases_of = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.tuples(*[st.integers(0, 3)] * width), min_size=1, max_size=4, unique=True)
)


@given(releases_of)
def test_combinations_are_those_between_two_releases(releases: list[Combination]) -> None:
    """The set is what its definition says, each once, whatever the releases; the newest release is the last."""
    wanted = {choice for one in releases for other in releases for choice in product(*zip(one, other, strict=True))}
    every = combinations(releases)
    assert len(every) == len(set(every))
    assert set(every) == wanted
    assert every[-1] == releases[-1]


def test_eight_components_fit_between_two_releases_and_no_more_between_three() -> None:
    """256 combinations are allowed; one more is refused with what mends it."""
    assert len(combinations([(0,) * 8, (1,) * 8])) == 256
    with pytest.raises(ProtocolError, match="too many combinations") as caught:
        combinations([(0,) * 8, (1,) * 8, (2,) * 8])
    assert "oldest" in caught.value.mend


# --- what the PCRs are ---


steps_of = st.lists(
    st.one_of(
        st.binary(min_size=32, max_size=32).map(lambda data: ExpectedEvent(data.hex())),
        st.builds(
            Part,
            st.integers(0, 2),
            st.tuples(*[st.one_of(st.just(""), st.binary(min_size=32, max_size=32).map(bytes.hex))] * 2),
        ),
    ),
    max_size=8,
)


@settings(deadline=None)
@given(steps_of, st.sampled_from([0, 3, 4]))
def test_shared_beginnings_give_what_each_replay_gives(steps: list[ExpectedEvent | Part], locality: int) -> None:
    """The values that are computed at once are those of the events of each combination by itself."""
    every = combinations([(0, 0, 0), (1, 1, 1)])
    assert joint_values("sha256", locality, steps, every) == tuple(
        replay("sha256", [event.digest for event in events_in(one, steps)], locality) for one in every
    )


def test_registers_list_all_values_and_the_newest_events() -> None:
    """What lists an image's registers sees every value that any combination has, and the newest release's events."""
    registers = parse_image(IMAGE).registers
    assert list(registers) == ["sha256:0", "sha256:4", "sha256:7", "sha256:9"]
    assert registers["sha256:4"].values == (
        pcr_4(OLD_SHIM, OLD_KERNEL), pcr_4(OLD_SHIM, NEW_KERNEL),
        pcr_4(NEW_SHIM, OLD_KERNEL), pcr_4(NEW_SHIM, NEW_KERNEL),
    )  # fmt: skip
    assert registers["sha256:9"].values == (OLD_PCR_9, NEW_PCR_9)
    assert [event.digest for event in registers["sha256:9"].events] == [NEW_INITRD, MODULE]
    assert registers["sha256:4"].events[1] == ExpectedEvent(NEW_SHIM, "", "shimx64.efi")
    assert registers["sha256:7"].values == (OLD_SHIM, NEW_SHIM)


def test_pcr_0_of_a_component_may_start_at_another_locality() -> None:
    """A firmware that is a component is replayed from the locality that stands beside its events."""
    firmware = (
        f'[[tpm.events]]\npcr = 0\nstart_locality = 3\ndigests = [{{ component = "f", digests = ["{FIXED}"] }}]\n'
    )
    text = HEAD + f'[tpm.pcrs]\n4 = "{FIXED}"\n[[tpm.components]]\nname = "f"\nversions = ["1"]\n' + firmware
    assert parse_image(text).registers["sha256:0"].values == (replay("sha256", [FIXED], 3),)


# --- the store ---


def test_an_image_with_components_survives_the_store() -> None:
    """What goes into a record's body, through JSON, comes out as the same image."""
    image = parse_image(IMAGE)
    assert Image.from_body(json.loads(json.dumps(image.to_body() | {"toml": "..."}))) == image


def test_who_knows_no_combinations_lets_no_mixture_in() -> None:
    """The registers of a stored body have the newest release only, so that an older Roomkey refuses what is mixed."""
    body = parse_image(IMAGE).to_body()
    del body["combinations"]
    registers = Image.from_body(body).registers
    assert registers["sha256:4"].values == (pcr_4(NEW_SHIM, NEW_KERNEL),)
    assert registers["sha256:9"].values == (NEW_PCR_9,)


# --- fit ---


@pytest.mark.parametrize(
    ("pcr4", "pcr9", "words"),
    [
        (pcr_4(OLD_SHIM, OLD_KERNEL), OLD_PCR_9, "shim 15.7, kernel 6.1.0-31"),
        (pcr_4(OLD_SHIM, NEW_KERNEL), NEW_PCR_9, "shim 15.7, kernel 6.1.0-32"),
        (pcr_4(NEW_SHIM, OLD_KERNEL), OLD_PCR_9, "shim 15.8, kernel 6.1.0-31"),
        (pcr_4(NEW_SHIM, NEW_KERNEL), NEW_PCR_9, "shim 15.8, kernel 6.1.0-32"),
    ],
)
def test_every_state_of_the_update_fits(pcr4: str, pcr9: str, words: str) -> None:
    """Each combination fits, is called by its versions, and is what the registers should be."""
    found = fit(parse_image(IMAGE), claims(pcr4, pcr9))
    assert found.differing == ()
    assert found.combination == words
    assert found.expected["sha256:4"].values == (pcr4,)
    assert found.expected["sha256:9"].values == (pcr9,)
    assert list(found.expected) == ["sha256:0", "sha256:4", "sha256:7", "sha256:9"]


@pytest.mark.parametrize(
    ("pcr4", "pcr9", "words", "differing"),
    [
        (pcr_4(NEW_SHIM, NEW_KERNEL), OLD_PCR_9, "shim 15.8, kernel 6.1.0-32", "sha256:9"),
        (pcr_4(OLD_SHIM, NEW_KERNEL), OLD_PCR_9, "shim 15.8, kernel 6.1.0-31", "sha256:4"),
        (pcr_4(NEW_SHIM, OLD_KERNEL), NEW_PCR_9, "shim 15.8, kernel 6.1.0-32", "sha256:4"),
    ],
)
def test_values_of_two_combinations_do_not_fit_together(pcr4: str, pcr9: str, words: str, differing: str) -> None:
    """A new kernel in PCR 4 beside an old initrd in PCR 9 is refused, though each value is in the image; of equally
    near combinations the later is taken.
    """
    image = parse_image(IMAGE)
    assert pcr4 in image.registers["sha256:4"].values
    assert pcr9 in image.registers["sha256:9"].values
    found = fit(image, claims(pcr4, pcr9))
    assert found.combination == words
    assert found.differing == (differing,)


def test_the_nearest_combination_has_the_fewest_other_registers() -> None:
    """With a PCR 4 that nobody knows, PCR 9 says which combination is meant; other registers count as ever."""
    found = fit(parse_image(IMAGE), claims(FIXED, OLD_PCR_9, pcr0=MODULE, pcr7=OLD_SHIM))
    assert found.combination == "shim 15.8, kernel 6.1.0-31"
    assert found.differing == ("sha256:0", "sha256:4")
    assert [event.digest for event in found.expected["sha256:4"].events] == [FIXED, NEW_SHIM, OLD_KERNEL]
    assert [event.digest for event in found.expected["sha256:9"].events] == [OLD_INITRD]


def test_a_register_that_the_evidence_lacks_differs() -> None:
    """Nothing measured is no value of any combination."""
    nothing = Claims(Tee.TPM, ("tpm-ak:00",), "enrolled", {})
    assert fit(parse_image(IMAGE), nothing).differing == ("sha256:0", "sha256:4", "sha256:7", "sha256:9")


def test_an_image_without_components_has_one_state_without_a_name() -> None:
    """There the registers are expected as they are, a list of values as a list."""
    image = parse_image(HEAD + f'[tpm.pcrs]\n4 = ["{OLD_SHIM}", "{NEW_SHIM}"]\n7 = "{FIXED}"\n')
    found = fit(image, claims(OLD_SHIM, FIXED))
    assert (found.differing, found.expected, found.combination) == (("sha256:7",), image.registers, "")


# --- releases in the text ---


def test_releases_say_which_versions_belong_together() -> None:
    """A version may be in several releases, and one that is in none is never accepted."""
    components = COMPONENTS.replace('"15.8"]', '"15.8", "16"]').replace('"6.1.0-32"]', '"6.1.0-32", "6.1.0-33"]')
    releases = "".join(
        f'[[tpm.releases]]\nshim = "{shim}"\nkernel = "6.1.0-{kernel}"\n'
        for shim, kernel in (("15.7", 31), ("15.7", 32), ("15.8", 33))
    )
    events = re.sub(r'(digests = \["[^\n]*?")\]', rf'\1, "{"f0" * 32}"]', EVENTS)
    joint = parse_image(HEAD + PCRS + components + releases + events).combinations
    assert joint is not None
    assert joint.releases == ((0, 0), (0, 1), (1, 2))
    assert set(joint.all) == {(0, 0), (0, 1), (1, 2), (0, 2), (1, 0), (1, 1)}


def twins(count: int) -> str:
    return ", ".join(f'"{at}"' for at in range(count))


ONE = '[[tpm.components]]\nname = "shim"\nversions = ["1"]\n'


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (IMAGE.replace('"15.8"', '"15.8", "16"'), "not equally many"),
        (HEAD + "components = 1\n", "must be .*components"),
        (HEAD + "components = [1]\n", "JSON object"),
        (HEAD + "releases = 1\n", "must be .*releases"),
        (HEAD + "releases = []\n", "belong together"),
        (HEAD + PCRS + ONE + "[[tpm.releases]]\n" * 17, "belong together"),
        (HEAD + PCRS + "[[tpm.releases]]\nshim = '1'\n" + EVENTS, "belong together"),
        (HEAD + PCRS + ONE + "[[tpm.releases]]\n", "lacks a member"),
        (HEAD + PCRS + ONE + "[[tpm.releases]]\nshim = '1'\ngrub = '1'\n", "unknown member"),
        (HEAD + PCRS + ONE + "[[tpm.releases]]\nshim = '2'\n", "no version of shim"),
        (HEAD + PCRS + ONE + "[[tpm.releases]]\nshim = ['1']\n", "no version of shim"),
        (HEAD + PCRS + ONE + "[[tpm.releases]]\nshim = '1'\n" * 2, "the same versions"),
        (HEAD + PCRS + ONE * 2, "component is given twice"),
        (HEAD + PCRS + "".join(ONE.replace("shim", f"c{at}") for at in range(9)), "too many components"),
        (HEAD + PCRS + ONE.replace("shim", "a shim"), "component's name"),
        (HEAD + PCRS + ONE.replace('"shim"', "1"), "component's name"),
        (HEAD + PCRS + ONE.replace("shim", "s" * 65), "component's name"),
        (HEAD + PCRS + ONE.replace('["1"]', '["1", ","]'), "version of shim is not one"),
        (HEAD + PCRS + ONE.replace('["1"]', '["1", "1"]'), "version of shim is given twice"),
        (HEAD + PCRS + ONE.replace('["1"]', "[]"), "list of versions"),
        (HEAD + PCRS + ONE.replace('["1"]', '"1"'), "list of versions"),
        (HEAD + PCRS + ONE.replace('["1"]', f"[{twins(17)}]"), "list of versions"),
        (HEAD + PCRS + ONE.replace('versions = ["1"]', ""), "lacks a member"),
        (HEAD + PCRS + ONE, "component shim has no event"),
        (IMAGE.replace('component = "shim"', 'component = "grub"'), "of no component"),
        (IMAGE.replace('component = "shim"', "component = 1"), "of no component"),
        (IMAGE.replace(f'"{OLD_SHIM}", "{NEW_SHIM}"], what', f'"{OLD_SHIM}"], what'), "each version of shim"),
        (IMAGE.replace(f'["{OLD_SHIM}", "{NEW_SHIM}"], what', '"", what'), "each version of shim"),
        (IMAGE.replace(f'"{OLD_SHIM}", "{NEW_SHIM}"], what', f'"{OLD_SHIM}", 1], what'), "not a sha256 digest"),
        (IMAGE.replace('component = "shim", digests', f'component = "shim", digest = "{FIXED}", digests'), "unknown"),
        (IMAGE.replace("[tpm.pcrs]", f'[tpm.pcrs]\n4 = "{pcr_4(OLD_SHIM, OLD_KERNEL)}"'), "beside events"),
        (IMAGE.replace("pcr = 9", "pcr = 16"), "PCR 16 cannot"),
        (IMAGE.replace("pcr = 9", "pcr = 5").replace(f'["{OLD_INITRD}"', '[""'), "PCR 5 is zero"),
        (HEAD + COMPONENTS + EVENTS.replace("pcr = 4", "pcr = 8"), "proves nothing"),
    ],
)  # fmt: skip
def test_components_that_say_nothing_sure_are_refused(text: str, word: str) -> None:
    """Every slip in components, releases and their events is refused with a word on what is wrong."""
    with pytest.raises(ProtocolError, match=word):
        parse_image(text)


def test_as_many_as_are_allowed_are_read() -> None:
    """8 components of 16 versions each, and 16 releases, are not too many by themselves."""
    read = read_components([{"name": f"c{at}", "versions": [str(v) for v in range(16)]} for at in range(8)])
    assert read_releases([{one.name: str(v) for one in read} for v in range(16)], read) == tuple(
        (v,) * 8 for v in range(16)
    )


def test_secure_boot_that_was_off_in_one_version_needs_pcr_4() -> None:
    """PCR 7 alone is no anchor where any version's events say that Secure Boot was off."""
    off = hashlib.sha256(tcg_log.variable("SecureBoot", b"\0")).hexdigest()
    text = HEAD + COMPONENTS + EVENTS.replace("pcr = 4", "pcr = 7")
    assert parse_image(text)
    with pytest.raises(ProtocolError, match="Secure Boot was off"):
        parse_image(text.replace(OLD_SHIM, off))


def test_azure_has_no_components() -> None:
    """Where evidence has no log, an image has no events, so nothing to make combinations of."""
    text = f'platform = "az-snp-vtpm"\n[snp]\nid_key_digest = "{"ab" * 48}"\n' + IMAGE.partition("\n")[2]
    with pytest.raises(ProtocolError, match="unknown member"):
        parse_image(text)
