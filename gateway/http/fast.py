"""The fast door: uvicorn's httptools protocol, which answers infer requests without an ASGI cycle, task or scope.

Everything else goes on to the ASGI application. Besides, every connection gets what uvicorn lacks: deadlines for
receiving a request, caps on headers, limits on a body while it arrives, and no reading from a client that does not
read. Replies leave in the order of their requests, also when these are pipelined and mixed with ASGI ones.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.errors import (
    HeadersTooLarge,
    HeadgateError,
    InvalidRequest,
    PayloadTooLarge,
    RequestTimeout,
    ServerError,
    URITooLong,
)
from gateway.http.middleware import REQUEST_ID
from gateway.inference.call import Call
from gateway.oip import compression

if TYPE_CHECKING:
    from gateway.state import Gateway

log = logging.getLogger("headgate.access")

INFER = re.compile(rb"/v2/models/([A-Za-z0-9._-]{1,64})(?:/versions/([A-Za-z0-9_-]{1,32}))?/infer")
MAX_ROUTES = 4096
MAX_PIPELINED = 64
"""Requests of one connection that may wait for their replies; then it is not read any further."""

LARGE = 1 << 16
"""Replies above this are handed to the transport in two pieces, to save a copy."""

LINGER_S = 2.0
"""How long a refused client may go on sending before its connection is closed."""

IDLE, HEAD, BODY = range(3)
"""What a connection is receiving: nothing, a request's headers, its body."""

_OK_JSON = (
    b"HTTP/1.1 200 OK\r\n%bheadgate-prediction-id: %b\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nx-request-id: %b\r\n\r\n"
)
_OK_BINARY = (
    b"HTTP/1.1 200 OK\r\n%bheadgate-prediction-id: %b\r\ncontent-type: application/octet-stream\r\n"
    b"inference-header-content-length: %d\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n"
)
_WANTED = frozenset(
    {
        b"accept-encoding",
        b"content-encoding",
        b"content-length",
        b"expect",
        b"inference-header-content-length",
        b"x-request-id",
    }
)


class _Busy:
    """Stands for replies of the fast door that are due before an ASGI reply may begin."""

    response_complete = False


class _Pending:
    """One request of the fast door on its connection, from its headers until its reply was written."""

    __slots__ = ("call", "close", "coding", "encoding", "header", "refused", "reply", "route", "size")

    def __init__(self, route: str, *, close: bool) -> None:
        self.route = route
        self.close = close
        self.call: Call | None = None
        self.coding: str | None = None
        self.encoding: str | None = None
        self.header: str | None = None
        self.reply: tuple[bytes, ...] | None = None
        self.refused = False
        self.size = 0


class FastProtocol(HttpToolsProtocol):
    """One connection. It is the Door of its calls."""

    def __init__(self, gateway: Gateway, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gateway = gateway
        self.inference = gateway.pipeline
        self.limits = gateway.connection_limits
        self.clock = gateway.clock
        self.key_header = gateway.settings.client_key_header.encode()
        self.order: deque[_Pending] = deque()
        self.current: _Pending | None = None
        self.chunks: list[bytes] = []
        self.chunk_count = 0
        self.stage = HEAD
        self.since = self.clock.now
        self.head_bytes = 0
        self.trouble: HeadgateError | None = None
        self.finished = False
        self.stalled_since: float | None = None
        self.lingering_since: float | None = None

    # -- what the transport says

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what it finds comes back through the callbacks below."""
        if self.finished:
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The offer to change the protocol is not taken up: the request is answered, and it is the last one.
            self._last_request()
        except httptools.HttpParserCallbackError:
            log.exception("protocol failed", extra={"event": "internal-error"})
            self.fail(ServerError("internal error while receiving the request"))
            return
        except httptools.HttpParserError:
            self.fail(self.trouble or InvalidRequest("this is not a valid HTTP/1.1 request", field="request"))
            return
        if self.trouble is not None:
            self.fail(self.trouble)
        elif self.stage == HEAD:
            self.head_bytes += len(data)
            if self.head_bytes > self.limits.max_header_bytes + self.limits.max_url_bytes:
                self.fail(HeadersTooLarge(f"the headers are larger than {self.limits.max_header_bytes} bytes"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: nobody waits for its calls."""
        self.finished = True
        for pending in self.order:
            if pending.call is not None:
                self.inference.abandon(pending.call)
        self.order.clear()
        self.current = None
        self.chunks = []
        super().connection_lost(exc)

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

    def shutdown(self) -> None:
        """Finish what is in flight, then close."""
        if self.order:
            self.order[-1].close = True
        elif self.cycle is not None and not self.cycle.response_complete:
            super().shutdown()
        else:
            self.transport.close()

    def check(self, now: float) -> None:
        """Called every so often: end what takes too long."""
        if self.transport is None or self.transport.is_closing():
            return
        limits = self.limits
        waited = now - self.since
        if self.stalled_since is not None and now - self.stalled_since > limits.write_stall_s:
            self.transport.abort()
        elif self.lingering_since is not None:
            if now - self.lingering_since > LINGER_S:
                self.transport.close()
        elif self.stage == HEAD and waited > limits.header_s:
            self.fail(RequestTimeout(f"the headers did not arrive within {limits.header_s:g} s"))
        elif self.stage == BODY and waited > limits.body_s:
            self.fail(RequestTimeout(f"the body did not arrive within {limits.body_s:g} s"))
        elif self.stage == IDLE and waited > limits.idle_s and not self.order and not self._asgi_is_busy():
            self.transport.close()

    def _last_request(self) -> None:
        self.finished = True
        if self.order:
            self.order[-1].close = True
        elif self._asgi_is_busy():
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def _asgi_is_busy(self) -> bool:
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    # -- what the parser finds

    def on_message_begin(self) -> None:
        """A request begins; its ASGI scope is made only when it turns out to need one."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self.current = None
        self.head_bytes = 0
        self.stage = HEAD
        self.since = self.clock.now

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self.url += url
        if len(self.url) > self.limits.max_url_bytes:
            self.trouble = URITooLong(f"the path is longer than {self.limits.max_url_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        self.headers.append((name.lower(), value))
        self.head_bytes += len(name) + len(value)
        if len(self.headers) > self.limits.max_headers or self.head_bytes > self.limits.max_header_bytes:
            self.trouble = HeadersTooLarge(
                f"at most {self.limits.max_headers} headers of {self.limits.max_header_bytes} bytes in all are taken"
            )

    def on_headers_complete(self) -> None:
        """Decide which door it is, and take a permit before the body is read."""
        self.stage = BODY
        self.since = self.clock.now
        self.head_bytes = 0
        if self.trouble is not None or self.finished:
            return
        route = self.gateway.routes.get(self.url) or self._find_route()
        if route is None or self.parser.get_method() != b"POST" or self._asgi_is_busy():
            self._to_asgi()
            return
        model, slot, pattern = route
        keep_alive = self.parser.should_keep_alive() and self.parser.get_http_version() == "1.1"
        pending = self.current = _Pending(pattern, close=not keep_alive)
        self.chunks = []
        self.chunk_count = 0
        self.order.append(pending)
        if len(self.order) >= MAX_PIPELINED:
            self.flow.pause_reading()
        request_id = key = ""
        try:
            for name, value in self.headers:
                if name in _WANTED:
                    request_id = self._header(pending, name, value) or request_id
                if name == self.key_header:
                    key = value.decode("latin-1")[:256]
            pending.call = self.inference.admit(model, slot, self, time.monotonic_ns(), request_id, key)
            pending.call.place = pending
        except HeadgateError as error:
            self._refuse(pending, error, request_id or secrets.token_hex(8))
            return
        if self.expect_100_continue and len(self.order) == 1:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        pending = self.current
        if pending is None:
            if self.trouble is None and not self.finished:
                super().on_body(body)
            return
        self.chunk_count += 1
        pending.size += len(body)
        if pending.size > self.inference.limits.max_body_bytes:
            self._too_large(pending)
        elif self.chunk_count > self.limits.max_chunks:
            self._give_up(
                pending, InvalidRequest(f"the body has more than {self.limits.max_chunks} chunks", field="body")
            )
        elif not pending.refused:
            self.chunks.append(body)
            if self.chunk_count % 1024 == 0:
                self.chunks = [b"".join(self.chunks)]

    def on_message_complete(self) -> None:
        """The request is whole."""
        self.stage = IDLE
        self.since = self.clock.now
        pending = self.current
        if pending is None:
            if self.trouble is None and not self.finished:
                super().on_message_complete()
            return
        self.current = None
        if pending.close:
            # What comes behind a last request is none of ours.
            self.finished = True
        call = pending.call
        if call is not None and not pending.refused:
            chunks, self.chunks = self.chunks, []
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self.inference.submit(call, body, pending.header, pending.encoding)

    # -- headers

    def _header(self, pending: _Pending, name: bytes, value: bytes) -> str:
        """Note a header that matters here; returns the request id when it is that one. Raises HeadgateError."""
        if name == b"content-length":
            if len(value) > 20 or int(value) > self.inference.limits.max_body_bytes:
                pending.close = True
                raise _too_large(self.inference.limits.max_body_bytes)
        elif name == b"inference-header-content-length":
            if pending.header is not None:
                text = "Inference-Header-Content-Length"
                raise InvalidRequest(f"header {text} stands more than once, at most once is allowed", field=text)
            pending.header = value.decode("latin-1")
        elif name == b"content-encoding":
            text = value.decode("latin-1")
            pending.encoding = text if pending.encoding is None else f"{pending.encoding}, {text}"
        elif name == b"accept-encoding":
            pending.coding = compression.choose(value.decode("latin-1"))
        elif name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        elif name == b"x-request-id":
            text = value.decode("latin-1")
            return text if REQUEST_ID.fullmatch(text) else ""
        return ""

    def _find_route(self) -> tuple[str, str | None, str] | None:
        """(model, version slot, route pattern) of an infer URL; kept for the URLs of known models only."""
        match = INFER.fullmatch(self.url)
        if match is None:
            return None
        model, slot = match[1].decode(), match[2].decode() if match[2] else None
        pattern = "/v2/models/{model}/versions/{version}/infer" if slot else "/v2/models/{model}/infer"
        routes = self.gateway.routes
        if self.gateway.table.knows(model, slot) and len(routes) < MAX_ROUTES:
            routes[self.url] = (model, slot, pattern)
        return model, slot, pattern

    def _to_asgi(self) -> None:
        """Hand the request to uvicorn, behind the replies that the fast door still owes."""
        url, headers = self.url, self.headers
        expect = any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers)
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        self.expect_100_continue = expect
        if self.order:
            self.cycle = _Busy()  # type: ignore[assignment]
        super().on_headers_complete()

    # -- the Door

    def answer(self, call: Call, body: bytes, json_length: int) -> None:
        """See Door."""
        pending: _Pending = call.place
        prediction_id = call.prediction_id
        request_id = call.request_id.encode() if call.request_id else prediction_id
        dates = self._default_headers()
        if pending.coding is not None or pending.close:
            head, body = self._unusual_head(pending, prediction_id, request_id, dates, body, json_length)
        elif json_length == len(body):
            head = _OK_JSON % (dates, prediction_id, json_length, request_id)
        else:
            head = _OK_BINARY % (dates, prediction_id, json_length, len(body), request_id)
        pending.reply = (head + body,) if len(body) < LARGE else (head, body)
        self.gateway.count(pending.route, 200, call.arrived_ns, request_id)
        if self.order and self.order[0] is pending:
            self._send()

    def refuse(self, call: Call, error: HeadgateError) -> None:
        """See Door."""
        pending: _Pending = call.place
        if isinstance(error, PayloadTooLarge):
            pending.close = True
        self._refuse(pending, error, call.name())

    def _unusual_head(
        self, pending: _Pending, prediction_id: bytes, request_id: bytes, dates: bytes, body: bytes, json_length: int
    ) -> tuple[bytes, bytes]:
        binary = json_length < len(body)
        lines = [b"HTTP/1.1 200 OK\r\n", dates, b"headgate-prediction-id: ", prediction_id, b"\r\ncontent-type: "]
        lines.append(b"application/octet-stream\r\n" if binary else b"application/json\r\n")
        if binary:
            lines.append(b"inference-header-content-length: %d\r\n" % json_length)
        if pending.coding is not None:
            body = compression.deflate(body, pending.coding)
            lines.append(b"content-encoding: %b\r\nvary: Accept-Encoding\r\n" % pending.coding.encode())
        lines.append(b"content-length: %d\r\nx-request-id: %b\r\n" % (len(body), request_id))
        lines.append(b"connection: close\r\n\r\n" if pending.close else b"\r\n")
        return b"".join(lines), body

    def _refuse(self, pending: _Pending, error: HeadgateError, request_id: str) -> None:
        pending.refused = True
        pending.reply = (self._error(error, request_id, close=pending.close),)
        self.gateway.count(pending.route, error.status, time.monotonic_ns(), request_id.encode())
        if self.order and self.order[0] is pending:
            self._send()

    def _error(self, error: HeadgateError, request_id: str, *, close: bool) -> bytes:
        body = orjson.dumps(error.body(request_id))
        lines = [STATUS_LINE[error.status], self._default_headers()]
        lines += [f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in error.headers.items()]
        lines.append(b"content-length: %d\r\ncontent-type: application/json\r\n" % len(body))
        lines.append(b"x-request-id: %b\r\n" % request_id.encode("latin-1"))
        lines.append(b"connection: close\r\n\r\n" if close else b"\r\n")
        lines.append(body)
        return b"".join(lines)

    def _too_large(self, pending: _Pending) -> None:
        self._give_up(pending, _too_large(self.inference.limits.max_body_bytes))

    def _give_up(self, pending: _Pending, error: HeadgateError) -> None:
        """Stop receiving: the rest of the body is not worth reading, so the connection ends with this reply."""
        pending.close = True
        self.finished = True
        self.chunks = []
        if pending.call is not None and not pending.refused:
            self.inference.refuse(pending.call, error)
        else:
            self._linger()

    def _linger(self) -> None:
        """Close, but let the client read the reply first: closing on unread data would reset the connection."""
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.lingering_since = self.clock.now
        else:
            self.transport.close()

    def fail(self, error: HeadgateError) -> None:
        """Answer what cannot be a request, behind the replies that are owed, and close."""
        if self.finished or self.transport.is_closing():
            return
        self.trouble = error
        pending = self.current
        if pending is not None and not pending.refused:
            self._give_up(pending, error)
            return
        self.finished = True
        self.gateway.count("_malformed_", error.status, time.monotonic_ns(), b"")
        if self._asgi_is_busy():
            # An ASGI reply is on its way; whatever it is, nothing can follow it.
            if isinstance(error, RequestTimeout):
                self.transport.close()
            else:
                self.cycle.keep_alive = False
            return
        last = _Pending("_malformed_", close=True)
        last.reply = (self._error(error, secrets.token_hex(8), close=True),)
        self.order.append(last)
        if self.order[0] is last:
            self._send()

    def _send(self) -> None:
        """Write every reply that is due."""
        transport = self.transport
        order = self.order
        while order and order[0].reply is not None:
            pending = order.popleft()
            self.server_state.total_requests += 1
            if transport.is_closing():
                continue
            for piece in pending.reply or ():
                transport.write(piece)
            if pending.close:
                whole = self.stage == IDLE
                self.finished = True
                if whole:
                    transport.close()
                else:
                    self._linger()
                return
        if order or transport.is_closing():
            return
        self.since = self.clock.now
        if self.stalled_since is None:
            self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)

    def _default_headers(self) -> bytes:
        """uvicorn's default headers (the date), joined once for each new list of them."""
        state = self.gateway
        if state.default_headers is not self.server_state.default_headers:
            state.default_headers = self.server_state.default_headers
            state.joined_headers = b"".join(b"%b: %b\r\n" % each for each in state.default_headers)
        return state.joined_headers


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {max_bytes} bytes", field="body")


def door(gateway: Gateway) -> type[FastProtocol]:
    """The protocol class of one gateway: uvicorn makes connections from a class alone."""

    class Door(FastProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(gateway, *args, **kwargs)

    return Door
