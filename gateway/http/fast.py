"""The fast door: uvicorn's httptools protocol, which answers infer requests without an ASGI cycle, task or scope.

Everything else goes on to the ASGI application. Besides, every connection gets what uvicorn lacks: deadlines for
receiving a request, caps on headers, limits on a body while it arrives, and no reading from a client that does not
read. Replies leave in the order of their requests, also when these are pipelined and mixed with ASGI ones.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

import httptools

from gateway.errors import HeadgateError, InvalidRequest, PayloadTooLarge, ServerError
from gateway.http import replies, strict
from gateway.http.connection import BODY, HEAD, IDLE, MAX_PIPELINED, Connection, Exit
from gateway.http.head import NO_NAMES, Head, Names, find_route, offered_id, recall, remember
from gateway.http.intake import Intake
from gateway.inference.call import Call

if TYPE_CHECKING:
    from gateway.state import Gateway

log = logging.getLogger("headgate.access")


class _Busy:
    """Stands for replies of the fast door that are due before an ASGI reply may begin."""

    response_complete = False


class FastProtocol(Connection):
    """One connection. It is the Door of its calls."""

    offers_inference = True

    def __init__(self, gateway: Gateway, *args: Any, **kwargs: Any) -> None:
        super().__init__(gateway, *args, **kwargs)
        self.inference = gateway.pipeline
        self.key_header = gateway.settings.client_key_header.encode()
        self.heads = gateway.heads
        self.cells = gateway.counters.cells
        self.access_log = gateway.settings.access_log
        self.head: Head | None = None
        self.call: Call | None = None
        self.seen: bytes | None = None
        self.head_size = 0
        self.chunks: list[bytes] = []
        self.intake = Intake(self.limits, self.inference.limits.max_body_bytes)
        self.at_start = True
        self.trouble: HeadgateError | None = None

    # -- what the transport says

    def data_received(self, data: bytes) -> None:
        """A whole request under a head that was seen before goes straight on; all else goes through the parser."""
        if self.at_start and not self.finished:
            # The next head of a connection is most often the same one, and so of the same size.
            size, names, self.seen = self.head_size, NO_NAMES, None
            head = self.heads.get(data[:size])
            if head is None:
                head, size, names, self.seen = recall(self.heads, data)
                self.head_size = size if names is NO_NAMES else 0
            is_free = self.cycle is None or not self.asgi_is_busy()
            if head is not None and is_free and len(data) == size + head.length:
                self.stage = IDLE
                call = self._admit(head, names)
                if call is not None:
                    self.inference.submit(call, data[size:], head.header, head.encoding)
                return
        if not self.finished:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        trouble: HeadgateError | None = None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.trouble is None:
                self._decline(data[upgrade.args[0] :])
                return
        except httptools.HttpParserCallbackError:
            log.exception("protocol failed", extra={"event": "internal-error"})
            trouble = ServerError("internal error while receiving the request")
        except httptools.HttpParserError:
            trouble = InvalidRequest("this is not a valid HTTP request", field="request")
        self.seen = None
        trouble = self.trouble or trouble
        if trouble is None and not self.at_start:
            trouble = self.intake.head_piece(len(data)) if self.stage == HEAD else self.intake.body_piece(len(data))
        if trouble is not None:
            self.fail(trouble)

    def _decline(self, rest: bytes) -> None:
        """Read a request again without its offer to change the protocol: the parser does not read the body of one."""
        parser = self.parser
        head = strict.without_upgrade(parser.get_method(), self.url, parser.get_http_version(), self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(head + rest)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: nobody waits for its calls."""
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        """Nothing more is received, and nobody waits for what is not answered yet."""
        self.finished = True
        for each in self.order:
            if isinstance(each, Call):
                self.inference.abandon(each)
        self.order.clear()
        self.head = self.call = None
        self.chunks = []

    def shutdown(self) -> None:
        """Finish what is in flight, then close."""
        if self.order:
            self.order[-1].close = True
        else:
            super().shutdown()

    # -- what the parser finds

    def on_message_begin(self) -> None:
        """A request begins; its ASGI scope is made only when it turns out to need one."""
        if self.trouble is not None or self.finished:
            return
        self.url = b""
        self.headers = []
        self.head = self.call = None
        self.intake.begin()
        self.at_start = False
        self.stage = HEAD
        self.since = self.clock.now

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self.url += url
        self.trouble = self.trouble or self.intake.url(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field, or a trailer: these are counted and dropped, for nobody may take one for a header."""
        if self.stage == HEAD:
            # The parser leaves in the white space behind a value, which is no part of it.
            self.headers.append((name.lower(), value.rstrip(b" \t")))
        self.trouble = self.trouble or self.intake.header(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Decide which door it is, and take a permit before the body is read."""
        if self.trouble is not None or self.finished:
            return
        version, method = self.parser.get_http_version(), self.parser.get_method()
        try:
            self.url = strict.check(version, method, self.url, self.headers)
        except InvalidRequest as error:
            self.trouble = error
        if self.trouble is not None or self.parser.should_upgrade():
            return
        self.stage = BODY
        self.since = self.clock.now
        self.intake.begin_body()
        seen, self.seen = self.seen, None
        route = find_route(self.url) if self.offers_inference else None
        if route is None or method != b"POST" or self.asgi_is_busy():
            self._to_asgi()
            return
        keep_alive = self.parser.should_keep_alive() and version == "1.1"
        head = self.head = Head(*route, self.gateway.counters.cell("http", route[1], "200"), close=not keep_alive)
        self.chunks = []
        trouble = head.read(self.headers, self.key_header, self.inference.limits.max_body_bytes)
        if seen is not None and trouble is None:
            remember(self.heads, seen, head)
        call = self.call = self._admit(head, Names(head.request_id, head.trace))
        if call is not None and trouble is not None:
            self.inference.refuse(call, trouble)
        elif call is not None and head.expects and len(self.order) == 1:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        if self.trouble is not None or self.finished:
            return
        error = self.intake.body(len(body))
        if error is not None:
            self.fail(error)
        elif self.head is None:
            super().on_body(body)
        elif self.call is not None:
            self.chunks.append(body)
            if self.intake.many_chunks:
                self.chunks = [b"".join(self.chunks)]

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self.trouble is not None or self.finished or self.parser.should_upgrade():
            return
        self.stage = IDLE
        self.at_start = True
        self.since = self.clock.now
        head, call = self.head, self.call
        if head is None:
            super().on_message_complete()
            return
        self.head = self.call = None
        if head.close:
            # What comes behind a last request is none of ours.
            self.finished = True
        if call is not None:
            body = b"".join(self.chunks)
            self.chunks = []
            self.inference.submit(call, body, head.header, head.encoding, time.monotonic_ns())

    # -- headers

    def _admit(self, head: Head, names: Names) -> Call | None:
        """A call in its place among the replies; None when it was refused."""
        request_id, trace = names
        try:
            call = self.inference.admit(
                head.target, self, time.monotonic_ns(), request_id, head.key, trace, head.timeout_s
            )
        except HeadgateError as error:
            self._refuse(replies.Refusal(b"", close=head.close), error, request_id or secrets.token_hex(8), head.route)
            return None
        call.head = head
        if head.close:
            call.close = True
        self.order.append(call)
        if len(self.order) >= MAX_PIPELINED:
            self.flow.pause_reading()
        return call

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
        self.cycle.transport = Exit(self)  # type: ignore[assignment]

    # -- the Door

    def answer(self, call: Call, body: bytes, json_length: int) -> None:
        """See Door."""
        gateway = self.gateway
        if gateway.default_headers is not self.server_state.default_headers:
            self._join_default_headers()
        head: Head = call.head
        prediction_id = call.prediction_id
        request_id = call.request_id.encode() if call.noted and call.request_id else prediction_id
        close = call.close
        dates = gateway.joined_headers
        length = len(body)
        if head.coding is not None or close:
            reply = replies.unusual(
                dates, prediction_id, request_id, body, json_length, coding=head.coding, close=close
            )
        elif length == json_length:
            reply = replies.OK % (dates, prediction_id, length, request_id, body)
        else:
            reply = replies.BINARY % (dates, prediction_id, json_length, length, request_id, body)
        self.cells[head.answered] += 1
        if self.access_log:
            gateway.log_access(head.route, 200, call.arrived_ns, request_id.decode())
        order = self.order
        if len(order) == 1 and not close and not self.pipeline and not self.flow.read_paused:
            # It is the only one that is owed: most often, and nothing else need be looked at.
            order.clear()
            self.transport.write(reply)
            self.since = self.clock.now
            return
        call.reply = reply
        if order and order[0] is call:
            self._send()

    def refuse(self, call: Call, error: HeadgateError) -> None:
        """See Door."""
        head: Head = call.head
        if isinstance(error, PayloadTooLarge):
            call.close = True
        self._refuse(call, error, call.name(), head.route)

    def _refuse(self, place: Call | replies.Refusal, error: HeadgateError, request_id: str, route: str) -> None:
        """Answer with an error, in its turn."""
        if place is self.call:
            self.call = None
        self.gateway.counters.count("http", route, str(error.status))
        if self.access_log:
            self.gateway.log_access(route, error.status, time.monotonic_ns(), request_id)
        if self.gateway.default_headers is not self.server_state.default_headers:
            self._join_default_headers()
        place.reply = replies.refusal(self.gateway.joined_headers, error, request_id, close=place.close)
        if isinstance(place, replies.Refusal):
            self.order.append(place)
        if self.order and self.order[0] is place:
            self._send()

    def fail(self, error: HeadgateError) -> None:
        """Answer what cannot be a request, behind the replies that are owed, and close."""
        if self.finished or self.transport.is_closing():
            return
        self.trouble = error
        self.finished = True
        if self.call is not None:
            self.chunks = []
            self.call.close = True
            self.inference.refuse(self.call, error)
            return
        if self.head is not None:
            self.linger()
            return
        cycle = self.cycle
        if self.stage != BODY and self.asgi_is_busy():
            # An ASGI reply is on its way; whatever it is, nothing can follow it.
            cycle.keep_alive = False
            return
        if self.stage == BODY and cycle is not None:
            if cycle.response_complete:
                # It was answered without its body.
                self.linger()
                return
            if self.order:
                # Its application was not asked yet, and will not be.
                self.pipeline.clear()
            elif self.pipeline or cycle.response_started:
                self.transport.close()
                return
            # Its application waits for the rest of the body, which will not come.
            cycle.scope["state"]["answered"] = True
            cycle.disconnected = True
            cycle.message_event.set()
        # A head that is not whole, or is wrong, may be read in more than one way: nothing in it is repeated.
        request_id = (offered_id(self.headers) if self.stage == BODY else "") or secrets.token_hex(8)
        self._refuse(replies.Refusal(b"", close=True), error, request_id, "_malformed_")

    def _send(self) -> None:
        """Write every reply that is due."""
        transport = self.transport
        order = self.order
        while order and order[0].reply is not None:
            place = order.popleft()
            if transport.is_closing():
                continue
            transport.write(place.reply or b"")
            if place.close:
                self._forget()
                if self.stage == IDLE and self.trouble is None:
                    transport.close()
                else:
                    self.linger()
                return
        if transport.is_closing():
            return
        if self.stalled_since is None and len(order) <= MAX_PIPELINED // 2:
            # The last of them may wait for the rest of its body.
            self.flow.resume_reading()
        if order:
            return
        self.since = self.clock.now
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)

    def _join_default_headers(self) -> None:
        """uvicorn's default headers (the date), joined once for each new list of them."""
        state = self.gateway
        state.default_headers = self.server_state.default_headers
        state.joined_headers = b"".join(b"%b: %b\r\n" % each for each in state.default_headers)


def door(gateway: Gateway, *, inference: bool) -> type[FastProtocol]:
    """The protocol class of one gateway. `inference` False: no sessions live here, so there is no infer route."""

    class Door(FastProtocol):
        offers_inference = inference

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(gateway, *args, **kwargs)

    return Door
