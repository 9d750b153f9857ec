# SPDX-License-Identifier: Apache-2.0
"""The documents say what the code does: settings, errors, commands, calls, examples, links, known answers."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import click
import pytest

from agent import cli as agent_cli
from agent.config import DEFAULT_PATH, Settings
from broker.appraisal.images import parse_image
from broker.appraisal.rules import parse_rule
from broker.cli import main
from broker.config import ENVIRONMENT_PREFIX, Config, load
from broker.http.errors import KBS_ERRORS
from broker.http.openapi import document
from broker.http.routes import ROUTES
from broker.owners import TOKEN_TYPE
from broker.verifiers.registry import VERIFIERS
from keys import errors, jwe
from keys.errors import RoomkeyError
from keys.messages import PROTOCOL_VERSION
from keys.tee import Tee

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md")] + sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(name: str, language: str) -> list[str]:
    """The fenced examples of `language` on a page."""
    return [text for found, text in FENCE.findall(page(name)) if found == language]


def rows(text: str) -> list[list[str]]:
    """The cells of all lines of tables, without back-quotes."""
    return [
        [cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]


def anchors(text: str) -> set[str]:
    """The fragments under which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(group: click.Group, prefix: str = "roomkey") -> Iterator[str]:
    """Every command that can be called, as it is typed."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}"


# --- settings ---


def broker_settings() -> dict[str, object]:
    """Path -> default of every setting of the broker."""
    return {
        f"{section}.{member.name}": member.default
        for section, kind in get_type_hints(Config).items()
        for member in dataclasses.fields(kind)
    }


def as_toml(default: object) -> str:
    """How docs/config.md writes a default."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, str):
        return f'"{default}"'
    if isinstance(default, tuple):
        return f"[{', '.join(map(as_toml, default))}]"
    return {dataclasses.MISSING: "must be set", None: "none"}.get(default, str(default))  # type: ignore[arg-type]


def test_every_setting_of_the_broker_is_documented() -> None:
    """docs/config.md has exactly the broker's settings, each with its default and range."""
    documented = {row[0]: row for row in rows(page("docs/config.md")) if "." in row[0]}
    assert documented.keys() == broker_settings().keys()
    for path, default in broker_settings().items():
        shown = documented[path][1]
        assert shown == as_toml(default) or (path == "token.issuer" and shown == "broker.audience"), path
    for section, kind in get_type_hints(Config).items():
        for member in dataclasses.fields(kind):
            if allowed := member.metadata.get("range"):
                words = f"{allowed.start} to {allowed.stop - 1}"
                assert documented[f"{section}.{member.name}"][2].startswith(words), member.name


def test_every_setting_of_the_agent_is_documented() -> None:
    """docs/config.md has exactly the agent's settings, each option among the agent's own, and where the file lies."""
    text = page("docs/config.md").partition("## The agent")[2]
    documented = {row[0]: row[1] for row in rows(text)}
    assert tuple(documented) == Settings._fields
    helped = agent_cli._parser().format_help() + _help_of_unlock()
    assert all(option.split()[0] in helped for option in documented.values() if option)
    assert DEFAULT_PATH in text
    assert Settings().eventlog in text
    assert Settings().tpm in text


def _help_of_unlock() -> str:
    commands = next(action for action in agent_cli._parser()._actions if action.choices)
    assert isinstance(commands.choices, dict)
    return str(commands.choices["unlock"].format_help())


def test_the_environments_prefix_is_documented() -> None:
    """What the overlay is called in the document is what the loader looks for."""
    assert f"{ENVIRONMENT_PREFIX}<SECTION>_<SETTING>" in page("docs/config.md")


def test_the_examples_of_settings_load(tmp_path: Path) -> None:
    """The broker's example is a whole config, the agent's holds settings only."""
    broker, agent = blocks("docs/config.md", "toml")
    (tmp_path / "broker.toml").write_text(broker)
    assert load(tmp_path / "broker.toml", {}).listen.port == 8443
    assert tomllib.loads(agent).keys() <= set(Settings._fields)


# --- errors ---


def error_classes() -> dict[str, type[RoomkeyError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, RoomkeyError) and value is not RoomkeyError
    }


def test_every_error_is_documented_with_its_codes() -> None:
    """docs/errors.md has a row for each class with code, HTTP status, retry and exit status, and says what mends it."""
    text = page("docs/errors.md")
    documented = {row[0]: row for row in rows(text)}
    assert documented.keys() == error_classes().keys()
    for name, kind in error_classes().items():
        _, code, status, _, retry, last = documented[name]
        found = (code, int(status), retry == "yes", int(last.rstrip(" |")))
        assert found == (kind.code, kind.http_status, kind.retry, kind.exit_status), name
        assert f"**`{name}`, {kind.exit_status}.**" in text


# --- commands and calls ---


def test_every_command_is_in_the_documents() -> None:
    """Whatever `roomkey` can do is shown somewhere in README or docs."""
    text = "\n".join(path.read_text("utf-8") for path in PAGES)
    agents = ("unlock", "get", "evidence", "doctor", "cap", "luks check", "exec")
    typed = [*commands(main), *(f"roomkey-agent {name}" for name in agents)]
    assert [command for command in typed if not re.search(rf"{command}\b", text)] == []


def test_every_command_in_an_example_exists() -> None:
    """No example of a shell calls a command, or gives it an option, that `roomkey` does not have."""
    for path in PAGES:
        for text in blocks(str(path.relative_to(ROOT)), "sh"):
            for line in text.replace("\\\n", " ").splitlines():
                for words in re.findall(r"(?:^|[|;] *)roomkey ([^|;#>]+)", line):
                    _check_command(words.split(), line)


def _check_command(words: list[str], line: str) -> None:
    command: click.Command = main
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None, line
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known, line


def test_every_make_target_of_the_documents_exists() -> None:
    """What README and docs tell to make is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
    named = {name for path in PAGES for name in re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text("utf-8"), re.M)}
    assert {"demo", "test", "setup"} <= named
    assert named <= targets


def test_every_route_is_documented() -> None:
    """Each call of the table stands in the owners' or the guests' document, with its method."""
    text = page("docs/owner-api.md") + page("docs/protocol.md")
    shown = " ".join(re.sub(r"<(\w+)>", r"{\1}", text).split())
    missing = [
        f"{r.method} {r.path}" for r in ROUTES if not re.search(rf"{r.method} {re.escape(r.path)}(?![\w/])", shown)
    ]
    assert missing == []


def test_the_owners_calls_are_all_there_are() -> None:
    """docs/owner-api.md lists no call under /v1 that does not exist."""
    documented = {tuple(row[0].split()) for row in rows(page("docs/owner-api.md")) if "/v1" in row[0]}
    assert documented == {(route.method, route.path) for route in ROUTES if route.path.startswith("/v1")}


def test_the_signed_requests_claims_are_those_of_the_api_document() -> None:
    """docs/owner-api.md names the token's type and every claim that the OpenAPI document does."""
    text = page("docs/owner-api.md")
    assert TOKEN_TYPE in text
    words = document()["components"]["securitySchemes"]["owner"]["description"]
    for claim in ("iss", "aud", "iat", "exp", "jti", "htm", "htu", "sha256"):
        assert claim in words
        assert f"`{claim}`" in text


def test_every_kind_of_a_guests_error_is_documented() -> None:
    """docs/protocol.md has each error type that the guests' interface can answer, and the protocol's version."""
    text = page("docs/protocol.md")
    used = set(re.findall(r'"((?:Attestation|Token|Policy|Plugin)[A-Za-z]+)"', page("broker/http/errors.py")))
    assert len(used) >= 6
    assert all(f"`{kind}`" in text for kind in used)
    assert KBS_ERRORS in text
    assert PROTOCOL_VERSION in text


# --- examples ---


def test_the_images_and_rules_of_the_documents_load() -> None:
    """The examples of docs/images.md are what the product's own parsers accept."""
    examples = blocks("docs/images.md", "toml")
    images = [parse_image(text) for text in examples if text.startswith("# image")]
    rules = [parse_rule(text) for text in examples if text.startswith("# rule")]
    assert len(images) >= 1
    assert len(rules) >= 1
    assert len(images) + len(rules) == len(examples)


def test_the_known_answer_of_the_wrapping_is_right() -> None:
    """The KEKs that docs/protocol.md derives are those that the product derives."""
    values = dict(re.findall(r"^(\w[\w +,-]*?) += ([0-9a-f]{64})$", page("docs/protocol.md"), re.MULTILINE))
    shared, secret = (bytes.fromhex(values[name]) for name in ("Z", "activation secret"))
    with_tpm, alone = (values[name] for name in ("KEK of ECDH-ES+TPM2+A256KW", "KEK of ECDH-ES+A256KW, Z alone"))
    assert jwe._concat_kdf(shared, jwe.ALG_TPM, secret).hex() == with_tpm
    assert jwe._concat_kdf(shared, "ECDH-ES+A256KW", None).hex() == alone


def test_every_platform_has_a_page() -> None:
    """A platform whose evidence is judged has a document of its own."""
    assert {f"{tee}.md" for tee in (*VERIFIERS, Tee.SEV)} == {
        path.name for path in (ROOT / "docs/platforms").glob("*.md")
    }


# --- form ---


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_resolves(path: Path) -> None:
    """Every relative link leads to a file in the repository, and its fragment to a heading there."""
    for link in LINK.findall(FENCE.sub("", path.read_text("utf-8"))):
        if "://" in link:
            continue
        name, _, fragment = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not fragment or fragment in anchors(target.read_text("utf-8")), link
