# SPDX-License-Identifier: Apache-2.0
"""Every way into the broker: one table, each row with who may pass.

The application is built from this table and from nothing else, and so is the OpenAPI document. Whatever is not in it
does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from broker.http import guest, kbs_types, ops, owner_decisions, owner_keys, owner_records, sev, sev_types, types


class Access(StrEnum):
    """Who may pass, and how it is shown."""

    PUBLIC = "public"  # anybody; nothing here is anybody's
    GUEST = "guest"  # anybody; only asks for a challenge
    SESSION = "session"  # whoever holds the challenge, by its cookie
    SESSION_OR_BEARER = "session or bearer"  # an attested guest, by cookie or token
    HOST = "host"  # anybody; what comes back is worth something to a genuine processor only
    OWNER = "owner"  # an owner's signed request


@dataclass(frozen=True, slots=True)
class Route:
    """`path` as OpenAPI writes it. `request` and `response`: the types of the bodies; with GET, `request` is the query.

    Handlers of owners' routes take a `Call` and the decoded request and return the response; all others take the `Edge`
    and the path's variables and return a Flask response.
    """

    method: str
    path: str
    access: Access
    name: str
    summary: str
    handler: Callable[..., Any]
    request: type[msgspec.Struct] | None = None
    response: type[msgspec.Struct] | None = None
    status: int = 200

    @property
    def rule(self) -> str:
        """`path` as Flask writes it."""
        return self.path.replace("{", "<").replace("}", ">")


def _owner(
    method: str,
    path: str,
    handler: Callable[..., Any],
    summary: str,
    request: type[msgspec.Struct] | None,
    response: type[msgspec.Struct],
    status: int = 200,
) -> Route:
    return Route(method, path, Access.OWNER, handler.__name__, summary, handler, request, response, status)


_KEY = "/v1/keys/{owner}/{type}/{tag}"
_RULE = "/v1/rules/{owner}/{type}/{tag}"
_IMAGE = "/v1/images/{name}"
_INSTANCE = "/v1/instances/{name}"

ROUTES: tuple[Route, ...] = (
    Route("POST", "/kbs/v0/auth", Access.GUEST, "auth", "Ask for a challenge",
          guest.auth, kbs_types.AuthRequest, kbs_types.Challenge),
    Route("POST", "/kbs/v0/attest", Access.SESSION, "attest", "Answer the challenge with evidence",
          guest.attest, kbs_types.AttestRequest, kbs_types.Token),
    Route("GET", "/kbs/v0/resource/{owner}/{type}/{tag}", Access.SESSION_OR_BEARER, "resource", "Get a key, wrapped",
          guest.resource, None, kbs_types.Jwe),
    Route("POST", "/roomkey/v1/sev/launches", Access.HOST, "start_sev_launch", "Begin the launch of a SEV guest",
          sev.start_sev_launch, sev_types.SevLaunchRequest, sev_types.SevLaunch, 201),
    Route("POST", "/roomkey/v1/sev/launches/{launch}/measurement", Access.HOST, "finish_sev_launch",
          "Show what was launched, get the secret for it", sev.finish_sev_launch, sev_types.SevMeasurement,
          sev_types.SevPacket),
    Route("GET", "/healthz", Access.PUBLIC, "healthz", "Is the process alive?", ops.healthz),
    Route("GET", "/readyz", Access.PUBLIC, "readyz", "Can decisions be made and recorded?",
          ops.readyz, None, types.Ready),
    Route("GET", "/.well-known/jwks.json", Access.PUBLIC, "jwks", "The keys that sign attestation results",
          ops.jwks, None, kbs_types.JwkSet),
    Route("GET", "/v1/openapi.json", Access.PUBLIC, "openapi", "This document", ops.openapi),
    _owner("GET", "/v1/whoami", owner_decisions.whoami, "Whose request is this?", None, types.Whoami),
    _owner("GET", "/v1/keys", owner_keys.list_keys, "List keys", None, types.Keys),
    _owner("GET", _KEY, owner_keys.show_key, "Show the versions of a key", None, types.Key),
    _owner("PUT", _KEY, owner_keys.put_key, "Put the next version of a key", types.PutKey, types.KeySummary, 201),
    _owner("POST", _KEY + "/generate", owner_keys.generate_key, "Let the broker make a new key",
           types.GenerateKey, types.KeySummary, 201),
    _owner("POST", _KEY + "/rotate", owner_keys.rotate_key, "Let the broker make the next version, as long as the last",
           types.Change, types.KeySummary, 201),
    _owner("DELETE", _KEY, owner_keys.destroy_key, "Erase all versions of a key", types.Change, types.Destroyed),
    _owner("GET", "/v1/images", owner_records.list_images, "List images", None, types.Images),
    _owner("GET", _IMAGE, owner_records.show_image, "Show an image", types.VersionQuery, types.Image),
    _owner("PUT", _IMAGE, owner_records.put_image, "Put the next version of an image",
           types.PutImage, types.ImageSummary, 201),
    _owner("GET", "/v1/rules", owner_records.list_rules, "List release rules", None, types.Rules),
    _owner("GET", _RULE, owner_records.show_rule, "Show a key's release rule", None, types.Rule),
    _owner("PUT", _RULE, owner_records.put_rule, "Set a key's release rule", types.PutRule, types.Rule, 201),
    _owner("DELETE", _RULE, owner_records.delete_rule, "Take a key's release rule away: nobody gets it",
           types.Change, types.Deleted),
    _owner("GET", "/v1/instances", owner_records.list_instances, "List instances", None, types.Instances),
    _owner("GET", _INSTANCE, owner_records.show_instance, "Show an instance", None, types.Instance),
    _owner("PUT", _INSTANCE, owner_records.put_instance, "Enrol an instance", types.PutInstance, types.Instance, 201),
    _owner("DELETE", _INSTANCE, owner_records.delete_instance, "Forget an instance", types.Change, types.Deleted),
    _owner("POST", _INSTANCE + "/readmit", owner_records.readmit_instance,
           "Let an instance in again whose clock went back", types.Change, types.Readmitted),
    _owner("GET", "/v1/decisions", owner_decisions.list_decisions, "List decisions and changes",
           types.DecisionQuery, types.Decisions),
    _owner("GET", "/v1/decisions/{id}", owner_decisions.show_decision, "Show a decision with its trace",
           None, types.Decision),
)  # fmt: skip
