# SPDX-License-Identifier: Apache-2.0
"""A shown decision, the JSON of `GET /v1/decisions/{id}`, in words: who asked for what, and what came of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from broker.appraisal.identity import Act
from broker.decision_reason import EVENT, REGISTER, TCB, Check, below, reason
from broker.ledger import ATTEST, READMIT, RELEASE
from broker.trace import Stage, Verdict

SHORT_DIGITS = 16  # of a digest or id, enough to tell two apart
CODES = ("POLICY", "PLATFORM_INFO")  # of a report, and the facts that begin alike have their bits

_HEX = re.compile(r"(?<![0-9a-zA-Z])[0-9a-f]{25,}(?![0-9a-zA-Z])")
_GUEST = re.compile(r"guest (\S+) is (?:enrolled|not revoked by its owner)")
_FURTHER = re.compile(r"image \S+(?: \(.+\))?: [0-9]+ of [0-9]+ registers differ.*")
_STEPS = re.compile(r"; (?=(?:or|and) )|, (?=(?:then|and) roomkey )")  # between the steps of one mend
_COMMAND = re.compile(r"(|.*: |then |and )(roomkey .*)")


class Difference(NamedTuple):
    """One failed check: what it is about, and rows of what was expected, found, and what explains it."""

    title: str
    rows: tuple[tuple[str, str], ...]


class StageSum(NamedTuple):
    """How the checks of one stage ended; `names` of those that were not made, by the verdict that says so."""

    stage: str
    counts: str
    names: tuple[tuple[str, str], ...]


def head(shown: Mapping[str, Any], at: str) -> str:
    """One sentence: who asked for which key, when (`at`), what came of it, and why."""
    body, verdict = shown["body"], shown["verdict"]
    if shown["kind"] == READMIT:
        return f"{body.get('who', 'somebody')} readmitted {short(shown['subject'])} on {at}"
    if shown["kind"] not in {ATTEST, RELEASE}:
        return f"{body.get('who', 'somebody')} changed {shown['subject']} on {at}: {verdict}"
    asked = f"asked for {shown['key']}" if shown["key"] else "attested"
    outcome = _OUTCOMES.get(verdict, "was {verdict}").format_map({**body, "verdict": verdict})
    sentence = f"{_guest(shown)} {asked} on {at} and {outcome}"
    failed = failures(body.get("trace", []))
    if not failed:
        return sentence
    words, told = reason(failed)
    rest = len(failed) - told
    more = f" (and {rest} more check{'s' if rest > 1 else ''} failed)" if rest else ""
    return f"{sentence}: {short(words)}{more}"


def follows(body: Mapping[str, Any]) -> str:
    """What became of the guest with the decision, "" where nothing did."""
    return _FOLLOWS.get(body.get("act", ""), "").format(body.get("guest"))


def failures(trace: Sequence[Check]) -> list[Check]:
    return [check for check in trace if check["verdict"] == Verdict.FAILED]


def nearest(trace: Sequence[Check]) -> list[str]:
    """Which image was nearest and in how many of its values the guest differs; then the images further away."""
    matches = [(REGISTER.fullmatch(check["name"]), check) for check in trace]
    judged = [(match, check["verdict"] == Verdict.FAILED) for match, check in matches if match]
    wrong = [match["title"].partition(" (")[0] for match, differs in judged if differs]
    if not wrong:
        return []
    image = "".join(judged[0][0].group("image", "state")) if judged[0][0]["state"] else judged[0][0]["image"]
    few = f"{len(wrong)} of its {len(judged)} values differ{'s' if len(wrong) == 1 else ''}: {', '.join(wrong)}"
    further = [check["name"] for check in trace if _FURTHER.fullmatch(check["name"])]
    return [f"nearest image: {image}; {few}", *(f"further away: {name}" for name in further)]


def differences(shown: Mapping[str, Any]) -> list[Difference]:
    """Each failed check with what was expected and found, and what of the claims explains it."""
    body = shown["body"]
    facts = (body.get("claims") or {}).get("facts", {})
    return [_difference(check, facts) for check in failures(body.get("trace", []))]


def mends(trace: Sequence[Check]) -> list[tuple[str, str]]:
    """What would mend it, each once, as words and the command that they lead to ("" where there is none)."""
    texts = dict.fromkeys(check["mend"] for check in failures(trace) if check["mend"])
    return list(dict.fromkeys(step for text in texts for step in _split(text)))


def stages(trace: Sequence[Check]) -> list[StageSum]:
    """The checks by stage, in the order in which trust is built."""
    return [_stage(stage, of) for stage in Stage if (of := [check for check in trace if check["stage"] == stage])]


def short(text: str) -> str:
    """`text` with its long digests and ids cut to their first digits."""
    return _HEX.sub(lambda found: found[0][:SHORT_DIGITS] + "…", text)


_OUTCOMES = {
    "released": "got version {version}: it runs {image}",
    "denied": "was denied it",
    "refused": "was refused",
    "genuine": "was found genuine: whether it gets a key is decided when it comes for it",
}

_FOLLOWS = {
    Act.REDEEM: "enrolled as {0}, by its ticket",
    Act.FIRST_USE: "enrolled as {0}, because the rule enrols whoever comes first",
    Act.QUEUE: "{0} waits for your word: roomkey guest approve {0}",
    Act.FAIL: "{0} stays refused until you readmit it: roomkey guest readmit {0}",
    Act.QUARANTINE: "{0} is quarantined until you readmit it: roomkey guest readmit {0}",
}


def _guest(shown: Mapping[str, Any]) -> str:
    """The owner's name for the guest; of one that the owner does not know, what the hardware is called."""
    body = shown["body"]
    names = body.get("names") or [guest[0] for guest in (body.get("case") or {}).get("guests", [])]
    if not names:
        names = [match[1] for check in body.get("trace", []) if (match := _GUEST.fullmatch(check["name"]))]
    if names:
        return ", ".join(dict.fromkeys(names))
    if not shown["subject"]:
        return "Somebody"
    if shown["kind"] == ATTEST and body.get("claims") is None:  # nothing was proved, not even this
        return f"A machine that calls itself {short(shown['subject'])}"
    return f"An unknown machine ({short(shown['subject'])})"


def _difference(check: Check, facts: Mapping[str, Any]) -> Difference:
    name = check["name"]
    rows = [("expected", check["expected"]), ("found", check["found"])]
    if match := REGISTER.fullmatch(name):
        return Difference(match["title"], tuple(rows))
    if match := EVENT.fullmatch(name):
        title = match["title"].partition(" (")[0]
        return Difference(f"{title}, boot event {match['position']}: {match['kind']}", tuple(rows))
    if TCB.fullmatch(name) and (low := below(check["found"], check["expected"])):
        rows.append(("too low", ", ".join(low)))
    rows += [("bits set", _bits(code, facts)) for code in CODES if code in f"{name} {check['expected']}"]
    return Difference(f"failed: {name}", tuple(row for row in rows if row[1]))


def _bits(code: str, facts: Mapping[str, Any]) -> str:
    """ "0xa0000: smt_allowed, debug_allowed", "" where the claims do not say."""
    prefix = f"{code.partition('_')[0].lower()}_"
    on = [name.removeprefix(prefix) for name, value in facts.items() if name.startswith(prefix) and value is True]
    whole = facts.get("policy" if code == "POLICY" else "platform_info")
    return f"{whole}: {', '.join(on) or 'none set'}" if whole else ""


def _split(mend: str) -> list[tuple[str, str]]:
    """The steps of a mend, each as words and a command. What has no command on its own stays one sentence."""
    steps = [(part, _COMMAND.fullmatch(part)) for part in _STEPS.split(mend)]
    return [(match[1].strip(), match[2]) if match else (part, "") for part, match in steps]


def _stage(stage: str, checks: Sequence[Check]) -> StageSum:
    by_verdict = {verdict: [check for check in checks if check["verdict"] == verdict] for verdict in Verdict}
    told = (Verdict.PASSED, Verdict.FAILED)
    counts = ", ".join(f"{len(by_verdict[verdict])} {verdict}" for verdict in told if by_verdict[verdict])
    names = tuple(
        (str(verdict), "; ".join(check["name"] for check in by_verdict[verdict]))
        for verdict in (Verdict.NOT_REQUIRED, Verdict.NOT_JUDGED)
        if by_verdict[verdict]
    )
    return StageSum(stage, counts, names)
