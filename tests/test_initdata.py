# SPDX-License-Identifier: Apache-2.0
"""Posted init-data: what its digest is over, and what is refused."""

import contextlib
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.initdata import digest
from keys.errors import ProtocolError
from keys.messages import InitData

TEXT = "version = \"0.1.0\"\nalgorithm = \"{}\"\n\n[data]\n\"aa.toml\" = '''\n[token]\n'''\n"


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_digest_is_over_the_exact_text(algorithm: str) -> None:
    """The digest is the named algorithm's over the posted bytes, so that one space more changes it."""
    text = TEXT.format(algorithm)
    assert digest(InitData("toml", text)) == hashlib.new(algorithm, text.encode()).digest()
    assert digest(InitData("toml", text + " ")) != digest(InitData("toml", text))


@pytest.mark.parametrize(
    ("format_", "text", "word"),
    [
        ("json", TEXT.format("sha256"), "format"),
        ("toml", "version = ", "not TOML"),
        ("toml", "a = " + "[" * 3000, "not TOML"),
        ("toml", 'version = "0.1.0"\nalgorithm = "sha256"\n', "lacks"),
        ("toml", "extra = 1\n" + TEXT.format("sha256"), "unknown member"),
        ("toml", TEXT.format("sha256").replace("0.1.0", "0.2.0"), "version"),
        ("toml", TEXT.format("sm3"), "algorithm"),
        ("toml", TEXT.format("md5"), "algorithm"),
        ("toml", TEXT.format("sha256").replace('"sha256"', '["sha256"]'), "algorithm"),
        ("toml", 'version = "0.1.0"\nalgorithm = "sha256"\ndata = 1\n', "table of strings"),
        ("toml", 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\na = 1\n', "table of strings"),
    ],
)
def test_what_is_not_init_data_is_refused(format_: str, text: str, word: str) -> None:
    """Another format, another version, a missing or unknown member, SM3: each is a ProtocolError that says which."""
    with pytest.raises(ProtocolError, match=word):
        digest(InitData(format_, text))


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_no_text_escapes_the_error_tree(text: str) -> None:
    """Whatever a guest posts as init-data gives a digest or a ProtocolError."""
    with contextlib.suppress(ProtocolError):
        assert len(digest(InitData("toml", text))) in {32, 48, 64}
