# SPDX-License-Identifier: Apache-2.0
"""Keys for systemd's /etc/crypttab, whose third column may name a socket:

    data  /dev/vdb  /run/roomkey/key.sock  luks,header=/run/roomkey/data.hdr,headless=yes,tries=1,_netdev

systemd-cryptsetup reads the header before it asks for the key. So a unit of its own judges the header first and leaves
the judged copy where crypttab's `header=` looks (`guard`); where that failed there is no file, and the volume stays
closed. Then, for each connection (`answer`):

 (1) the other side is root, and its address says which volume it wants (crypttab(5), AF_UNIX sockets)
 (2) the table has this volume, for the socket
 (3) the judged copy is there; its pin goes along with the question to the broker
 (4) the key comes, for that volume or for one that nobody knows; it goes out as it is

Only then keyslots are changed, where the broker wants that: on the disk, for the next boot.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Callable

from agent.luks import checked_header
from agent.release import Opened
from agent.volume import Ask, keyslots_changed
from agent.volumes import Row
from keys.errors import Unavailable, VolumeError
from keys.messages import ResourcePath
from keys.report import Report
from keys.secrecy import wipe

RUN = "/run/roomkey"
WAIT_SECONDS = 30  # for a device
PATIENCE_SECONDS = 300  # for brokers that cannot be reached; systemd waits as long
FIRST_PAUSE, LONGEST_PAUSE = 5, 60  # seconds between two rounds

# The random number in front is written without leading zeros.
_PEER = re.compile(rb"\0[0-9a-f]{1,16}/cryptsetup/([A-Za-z0-9_][A-Za-z0-9_.-]{0,126})\Z")
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid (unix(7), SO_PEERCRED)


def guard(row: Row, run: str = RUN, *, sleep: Callable[[float], None] = time.sleep) -> str:
    """Leave the judged header of the row's device in `run`; its path. Raises VolumeError."""
    for _ in range(2 * WAIT_SECONDS):
        if os.path.exists(row.device):  # noqa: PTH110  pathlib would cost milliseconds at boot
            break
        sleep(0.5)
    target = header_file(row.name, run)
    try:
        os.makedirs(run, mode=0o700, exist_ok=True)  # noqa: PTH103
        with checked_header(row.device, repair=True) as header:
            draft = os.open(
                f"{target}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            try:
                size = os.fstat(header.descriptor).st_size
                sent = 0
                while sent < size:
                    sent += os.sendfile(draft, header.descriptor, sent, size - sent)
            finally:
                os.close(draft)
        os.rename(f"{target}.new", target)  # noqa: PTH104
    except OSError as error:
        raise VolumeError(f"{target} cannot be written", found=error.strerror) from None
    return target


def header_file(name: str, run: str = RUN) -> str:
    return f"{run}/{name}.hdr"


def wanted(connection: socket.socket) -> str:
    """The volume that the other side of `connection` asks for. Raises VolumeError."""
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != os.getuid():  # the agent's own user, which is root
        raise VolumeError("a key is asked for by another user", expected=f"uid {os.getuid()}", found=f"uid {uid}")
    address = connection.getpeername()
    match = _PEER.match(address if isinstance(address, bytes) else b"")
    if match is None:
        raise VolumeError(
            "who asks for a key is not systemd-cryptsetup",
            found=ascii(address)[:64],
            mend="the socket's path belongs into crypttab's third column",
        )
    return match[1].decode("ascii")


def answer(
    connection: socket.socket,
    row: Row,
    ask: Callable[[ResourcePath], Ask],
    say: Callable[[str], None],
    run: str = RUN,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Give the row's key to `connection`, and change the volume's keyslots if the broker wants that. Raises
    RoomkeyError: then the connection has got nothing.
    """
    if "socket" not in row.options:
        raise VolumeError(f"{row.name} is not opened by way of the socket", mend="give it the option socket")
    judged = header_file(row.name, run)
    with checked_header(judged) as header:  # (3)
        pin = header.volume.pin
    asking = ask(row.key)
    got = _patiently(lambda: asking(Report(pin), ""), say, sleep)
    try:
        if got.format:
            raise VolumeError("the volume is not made yet", mend=f"roomkey-agent enroll {row.device} --key {row.key}")
        if got.volume not in {None, pin}:
            raise VolumeError("another volume than the one that the key belongs to", expected=got.volume, found=pin)
        connection.sendall(got.secret)  # (4)
        connection.shutdown(socket.SHUT_WR)
        say(f"gave systemd the key of {row.name}")
        wipe(keyslots_changed(row.device, got, asking, say).secret)
    except OSError as error:
        raise VolumeError(f"{row.name}: nobody waits for the key any more", found=error.strerror) from None
    finally:
        wipe(got.secret)


def _patiently(ask: Callable[[], Opened], say: Callable[[str], None], sleep: Callable[[float], None]) -> Opened:
    """Ask again, later and later, as long as nobody answers. A refusal is final."""
    waited, pause = 0.0, FIRST_PAUSE
    while True:
        try:
            return ask()
        except Unavailable as error:
            if waited + pause > PATIENCE_SECONDS:
                raise
            say(f"{error}; asking again in {pause} s")
        sleep(pause)
        waited += pause
        pause = min(2 * pause, LONGEST_PAUSE)
