# SPDX-License-Identifier: Apache-2.0
"""A broker and its owner, ready for guests: what every measurement starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from broker.owner_client import path_of
from keys import b64
from tests.fakes.boot import Boot, pcr_values
from tests.fakes.broker_server import BrokerServer
from tests.fakes.ek_ca import EkCa

KEY = ("acme", "disk", "root")
PLAINTEXT = b"a passphrase of forty-four characters, or so"
PCRS = (0, 2, 4, 7, 8, 9)


@contextmanager
def broker(directory: Path, ca: EkCa, *, workers: int) -> Iterator[BrokerServer]:
    """A running broker that gives acme/disk/root to any certified TPM that booted `Boot()`."""
    with BrokerServer(directory, workers=workers, roots=(ca.root,), intermediates=(ca.intermediate,)) as server:
        owner = server.owner(KEY[0])
        owner.call("PUT", path_of("keys", *KEY), {"key": b64.std(PLAINTEXT)})
        owner.call("PUT", path_of("images", "debian-12"), {"toml": _image(PCRS)})
        rule = {"images": ["debian-12"], "platforms": ["tpm"], "instances": ["any"]}
        owner.call("PUT", path_of("rules", *KEY), rule)
        owner.close()
        yield server


def _image(pcrs: Sequence[int]) -> str:
    values = pcr_values(Boot().events())
    lines = [f'{pcr} = "{values[pcr].hex()}"' for pcr in pcrs]
    return "\n".join(['platform = "tpm"', "[tpm]", 'bank = "sha256"', "[tpm.pcrs]", *lines]) + "\n"
