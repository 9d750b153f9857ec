# SPDX-License-Identifier: Apache-2.0
"""The ticket with which a machine that is not enrolled yet asks for its key: one line in a file, and nowhere else.

Whoever has it can be enrolled with it, so it is in no argument, environment or message. It is good for one machine; so
a file that the settings name may be gone, after the first boot. A file that was named by hand may not.
"""

from __future__ import annotations

from agent.files import read
from keys.errors import ConfigError, ProtocolError
from keys.messages import check_ticket

MAX_FILE_BYTES = 1024
WHAT = "the ticket's file"


def read_ticket(named: str | None, setting: str) -> str | None:
    """The ticket in the file that was `named` on the command line, else in that of the `setting` ("": none). Raises
    ConfigError.
    """
    path = setting if named is None else named
    data = read(path, what=WHAT, max_bytes=MAX_FILE_BYTES) if named is not None or setting else None
    if data is None:
        if named is not None:
            raise ConfigError(f"no ticket at {path}", mend="give the file's name, or ask without --ticket")
        return None
    try:
        return check_ticket(data.decode("ascii", "replace").removesuffix("\n"))
    except ProtocolError as error:
        raise ConfigError(f"{WHAT} {path} holds no ticket", expected=f"one line: {error.expected}") from None
