# SPDX-License-Identifier: Apache-2.0
"""Release rules: what an owner can say, and that what is not said is not allowed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.appraisal.rules import ImageRef, Rule, check_instance_name, parse_rule, read_rule, rule_name
from keys.errors import ProtocolError
from keys.messages import ResourcePath
from keys.tee import Tee

RULE: dict[str, Any] = {"images": ["debian-12", "debian-12@3"], "platforms": ["tpm"], "instances": ["web-1", "web-2"]}


def test_a_rule_reads_as_it_was_written() -> None:
    """A TOML rule gives its three lists: images with or without a version, platforms, instances."""
    rule = parse_rule('images = ["debian-12", "debian-12@3"]\nplatforms = ["tpm"]\ninstances = ["web-1", "web-2"]\n')
    assert rule == Rule(
        images=(ImageRef("debian-12", None), ImageRef("debian-12", 3)),
        platforms=(Tee.TPM,),
        instances=("web-1", "web-2"),
    )
    assert read_rule(RULE) == rule


def test_a_rule_survives_the_store() -> None:
    """What goes into a record's body comes out as the same rule, also with other members beside it."""
    rule = read_rule(RULE)
    assert Rule.from_body({**rule.to_body(), "toml": "..."}) == rule


def test_a_key_has_one_rule_under_its_path() -> None:
    """The rule of owner/type/tag is the owner's record type/tag."""
    assert rule_name(ResourcePath("acme", "disk", "root")) == "disk/root"


def test_any_stands_alone() -> None:
    """["any"] is a rule for every guest that a vendor vouches for."""
    assert read_rule(RULE | {"instances": ["any"]}).instances == ("any",)


def test_a_platform_before_there_was_evidence_can_be_named() -> None:
    """A rule can say "sev", which no verifier judges: its guests are judged when they are launched."""
    assert read_rule(RULE | {"platforms": ["sev", "snp"]}).platforms == (Tee.SEV, Tee.SNP)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"images": []}, "images is empty"),
        ({"platforms": []}, "platforms is empty"),
        ({"instances": []}, "instances is empty"),
        ({"images": "debian-12"}, "list of strings"),
        ({"images": [1]}, "list of strings"),
        ({"images": [f"i{n}" for n in range(65)]}, "too long"),
        ({"images": ["a", "a"]}, "twice"),
        ({"images": ["a@0"]}, "no image"),
        ({"images": ["a@01"]}, "no image"),
        ({"images": ["a@1@2"]}, "no image"),
        ({"images": ["a@-1"]}, "no image"),
        ({"images": ["@1"]}, "not a name"),
        ({"images": ["../a"]}, "not a name"),
        ({"images": ["a\n"]}, "not a name"),
        ({"platforms": ["tdx"]}, "does not judge"),
        ({"platforms": ["TPM"]}, "does not judge"),
        ({"instances": ["any", "web-1"]}, "'any' and others"),
        ({"instances": ["web 1"]}, "not a name"),
        ({"instances": ["w" * 97]}, "too long"),
        ({"image": ["a"]}, "unknown member"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(changes: dict[str, Any], word: str) -> None:
    """Empty lists, unknown members and platforms, bad names and versions are refused when the rule is loaded."""
    with pytest.raises(ProtocolError, match=word):
        read_rule(RULE | changes)


@pytest.mark.parametrize("member", ["images", "platforms", "instances"])
def test_a_rule_without_one_of_its_lists_is_refused(member: str) -> None:
    """A list that is left out is not taken for "everything"."""
    with pytest.raises(ProtocolError, match="lacks a member"):
        read_rule({name: value for name, value in RULE.items() if name != member})


@pytest.mark.parametrize(
    ("text", "word"),
    [("images = ", "not TOML"), ("a = " + "[" * 3000, "not TOML"), ("#" * (16 * 1024 + 1), "too long")],
)
def test_a_rule_that_is_not_toml_is_refused(text: str, word: str) -> None:
    """Broken, endlessly nested or endless text is a ProtocolError."""
    with pytest.raises(ProtocolError, match=f"the rule is {word}"):
        parse_rule(text)


def test_no_instance_is_called_any() -> None:
    """An instance named "any" would turn a rule for one machine into a rule for all."""
    assert check_instance_name("web-1") == "web-1"
    with pytest.raises(ProtocolError, match="'any'"):
        check_instance_name("any")


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["images", "platforms", "instances", "x"]),
        st.one_of(st.none(), st.integers(), st.lists(st.one_of(st.text(max_size=8), st.just("tpm"), st.integers()))),
    )
)
def test_no_rule_escapes_the_error_tree(value: dict[str, Any]) -> None:
    """Any object is a rule with three non-empty lists or a ProtocolError."""
    try:
        rule = read_rule(value)
    except ProtocolError:
        return
    assert rule.images
    assert rule.platforms
    assert rule.instances


def options(**given: object) -> dict[str, object]:
    return {"images": ["a"], "platforms": ["tpm"], "instances": ["enrolled"]} | given


def test_options_are_read_and_kept() -> None:
    """What a rule says about clones, leases, failures and first use survives the store; unsaid it is the default."""
    rule = read_rule(options(clones="quarantine", lease_s=60, sticky_failure=True, unsafe_first_use=True))
    assert (rule.clones, rule.lease_s, rule.sticky_failure, rule.unsafe_first_use) == ("quarantine", 60, True, True)
    assert Rule.from_body(rule.to_body()) == rule
    bare = read_rule(options())
    assert (bare.clones, bare.lease_s, bare.sticky_failure, bare.unsafe_first_use) == ("allow", 300, False, False)
    older = {name: value for name, value in bare.to_body().items() if name in {"images", "platforms", "instances"}}
    assert Rule.from_body(older) == bare


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"clones": "maybe"}, "clones"),
        ({"clones": 1}, "clones"),
        ({"lease_s": 0}, "lease_s"),
        ({"lease_s": 7 * 24 * 3600 + 1}, "lease_s"),
        ({"lease_s": True}, "lease_s"),
        ({"lease_s": "60"}, "lease_s"),
        ({"sticky_failure": 1}, "sticky_failure"),
        ({"unsafe_first_use": "yes"}, "unsafe_first_use"),
        ({"unsafe_first_use": True, "instances": ["any"]}, "unsafe_first_use"),
        ({"unsafe_first_use": True, "instances": ["web-1"]}, "unsafe_first_use"),
        ({"instances": ["enrolled", "web-1"]}, "enrolled"),
        ({"sticky": True}, "unknown member"),
    ],
)
def test_wrong_options_are_refused(given: dict[str, object], words: str) -> None:
    """Another word, type or size, or first use beside a rule that names who may come: refused, by name."""
    with pytest.raises(ProtocolError, match=words):
        read_rule(options(**given))


def test_no_instance_is_called_enrolled() -> None:
    """The word means many, so no machine can have it for a name."""
    with pytest.raises(ProtocolError, match="cannot be called"):
        check_instance_name("enrolled")
