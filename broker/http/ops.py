# SPDX-License-Identifier: Apache-2.0
"""What is open to everybody: is it alive, is it ready, whose signatures count, how is it spoken to."""

from __future__ import annotations

from flask import Response

from broker.http.edge import Edge, json_response


def healthz(_: Edge) -> Response:
    """Empty: the process answers. Says nothing about the store; restarting would not mend that."""
    return Response(status=200, mimetype="text/plain")


def readyz(edge: Edge) -> Response:
    """Raises Unavailable unless decisions could be recorded now."""
    edge.services.store.ready()
    return json_response({"status": "ready"})


def jwks(edge: Edge) -> Response:
    return json_response(edge.services.tokens.jwks())


def openapi(_: Edge) -> Response:
    from broker.http.openapi import document  # noqa: PLC0415  made from the table that names this function

    return json_response(document())
