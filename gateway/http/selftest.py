"""A self-test at start-up: what the fast door uses of uvicorn and httptools is there and does what it did.

The fast door stands on names that uvicorn does not promise to keep. A release that moves one of them would not fail:
it would answer in the wrong order, or lose a deadline. So a process that serves first holds a conversation with
uvicorn's protocol over a transport that is a list, and does not start where anything in it is different.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

log = logging.getLogger("headgate.http")

CLASSES: Mapping[type, tuple[str, ...]] = {
    HttpToolsProtocol: (
        *("connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing", "shutdown"),
        *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
        *("on_response_complete", "_start_asgi_task", "_unset_keepalive_if_required"),
    ),
    FlowControl: ("pause_reading", "resume_reading"),
    httptools.HttpRequestParser: (
        *("feed_data", "get_http_version", "get_method", "should_keep_alive", "should_upgrade"),
        "set_dangerous_leniencies",
    ),
}
"""Methods that the fast door calls or replaces."""

CONNECTION = (
    *("cycle", "expect_100_continue", "flow", "headers", "parser", "pipeline", "server_state"),
    *("timeout_keep_alive_task", "transport", "url"),
)
"""Attributes of a connection that it reads or sets."""

CYCLE = ("disconnected", "keep_alive", "message_event", "response_complete", "response_started", "scope", "transport")
FLOW = ("read_paused",)
SERVER = ("connections", "default_headers", "tasks")

GET = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /%b HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"


def check() -> bool:
    """True where all is as it must be; else the log says what moved, and nothing may be served."""
    found = moved()
    for what in found:
        log.critical("uvicorn has changed", extra={"event": "selftest-failed", "reason": what})
    return not found


def moved() -> list[str]:
    """One sentence for everything that is missing, or else for everything that behaves otherwise."""
    return [*_missing_methods()] or [*_surprises()]


def _missing_methods() -> Iterator[str]:
    for owner, names in CLASSES.items():
        yield from (f"{owner.__name__}.{name} is gone" for name in names if not hasattr(owner, name))
    if httptools_impl.STATUS_LINE.get(413, b"")[:13] != b"HTTP/1.1 413 ":
        yield "httptools_impl.STATUS_LINE is not what begins a reply"


def _surprises() -> Iterator[str]:
    loop = asyncio.new_event_loop()
    try:
        for scene in _SCENES:
            try:
                missing = loop.run_until_complete(_play(scene))
            except Exception as error:  # whatever a changed library raises is what has changed
                yield f"{scene.__doc__}: {type(error).__name__}: {error}"
            else:
                if missing is not True:
                    yield missing or f"{scene.__doc__}: no longer"
    finally:
        loop.close()


async def _play(scene: _Scene) -> bool | str:
    """One scene, and the end of every task that it left; a task may answer its cancellation with one more wait."""
    peer = _Peer(asyncio.get_running_loop())
    try:
        return await scene(peer)
    finally:
        for _ in range(5):
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await peer.turn()


class _Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class _Peer:
    """One connection to uvicorn's protocol, and an application that answers with the path and the body it got."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        config = uvicorn.Config(
            self._app,
            http=HttpToolsProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
        )
        config.load()
        make: Any = config.http_protocol_class
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"now")]
        self.transport = _Transport()
        self.seen: list[str] = []
        self.connection: Any = make(config=config, server_state=self.state, app_state={}, _loop=loop)
        self.connection.connection_made(self.transport)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.seen.append("disconnect")
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.seen.append(f"{scope['path']} {body.decode()}".strip())
        scope["state"]["seen"] = True
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})

    async def turn(self) -> None:
        """Let the application run until it waits."""
        for _ in range(10):
            await asyncio.sleep(0)


_Scene = Callable[[_Peer], Awaitable[bool | str]]


def _lacks(what: str, owner: object, names: tuple[str, ...]) -> bool | str:
    """True where all names are there, else a list of those that are not."""
    return ", ".join(f"{what}.{name} is gone" for name in names if not hasattr(owner, name)) or True


async def _names(peer: _Peer) -> bool | str:
    """the attributes of a connection"""
    peer.connection.on_message_begin()
    return _lacks("HttpToolsProtocol", peer.connection, CONNECTION)


async def _names_beside(peer: _Peer) -> bool | str:
    """the attributes of what a connection has"""
    peer.connection.data_received(GET % b"one")
    for what, names in (("cycle", CYCLE), ("flow", FLOW), ("server_state", SERVER)):
        found = _lacks(what, getattr(peer.connection, what), names)
        if found is not True:
            return found
    return peer.connection in peer.state.connections and len(peer.state.tasks) == 1


async def _reply(peer: _Peer) -> bool | str:
    """a request gets its reply, default headers first, and then a timer that _unset_keepalive_if_required stops"""
    connection = peer.connection
    connection.data_received(POST % b"one" + b"body")
    cycle = connection.cycle
    before = cycle.response_started or cycle.response_complete
    await peer.turn()
    timer = connection.timeout_keep_alive_task
    connection._unset_keepalive_if_required()
    return (
        peer.transport.written == b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 4\r\n\r\nbody"
        and (before, cycle.response_started, cycle.response_complete) == (False, True, True)
        and (timer is not None and timer.cancelled() and connection.timeout_keep_alive_task is None)
        and cycle.scope["state"] == {"seen": True}
        and not peer.state.tasks
    )


async def _own_head(peer: _Peer) -> bool | str:
    """on_message_begin makes a scope of the list `headers`, to which a head that was read elsewhere can be added"""
    connection = peer.connection
    connection.on_message_begin()
    connection.url = b"/two"
    connection.headers.extend([(b"host", b"b")])
    connection.expect_100_continue = True
    connection.parser.feed_data((GET % b"one")[:-2])
    scope = connection.scope
    return scope["headers"] is connection.headers and scope["state"] == {} and connection.expect_100_continue is False


async def _queue(peer: _Peer) -> bool | str:
    """requests behind a cycle that is not complete wait in `pipeline`, the oldest at its right end"""
    connection = peer.connection

    class Busy:
        response_complete = False

    connection.data_received(GET % b"one")
    await peer.turn()
    connection.cycle = Busy()
    connection.data_received(GET % b"two" + GET % b"three")
    await peer.turn()
    waiting = [cycle.scope["path"] for cycle, _ in connection.pipeline]
    paused = not peer.transport.reading and connection.flow.read_paused
    alone = peer.seen == ["/one"]
    connection._start_asgi_task(*connection.pipeline.pop())
    await peer.turn()
    return (waiting, paused, alone, peer.seen) == (["/three", "/two"], True, True, ["/one", "/two", "/three"])


async def _flow(peer: _Peer) -> bool | str:
    """FlowControl pauses and resumes reading, and read_paused says so"""
    flow, said = peer.connection.flow, []
    for act in (flow.pause_reading, flow.pause_reading, flow.resume_reading, flow.resume_reading):
        act()
        said.append((flow.read_paused, peer.transport.reading))
    return said == [(True, False)] * 2 + [(False, True)] * 2


async def _cut(peer: _Peer) -> bool | str:
    """a cycle that is `disconnected` tells its application so when its message_event is set, and writes nothing"""
    connection = peer.connection
    connection.data_received(POST % b"one" + b"bo")
    await peer.turn()
    connection.cycle.disconnected = True
    connection.cycle.message_event.set()
    await peer.turn()
    return (peer.seen, peer.transport.written) == (["disconnect"], b"")


async def _last(peer: _Peer) -> bool | str:
    """shutdown, and keep_alive of a cycle, end the connection behind the reply that is due"""
    connection = peer.connection
    connection.data_received(POST % b"one")
    connection.shutdown()
    kept = connection.cycle.keep_alive
    connection.data_received(b"body")
    open_still = not peer.transport.closed
    await peer.turn()
    return (kept, open_still, peer.transport.closed) == (False, True, True) and (
        b"\r\nconnection: close\r\n" in peer.transport.written
    )


async def _idle(peer: _Peer) -> bool | str:
    """shutdown closes a connection that owes nothing"""
    peer.connection.shutdown()
    return peer.transport.closed


async def _writing(peer: _Peer) -> bool | str:
    """replies wait between pause_writing and resume_writing"""
    connection = peer.connection
    connection.pause_writing()
    connection.data_received(GET % b"one")
    await peer.turn()
    written = peer.transport.written
    connection.resume_writing()
    await peer.turn()
    return written == b"" and peer.transport.written.startswith(b"HTTP/1.1 200 OK\r\n")


async def _gone(peer: _Peer) -> bool | str:
    """connection_lost tells the application and leaves `connections`"""
    peer.connection.data_received(POST % b"one")
    await peer.turn()
    peer.connection.connection_lost(ConnectionResetError())
    await peer.turn()
    return peer.seen == ["disconnect"] and not peer.state.connections


class _Callbacks:
    """Notes what the parser calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def on_message_begin(self) -> None:
        self.calls.append("begin")

    def on_url(self, url: bytes) -> None:
        self.calls.append(f"url {url.decode()}")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.calls.append(f"{name.decode()}={value.decode()}")
        if value == b"raise":
            raise ValueError(value)

    def on_headers_complete(self) -> None:
        parser = self.parser
        found = parser.get_method().decode(), parser.get_http_version(), parser.should_keep_alive()
        self.calls.append("{} {} {}".format(*found))

    def on_body(self, body: bytes) -> None:
        self.calls.append(f"body {body.decode()}")

    def on_message_complete(self) -> None:
        self.calls.append("complete")


async def _callbacks(peer: _Peer) -> bool | str:
    """the parser calls for every part of a request in its order, and ignores what comes behind the last one"""
    heard = _Callbacks()
    heard.parser.feed_data(GET % b"a" + b"POST /b HTTP/1.0\r\nHost: a \r\nContent-Length: 4\r\n\r\nbody" + GET % b"c")
    return heard.calls == [
        *("begin", "url /a", "Host=a", "GET 1.1 True", "complete"),
        *("begin", "url /b", "Host=a ", "Content-Length=4", "POST 1.0 False", "body body", "complete"),
    ]


async def _upgrades(peer: _Peer) -> bool | str:
    """the parser stops behind a head that offers another protocol, and says where"""
    heard = _Callbacks()
    head = b"POST /a HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\n"
    try:
        heard.parser.feed_data(head + b"body")
    except httptools.HttpParserUpgrade as upgrade:
        return upgrade.args[0] == len(head) and heard.parser.should_upgrade() and "body body" not in heard.calls
    return "it does not"


async def _errors(peer: _Peer) -> bool | str:
    """the parser raises HttpParserError for what is no request, and HttpParserCallbackError for a callback's own"""
    kinds = []
    for data in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nA: raise\r\n\r\n"):
        try:
            _Callbacks().parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            kinds.append("callback")
        except httptools.HttpParserError:
            kinds.append("parser")
    return kinds == ["parser", "callback"]


_SCENES: tuple[_Scene, ...] = (
    *(_names, _names_beside, _reply, _own_head, _queue, _flow, _cut, _last, _idle, _writing, _gone),
    *(_callbacks, _upgrades, _errors),
)
