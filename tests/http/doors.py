"""The same gateway behind every door: what one request is answered with, compared between them.

The fast door answers three times: a head that it sees first, one that it remembers, and a request that comes in
pieces. The ASGI door answers behind the fast door's own protocol and behind uvicorn's two protocols, of which h11
shares no line with the others.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import NotFound, UnknownVersion
from gateway.http import fast
from gateway.models.servable import Servable
from gateway.state import Gateway
from tests.http.rig import Reply, Rig, fast_door, settle, turn
from tests.inference.fakes import table_of


def asgi_door(gateway: Gateway) -> type[asyncio.Protocol]:
    """The fast door's protocol, which hands every request to the ASGI application."""
    return fast.door(gateway, inference=False)


DOORS: Mapping[str, Callable[[Gateway], type[asyncio.Protocol]]] = {
    "fast": fast_door,
    "asgi": asgi_door,
    "httptools": lambda _: HttpToolsProtocol,
    "h11": lambda _: H11Protocol,
}
OTHERS = ("httptools", "h11")

APART: Mapping[str, tuple[Sequence[str], str]] = {
    "route_of_10000_characters": (OTHERS, "uvicorn takes a path of any length"),
    "absolute": (("h11",), "h11 hands on the whole URL"),
    "leading zeros": (("h11",), "h11 takes 20 digits"),
    "5000 leading zeros": (("h11",), "h11 takes 20 digits"),
    "upgrade": (OTHERS, "uvicorn does not read the body of a request that offers another protocol"),
    "white space": (("httptools",), "the parser leaves white space behind a value, and so there is no offer to go on"),
    "trailers": (("httptools",), "uvicorn takes trailers for headers"),
    "body-longer-than-its-length": (("asgi",), "behind an ASGI reply the connection ends without a word"),
}
"""Requests that are no matter of the route, the doors that are left out, and why: a server may do as it likes."""


class Repository:
    """Refuses every order about what is not in the table, and does nothing about what is."""

    def __init__(self) -> None:
        self.rig: Rig | None = None

    async def load(self, name: str, version: int | None = None) -> None:
        """See RepositoryAPI."""
        assert self.rig is not None
        if self.rig.gateway.table.model(name).status(version or 1) is None:
            raise UnknownVersion(name, str(version))

    reload = unload = load

    async def move_alias(self, name: str, alias: str, version: int | None) -> None:
        """See RepositoryAPI."""
        await self.load(name, version)
        if version is None:
            raise NotFound(f"model {name!r} has no alias {alias!r}")


class Doors:
    """Versions made by `make`, once for every door of `names`."""

    def __init__(
        self, make: Callable[[], Sequence[Servable]], names: Sequence[str] = tuple(DOORS), **settings: Any
    ) -> None:
        self.rigs: dict[str, Rig] = {}
        for name in names:
            repository = Repository()
            self.rigs[name] = repository.rig = Rig(protocol=DOORS[name], repository=repository, **settings)
        self.serve(make)

    def serve(self, make: Callable[[], Sequence[Servable]]) -> None:
        """Let every door have other versions in place of those it had."""
        for rig in self.rigs.values():
            rig.versions = tuple(make())
            rig.gateway.table.publish(table_of(*rig.versions).models)

    async def answers(self, request: bytes, name: str = "", *, but: Sequence[str] = ()) -> list[Reply]:
        """What every door but these answers: whole, whole again, and in two pieces. `name`: see APART."""
        but = [*but, *(APART[name][0] if name in APART else ())]
        middle = request.find(b"\r\n\r\n") + 4 + 10
        ways = {"first": [request], "again": [request], "cut": [request[:middle], request[middle:]]}
        found: dict[str, list[Reply]] = {}
        counts: dict[str, Counter[tuple[str, ...]]] = {}
        for door, rig in self.rigs.items():
            if door in but:
                continue
            before, held = counts_of(rig), rig.gateway.pipeline.admission.in_flight
            for way, pieces in ways.items():
                found[f"{door}, {way}"] = await converse(rig, pieces)
            counts[door] = counts_of(rig) - before
            assert rig.gateway.pipeline.admission.in_flight == held, door
            assert not any(version.in_flight for version in rig.versions), door
        wanted = found["fast, first"]
        for way, replies in found.items():
            assert replies == wanted, way
        for door in counts:
            # Our own protocol refuses what breaks in a body by itself, before the application could.
            assert door == "asgi" or counts[door] == counts["fast"], door
        return wanted


def counts_of(rig: Rig) -> Counter[tuple[str, ...]]:
    """What was counted so far: outcomes of versions, and replies by route and status."""
    return Counter(rig.counters.snapshot().named) + Counter({("outcome", key): n for key, n in rig.outcomes().items()})


async def converse(rig: Rig, pieces: Sequence[bytes]) -> list[Reply]:
    """The masked answers to what comes on a connection of its own; the last one says whether that has ended."""
    held = rig.gateway.pipeline.admission.in_flight
    connection = rig.connect()
    for piece in pieces:
        connection.send(piece)
        await turn()
    await settle(rig)
    await rest(rig, held)
    replies = connection.replies()
    for reply in replies:
        assert_names_agree(reply)
    masked = [reply.masked() for reply in replies]
    if masked:
        masked[-1].headers["(ends)"] = str(connection.is_over)
    if not connection.transport.closing:
        connection.lose()
    await settle(rig)
    return masked


async def rest(rig: Rig, held: int) -> None:
    """Wait for a run that went to a thread, as any may on a machine that seems slow. `held` calls stay in flight."""
    until = time.monotonic() + 20
    while rig.gateway.pipeline.admission.in_flight > held and time.monotonic() < until:
        await asyncio.sleep(0.001)
    await settle(rig)


def assert_names_agree(reply: Reply) -> None:
    """The ids in a body are those in its headers."""
    if reply.status == 100 or "content-encoding" in reply.headers:
        return
    if reply.status >= 400 and reply.body:
        assert json.loads(reply.body)["request_id"] == reply.headers["x-request-id"]
    elif "headgate-prediction-id" in reply.headers:
        length = int(reply.headers.get("inference-header-content-length", len(reply.body)))
        parameters = json.loads(reply.body[:length])["parameters"]
        assert parameters["prediction_id"] == reply.headers["headgate-prediction-id"]
