"""A request alone on a connection of its own."""

from __future__ import annotations

import json

from tests.http.rig import Reply, Rig, settle


async def alone(rig: Rig, request: bytes) -> Reply:
    """The answer to a request that comes whole, on a connection of its own."""
    connection = rig.connect()
    connection.send(request)
    await settle(rig)
    (reply,) = connection.masked()
    assert not connection.is_over
    connection.lose()
    return reply


def values_of(reply: Reply) -> list[float]:
    """The first column of a reply: the values that were sent."""
    assert reply.status == 200, reply
    return list(json.loads(reply.body)["outputs"][0]["data"][::2])
