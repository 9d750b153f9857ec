# SPDX-License-Identifier: Apache-2.0
"""What handlers of all kinds share: the services behind them, the limits in front, how bodies come in and go out.

A guest's request is judged in the event loop, which must not wait. Where one has to (an endorsement must be fetched),
its handler says so in the WSGI environment and answers nothing of worth; the bridge then calls the application once
more with the same request, in a thread that may wait. Servers that know nothing of this leave the environment empty:
there a request may wait at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from flask import Response, request

from broker.config import Limits
from broker.services import Services
from keys.errors import Unavailable
from keys.strictjson import compact

JSON = "application/json"
TURN = "roomkey.turn"  # in the WSGI environment: LOOP, THREAD or nothing
WANTS_THREAD = "roomkey.wants_thread"  # ... set by a handler in the event loop
LOOP, THREAD = "loop", "thread"


class RateLimited(Unavailable):
    """More than the operator allows in one minute; later is fine."""

    http_status = 429


@dataclass(frozen=True, slots=True)
class Edge:
    services: Services
    limits: Limits

    @staticmethod
    def body() -> bytes:
        """The request's body. Raises RequestEntityTooLarge before anything beyond the limit is read."""
        return request.get_data(cache=False)


def may_wait() -> bool:
    """Whether the request that is being answered may take its time."""
    return request.environ.get(TURN) != LOOP


def is_second_turn() -> bool:
    """Whether the request was begun in the event loop, and counted there."""
    return request.environ.get(TURN) == THREAD


def answer_in_thread() -> Response:
    """Let the request be answered where it may wait. Nothing of this answer is sent."""
    request.environ[WANTS_THREAD] = True
    return Response(status=503)


def json_response(value: object, status: int = 200) -> Response:
    return Response(compact(value), status, mimetype=JSON)
