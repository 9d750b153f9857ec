# SPDX-License-Identifier: Apache-2.0
"""The broker's lines: opaque ids, and a log that names owner and verdict and no more."""

import logging
from pathlib import Path

import pytest

from broker import ledger
from tests.fakes.house import House


def test_ids_of_decisions_are_opaque() -> None:
    """ "d-" and twenty base32 characters out of the random source, nothing else in them."""
    assert ledger.new_id(bytes) == "d-" + "a" * 20
    assert ledger.new_id(lambda size: b"\xff" * size) == "d-" + "7" * 20


@pytest.mark.parametrize(("owner", "shown"), [("acme", "acme"), ("", "-")])
def test_each_line_is_said_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture, owner: str, shown: str) -> None:
    """The log has kind, id, verdict and owner of a line, and neither its subject nor its body."""
    with House(tmp_path) as house, caplog.at_level(logging.INFO, "roomkey.decision"):
        ledger.record(house.services, id_="d-1", owner=owner, at=house.now, kind="release", verdict="denied",
                      subject="tpm-ak:00", body={"key": "acme/disk/root"})  # fmt: skip
    assert caplog.messages == [f"release d-1 denied owner={shown}"]
