# SPDX-License-Identifier: Apache-2.0
"""One broker, its whole application and store on loopback, and an owner in front of it who types commands."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from werkzeug.serving import WSGIRequestHandler, make_server

from broker import attestation, release, session
from broker.app import build_services, create_app
from broker.cli import main
from broker.cli.operator import load_config
from broker.services import Services
from keys.messages import ResourcePath
from tests.fakes.replays import check_replays
from tests.fakes.snp_guest import SnpGuest
from tests.fakes.tpm_guest import FakeTpm, Guest

KEY = "acme/disk/root"


class Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
        pass


class Desk:
    """One broker, and an owner `acme` in front of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "broker" / "broker.toml"
        self.run("init", folder / "broker")
        self.services: Services = build_services(load_config(self.config))
        self.server = make_server("127.0.0.1", 0, create_app(self.services), threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.new_owner("acme")

    def new_owner(self, name: str) -> Path:
        identity = self.folder / name / "identity.toml"
        self.run("identity", "new", name, "--broker", self.url, "--audience", self.services.audience,
                 "--identity", identity)  # fmt: skip
        self.run("owner", "add", name, "--key", identity.with_suffix(".public.jwk"), "--config", self.config)
        return identity

    def run(self, *args: object, status: int = 0, stdin: str | bytes | None = None, owner: str = "acme") -> Result:
        """Run `roomkey ARGS` as `owner`; it must end with `status`."""
        identity = self.folder / owner / "identity.toml"
        environment = {"ROOMKEY_IDENTITY": str(identity)}
        result = CliRunner().invoke(main, [str(arg) for arg in args], input=stdin, env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result

    def json(self, *args: object) -> Any:
        return json.loads(self.run(*args, "--json").stdout)

    def ask(self, who: FakeTpm | SnpGuest, path: str = KEY) -> bytes:
        """What a guest, or one with this TPM, is given."""
        now, guest = self.services.clock(), Guest(who) if isinstance(who, FakeTpm) else who
        issued = session.issue(guest.request(ResourcePath.parse(path)), self.services, now=now)
        message = guest.attestation(issued.challenge)
        attestation.attest(issued.session_id, message, self.services, now=now)
        return guest.open(
            release.release(ResourcePath.parse(path), self.services, session_id=issued.session_id, token=None, now=now)
        )


@contextmanager
def open_desk(folder: Path) -> Iterator[Desk]:
    """A desk whose broker answers until the end."""
    made = Desk(folder)
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
        check_replays(made.services)
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()
        made.services.store.close()
