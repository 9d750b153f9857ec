# SPDX-License-Identifier: Apache-2.0
"""From an owner's word to the first refusal: guests ask without pause, over both of the broker's processes, while the
owner revokes their machine, or distrusts their platform.

What counts besides the time is that nobody slips through: a release whose request began after the owner's call had
returned ends the measurement with an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from bench.load import Connection
from broker.owner_client import OwnerClient, path_of
from keys import b64
from tests.fakes.broker_server import BrokerServer
from tests.fakes.ek_ca import EkCa

ROUNDS = 20
CONNECTIONS = 4
GUEST = "web-1"
PATIENCE_S = 5.0


class Measured(NamedTuple):
    """Seconds, of each round: what the owner's call took, and from its beginning to the first refusal's end."""

    what: str
    calls: list[float]
    refusals: list[float]


class _Asker:
    """One guest that asks for its key again and again, and what came of it since the last look."""

    def __init__(self, server: BrokerServer, ca: EkCa) -> None:
        self._connection = Connection(server, ca)
        self._cookie = ""
        self.tpm = self._connection.tpm
        self.asked: list[tuple[float, float, bool]] = []  # began, ended, released
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self) -> None:
        """Attest, once: a session that was attested before is what a revocation must reach."""
        _, self._cookie = self._connection.attest()
        self.asked.clear()
        self._stop.clear()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self._connection.close()

    def _ask(self) -> None:
        try:
            while not self._stop.is_set():
                began = time.perf_counter()
                released = self._connection.may_have_key(self._cookie)
                self.asked.append((began, time.perf_counter(), released))
        except BaseException as error:  # noqa: BLE001  it is raised again by `stop`
            self.error = error


def measure(server: BrokerServer, ca: EkCa, owner: OwnerClient) -> list[Measured]:
    askers = [_Asker(server, ca) for _ in range(CONNECTIONS)]
    owner.call("PUT", path_of("instances", GUEST), {"ek_public": b64.std(askers[0].tpm.ek_public)})
    why = {"why": "bench"}
    platform = {"kind": "platform", "value": "tpm"}
    try:
        return [
            _rounds(
                "guest revoke",
                askers[:1],
                lambda: owner.call("POST", path_of("guests", GUEST, "revoke"), why),
                lambda: owner.call("POST", path_of("guests", GUEST, "readmit"), why),
            ),
            _rounds(
                "distrust platform",
                askers,
                lambda: owner.call("PUT", path_of("distrust"), platform | why),
                lambda: owner.call("DELETE", path_of("distrust", "platform:tpm"), why),
            ),
        ]
    finally:
        for asker in askers:
            asker.close()


def _rounds(what: str, askers: list[_Asker], refuse: Callable[[], Any], undo: Callable[[], Any]) -> Measured:
    calls, refusals = [], []
    for _ in range(ROUNDS):
        for asker in askers:
            asker.start()
        _wait(lambda: all(asker.asked for asker in askers))
        began = time.perf_counter()
        refuse()
        returned = time.perf_counter()
        _wait(lambda: all(asker.asked and not asker.asked[-1][2] for asker in askers))
        for asker in askers:
            asker.stop()
        late = [one for asker in askers for one in asker.asked if one[2] and one[0] > returned]
        if late:
            raise RuntimeError(f"{what}: {len(late)} releases to requests that began after the owner's call had ended")
        first = min(ended for asker in askers for _, ended, released in asker.asked if not released)
        calls.append(returned - began)
        refusals.append(first - began)
        undo()
    return Measured(what, sorted(calls), sorted(refusals))


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not until():
        if time.monotonic() > end:
            raise RuntimeError("nobody is refused, or nobody answers")
        time.sleep(0.0005)
