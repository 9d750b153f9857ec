# SPDX-License-Identifier: Apache-2.0
"""The life of an image's version: what counts when, who may change it, and what a fleet sees of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from broker.appraisal.image_life import ImageState, Life, check_change, named_versions
from broker.appraisal.images import Image
from broker.appraisal.measured import check_images
from broker.appraisal.registers import Register
from broker.appraisal.rules import ImageRef
from broker.claims import Claims
from broker.http.routes import ROUTES, Access
from broker.owner_identity import public_jwk
from broker.owners import Role, parse_key, to_body
from broker.store.protocols import Record, RecordKind
from broker.trace import Trace, Verdict
from keys.errors import AppraisalDenied, Conflict
from keys.tee import Tee
from tests.fakes.boot import Boot
from tests.fakes.cases import case_of, known
from tests.fakes.front import Front, Owner
from tests.fakes.house import draft
from tests.fakes.tpm_guest import FakeTpm, Guest
from tests.test_routes import concrete

NOW = 1_800_000_000_000
DAY = 24 * 3600
KEY = "acme/disk/root"
IMAGE = "/v1/images/debian"
TOML = 'platform = "tpm"\n[tpm]\nbank = "sha256"\n[tpm.pcrs]\n7 = "' + "ab" * 32 + '"\n'
STATES = {
    "proposed": Life(ImageState.PROPOSED, NOW - 9, "build"),
    "active": Life(ImageState.ACTIVE, NOW - 9, "alice"),
    "retiring": Life(ImageState.RETIRING, NOW - 9, "alice", "", NOW + 1),
    "retired": Life(ImageState.RETIRING, NOW - 9, "alice", "", NOW),
    "endless": Life(ImageState.RETIRING, NOW - 9, "alice"),
    "revoked": Life(ImageState.REVOKED, NOW - 9, "alice"),
}


# --- what counts ---


@pytest.mark.parametrize("name", STATES)
def test_only_active_and_not_yet_retired_versions_are_usable(name: str) -> None:
    """A retirement ends at its time, and one without a time has ended."""
    assert STATES[name].usable(NOW) is (name in {"active", "retiring"})


@pytest.mark.parametrize(
    ("lives", "newest", "meant"),
    [
        ({}, 0, []),
        ({}, 3, [3]),
        ({3: "active"}, 3, [3]),
        ({3: "proposed"}, 3, [2]),
        ({3: "revoked", 2: "revoked"}, 3, []),
        ({3: "revoked", 2: "retiring"}, 3, [2]),
        ({4: "proposed", 3: "revoked"}, 4, []),
        ({1: "revoked"}, 1, []),
        ({2: "retiring"}, 3, [3, 2]),
        ({1: "retiring", 2: "retired"}, 3, [3, 1]),
        ({3: "retiring"}, 3, [3]),
        ({1: "retired", 2: "endless"}, 2, []),
    ],
)
def test_what_a_bare_name_means(lives: dict[int, str], newest: int, meant: list[int]) -> None:
    """The newest version, if it is active, and all that are retiring; no older one takes a revoked one's place."""
    assert named_versions(ImageRef("debian", None), {v: STATES[s] for v, s in lives.items()}, newest, NOW) == meant


@pytest.mark.parametrize("state", [*STATES, None])
def test_what_a_version_means(state: str | None) -> None:
    """A rule that names a version means that one, as long as it is usable, and no other."""
    lives = {} if state is None else {2: STATES[state]}
    meant = named_versions(ImageRef("debian", 2), lives, 3, NOW)
    assert meant == ([2] if state in {None, "active", "retiring"} else [])


@pytest.mark.parametrize("version", [0, 4])
def test_a_version_that_is_not_there_means_nothing(version: int) -> None:
    """Versions count from 1 to the newest."""
    assert named_versions(ImageRef("debian", version), {}, 3, NOW) == []


def test_a_life_in_words() -> None:
    """Since when, by whom, until when and why; a retirement that is over is told as one."""
    at = NOW - 9
    assert Life(ImageState.ACTIVE, at, "alice").words(NOW) == "active since 2027-01-15 07:59:59Z, by alice"
    assert Life(ImageState.REVOKED, at, "a", "a hole").words(NOW).endswith(", by a: a hole")
    retiring = Life(ImageState.RETIRING, at, "alice", "new kernel", NOW)
    assert retiring.words(NOW - 1) == (
        "retiring since 2027-01-15 07:59:59Z, by alice, until 2027-01-15 08:00:00Z: new kernel"
    )
    assert retiring.words(NOW) == "retired since 2027-01-15 08:00:00Z, by alice: new kernel"
    assert STATES["endless"].words(NOW) == "retired since 2027-01-15 07:59:59Z, by alice"


@pytest.mark.parametrize("name", STATES)
def test_a_life_is_read_as_it_was_written(name: str) -> None:
    """A recorded case holds the same life again."""
    assert Life.from_json(STATES[name].to_json()) == STATES[name]


@pytest.mark.parametrize("value", [[], ["gone", NOW, "alice", "", None], ["active", NOW, "alice", "", None, 1]])
def test_what_is_no_life_is_refused(value: list[Any]) -> None:
    """Too few values, an unknown state, too many values."""
    with pytest.raises((TypeError, ValueError)):
        Life.from_json(value)


ALLOWED = {
    "proposed": {"active", "revoked"},
    "active": {"retiring", "revoked"},
    "retiring": {"active", "retiring", "revoked"},
    "retired": {"active", "retiring", "revoked"},
    "revoked": set(),
}


@pytest.mark.parametrize("before", ALLOWED)
@pytest.mark.parametrize("after", ImageState)
def test_which_change_is_allowed(before: str, after: ImageState) -> None:
    """Nothing leads back to a proposal, and nothing leads out of a revocation; a refusal says what stands there."""
    if after in ALLOWED[before]:
        check_change("debian@2", STATES[before], after, NOW)
        return
    with pytest.raises(Conflict) as caught:
        check_change("debian@2", STATES[before], after, NOW)
    assert caught.value.found == f"it is {STATES[before].words(NOW)}"
    assert ("put" if before == "revoked" else "roomkey image history debian") in caught.value.mend


# --- the owners' API ---


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    front = Front(tmp_path)
    yield front
    front.house.store.close()


@pytest.fixture
def owner(front: Front) -> Owner:
    return front.owner("acme")


@pytest.fixture
def build(front: Front, owner: Owner) -> Owner:
    """A build that holds a key of the owner's which may only propose."""
    return proposer(front, owner)


def proposer(front: Front, owner: Owner) -> Owner:
    key = ed25519.Ed25519PrivateKey.generate()
    own = parse_key(public_jwk(owner.identity.key))
    other = parse_key(public_jwk(key))._replace(role=Role.PROPOSE)
    front.house.put(RecordKind.OWNER, "", owner.name, to_body([own, other]))
    return Owner(front, owner.name, key)


def set_state(owner: Owner, version: int, state: str, **more: Any) -> Any:
    return owner.call("POST", f"{IMAGE}/{version}/state", {"state": state, **more})


def refused(owner: Owner, status: int, method: str, path: str, body: Any = None) -> dict[str, str]:
    answer = owner.send(method, path, body)
    assert answer.status_code == status, answer.data
    words: dict[str, str] = answer.json["error"]
    return words


def test_a_life_from_proposal_to_revocation(front: Front, owner: Owner) -> None:
    """Each change answers with what the bare name means then, and all of them stay to be read."""
    put = owner.call("PUT", IMAGE, {"toml": TOML})
    assert (put["life"]["state"], put["replaced"]) == ("active", [])
    put = owner.call("PUT", IMAGE, {"toml": TOML, "propose": True, "why": "kernel 6.1.0-31"})
    assert (put["version"], put["life"]["state"], put["replaced"]) == (2, "proposed", [])
    assert put["life"]["why"] == "kernel 6.1.0-31"
    assert set_state(owner, 2, "active", why="tried")["counting"] == [2]
    told = set_state(owner, 1, "retiring", after_s=7 * DAY)
    assert told["counting"] == [2, 1]
    assert told["life"]["until"] == front.house.now + 7 * DAY * 1000
    assert set_state(owner, 1, "active")["counting"] == [2]
    assert set_state(owner, 2, "revoked", why="a hole")["counting"] == []
    shown = owner.call("GET", f"{IMAGE}/history")
    assert (shown["name"], shown["counting"]) == ("debian", [])
    assert [(v["version"], [life["state"] for life in v["lives"]]) for v in shown["versions"]] == [
        (2, ["revoked", "active", "proposed"]),
        (1, ["active", "retiring", "active"]),
    ]
    assert owner.call("GET", IMAGE)["life"]["why"] == "a hole"
    [listed] = owner.call("GET", "/v1/images")["images"]
    assert listed["life"] == shown["versions"][0]["life"] == shown["versions"][0]["lives"][0]
    changed = {line.subject for line in front.house.lines("acme", "change")}
    assert {"image/debian@2", "image-state/debian@2@1", "image-state/debian@2@3"} <= changed


def test_a_put_says_what_it_replaces(owner: Owner) -> None:
    """What the bare name meant before and does not mean any more is named; a retiring version still counts."""
    owner.call("PUT", IMAGE, {"toml": TOML})
    assert owner.call("PUT", IMAGE, {"toml": TOML})["replaced"] == [1]
    set_state(owner, 1, "retiring", after_s=DAY)
    assert owner.call("PUT", IMAGE, {"toml": TOML})["replaced"] == [2]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (f"{IMAGE}/1/state", {"state": "proposed"}, 400),
        (f"{IMAGE}/1/state", {"state": "gone"}, 400),
        (f"{IMAGE}/1/state", {"state": "retiring"}, 400),
        (f"{IMAGE}/1/state", {"state": "revoked", "after_s": 1}, 400),
        (f"{IMAGE}/1/state", {"state": "retiring", "after_s": -1}, 400),
        (f"{IMAGE}/1/state", {"state": "retiring", "after_s": 366 * DAY}, 400),
        (f"{IMAGE}/01/state", {"state": "revoked"}, 400),
        (f"{IMAGE}/0/state", {"state": "revoked"}, 400),
        (f"{IMAGE}/x/state", {"state": "revoked"}, 400),
        (f"{IMAGE}/{10**40}/state", {"state": "revoked"}, 400),
        (f"{IMAGE}/2/state", {"state": "revoked"}, 404),
        ("/v1/images/other/1/state", {"state": "revoked"}, 404),
        (f"{IMAGE}/1/state", {"state": "active"}, 409),
    ],
)
def test_a_change_that_cannot_be(owner: Owner, path: str, body: dict[str, Any], status: int) -> None:
    """No such state, version or image, a time where none belongs or none where one does: nothing changes."""
    owner.call("PUT", IMAGE, {"toml": TOML})
    refused(owner, status, "POST", path, body)
    assert [v["lives"] for v in owner.call("GET", f"{IMAGE}/history")["versions"]] == [
        [owner.call("GET", IMAGE)["life"]]
    ]


def test_a_history_of_nothing(owner: Owner) -> None:
    """An image that is not there has none."""
    refused(owner, 404, "GET", f"{IMAGE}/history")


def test_of_two_changes_at_once_one_is_refused(front: Front, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revocation that lands while another change is being judged is not undone by it."""
    owner.call("PUT", IMAGE, {"toml": TOML})
    set_state(owner, 1, "retiring", after_s=DAY)
    real = front.house.store.put_record

    def late(record: Record, aliases: tuple[str, ...] = ()) -> None:
        monkeypatch.undo()
        set_state(owner, 1, "revoked")
        real(record, aliases)

    monkeypatch.setattr(front.house.store, "put_record", late)
    refused(owner, 409, "POST", f"{IMAGE}/1/state", {"state": "active"})
    assert owner.call("GET", IMAGE)["life"]["state"] == "revoked"


# --- who may ---

PROPOSERS = {
    ("GET", "/v1/whoami"),
    ("GET", "/v1/images"),
    ("GET", "/v1/images/{name}"),
    ("PUT", "/v1/images/{name}"),
    ("GET", "/v1/images/{name}/history"),
}


def test_every_other_route_refuses_a_proposer(front: Front, owner: Owner, build: Owner) -> None:
    """Of all owners' routes, a key that may only propose passes the reviewed list; the others do nothing for it."""
    owner.call("PUT", "/v1/images/thing", {"toml": TOML})
    lines = len(front.house.lines("acme"))
    for route in (route for route in ROUTES if route.access is Access.OWNER):
        if (route.method, route.path) in PROPOSERS:
            assert Role.PROPOSE in route.roles
            continue
        words = refused(build, 401, route.method, concrete(route), None if route.method == "GET" else {})
        assert (words["message"], words["found"]) == ("this key may only propose images", "role propose")
    assert len(front.house.lines("acme")) == lines


def test_a_proposer_sees_images_and_itself(owner: Owner, build: Owner) -> None:
    """It can read what there is, and is told what it may do."""
    owner.call("PUT", IMAGE, {"toml": TOML})
    assert build.call("GET", "/v1/whoami")["role"] == "propose"
    assert build.call("GET", IMAGE)["toml"] == TOML
    assert len(build.call("GET", "/v1/images")["images"]) == 1
    assert build.call("GET", f"{IMAGE}/history")["counting"] == [1]


@pytest.mark.parametrize("asked", [{}, {"propose": False}, {"propose": True}])
def test_what_a_proposer_puts_is_a_proposal(owner: Owner, build: Owner, asked: dict[str, bool]) -> None:
    """Whatever it asks for, its version counts nowhere until the owner approves."""
    owner.call("PUT", IMAGE, {"toml": TOML})
    put = build.call("PUT", IMAGE, {"toml": TOML} | asked)
    assert (put["life"]["state"], put["life"]["who"], put["replaced"]) == ("proposed", build.identity.kid, [])
    assert owner.call("GET", f"{IMAGE}/history")["counting"] == [1]


def test_a_proposal_is_one_before_it_is_visible(front: Front, build: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state stands in the store before the image does: where the second write fails, nothing counts."""
    real, seen = front.house.store.put_record, []

    def put(record: Record, aliases: tuple[str, ...] = ()) -> None:
        seen.append((record.kind, record.name))
        real(record, aliases)

    monkeypatch.setattr(front.house.store, "put_record", put)
    build.call("PUT", IMAGE, {"toml": TOML})
    assert seen == [(RecordKind.IMAGE_STATE, "debian@1"), (RecordKind.IMAGE, "debian")]


def _overtaken(front: Front, monkeypatch: pytest.MonkeyPatch, kind: RecordKind, other: Owner) -> None:
    """Let `other` put the image just before a record of `kind` is stored for somebody else."""
    real = front.house.store.put_record

    def put(record: Record, aliases: tuple[str, ...] = ()) -> None:
        if record.kind is kind:
            monkeypatch.undo()
            other.call("PUT", IMAGE, {"toml": TOML})
        real(record, aliases)

    monkeypatch.setattr(front.house.store, "put_record", put)


def test_a_proposal_that_comes_too_late(
    front: Front, owner: Owner, build: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the owner puts the same version meanwhile, the proposal is refused and the owner's version is active."""
    _overtaken(front, monkeypatch, RecordKind.IMAGE, owner)
    refused(build, 409, "PUT", IMAGE, {"toml": TOML})
    shown = owner.call("GET", IMAGE)
    assert (shown["version"], shown["created_by"], shown["life"]["state"]) == (1, owner.identity.kid, "active")
    assert owner.call("GET", f"{IMAGE}/history")["counting"] == [1]


def test_a_proposal_that_hides_the_owners_version_lets_nobody_in(
    front: Front, owner: Owner, build: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the proposal's state lands on the version that the owner has just put, that waits for an approval."""
    _overtaken(front, monkeypatch, RecordKind.IMAGE_STATE, owner)
    refused(build, 409, "PUT", IMAGE, {"toml": TOML})
    assert owner.call("GET", f"{IMAGE}/history")["counting"] == []
    assert set_state(owner, 1, "active")["counting"] == [1]


def test_two_proposals_at_once(front: Front, owner: Owner, build: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is stored, the other refused, and what is stored is a proposal."""
    _overtaken(front, monkeypatch, RecordKind.IMAGE, build)
    refused(build, 409, "PUT", IMAGE, {"toml": TOML})
    assert owner.call("GET", IMAGE)["life"]["state"] == "proposed"


def test_a_proposal_does_not_change_what_was_decided(front: Front, owner: Owner, build: Owner) -> None:
    """Where the next version has a state already that is no proposal's, the proposal is refused."""
    front.house.put(RecordKind.IMAGE_STATE, "acme", "debian@1", {"state": "revoked", "why": "", "until": None})
    refused(build, 409, "PUT", IMAGE, {"toml": TOML})
    refused(owner, 404, "GET", IMAGE)


# --- a fleet ---


def test_a_fleet_is_updated(front: Front, owner: Owner) -> None:
    """While the old version is retiring both kinds of guests get the key; afterwards the old kind is told why not."""
    house = front.house
    old, new = FakeTpm(house.ca), FakeTpm(house.ca)
    old.boot(Boot())
    new.boot(Boot(kernel=b"kernel 6.1.0-31"))
    house.key(KEY, b"key")
    house.rule(KEY, images=["debian"])
    owner.call("PUT", IMAGE, {"toml": draft(old)})
    assert house.flow(Guest(old, declare=True), KEY) == b"key"
    owner.call("PUT", IMAGE, {"toml": draft(new), "propose": True})
    _denied(front, new, "proposed since")
    set_state(owner, 2, "active")
    assert house.flow(Guest(new, declare=True), KEY) == b"key"
    _denied(front, old, "which the rule does not mean")
    set_state(owner, 1, "retiring", after_s=3600)
    assert house.flow(Guest(old, declare=True), KEY) == b"key"
    assert house.flow(Guest(new, declare=True), KEY) == b"key"
    assert "retiring since" in str(house.lines("acme", "release")[1].body["trace"])
    house.now += 3600 * 1000
    _denied(front, old, "retired since")
    assert house.flow(Guest(new, declare=True), KEY) == b"key"
    set_state(owner, 1, "revoked", why="a hole")
    _denied(front, old, "revoked since")


def _denied(front: Front, tpm: FakeTpm, words: str) -> None:
    with pytest.raises(AppraisalDenied):
        front.house.flow(Guest(tpm, declare=True), KEY)
    assert words in str(front.house.lines("acme", "release")[0].body["trace"])


# --- what a denied guest's owner is told ---

CLAIMS = Claims(Tee.TPM, ("tpm-ak:000b01",), "ek-certificate", {"sha256:4": "44" * 32, "sha256:7": "77" * 32})
RUNS = Image(Tee.TPM, "", {"sha256:4": Register(("44" * 32,))})
NEWER = Image(Tee.TPM, "", {"sha256:4": Register(("55" * 32,))})
LATER = "roomkey image retire debian@2 --after 7d"


@pytest.mark.parametrize(
    ("state", "newer", "found", "mends"),
    [
        ("revoked", True, "is revoked since", ("update the guest to debian@3", "image diff debian@2 debian@3")),
        ("revoked", False, "is revoked since", ("update the guest",)),
        ("proposed", True, "is proposed since", ("roomkey image approve debian@2",)),
        ("retired", True, "is retired since", ("update the guest to debian@3", LATER)),
        ("active", True, "the rule does not mean", ("update the guest to debian@3", LATER)),
        ("retiring", True, "the rule does not mean", (LATER,)),
    ],
)
def test_a_version_that_does_not_count_is_named(state: str, newer: bool, found: str, mends: tuple[str, ...]) -> None:
    """What the guest runs, why that does not count, and the commands that mend it; a revoked one is never let in."""
    images = [known("debian@3", NEWER)] if newer else []
    case = replace(case_of(CLAIMS, images={}), at=NOW)
    case = replace(case, images=(*images, known("debian@2", RUNS, STATES[state], counts=False)))
    trace = Trace()
    assert case.rule is not None
    assert check_images(case, case.rule, trace) is None
    [check] = [check for check in trace.checks if check.name == "image debian@2 may still be used"]
    assert check.verdict is Verdict.FAILED
    assert check.expected == ("debian@3" if newer else "debian")
    assert ("image diff debian@2 debian@3" in check.mend) is (newer and state != "proposed")
    assert found in check.found
    assert all(mend in check.mend for mend in mends)
    assert ("retire" in check.mend) is (LATER in mends)


def test_a_retirement_is_told_while_it_lasts() -> None:
    """A guest of a retiring version is let in, and the decision says until when."""
    case = case_of(CLAIMS, images={})
    case = replace(case, at=NOW, images=(known("debian@2", RUNS, STATES["retiring"]),))
    trace = Trace()
    assert case.rule is not None
    assert check_images(case, case.rule, trace) == "debian@2"
    assert any("image debian@2 is retiring since" in check.name for check in trace.checks)
