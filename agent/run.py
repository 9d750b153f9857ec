# SPDX-License-Identifier: Apache-2.0
"""Secrets for one process: in its environment, or as files that exist in its memory alone. Never among its arguments,
which everybody on the machine can read.

    NAME=OWNER/TYPE/TAG     of --env: NAME is the secret's text, which has no NUL
                            of --file: NAME is the path of a file with the secret's bytes. It cannot be written, is on
                            no disk, and goes with the process and its children

All keys are fetched before anything runs; where one is not to be had, nothing runs. Then this process becomes the
command: nothing of ours stays behind in it.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from keys.errors import ConfigError
from keys.messages import ResourcePath
from keys.secrecy import wipe

MAX_SECRETS = 16  # for one process
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")


class Secret(NamedTuple):
    """What is given to the process as `name`: the key at `path`, as a file or as text."""

    name: str
    path: ResourcePath
    as_file: bool


def read_secrets(env: Sequence[str], files: Sequence[str]) -> list[Secret]:
    """What the options name. Raises ConfigError, ProtocolError."""
    secrets = [_secret(text, as_file) for texts, as_file in ((env, False), (files, True)) for text in texts]
    names = [secret.name for secret in secrets]
    if not 1 <= len(names) <= MAX_SECRETS or len(set(names)) != len(names):
        raise ConfigError("not the secrets of one process", expected=f"1 to {MAX_SECRETS}, each name once")
    return secrets


def prepare(secrets: Sequence[Secret], fetch: Callable[[ResourcePath], bytearray]) -> dict[str, str]:
    """The variables that the process gets beside its environment. Files are open in this process from now on, and will
    be in the one that it becomes. Raises ConfigError, and what `fetch` raises.
    """
    keys: dict[ResourcePath, bytearray] = {}
    try:
        for secret in secrets:
            if secret.path not in keys:
                keys[secret.path] = fetch(secret.path)
        return {secret.name: _value(secret, keys[secret.path]) for secret in secrets}
    finally:
        for key in keys.values():
            wipe(key)


def become(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Run `command` in the place of this process. Raises ConfigError where it cannot be run."""
    try:
        os.execvpe(command[0], list(command), dict(environment))  # noqa: S606  no shell: the words are the command's own
    except (OSError, ValueError) as error:  # ValueError: a NUL in a word
        raise ConfigError(f"{command[0]} cannot be run", found=str(error)) from None


def _secret(text: str, as_file: bool) -> Secret:
    name, equals, path = text.partition("=")
    if not equals or not _NAME.match(name):
        raise ConfigError("not a secret for a process", expected="NAME=OWNER/TYPE/TAG", found=text[:64])
    return Secret(name, ResourcePath.parse(path), as_file)


def _value(secret: Secret, key: bytearray) -> str:
    if secret.as_file:
        return f"/proc/self/fd/{_in_memory(secret.name, key)}"
    try:
        text = key.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        # No word of what it is: it is a secret.
        raise ConfigError(f"the key {secret.path} is no text, and cannot stand in an environment", mend="use --file")
    return text


def _in_memory(name: str, key: bytearray) -> int:
    """The descriptor of a sealed file in memory, which outlives `become`."""
    descriptor = os.memfd_create(name, os.MFD_ALLOW_SEALING)
    written = 0
    while written < len(key):
        written += os.write(descriptor, memoryview(key)[written:])
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    os.set_inheritable(descriptor, True)
    return descriptor
