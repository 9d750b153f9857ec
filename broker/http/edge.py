# SPDX-License-Identifier: Apache-2.0
"""What handlers of all kinds share: the services behind them, the limits in front, how bodies come in and go out."""

from __future__ import annotations

from dataclasses import dataclass

from flask import Response, request

from broker.config import Limits
from broker.services import Services
from keys.errors import Unavailable
from keys.strictjson import compact

JSON = "application/json"


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


def json_response(value: object, status: int = 200) -> Response:
    return Response(compact(value), status, mimetype=JSON)
