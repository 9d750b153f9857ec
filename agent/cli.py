# SPDX-License-Identifier: Apache-2.0
"""roomkey-agent: attest this machine, get a key, open a volume; on a host, launch a SEV guest with its key.

Exit statuses: 0 done, 2 wrong arguments, else `exit_status` of the error (`keys.errors`). A failure is one line with
its cause and, where something can be done about it, one line with what.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from agent.config import Settings, load
from agent.deadline import Deadline
from keys.errors import ConfigError, RoomkeyError
from keys.messages import ResourcePath
from keys.tee import Tee

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from agent.attesters.registry import Attester
    from agent.release import Opened
    from agent.volume import Ask, Making
    from keys.report import Report

REPORT_DATA_BYTES = 48  # SHA-384, as in `keys.binding`
INTERRUPTED = 130
OVERRIDES = ("brokers", "broker_keys", "ca_file", "tee", "tpm", "eventlog", "timeout", "unsafe_plain_kbs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. `arguments` None: the process's own."""
    options = _parser().parse_args(arguments)
    try:
        status: int
        if "config" in options:
            overrides = {name: getattr(options, name) for name in OVERRIDES}
            status = options.run(options, load(options.config, overrides))
        else:  # a command that needs no settings, good or bad
            status = options.run(options)
    except RoomkeyError as error:
        _say(f"error: {error}")
        if error.mend:
            _say(f"mend: {error.mend}")
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _unlock(options: argparse.Namespace, settings: Settings) -> int:
    from agent import unlock  # noqa: PLC0415

    path = ResourcePath.parse(options.key)
    name = unlock.volume_name(options.name or f"roomkey-{path.tag}")
    if settings.tee is Tee.SEV:  # its one key is gone once it was taken: nothing may be in the way then
        unlock.check_volume(options.device)
        got = _fetch(options, settings, path)
    else:
        got = _key_for(options, settings, path)
    return _open(options, settings, path, name, got)


def _enroll(options: argparse.Namespace, settings: Settings) -> int:
    from agent import unlock  # noqa: PLC0415
    from agent.enroll import file_system  # noqa: PLC0415
    from agent.volume import Making  # noqa: PLC0415

    path = ResourcePath.parse(options.key)
    name = unlock.volume_name(options.name or f"roomkey-{path.tag}")
    kind = "" if options.mkfs is None else file_system(options.mkfs)
    if settings.tee is Tee.SEV or settings.unsafe_plain_kbs:
        raise ConfigError("nobody has signed for a new volume", mend="use a platform and a broker that can say it")
    if kind and not unlock.has_device_mapper():
        raise ConfigError("this kernel cannot open volumes", expected="device-mapper", mend="leave --mkfs out")
    got = _key_for(options, settings, path, Making(options.whole, kind, name))
    return _open(options, settings, path, name, got)


def _asking(settings: Settings, path: ResourcePath) -> None:
    """On a console that somebody watches: what happens now, and for how long at most."""
    _say(f"asking {' or '.join(settings.brokers) or 'nobody'} for {path}, for at most {settings.timeout} s")


def _key_for(
    options: argparse.Namespace, settings: Settings, path: ResourcePath, making: Making | None = None
) -> Opened:  # fmt: skip
    from agent.volume import key_for  # noqa: PLC0415

    def ask(report: Report, session: str) -> Opened:
        return _fetch(options, settings, path, report, session)

    _asking(settings, path)
    return key_for(options.device, ask, _say, making)


def _open(options: argparse.Namespace, settings: Settings, path: ResourcePath, name: str, got: Opened) -> int:
    from agent import unlock  # noqa: PLC0415

    key, pin = got.secret, got.volume
    if options.cap:
        _cap_or_wipe(settings, key)
    outcome = unlock.open_volume(options.device, name, key, device_mapper=unlock.has_device_mapper(), pin=pin)
    if outcome.opened:
        _say(f"opened {options.device} as /dev/mapper/{outcome.name}")
    else:
        _say(f"the key fits {options.device}; NOT opened: this kernel has no device-mapper")
    if pin is None and settings.tee is not Tee.SEV:  # whose launch brings bare bytes
        _say(f"nobody knows which volume it should be: roomkey volume pin {path} {outcome.pin}")
    return 0


def _cap_or_wipe(settings: Settings, key: bytearray) -> None:
    """Before the key is used: where capping fails, what runs later could ask as this."""
    from agent.cap import cap  # noqa: PLC0415
    from keys.secrecy import wipe  # noqa: PLC0415

    try:
        cap(settings, Deadline(settings.timeout))
    except RoomkeyError:
        wipe(key)
        raise


def _cap(_options: argparse.Namespace, settings: Settings) -> int:
    from agent.cap import PCR, cap  # noqa: PLC0415

    cap(settings, Deadline(settings.timeout))
    _say(f"PCR {PCR} is capped: until the next boot no image with once-per-boot lets this machine in")
    return 0


def _get(options: argparse.Namespace, settings: Settings) -> int:
    from keys.secrecy import wipe  # noqa: PLC0415

    path = ResourcePath.parse(options.key)
    if options.output is None and sys.stdout.isatty():
        raise ConfigError("a key is not written to a terminal", mend="give --output FILE, or pipe it")
    if options.output is not None and os.path.lexists(options.output):  # before the key is taken from where it is
        raise ConfigError(f"{options.output} is there already", mend="give a new file's name")
    key = _fetch(options, settings, path).secret
    try:
        _write(options.output, key)
    finally:
        wipe(key)
    return 0


def _fetch(
    options: argparse.Namespace,
    settings: Settings,
    path: ResourcePath,
    report: Report | None = None,
    session: str = "",
) -> Opened:
    """The key at `path`. From here on the process cannot be dumped.

    A SEV guest has one key, whatever the path: the one that its launch was given. Nobody has signed for it.
    """
    from agent.release import Opened  # noqa: PLC0415
    from keys.secrecy import forbid_core_dumps  # noqa: PLC0415

    forbid_core_dumps()
    if settings.tee is Tee.SEV:
        from agent.efi_secret import take  # noqa: PLC0415

        if options.at_least > 1:
            raise ConfigError("the secret of a launch has no version", mend="ask without --at-least")
        return Opened(take(settings.secrets), None)
    from agent.client import fetch  # noqa: PLC0415
    from agent.ticket import read_ticket  # noqa: PLC0415

    ticket = read_ticket(options.ticket, settings.ticket)
    deadline = Deadline(settings.timeout)
    with _attester(settings, deadline) as attester:
        return fetch(
            settings, attester, path, deadline, at_least=options.at_least, ticket=ticket, report=report, session=session
        )


def _exec(options: argparse.Namespace, settings: Settings) -> int:
    from agent.run import become, prepare, read_secrets  # noqa: PLC0415

    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise ConfigError("no command to run", mend="write it behind --")
    secrets = read_secrets(options.env, options.file)
    variables = prepare(secrets, lambda path: _fetch(options, settings, path).secret)
    if options.cap:
        from agent.cap import cap  # noqa: PLC0415

        cap(settings, Deadline(settings.timeout))
    become(command, os.environ | variables)


def _evidence(options: argparse.Namespace, settings: Settings) -> int:
    from keys import b64, strictjson  # noqa: PLC0415

    report_data = os.urandom(REPORT_DATA_BYTES) if options.report_data is None else _hex(options.report_data)
    with _attester(settings, Deadline(settings.timeout)) as attester:
        evidence = attester.evidence(report_data)  # first: an instance may be told from it
        description = {
            "tee": str(settings.tee),
            "instance": attester.instance(),
            "evidence": evidence,
            "report_data": b64.std(report_data),
        }
    _write(options.output, strictjson.compact(description) + b"\n")
    return 0


def _doctor(options: argparse.Namespace, settings: Settings) -> int:
    from agent.doctor import examine, table  # noqa: PLC0415

    findings = examine(settings)
    if options.json:
        from keys import strictjson  # noqa: PLC0415

        _write(None, strictjson.compact([finding._asdict() for finding in findings]) + b"\n")
    else:
        _write(None, table(findings).encode())
    return 0 if all(finding.ok for finding in findings) else 1


def _check_header(options: argparse.Namespace) -> int:
    from agent.luks import checked_header  # noqa: PLC0415

    with checked_header(options.device, options.pin) as header:
        facts = {"uuid": header.uuid} | header.volume._asdict()
    if options.json:
        from keys import strictjson  # noqa: PLC0415

        _write(None, strictjson.compact(facts) + b"\n")
        return 0
    width = max(map(len, facts))
    lines = [f"{name.ljust(width)}  {_fact(value)}" for name, value in facts.items()]
    _write(None, "\n".join([*lines, ""]).encode())
    if options.pin is None:
        _say(f"the header protects what is on it; is it the right volume? --pin {header.volume.pin}")
    return 0


def _guard(options: argparse.Namespace) -> int:
    from agent.key_socket import guard  # noqa: PLC0415
    from agent.volumes import volume_row  # noqa: PLC0415

    _say(f"judged the header of {options.name}: {guard(volume_row(options.name))}")
    return 0


def _socket(options: argparse.Namespace, settings: Settings) -> int:
    import socket  # noqa: PLC0415

    from agent.key_socket import answer, wanted  # noqa: PLC0415
    from agent.volumes import volume_row  # noqa: PLC0415

    def ask(path: ResourcePath) -> Ask:
        return lambda report, session: _fetch(options, settings, path, report, session)

    try:
        connection = socket.socket(fileno=0)
        connection.getpeername()
    except OSError:
        raise ConfigError("standard input is no connection", mend="enable the unit roomkey-key.socket") from None
    with connection:
        answer(connection, volume_row(wanted(connection)), ask, _say)
    return 0


def _fact(value: object) -> str:
    if value is None:
        return "all that there is"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (" ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


def _start_launch(options: argparse.Namespace, settings: Settings) -> int:
    import shlex  # noqa: PLC0415

    from agent import sev_launch  # noqa: PLC0415

    path = ResourcePath.parse(options.key)
    chain = options.chain + options.cek + options.ask  # in this order: AMD's CEK takes the exported one's place
    launch = sev_launch.start(settings, path, chain, options.dir, Deadline(settings.timeout))
    arguments = sev_launch.qemu_options(launch, options.dir, options.cbitpos)
    _write(None, (shlex.join(arguments) + "\n").encode())
    _say("start QEMU with these; where it boots a kernel directly, add ,kernel-hashes=on to the object")
    _say(f"then: roomkey-agent sev-launch finish --dir {options.dir} --qmp {options.dir}/{sev_launch.MONITOR}")
    return 0


def _finish_launch(options: argparse.Namespace, settings: Settings) -> int:
    from agent import sev_launch  # noqa: PLC0415

    launch = sev_launch.finish(settings, options.dir, options.qmp, Deadline(settings.timeout))
    _say(f"the guest has the key {launch.resource} and runs")
    return 0


def _attester(settings: Settings, deadline: Deadline) -> Attester:
    from agent.attesters.registry import attester_for  # noqa: PLC0415

    return attester_for(settings.tee)(settings, deadline)


def _hex(text: str) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != REPORT_DATA_BYTES:
        raise ConfigError("--report-data must be hex", expected=f"{REPORT_DATA_BYTES} bytes")
    return data


def _pin(text: str) -> str:
    """A volume's pin, for argparse. Raises ValueError."""
    if len(text) != 64 or text != bytes.fromhex(text).hex():
        raise ValueError(text)
    return text


def _version(text: str) -> int:
    """A key's version, for argparse. Raises ValueError."""
    version = int(text)
    if version < 1:
        raise ValueError(text)
    return version


def _write(path: str | None, data: bytes | bytearray) -> None:
    """To a new file that only its owner may read, or to standard output. An existing file is never touched."""
    try:
        if path is None:
            fd = sys.stdout.fileno()
        else:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb", buffering=0, closefd=path is not None) as file:  # unbuffered: no second copy of a key
            written = 0
            while written < len(data):
                written += file.write(memoryview(data)[written:])
    except OSError as error:
        target = "standard output" if path is None else path
        raise ConfigError(f"{target} cannot be written", found=error.strerror, mend="give a new file's name") from None


def _say(line: str) -> None:
    print(f"roomkey-agent: {line}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    import argparse  # noqa: PLC0415

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="FILE", help="settings (default: /etc/roomkey/agent.toml, if it exists)")
    common.add_argument(
        "--broker", metavar="URL", action="append", dest="brokers", help="a broker's address; repeat it for others"
    )
    common.add_argument("--ca-file", metavar="PEM", help="the only CA that may vouch for a broker")
    common.add_argument("--broker-keys", metavar="FILE", help="the pinned keys of the broker: a JWK set")
    common.add_argument("--tee", metavar="NAME", help="this machine's platform: tpm (default), snp or sev")
    common.add_argument("--tpm", metavar="WAY", help="device:PATH, swtpm:unix:PATH or swtpm:HOST:PORT")
    common.add_argument("--eventlog", metavar="FILE", help='the firmware\'s event log; "" sends none')
    common.add_argument("--timeout", metavar="SECONDS", type=int, help="for the whole conversation (default 12)")
    common.add_argument(
        "--unsafe-plain-kbs", action="store_const", const=True, help="take a key that no broker has signed for"
    )

    asking = argparse.ArgumentParser(add_help=False)
    asking.add_argument(
        "--at-least", metavar="VERSION", type=_version, default=1, help="refuse an older version of the key"
    )
    asking.add_argument("--ticket", metavar="FILE", help="the ticket of a machine that is not enrolled yet")

    parser = argparse.ArgumentParser(prog="roomkey-agent", description="Attest this machine and use a key for it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    unlock = commands.add_parser("unlock", parents=[common, asking], help="get a key and open a LUKS2 volume with it")
    unlock.add_argument("device", metavar="DEVICE|FILE")
    unlock.add_argument("--key", metavar="OWNER/TYPE/TAG", required=True)
    unlock.add_argument("--name", help="for /dev/mapper (default: roomkey-TAG)")
    unlock.add_argument("--cap", action="store_true", help="then let no later code of this boot ask as this one")
    unlock.set_defaults(run=_unlock)

    enroll = commands.add_parser("enroll", parents=[common, asking], help="the same, and make the volume if it is new")
    enroll.add_argument("device", metavar="DEVICE|FILE")
    enroll.add_argument("--key", metavar="OWNER/TYPE/TAG", required=True)
    enroll.add_argument("--name", help="for /dev/mapper (default: roomkey-TAG)")
    enroll.add_argument("--mkfs", metavar="TYPE", help="make a file system in a new volume: ext4, xfs or btrfs")
    enroll.add_argument("--whole", action="store_true", help="read all of the disk before it is called empty")
    enroll.add_argument("--cap", action="store_true", help="then let no later code of this boot ask as this one")
    enroll.set_defaults(run=_enroll)

    get = commands.add_parser("get", parents=[common, asking], help="get a key")
    get.add_argument("key", metavar="OWNER/TYPE/TAG")
    get.add_argument("--output", metavar="FILE", help="a new file, mode 0600 (default: standard output)")
    get.set_defaults(run=_get)

    run = commands.add_parser("exec", parents=[common, asking], help="run a command with secrets")
    for word, what in (("--env", "a key's text"), ("--file", "the path of a file in memory with a key")):
        run.add_argument(
            word, metavar="NAME=OWNER/TYPE/TAG", action="append", default=[], help=f"a variable with {what}; repeat it"
        )
    run.add_argument("--cap", action="store_true", help="then let no later code of this boot ask as this one")
    run.add_argument("command", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="what to run, and its arguments")
    run.set_defaults(run=_exec)

    evidence = commands.add_parser("evidence", parents=[common], help="describe this machine, for enrolment or a check")
    evidence.add_argument("--report-data", metavar="HEX", help="what the evidence is bound to (default: random)")
    evidence.add_argument("--output", metavar="FILE", help="a new file (default: standard output)")
    evidence.set_defaults(run=_evidence)

    doctor = commands.add_parser("doctor", parents=[common], help="see what would keep this machine from its key")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=_doctor)

    cap = commands.add_parser("cap", parents=[common], help="let no later code of this boot ask as the earlier one")
    cap.set_defaults(run=_cap)

    luks = commands.add_parser("luks", help="judge a LUKS2 header, without a key and without a broker")
    steps = luks.add_subparsers(required=True, metavar="STEP")
    check = steps.add_parser("check", help="what is it, and is it sound?")
    check.add_argument("device", metavar="DEVICE|FILE")
    check.add_argument("--pin", metavar="HEX", type=_pin, help="the volume that it must be, as an earlier check said")
    check.add_argument("--json", action="store_true")
    check.set_defaults(run=_check_header)

    guard = steps.add_parser("guard", help="leave the judged header where crypttab's header= looks")
    guard.add_argument("name", metavar="NAME", help="of a volume in /etc/roomkey/volumes")
    guard.set_defaults(run=_guard)

    key_socket = commands.add_parser("socket", parents=[common, asking], help="answer systemd's question for a key")
    key_socket.set_defaults(run=_socket)

    launch = commands.add_parser("sev-launch", help="on a host: launch a SEV or SEV-ES guest with its key")
    steps = launch.add_subparsers(required=True, metavar="STEP")

    start = steps.add_parser("start", parents=[common], help="get the session, and what to start QEMU with")
    start.add_argument("--key", metavar="OWNER/TYPE/TAG", required=True)
    start.add_argument("--dir", metavar="DIR", required=True, help="for the launch's files: a new folder")
    start.add_argument(
        "--chain", metavar="FILE", action="append", required=True, help="PDH, PEK, OCA and CEK as exported; repeat it"
    )
    start.add_argument("--cek", metavar="FILE", action="append", default=[], help="the CEK as AMD signed it")
    start.add_argument("--ask", metavar="FILE", action="append", default=[], help="AMD's ASK, or ASK and ARK")
    start.add_argument(
        "--cbitpos", metavar="BIT", type=int, default=51, help="the C-bit of this processor: 51, on Naples and Rome 47"
    )
    start.set_defaults(run=_start_launch)

    finish = steps.add_parser("finish", parents=[common], help="give the guest its secret, and let it run")
    finish.add_argument("--dir", metavar="DIR", required=True, help="the folder that `start` filled")
    finish.add_argument("--qmp", metavar="SOCKET", required=True, help="QEMU's monitor")
    finish.set_defaults(run=_finish_launch)
    return parser
