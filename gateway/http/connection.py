"""Connection: what every connection gets that uvicorn's protocol lacks.

Deadlines for receiving a request and for reading a reply, no reading from a client that does not read, and an end that
the client can hear: a reply is not lost because it was still sending.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import HeadgateError, RequestTimeout

if TYPE_CHECKING:
    from gateway.http.replies import Refusal
    from gateway.inference.call import Call
    from gateway.state import Gateway

MAX_PIPELINED = 64
"""Requests of one connection that may wait for their replies; then it is not read any further."""

LINGER_S = 2.0
"""How long a refused client may go on sending before its connection is closed."""

JOINED_BYTES = 1 << 16
"""A body up to this goes out in one piece with the head before it; a longer one is not copied for that."""

IDLE, HEAD, BODY = range(3)
"""What a connection is receiving: nothing, a request's headers, its body."""


class Exit:
    """The transport as an ASGI reply sees it: closed behind a reply, it lets the client read it first.

    A client that still sends its body would lose the reply to the reset that closing on unread data brings. The head of
    a reply waits for what is written behind it in the same turn of the loop: it would be a packet of its own.
    """

    def __init__(self, protocol: Connection) -> None:
        self._protocol = protocol
        self._transport = protocol.transport
        self._head: bytes | None = None
        self._has_begun = False
        self.is_closing = protocol.transport.is_closing

    def write(self, data: bytes) -> None:
        """See asyncio.Transport."""
        if not self._has_begun:
            self._has_begun = True
            self._head = data
            self._protocol.loop.call_soon(self.let_go)
        elif self._head is not None and len(data) <= JOINED_BYTES:
            head, self._head = self._head, None
            self._transport.write(head + data)
        else:
            self.let_go()
            self._transport.write(data)

    def let_go(self) -> None:
        """Nothing is written behind the head of the reply for now."""
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head)

    def close(self) -> None:
        """Close, when the client has got what it is owed."""
        self.let_go()
        protocol = self._protocol
        if protocol.stage == BODY and protocol.cycle.response_complete:
            protocol.finished = True
            protocol.linger()
        else:
            protocol.transport.close()


class Connection(HttpToolsProtocol):
    """`order` are the requests whose replies are owed, `stage` what is being received, `since` when that began.

    `finished`: nothing more is received.
    """

    def __init__(self, gateway: Gateway, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gateway = gateway
        self.limits = gateway.connection_limits
        self.clock = gateway.clock
        self.order: deque[Call | Refusal] = deque()
        self.stage = HEAD
        self.since = self.clock.now
        self.finished = False
        self.stalled_since: float | None = None
        self.lingering_since: float | None = None

    def fail(self, error: HeadgateError) -> None:
        """Answer what cannot be a request, behind the replies that are owed, and close."""
        raise NotImplementedError

    def pause_writing(self) -> None:
        """The client does not read its replies, so no more of its requests are read."""
        self.stalled_since = self.clock.now
        self.flow.pause_reading()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        self.stalled_since = None
        super().resume_writing()
        if len(self.order) < MAX_PIPELINED:
            self.flow.resume_reading()

    def check(self, now: float) -> None:
        """Called every so often: end what takes too long."""
        if self.stalled_since is None and self.transport.is_closing():
            # It ends when its last bytes are written, which a client that does not read could put off for ever.
            self.stalled_since = now
        limits = self.limits
        waited = now - self.since
        if self.stalled_since is not None:
            if now - self.stalled_since > limits.write_stall_s:
                self.transport.abort()
        elif self.lingering_since is not None:
            if now - self.lingering_since > LINGER_S:
                self.transport.close()
        elif self.stage == HEAD and waited > limits.header_s:
            self.fail(RequestTimeout(f"the headers did not arrive within {limits.header_s:g} s"))
        elif self.stage == BODY and waited > limits.body_s:
            self.fail(RequestTimeout(f"the body did not arrive within {limits.body_s:g} s"))
        elif self.stage == IDLE and waited > limits.idle_s and not self.order and not self.asgi_is_busy():
            self.transport.close()

    def asgi_is_busy(self) -> bool:
        """True while a reply of the application is owed."""
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def on_response_complete(self) -> None:
        """An ASGI reply is complete. uvicorn's own timer for what comes next is not used: `check` has all deadlines."""
        if isinstance(self.cycle.transport, Exit):
            # It may be without a body, and what follows does not go this way.
            self.cycle.transport.let_go()
        super().on_response_complete()
        self._unset_keepalive_if_required()
        if self.stage == IDLE:
            self.since = self.clock.now

    def linger(self) -> None:
        """Close, but let the client read what it is owed: closing on unread data would reset the connection."""
        if self.order:
            self.order[-1].close = True
        elif self.transport.can_write_eof():
            self.transport.write_eof()
            self.lingering_since = self.clock.now
        else:
            self.transport.close()
