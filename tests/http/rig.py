"""The fast door without a socket: a whole gateway around fake sessions, and connections whose transport is a list."""

from __future__ import annotations

import asyncio
import gzip
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import uvicorn
from uvicorn.server import ServerState

from gateway import app as application
from gateway import state
from gateway.http import fast
from gateway.models.servable import Servable
from gateway.settings import Settings
from gateway.state import Gateway, RepositoryAPI
from gateway.telemetry.counters import OUTCOMES
from gateway.telemetry.store import CounterStore
from tests.inference.fakes import table_of
from tests.inference.world import run as run

DATE = b"Thu, 01 Jan 2026 00:00:00 GMT"
_IDS = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])")


class Reply(NamedTuple):
    """One reply as a client sees it; `names` are its headers in their order."""

    status: int
    headers: dict[str, str]
    body: bytes

    def masked(self) -> Reply:
        """Without what differs with every request: ids that the server made, and what these make of a length."""
        headers = {name: _mask(value.encode()).decode() for name, value in self.headers.items()}
        body = self.body
        if "content-encoding" in headers:
            body = gzip.decompress(body) if headers["content-encoding"] == "gzip" else zlib.decompress(body)
        body = _mask(body)
        if "content-length" in headers:
            headers["content-length"] = f"{len(body)} when masked"
        return Reply(self.status, headers, body)


def _mask(data: bytes) -> bytes:
    return _IDS.sub(b"*", data)


def parse(data: bytes, *, is_ours: bool = True) -> list[Reply]:
    """Every reply in what was written, and nothing besides. `is_ours` False: names of headers may be in any case."""
    found = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, f"half a head: {head!r}"
        first, *lines = head.split(b"\r\n")
        version, status, phrase = first.split(b" ", 2)
        assert version == b"HTTP/1.1"
        assert phrase
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.decode("latin-1").partition(": ")
            assert not is_ours or name == name.lower()
            name = name.lower()
            assert name not in headers, f"header {name} stands twice"
            headers[name] = value
        length = int(headers.get("content-length", "0"))
        assert status == b"100" or "content-length" in headers
        assert len(data) >= length, "half a body"
        found.append(Reply(int(status), headers, data[:length]))
        data = data[length:]
    return found


class FakeTransport(asyncio.Transport):
    """A transport as strict as a real one: it refuses what was closed for writing, and tells when it is lost.

    `strict`: stricter than real ones, which take a second call of pause_reading or resume_reading without a word.
    """

    strict = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self._loop = loop
        self.protocol: asyncio.Protocol | None = None
        self.written = b""
        self.writes = 0
        self.closing = self.eof = self.aborted = False
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio."""
        if self.eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        self.writes += 1
        if not self.closing:
            self.written += bytes(data)

    def is_closing(self) -> bool:
        """See asyncio."""
        return self.closing

    def can_write_eof(self) -> bool:
        """See asyncio."""
        return True

    def write_eof(self) -> None:
        """See asyncio."""
        self.eof = True

    def close(self) -> None:
        """See asyncio."""
        if not self.closing:
            self.closing = True
            assert self.protocol is not None
            self._loop.call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        """See asyncio."""
        self.aborted = True
        self.close()

    def pause_reading(self) -> None:
        """See asyncio."""
        assert self.reading or not self.strict
        self.reading = False

    def resume_reading(self) -> None:
        """See asyncio."""
        assert not self.reading or not self.strict
        self.reading = True


class Connection:
    """One connection of a client."""

    def __init__(self, rig: Rig) -> None:
        self.transport = FakeTransport(asyncio.get_running_loop())
        make = cast(Any, rig.config.http_protocol_class)
        self.protocol: fast.FastProtocol = make(config=rig.config, server_state=rig.server_state, app_state={})
        self.transport.protocol = self.protocol
        self.transport.strict = self.is_ours = isinstance(self.protocol, fast.FastProtocol)
        self.protocol.connection_made(self.transport)

    def send(self, *pieces: bytes) -> None:
        """These bytes come, piece by piece, if the connection is still read."""
        for piece in pieces:
            if piece and not self.transport.closing:
                self.protocol.data_received(piece)

    @property
    def is_over(self) -> bool:
        """True when the client has seen its end: nothing more will come."""
        return self.transport.closing or self.transport.eof

    def lose(self) -> None:
        """The client goes away."""
        self.transport.closing = True
        self.protocol.connection_lost(ConnectionResetError())

    def replies(self) -> list[Reply]:
        """Every reply so far."""
        return parse(self.transport.written, is_ours=self.is_ours)

    def masked(self) -> list[Reply]:
        """Every reply so far, without ids."""
        return [reply.masked() for reply in self.replies()]

    def check(self, now: float) -> None:
        """The clock of the server comes by."""
        self.protocol.check(now)


def fast_door(gateway: Gateway) -> type[asyncio.Protocol]:
    """The protocol that a worker serves with."""
    return fast.door(gateway, inference=True)


class Rig:
    """A gateway around versions, and the server side of its connections: a protocol, by default the fast door."""

    def __init__(
        self,
        *versions: Servable,
        protocol: Callable[[Gateway], type[asyncio.Protocol]] = fast_door,
        repository: RepositoryAPI | None = None,
        **settings: Any,
    ) -> None:
        self.versions = versions
        self.settings = Settings(models=Path("nowhere"), data=Path("nowhere"), **settings)
        self.counters = CounterStore()
        self.gateway: Gateway = state.assemble(
            self.settings,
            table_of(*versions),
            cast(RepositoryAPI, repository),
            lambda: True,
            self.counters,
            self.counters.snapshot,
        )
        self.app = application.build(self.gateway)
        self.config = uvicorn.Config(
            self.app,
            http=protocol(self.gateway),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
        self.config.load()
        self.server_state = ServerState()
        self.server_state.default_headers = [(b"date", DATE)]

    def connect(self) -> Connection:
        """A new connection."""
        return Connection(self)

    def set_clock(self, seconds: float) -> float:
        """Let so many seconds pass; returns what the clock says."""
        self.gateway.clock.now += seconds
        return self.gateway.clock.now

    def outcomes(self) -> dict[str, int]:
        """What the requests to all versions came to, as the counters have it."""
        found = {name: sum(each.counters.outcome(name) for each in self.versions) for name in OUTCOMES}
        return {name: count for name, count in found.items() if count}

    def statuses(self) -> dict[str, int]:
        """Replies by status, as the counters have it."""
        found: dict[str, int] = {}
        for key, count in self.counters.snapshot().named.items():
            if key[0] == "http" and count:
                found[key[2]] = found.get(key[2], 0) + count
        return found

    def assert_at_rest(self) -> None:
        """Nothing is in flight and no task is left."""
        assert [version.in_flight for version in self.versions] == [0] * len(self.versions)
        assert self.gateway.pipeline.admission.in_flight == 0
        assert not self.server_state.tasks


async def turn() -> None:
    """A few turns of the loop, while an application may wait for the rest of its body."""
    for _ in range(8):
        await asyncio.sleep(0)


async def settle(rig: Rig) -> None:
    """Let the loop come round until everything that could be answered is answered."""
    for _ in range(3):
        await asyncio.sleep(0)
    for _ in range(1000):
        if not rig.server_state.tasks:
            break
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
