# SPDX-License-Identifier: Apache-2.0
"""A checked header goes to the disk, so that a crash at any moment leaves one that opens.

 (1) the keyslots that the new header has: a header that does not name them yet is not harmed
 (2) the second binary header
 (3) the first one
 (4) what no keyslot uses any more is zeroed: a key that was taken away must be in no area that was left behind

Each is on the disk before the next begins. After (2) the two headers differ, and one that is being written may be torn:
`agent.luks` then goes by the newer sound one, of a volume whose pin is known.
"""

from __future__ import annotations

import os
from itertools import pairwise

from agent.luks import Header
from agent.luks_metadata import BLOCK
from keys import strictjson


def write_back(device: str, header: Header, *, begin: bool = False) -> None:
    """Bring `device` to what `header` is; only blocks that differ are written. `begin`: a disk without a volume gets
    its very first block before anything else, so that what a crash leaves can be told from somebody's data.

    Raises OSError.
    """
    data = os.pread(header.descriptor, header.volume.offset, 0)
    size = int.from_bytes(data[8:16], "big")
    content = strictjson.loads(data[BLOCK:size].rstrip(b"\0"), name="the header's JSON", max_bytes=size)
    places = sorted((int(slot["area"]["offset"]), int(slot["area"]["size"])) for slot in content["keyslots"].values())
    areas = [(start, start + length) for start, length in places]
    end = 2 * size + int(content["config"]["keyslots_size"])
    gaps = [(stop, start) for (_, stop), (start, _) in pairwise([(0, 2 * size), *areas, (end, end)])]
    device_fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        if begin:
            _bring(device_fd, data, [(0, BLOCK)])
        _bring(device_fd, data, areas)  # (1)
        _bring(device_fd, data, [(size, 2 * size)])  # (2)
        _bring(device_fd, data, [(0, size)])  # (3)
        _bring(device_fd, bytes(end), gaps)  # (4)
    finally:
        os.close(device_fd)


def _bring(device: int, data: bytes, ranges: list[tuple[int, int]]) -> None:
    """Let `device` have `data` in these ranges, durably."""
    wrote = False
    for start, end in ranges:
        there = os.pread(device, end - start, start)
        for at in range(start, end, BLOCK):
            wanted = data[at : min(at + BLOCK, end)]
            if there[at - start : at - start + len(wanted)] != wanted:
                _write(device, wanted, at)
                wrote = True
    if wrote:
        os.fsync(device)


def _write(device: int, data: bytes, at: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(device, data[written:], at + written)
