# SPDX-License-Identifier: Apache-2.0
"""The agent's settings: what the file says, what the command line says over it, and no silent mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent import config
from agent.config import Settings, load
from keys.errors import ConfigError
from keys.tee import Tee


def loaded(tmp_path: Path, text: str | bytes, **overrides: Any) -> Settings:
    path = tmp_path / "agent.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(str(path), overrides)


def test_a_file_sets_everything(tmp_path: Path) -> None:
    """Every setting can come from the file."""
    text = """
        brokers = ["https://a.example", "https://b.example"]
        ca_file = "/ca.pem"
        tee = "tpm"
        tpm = "swtpm:unix:/s"
        eventlog = ""
        tsm = "/t"
        sev_guest = "/d"
        secrets = "/s"
        timeout = 30
        broker_keys = "/k"
        unsafe_plain_kbs = true
        versions = "/v"
        ticket = "/i"
    """
    brokers = ("https://a.example", "https://b.example")
    assert loaded(tmp_path, text) == Settings(
        brokers, "/ca.pem", Tee.TPM, "swtpm:unix:/s", "", "/t", "/d", "/s", 30, "/k", unsafe_plain_kbs=True,
        versions="/v", ticket="/i",
    )  # fmt: skip


def test_the_command_line_wins(tmp_path: Path) -> None:
    """An override that is given replaces the file's value, one that is None does not."""
    settings = loaded(tmp_path, 'tpm = "device:/a"\ntimeout = 3', tpm="device:/b", timeout=None, brokers=["https://c"])
    assert (settings.tpm, settings.timeout, settings.brokers) == ("device:/b", 3, ("https://c",))


def test_the_default_file_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --config a missing file means defaults, with it an error."""
    monkeypatch.setattr(config, "DEFAULT_PATH", str(tmp_path / "none"))
    assert load(None, {}) == Settings()
    (tmp_path / "agent.toml").write_text("timeout = 7")
    monkeypatch.setattr(config, "DEFAULT_PATH", str(tmp_path / "agent.toml"))
    assert load(None, {}).timeout == 7
    with pytest.raises(ConfigError, match="no config file"):
        load(str(tmp_path / "none"), {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("broker = 1", "unknown setting broker"),
        ("[tpm]\ndevice = 1", "setting tpm must be a string"),
        ("ca_file = 1", "setting ca_file"),
        ("tsm = 1", "setting tsm"),
        ("sev_guest = 1", "setting sev_guest"),
        ("secrets = 1", "setting secrets"),
        ("broker_keys = 1", "setting broker_keys"),
        ("versions = 1", "setting versions"),
        ("ticket = true", "setting ticket"),
        ("unsafe_plain_kbs = 1", "setting unsafe_plain_kbs"),
        ('unsafe_plain_kbs = "true"', "setting unsafe_plain_kbs"),
        ("tee = 1", "setting tee"),
        ('tee = "sample"', "setting tee"),
        ('brokers = "https://a"', "setting brokers"),
        ("brokers = [1]", "setting brokers"),
        ("timeout = 0", "setting timeout"),
        ("timeout = 601", "setting timeout"),
        ("timeout = true", "setting timeout"),
        ("timeout = 1.5", "setting timeout"),
        ("timeout =", "not TOML"),
        (b"\xff", "not TOML"),
        (b"#" * (config.MAX_CONFIG_BYTES + 1), "too long"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str | bytes, words: str) -> None:
    """Whatever cannot be used is a ConfigError that names the setting."""
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, text)


@pytest.mark.parametrize("path", ["{}", "{}/\0"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, path: str) -> None:
    """A directory or an impossible name in place of the file is a ConfigError."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path.format(tmp_path), {})
