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

from broker.http import (
    guest,
    guest_types,
    image_types,
    kbs_types,
    lint_types,
    ops,
    owner_decisions,
    owner_distrust,
    owner_guests,
    owner_images,
    owner_keys,
    owner_lint,
    owner_records,
    owner_shadow,
    owner_try,
    owner_volumes,
    sev,
    sev_types,
    shadow_types,
    types,
    volume_types,
)
from broker.owners import Role


class Access(StrEnum):
    """Who may pass, and how it is shown."""

    PUBLIC = "public"  # anybody; nothing here is anybody's
    GUEST = "guest"  # anybody; only asks for a challenge
    SESSION = "session"  # whoever holds the challenge, by its cookie
    SESSION_OR_BEARER = "session or bearer"  # an attested guest, by cookie or token
    HOST = "host"  # anybody; what comes back is worth something to a genuine processor only
    OWNER = "owner"  # an owner's signed request


ONLY_OWNER = frozenset((Role.OWNER,))
ALSO_PROPOSER = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Route:
    """`path` as OpenAPI writes it. `request` and `response`: the types of the bodies; with GET, `request` is the query.
    `roles`: which of an owner's keys may pass, on owners' routes.

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
    roles: frozenset[Role] = ONLY_OWNER

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
    roles: frozenset[Role] = ONLY_OWNER,
) -> Route:
    return Route(method, path, Access.OWNER, handler.__name__, summary, handler, request, response, status, roles)


_KEY = "/v1/keys/{owner}/{type}/{tag}"
_VOLUME = "/v1/volumes/{owner}/{type}/{tag}"
_RULE = "/v1/rules/{owner}/{type}/{tag}"
_IMAGE = "/v1/images/{name}"
_GUEST = "/v1/guests/{name}"
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
    _owner("GET", "/v1/whoami", owner_decisions.whoami, "Whose request is this?", None, types.Whoami,
           roles=ALSO_PROPOSER),
    _owner("GET", "/v1/keys", owner_keys.list_keys, "List keys", None, types.Keys),
    _owner("GET", _KEY, owner_keys.show_key, "Show the versions of a key", None, types.Key),
    _owner("PUT", _KEY, owner_keys.put_key, "Put the next version of a key", types.PutKey, types.KeySummary, 201),
    _owner("POST", _KEY + "/generate", owner_keys.generate_key, "Let the broker make a new key",
           types.GenerateKey, types.KeySummary, 201),
    _owner("POST", _KEY + "/rotate", owner_keys.rotate_key, "Let the broker make the next version, as long as the last",
           types.RotateKey, types.Rotated, 201),
    _owner("PUT", _KEY + "/recovery", owner_keys.put_recovery, "Give a key's volume a recovery passphrase",
           types.PutRecovery, types.Rotated, 201),
    _owner("DELETE", _KEY, owner_keys.destroy_key, "Erase all versions of a key", types.Change, types.Destroyed),
    _owner("GET", "/v1/volumes", owner_volumes.list_volumes, "List the volumes that keys are for", None,
           volume_types.Volumes),
    _owner("GET", _VOLUME, owner_volumes.show_volume, "Show the volume that a key is for", None, volume_types.Volume),
    _owner("PUT", _VOLUME, owner_volumes.pin_volume, "Say which volume a key is for", volume_types.PinVolume,
           volume_types.Volume, 201),
    _owner("POST", _VOLUME + "/provision", owner_volumes.provision_volume, "Order a new volume, and a key for it",
           volume_types.Provision, volume_types.Volume, 201),
    _owner("DELETE", _VOLUME, owner_volumes.unpin_volume, "Let a key open any volume again", types.Change,
           types.Deleted),
    _owner("GET", "/v1/images", owner_images.list_images, "List images", None, image_types.Images,
           roles=ALSO_PROPOSER),
    _owner("GET", _IMAGE, owner_images.show_image, "Show an image", types.VersionQuery, image_types.Image,
           roles=ALSO_PROPOSER),
    _owner("PUT", _IMAGE, owner_images.put_image, "Put or propose the next version of an image",
           image_types.PutImage, image_types.ImagePut, 201, roles=ALSO_PROPOSER),
    _owner("GET", _IMAGE + "/history", owner_images.show_image_history, "Show where an image's versions stood",
           None, image_types.ImageHistory, roles=ALSO_PROPOSER),
    _owner("POST", _IMAGE + "/{version}/state", owner_images.set_image_state, "Approve, retire or revoke a version",
           image_types.SetImageState, image_types.ImageStanding),
    _owner("GET", "/v1/rules", owner_records.list_rules, "List release rules", None, types.Rules),
    _owner("GET", _RULE, owner_records.show_rule, "Show a key's release rule", None, types.Rule),
    _owner("PUT", _RULE, owner_records.put_rule, "Set a key's release rule", types.PutRule, types.Rule, 201),
    _owner("DELETE", _RULE, owner_records.delete_rule, "Take a key's release rule away: nobody gets it",
           types.Change, types.Deleted),
    _owner("POST", _RULE + "/try", owner_try.try_rule, "Who would newly be refused or let in by a rule?",
           types.TryRule, types.TryReport),
    _owner("GET", _RULE + "/lint", owner_lint.lint_rule, "Say whom a rule lets in and should not", None,
           lint_types.Lint),
    _owner("POST", _RULE + "/lint", owner_lint.lint_candidate, "Say whom a rule would let in and should not",
           types.RuleTerms, lint_types.Lint),
    _owner("GET", _RULE + "/shadow", owner_shadow.show_shadow, "Show a shadow of a rule, and what it would have said",
           shadow_types.ShadowQuery, shadow_types.Shadow),
    _owner("PUT", _RULE + "/shadow", owner_shadow.put_shadow, "Judge a rule beside the one in force", types.PutRule,
           types.Rule, 201),
    _owner("DELETE", _RULE + "/shadow", owner_shadow.delete_shadow, "Judge no rule beside the one in force",
           types.Change, types.Deleted),
    _owner("POST", _IMAGE + "/try", owner_try.try_image, "Who would newly be refused or let in by an image?",
           types.TryImage, types.TryReport),
    _owner("GET", "/v1/instances", owner_records.list_instances, "List instances", None, types.Instances),
    _owner("GET", _INSTANCE, owner_records.show_instance, "Show an instance", None, types.Instance),
    _owner("PUT", _INSTANCE, owner_records.put_instance, "Enrol an instance", types.PutInstance, types.Instance, 201),
    _owner("DELETE", _INSTANCE, owner_records.delete_instance, "Forget an instance", types.Change, types.Deleted),
    _owner("GET", "/v1/guests", owner_guests.list_guests, "List guests and where they stand", None, guest_types.Guests),
    _owner("POST", _GUEST + "/approve", owner_guests.approve_guest, "Enrol a guest that waits",
           guest_types.Approve, guest_types.Guest),
    _owner("POST", _GUEST + "/deny", owner_guests.deny_guest, "Tell a guest that waits no",
           types.Change, guest_types.Guest),
    _owner("POST", _GUEST + "/revoke", owner_guests.revoke_guest, "Give a guest no key any more",
           types.Change, guest_types.Guest),
    _owner("POST", _GUEST + "/readmit", owner_guests.readmit_guest,
           "Let a guest in again that was revoked, failed or quarantined, or whose clock went back",
           types.Change, guest_types.Guest),
    _owner("GET", "/v1/tickets", owner_guests.list_tickets, "List tickets", None, guest_types.Tickets),
    _owner("POST", "/v1/tickets", owner_guests.issue_ticket, "Issue a ticket that enrols one guest",
           guest_types.IssueTicket, guest_types.IssuedTicket, 201),
    _owner("DELETE", "/v1/tickets/{name}", owner_guests.delete_ticket, "Withdraw a ticket",
           types.Change, types.Deleted),
    _owner("GET", "/v1/distrust", owner_distrust.list_distrusted, "List what is distrusted",
           None, guest_types.AllDistrusted),
    _owner("PUT", "/v1/distrust", owner_distrust.put_distrust, "Distrust something from now on",
           guest_types.PutDistrust, guest_types.Distrusted, 201),
    _owner("POST", "/v1/distrust-preview", owner_distrust.preview_distrust, "Who would be touched?",
           guest_types.PreviewDistrust, guest_types.Preview),
    _owner("DELETE", "/v1/distrust/{name}", owner_distrust.undo_distrust, "Trust it again",
           types.Change, types.Deleted),
    _owner("GET", "/v1/decisions", owner_decisions.list_decisions, "List decisions and changes",
           types.DecisionQuery, types.Decisions),
    _owner("GET", "/v1/decisions/{id}", owner_decisions.show_decision, "Show a decision with its trace",
           None, types.Decision),
    _owner("GET", "/v1/decisions/{id}/bundle", owner_decisions.export_decision,
           "Export a decision about a guest with all that it stood on", None, types.Bundle),
)  # fmt: skip
