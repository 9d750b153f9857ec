# SPDX-License-Identifier: Apache-2.0
"""The next version of an image: which component a change belongs to, which states it allows, what it cannot know."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.appraisal.component_names import Naming, component_of
from broker.appraisal.components import Combinations, Part
from broker.appraisal.enrol import enrol_image
from broker.appraisal.fit import fit
from broker.appraisal.image_tpm import replay
from broker.appraisal.images import Image, parse_image
from broker.appraisal.registers import ExpectedEvent
from broker.appraisal.update import finished_image, updated_image
from broker.claims import Claims, LoggedEvent
from keys.errors import ProtocolError
from keys.tee import Tee

APPLICATION, IPL = "EV_EFI_BOOT_SERVICES_APPLICATION", "EV_IPL"
Log = dict[int, list[tuple[str, str, str]]]  # by PCR: type, content, what


def boot(shim: str = "1", kernel: str = "1", *, fixed: str = "") -> Log:
    """A boot by shim and GRUB, as its log says it. A version's file names are in what the kernel measures."""
    return {
        0: [("EV_S_CRTM_VERSION", f"firmware{fixed}", "")],
        4: [
            ("EV_EFI_ACTION", "calling", "Calling EFI Application from Boot Option"),
            (APPLICATION, f"shim {shim}", "\\EFI\\debian\\shimx64.efi"),
            (APPLICATION, "grub", "\\EFI\\debian\\grubx64.efi"),
            (APPLICATION, f"kernel {kernel}", "image of 800 bytes, no file"),
        ],
        8: [
            (IPL, "set", "grub_cmd: set root=hd0"),
            (IPL, f"linux {kernel}", f"grub_cmd: linux /vmlinuz-{kernel}"),
            *([(IPL, "extra", "grub_cmd: a line that only the second kernel has")] if kernel == "2" else []),
        ],
        9: [(IPL, f"kernel {kernel}", f"/vmlinuz-{kernel}"), (IPL, f"initrd {kernel}", f"/initrd-{kernel}")],
    }


def claims(log: Log, *, logged: bool = True, **values: str) -> Claims:
    """What a verifier makes of the log. `values` ("p4") overwrite PCRs."""
    events = tuple(
        LoggedEvent(f"sha256:{pcr}", kind, digest(content), what)
        for pcr, listed in log.items()
        for kind, content, what in listed
    )
    measured = {
        f"sha256:{pcr}": replay("sha256", [digest(content) for _, content, _ in listed]) for pcr, listed in log.items()
    }
    measured |= {f"sha256:{name[1:]}": value for name, value in values.items()}
    return Claims(Tee.TPM, ("tpm-ak:00",), "enrolled", measured, events=events if logged else ())


def digest(content: str) -> str:

    return hashlib.sha256(content.encode()).hexdigest()


def enrolled(log: Log, pcrs: Sequence[int] = (0, 4, 8, 9)) -> Image:
    return parse_image(enrol_image(claims(log), pcrs, description="Debian"))


def updated(image: Image, log: Log, version: int = 1, own: Sequence[Naming] = ()) -> Image:
    return parse_image(updated_image(image, claims(log), version, own))


def joint(image: Image) -> Combinations:
    assert image.combinations is not None
    return image.combinations


def states(image: Image) -> list[str]:
    return [joint(image).words(one) for one in joint(image).all]


def test_two_changed_components_make_four_states() -> None:
    """The image of an update allows the old release, the new one and both states in between, and nothing else."""
    image = updated(enrolled(boot()), boot("2", "2"))
    assert states(image) == [
        "shim v1, kernel v1", "shim v1, kernel v2", "shim v2, kernel v1", "shim v2, kernel v2"
    ]  # fmt: skip
    for shim in "12":
        for kernel in "12":
            found = fit(image, claims(boot(shim, kernel)))
            assert (found.differing, found.combination) == ((), f"shim v{shim}, kernel v{kernel}")
    assert image.description == "Debian"
    old_initrd = boot("2", "2") | {9: [*boot("2", "2")[9][:1], boot()[9][1]]}
    assert fit(image, claims(old_initrd)).differing == ("sha256:9",)
    assert fit(image, claims(boot("2", "2", fixed="!"))).differing == ("sha256:0",)


def test_one_changed_component_makes_two_states() -> None:
    """What did not change is the same in all states, and no component."""
    image = updated(enrolled(boot()), boot(kernel="2"))
    assert states(image) == ["kernel v1", "kernel v2"]
    assert list(joint(image).steps) == ["sha256:4", "sha256:8", "sha256:9"]
    assert image.registers["sha256:0"] == enrolled(boot()).registers["sha256:0"]


def test_each_release_keeps_its_own_words() -> None:
    """An event that is described otherwise after the update stands beside the old one: expected is what a guest of that
    release measures, in its order.
    """
    image = updated(enrolled(boot()), boot(kernel="2"))
    for kernel, words in (("1", ["/vmlinuz-1", "/initrd-1"]), ("2", ["/vmlinuz-2", "/initrd-2"])):
        events = fit(image, claims(boot(kernel=kernel))).expected["sha256:9"].events
        assert [event.what for event in events] == words


def test_a_second_update_goes_on_from_the_newest_release() -> None:
    """While an update is under way the next may begin: three releases, no mixture of all three, and what came and went
    stays where it was.
    """
    image = updated(enrolled(boot()), boot(kernel="2"))
    image = updated(image, boot("2", "3"), version=2)
    assert states(image)[-1] == "kernel v3, shim v3"
    assert [joint(image).words(one) for one in joint(image).releases] == [
        "kernel v1, shim v2", "kernel v2, shim v2", "kernel v3, shim v3"
    ]  # fmt: skip
    for shim, kernel in (("1", "1"), ("1", "2"), ("2", "1"), ("2", "2"), ("1", "3"), ("2", "3")):
        assert fit(image, claims(boot(shim, kernel))).differing == ()
    assert fit(image, claims(boot("2", "4"))).differing


def test_a_component_without_a_change_keeps_its_version() -> None:
    """The second update of the kernel alone gives shim no new version, also where their events share a PCR."""
    image = updated(enrolled(boot()), boot("2", "2"))
    image = updated(image, boot("2", "3"), version=2)
    assert [joint(image).words(one) for one in joint(image).releases] == [
        "shim v1, kernel v1", "shim v2, kernel v2", "shim v2, kernel v3"
    ]  # fmt: skip
    assert fit(image, claims(boot("1", "3"))).differing == ()  # from the first release to the third


def test_a_component_goes_back_to_what_it_was_before() -> None:
    """A release may take a component back; it is then a further version with the old digests."""
    image = updated(enrolled(boot()), boot("2", "2"))
    image = updated(image, boot("2", "2", fixed="!"), version=2)
    image = updated(image, boot("1", "2", fixed="!!"), version=3)
    assert joint(image).words(joint(image).releases[-1]) == "shim v4, kernel v2, firmware v4"
    assert not fit(image, claims(boot("1", "2", fixed="!!"))).differing


def test_an_owner_s_own_versions_are_kept_apart_from_new_ones() -> None:
    """A new version is never called as one that the component has already."""
    text = updated_image(enrolled(boot()), claims(boot(kernel="2")), 1).replace('"v1"', '"v3"')
    image = updated(parse_image(text), boot(kernel="3"), version=2)
    assert joint(image).components[0].versions == ("v3", "v2", "v3+2")


def test_a_moved_event_is_one_that_goes_and_comes() -> None:
    """Events in another order lead to another value; both orders are allowed and nothing between."""
    old = boot() | {9: [(IPL, "a", "/a"), (IPL, "b", "/b"), (IPL, "c", "/c")]}
    new = old | {9: [(IPL, "c", "/c"), (IPL, "a", "/a"), (IPL, "b", "/b")]}
    image = updated(enrolled(old), new)
    assert states(image) == ["kernel v1", "kernel v2"]
    assert not fit(image, claims(old)).differing
    assert not fit(image, claims(new)).differing


contents = st.lists(st.sampled_from("abcdefg"), max_size=7)


@settings(deadline=None, max_examples=60)
@given(st.tuples(contents, contents), st.lists(st.tuples(contents, contents), min_size=1, max_size=3))
def test_every_release_fits_whatever_changed(
    first: tuple[list[str], list[str]], later: list[tuple[list[str], list[str]]]
) -> None:
    """After any row of updates each of the releases fits, and after --finish the last one alone."""

    def log(contents: tuple[list[str], list[str]]) -> Log:
        return boot() | {
            9: [(IPL, "always", "/start"), *((IPL, one, f"/{one.upper()}") for one in contents[0])],
            4: [(APPLICATION, "always", "/start"), *((APPLICATION, one, one * 2) for one in contents[1])],
        }

    image = enrolled(log(first))
    seen = [log(first)]
    for version, contents_ in enumerate(later, start=1):
        if not fit(image, claims(log(contents_))).differing:
            continue
        image = updated(image, log(contents_), version)
        seen.append(log(contents_))
        assert all(not fit(image, claims(one)).differing for one in seen)
    if len(seen) > 1:
        finished = parse_image(finished_image(image))
        assert finished.combinations is None
        assert not fit(finished, claims(seen[-1])).differing
        assert finished.registers == enrolled(seen[-1]).registers
        others = [one for one in seen if claims(one).measurements != claims(seen[-1]).measurements]
        assert all(fit(finished, claims(one)).differing for one in others)


def test_a_firmware_may_start_at_another_locality() -> None:
    """The locality from which PCR 0 starts is found again for the new version and for the finished one."""

    def shown(log: Log) -> Claims:
        return claims(log, p0=replay("sha256", [digest(content) for _, content, _ in log[0]], 3))

    image = parse_image(enrol_image(shown(boot()), [0, 4, 8, 9]))
    assert parse_image(updated_image(image, shown(boot(kernel="2")), 1)).registers["sha256:0"].values == (
        shown(boot()).measurements["sha256:0"],
    )
    image = parse_image(updated_image(image, shown(boot(fixed="!")), 1))
    assert states(image) == ["firmware v1", "firmware v2"]
    assert not fit(parse_image(finished_image(image)), shown(boot(fixed="!"))).differing


def test_values_without_events_and_lists_stay() -> None:
    """A PCR that did not change keeps its value, a list of values as a list, also where there are no events of it."""
    text = enrol_image(claims(boot()), [4, 8, 9]).replace(
        "[tpm.pcrs]", f'[tpm.pcrs]\n0 = "{digest("x")}"\n7 = ["{digest("y")}", "{digest("z")}"]'
    )
    shown = claims(boot(kernel="2"), p0=digest("x"), p7=digest("z"))
    image = parse_image(updated_image(parse_image(text), shown, 1))
    assert image.registers["sha256:0"].values == (digest("x"),)
    assert image.registers["sha256:7"].values == (digest("y"), digest("z"))
    assert parse_image(finished_image(image)).registers["sha256:7"].values == (digest("y"), digest("z"))


def test_the_owner_says_what_a_component_is() -> None:
    """By a glob on description or type, in letters of either case, before the defaults; what is a part stays one."""
    image = updated(enrolled(boot()), boot("2", "2"), own=(Naming("boot", "*SHIM*"), Naming("rest", "ev_ipl")))
    assert [component.name for component in joint(image).components] == ["boot", "kernel", "rest"]
    image = updated(image, boot("3", "2"), version=2, own=(Naming("kernel", "*"),))
    assert [(one.name, len(one.versions)) for one in joint(image).components] == [
        ("boot", 3),
        ("kernel", 2),
        ("rest", 2),
    ]


@pytest.mark.parametrize(
    ("pcr", "kind", "what", "component"),
    [
        (0, "EV_S_CRTM_VERSION", "", "firmware"),
        (2, "EV_EFI_BOOT_SERVICES_DRIVER", "a shim of the maker", "firmware"),
        (4, APPLICATION, "\\EFI\\debian\\shimx64.efi", "shim"),
        (4, APPLICATION, "\\EFI\\BOOT\\BOOTX64.EFI", "shim"),
        (4, APPLICATION, "\\EFI\\debian\\grubx64.efi", "grub"),
        (4, APPLICATION, "\\EFI\\systemd\\systemd-bootx64.efi", "systemd-boot"),
        (4, APPLICATION, "\\EFI\\Linux\\debian.efi", "kernel"),
        (4, APPLICATION, "\\EFI\\debian\\vmlinuz-6.1.0-31.efi", "kernel"),
        (4, APPLICATION, "\\kernel.efi", "kernel"),
        (4, APPLICATION, "image of 900 bytes, no file", "kernel"),
        (4, APPLICATION, "\\EFI\\tools\\memtest.efi", "other"),
        (5, "EV_EFI_GPT_EVENT", "partition table of the boot disk", "other"),
        (7, "EV_EFI_VARIABLE_DRIVER_CONFIG", "dbx, 900 bytes", "secureboot"),
        (8, IPL, "kernel_cmdline: /vmlinuz ro", "kernel"),
        (9, IPL, "(hd0,gpt2)/grub/x86_64-efi/normal.mod", "grub"),
        (9, IPL, "/grub/x86_64-efi/command.lst", "grub"),
        (9, IPL, "/initrd.img-6.1.0-31", "kernel"),
        (11, IPL, ".linux", "kernel"),
        (12, IPL, "ro quiet", "kernel"),
        (13, IPL, "an extension", "kernel"),
        (14, IPL, "MokList", "secureboot"),
        (15, IPL, "machine-id", "other"),
    ],
)
def test_an_event_belongs_to_what_it_looks_like(pcr: int, kind: str, what: str, component: str) -> None:
    """Firmware, boot loaders, kernel with initrd and command line, Secure Boot's keys are told apart."""
    assert component_of(f"sha384:{pcr}", ExpectedEvent("00" * 48, kind, what)) == component


def test_components_in_the_text_are_parts_of_events() -> None:
    """The new image's text has every digest of a component beside the others, and is no table of values."""
    image = updated(enrolled(boot()), boot("2"))
    (part,) = (step for step in joint(image).steps["sha256:4"] if isinstance(step, Part))
    assert part == Part(0, (digest("shim 1"), digest("shim 2")), APPLICATION, "\\EFI\\debian\\shimx64.efi")


# --- what cannot be known ---


def refused(image: Image, shown: Claims, cause: str, mend: str) -> None:
    with pytest.raises(ProtocolError, match=cause) as caught:
        updated_image(image, shown, 1)
    assert mend in caught.value.mend


def test_an_image_without_events_is_enrolled_anew() -> None:
    """Values alone do not say what an update changes, neither do an SEV-SNP guest's."""
    bare = parse_image(enrol_image(claims(boot(), logged=False), [0, 4, 8, 9]))
    refused(bare, claims(boot("2")), "has no events", "roomkey image enrol")
    snp = parse_image(f'platform = "snp"\n[snp]\nmeasurement = "{"ab" * 48}"\n')
    refused(snp, claims(boot()), "has no events", "roomkey image enrol")


def test_a_changed_register_without_events_is_refused() -> None:
    """A PCR of which only the value is known cannot become a part of something."""
    image = parse_image(
        enrol_image(claims(boot()), [4, 8, 9]).replace("[tpm.pcrs]", f'[tpm.pcrs]\n0 = "{digest("x")}"')
    )
    refused(image, claims(boot("2")), "no events of it", "roomkey image enrol")


def test_a_changed_register_with_further_values_is_refused() -> None:
    """Values beside the events would be dropped; the owner does that, and not the update."""
    value = claims(boot()).measurements["sha256:4"]
    text = enrol_image(claims(boot()), [4, 8, 9]).replace(f'"{value}"', f'["{value}", "{digest("x")}"]')
    refused(parse_image(text), claims(boot("2")), "beside that of its events", "roomkey image put")


def test_evidence_without_a_log_is_refused() -> None:
    """Without the new events, or with ones that do not lead to the value, it is open what changed."""
    for shown in (claims(boot("2"), logged=False), claims(boot("2"), p4=digest("x"))):
        refused(enrolled(boot()), shown, "no log in the evidence", "boot log")


def test_evidence_that_fits_already_is_refused() -> None:
    """Nothing changed, or the guest is in a state of the update that the image has: nothing to add."""
    refused(enrolled(boot()), claims(boot()), "fits the image already", "restarted")
    image = updated(enrolled(boot()), boot("2", "2"))
    with pytest.raises(ProtocolError, match="shim v1, kernel v2"):
        updated_image(image, claims(boot("1", "2")), 2)


def test_evidence_of_another_kind_is_refused() -> None:
    """Another platform, or a PCR of the image that the evidence lacks."""
    other = Claims(Tee.SNP, ("snp-chip:00",), "vcek", {"measurement": "00"})
    with pytest.raises(ProtocolError, match="another platform"):
        updated_image(enrolled(boot()), other, 1)
    log = boot("2")
    del log[9]
    refused(enrolled(boot()), claims(log), "has no PCR 9", "PCRs")


def test_only_an_update_under_way_can_be_finished() -> None:
    """An image without components has one state already."""
    with pytest.raises(ProtocolError, match="no update is under way"):
        finished_image(enrolled(boot()))


def test_too_many_releases_say_how_to_go_on() -> None:
    """The sixteenth update without --finish is the last."""
    image = enrolled(boot())
    for version in range(1, 16):
        image = updated(image, boot(kernel=f"k{version}"), version)
    with pytest.raises(ProtocolError) as caught:
        updated(image, boot(kernel="one more"), 16)
    assert "--finish" in caught.value.mend
