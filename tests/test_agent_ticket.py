# SPDX-License-Identifier: Apache-2.0
"""The ticket's file: one line, read strictly, and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.ticket import read_ticket
from keys.errors import ConfigError


@pytest.mark.parametrize("text", ["Xk3-ticket_", "Xk3-ticket_\n"])
def test_the_line_is_the_ticket(tmp_path: Path, text: str) -> None:
    """With or without its end of line, named by hand or by the setting; what was named by hand wins."""
    (tmp_path / "a").write_text(text)
    (tmp_path / "b").write_text("other")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert read_ticket(a, "") == read_ticket(None, a) == read_ticket(a, b) == "Xk3-ticket_"


def test_no_file_is_no_ticket(tmp_path: Path) -> None:
    """No setting is none; a file that the setting names may be gone after use."""
    assert read_ticket(None, "") is None
    assert read_ticket(None, str(tmp_path / "none")) is None


@pytest.mark.parametrize("name", ["none", ""])
def test_a_file_named_by_hand_must_be_there(tmp_path: Path, name: str) -> None:
    """Who asks with a ticket does not ask without."""
    (tmp_path / "set").write_text("other")
    with pytest.raises(ConfigError, match="no ticket at"):
        read_ticket(str(tmp_path / name) if name else "", str(tmp_path / "set"))


@pytest.mark.parametrize("data", [b"", b"\n", b"Xk3 a", b"Xk3\nXk4\n", b"Xk3\n\n", b"Xk3\r\n", b"Xk3\xff", b"X" * 129])
def test_what_is_no_ticket_is_refused(tmp_path: Path, data: bytes) -> None:
    """An empty file, two lines, other characters: the file is named and what is in it is not."""
    (tmp_path / "t").write_bytes(data)
    for ask in ((str(tmp_path / "t"), ""), (None, str(tmp_path / "t"))):
        with pytest.raises(ConfigError, match="holds no ticket") as caught:
            read_ticket(*ask)
        assert "Xk3" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A folder, or a file that is far too long, is a mistake, not an absent ticket."""
    (tmp_path / "long").write_bytes(b"x" * 2000)
    for path, words in ((tmp_path, "cannot be read"), (tmp_path / "long", "too long")):
        with pytest.raises(ConfigError, match=words):
            read_ticket(None, str(path))
