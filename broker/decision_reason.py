# SPDX-License-Identifier: Apache-2.0
"""Why a guest was refused, in a clause of plain words: out of the failed checks of a trace as JSON. Pure.

The first failed check gives the topic, the others of the same topic are told with it. A check that has no topic here is
told by its own name: nothing is said that the trace does not carry. Boot events are described by the guest's own log,
which proves nothing; so what a changed event is called is a reading, and the register's value is the fact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Check = Mapping[str, str]

MAX_SUBJECTS = 4  # of what a guest measured otherwise that the clause names

REGISTER = re.compile(r"(?P<title>.+) is as in image (?P<image>\S+)(?P<state> \(.+\))?")
EVENT = re.compile(r"(?P<title>.+): event (?P<position>[0-9]+) was (?P<kind>.+)")
TCB = re.compile(r"(?P<which>[A-Z]+)_TCB is new enough")

_SECURE_BOOT_OFF = "Secure Boot is off"
_SWITCHES = "set of Secure Boot keys and switches"
_UKI = "unified kernel image"
_KERNEL, _INITRD, _COMMAND_LINE = "kernel", "initrd", "kernel command line"
_PARTS = (_KERNEL, _INITRD, _COMMAND_LINE)  # of a unified kernel image; and what is named first
_SUBJECTS = (  # by what the description of a boot event shows; the first that fits
    (re.compile(r"kernel_cmdline:|grub_cmd: linux|\.cmdline of the unified kernel image"), _COMMAND_LINE),
    (re.compile(r"grub_cmd:"), "boot loader's commands"),
    (re.compile(r"initrd|initramfs"), _INITRD),
    (re.compile(r"vmlinuz|bzImage|\.linux of the unified kernel image"), _KERNEL),
    (re.compile(r"\\EFI\\Linux\\|\w of the unified kernel image", re.IGNORECASE), _UKI),
    (re.compile(r"\bshim", re.IGNORECASE), "shim"),
    (re.compile(r"\bgrub", re.IGNORECASE), "boot loader (GRUB)"),
    (re.compile(r"Secure Boot is|\b(PK|KEK|db|dbx) \("), _SWITCHES),
    (re.compile(r"partition table of the boot disk"), "boot disk's partition table"),
)

_Words = Callable[[Sequence[Check], re.Match[str]], str]  # of failed checks of one topic, and the first one's name


class Reason(NamedTuple):
    """`words` complete "it was refused: ..."; `told` is of how many failed checks they tell."""

    words: str
    told: int


def reason(failed: Sequence[Check]) -> Reason:
    """The reason that `failed`, one check or more in the order of the trace, are together."""
    found = [(check, _topic(check["name"])) for check in failed]
    topic = found[0][1]
    if topic is None:
        return Reason(f"this check failed: {failed[0]['name']}", 1)
    words, match = topic
    same = [check for check, other in found if other is not None and other[0] is words]
    return Reason(words(same, match), len(same))


def below(found: str, expected: str) -> list[str]:
    """The components of `found` ("snp=20 microcode=84") that are less than in `expected`: "snp is 20, not 23"."""
    least = _numbers(expected)
    return [
        f"{name} is {number}, not {least[name]}"
        for name, number in _numbers(found).items()
        if name in least and number < least[name]
    ]


def _numbers(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"(\w+)=([0-9]+)", text)}


def _topic(name: str) -> tuple[_Words, re.Match[str]] | None:
    """What tells of a check with this name, and how the name fits."""
    return next(((words, match) for pattern, words in _TOPICS if (match := pattern.fullmatch(name))), None)


def _fixed(words: str) -> _Words:
    """`words` with {found} and {expected} of the first check, and the groups of its name."""
    return lambda checks, match: words.format(**{**checks[0], **match.groupdict()})


def _measured(checks: Sequence[Check], _: re.Match[str]) -> str:
    """What the guest measured otherwise, by its events where there are some, else by register."""
    found: dict[str, list[str]] = {}
    for check in checks:
        event = EVENT.fullmatch(check["name"])
        title = event["title"] if event else check["name"].partition(" is as in image ")[0]
        subjects = found.setdefault(title, [])
        if event:
            subjects.append(_subject(check))
    named = [name for title, subjects in found.items() for name in ([s for s in subjects if s] or [title])]
    # The words of Secure Boot's variable in PCR 7 are those that its digest is of; elsewhere a guest writes any words.
    off = any(check["name"].startswith("PCR 7 ") and _SECURE_BOOT_OFF in check["found"] for check in checks)
    said = {_SWITCHES} if off else set()
    if any(name in _PARTS for name in named):
        said.add(_UKI)  # its parts say more
    others = [name for name in dict.fromkeys(named) if name not in {*said, *_PARTS}]
    subjects = [*(name for name in _PARTS if name in named), *others]
    clauses = [f"{_SECURE_BOOT_OFF} on it"] if off else []
    if subjects:
        verb = "is not the approved one" if len(subjects) == 1 else "are not the approved ones"
        clauses.append(f"its {_listed(subjects)} {verb}")
    return ", and ".join(clauses)


def _subject(check: Check) -> str:
    """By the image's words, which its owner approved, before the guest's."""
    texts = (check["expected"], check["found"])
    return next((name for text in texts for pattern, name in _SUBJECTS if pattern.search(text)), "")


def _listed(names: Sequence[str]) -> str:
    shown = [*names[:MAX_SUBJECTS], "more"] if len(names) > MAX_SUBJECTS else names
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _old_tcb(checks: Sequence[Check], _: re.Match[str]) -> str:
    short = list(dict.fromkeys(one for check in checks for one in below(check["found"], check["expected"])))
    which = " and ".join(check["name"].partition(" ")[0] for check in checks)
    return f"the SEV-SNP firmware of its host is too old: in {which}, {', '.join(short) or checks[0]['found']}"


def _unnamed(checks: Sequence[Check], _: re.Match[str]) -> str:
    if checks[0]["found"].startswith("not enrolled"):
        return "the key's owner has not enrolled this machine"
    return "the key's rule does not name it"


def _crl(checks: Sequence[Check], _: re.Match[str]) -> str:
    if checks[0]["found"].startswith("stale"):
        return "the newest revocation list of AMD's that there is has expired, and the broker demands a current one"
    return "there is no revocation list of AMD's, and the broker demands a current one"


def _vmpl(checks: Sequence[Check], _: re.Match[str]) -> str:
    asked, trusted = checks[0]["found"], checks[0]["expected"]
    if not asked.isdigit():
        return "its report was not asked for by the guest, but by the host"
    return f"its report was asked for from VMPL {asked}, and only {trusted} is trusted"


def _runs(checks: Sequence[Check], match: re.Match[str]) -> str:
    _, _, state = checks[0]["found"].partition(", which ")
    return f"it runs {match['image']}, which {state}"


_OTHER_CHALLENGE = "its evidence answers another challenge"
_TOPICS = tuple(
    (re.compile(pattern), words if callable(words) else _fixed(words))
    for pattern, words in (
        (REGISTER.pattern, _measured),
        (EVENT.pattern, _measured),
        (r"image (?P<image>\S+) may still be used", _runs),
        (r"an image of the release rule exists for this platform", "the rule's image ({expected}): {found}"),
        (r"guest .+ is (enrolled|not revoked by its owner)", "it has been {found}"),
        (r"an owner still vouches for the attestation key", "its attestation key was {found}"),
        (r"guest (?P<guest>.+) was enrolled for this key", "it was enrolled for another key, {expected}"),
        (r"guest (?P<guest>.+) runs the image that it was enrolled for", "it was enrolled for image {expected}"),
        (r"release rule names the instance", _unnamed),
        (r"release rule names the platform", "the key's rule does not let in guests on {found}"),
        (r"a configured vendor vouches for the hardware", "no vendor's word is enough for this machine: {found}"),
        (r"ticket is good, and for this key", "its ticket is no good: {found}"),
        (r"attestation key is trusted",
         "nobody knows its attestation key: no owner enrolled it, and no EK certificate vouches for it"),
        (r"(quote is signed by the attestation key|report's signature is right)",
         "the signature of its evidence is wrong"),
        (r"challenge", "its challenge was {found}"),
        (r"nonce is this session's", _OTHER_CHALLENGE),
        (r"quote answers this challenge \(extraData\)", _OTHER_CHALLENGE),
        (r"REPORT_DATA is exactly what the evidence must be bound to", _OTHER_CHALLENGE),
        (r"debugging is off", "its host may debug it and read its memory: the DEBUG bit of its SEV-SNP policy is set"),
        (r"privilege level \(VMPL\) that asked is trusted", _vmpl),
        (TCB.pattern, _old_tcb),
        (r"a current revocation list is at hand", _crl),
        (r"intermediate is not revoked", "AMD has revoked the certificate that vouches for its processor's"),
        (r"no other release to the same guest is live", "another release to it is still live: {found}"),
        (r"(?P<what>.+) is not distrusted by the key's owner", "the key's owner distrusts this {what}: {found}"),
        (r"session asks for the key that it announced", "it had announced that it wants another key"),
        (r"key exists", "the key cannot be released: {found}"),
        (r"the disk is the volume that the key is for", "its disk is not the volume that the key is for: {found}"),
        (r"the disk has a sound LUKS2 volume", "its disk has no sound volume, and nobody ordered a new one: {found}"),
        (r"the new volume is granted to no other guest", "another guest is making the new volume: {found}"),
        (r"the guest makes the new volume", "the volume is to be made anew, and its disk is not empty: {found}"),
        (r"the key is the one that the new volume is to be made with",
         "a new key came between the order of the volume and its making"),
        (r"key has a release rule", "the key has no release rule, and without one nobody gets it"),
    )
)  # fmt: skip
