"""Pure ASGI middleware: request ids, the access log and the count of every route, the answer to our own defects."""

from __future__ import annotations

import logging
import random
import time

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import ServerError
from gateway.http.head import offered_id
from gateway.http.messages import error_response
from gateway.telemetry.store import CounterStore

log = logging.getLogger("headgate.access")
errors = logging.getLogger("headgate.http")

PRIVATE = frozenset({"/f/{token}"})
"""Routes whose path is a permission: whoever reads the log must not get it."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class RequestId:
    """Gives every request an id: the client's X-Request-Id where it is a plain short word, else a new one.

    The id goes back in the same header, into error bodies and into the log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        # An id is a name and no secret: it need not cost a call of the system.
        self._random = random.Random()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = offered_id(scope["headers"]) or f"{self._random.getrandbits(64):016x}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class Access:
    """Counts each reply by route and status, and writes the access log where it is on.

    The route is the pattern that matched, never the path: a client cannot make new label values. A request that the
    connection has `answered` itself, because its body broke, was counted there.
    """

    def __init__(self, app: ASGIApp, counters: CounterStore, log_requests: bool) -> None:
        self.app = app
        self.counters = counters
        self.log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        raw: bytes = scope.get("raw_path") or b""
        if b"%2f" in raw.lower():
            # A slash that is encoded separates nothing: who guards paths by how they begin may not decode them.
            scope["path"] = raw.decode("latin-1")
        started = time.monotonic()
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            if not scope["state"].get("answered"):
                self._note(scope, status, time.monotonic() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "_unmatched_")
        self.counters.count("http", route, str(status))
        if self.log_requests:
            facts = {
                "request_id": scope["state"]["request_id"],
                "method": scope["method"] if scope["method"] in _METHODS else "other",
                "path": route if route in PRIVATE else scope["path"],
                "status": status,
                "ms": round(seconds * 1000, 3),
                "client": (scope.get("client") or ("",))[0],
            }
            log.info("request", extra={"event": "request", **facts})


class Defects:
    """Answers 500 where the application raised: the client gets the request id, the log has the rest under it.

    Starlette has a handler for this too, outside of every middleware: what it sends gets no request id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            if started or scope["type"] != "http":
                # Half a reply cannot be taken back; the server logs the error and ends the connection.
                raise
            request_id = scope["state"]["request_id"]
            facts = {"event": "internal-error", "request_id": request_id}
            errors.error("internal error", exc_info=error, extra=facts)
            defect = ServerError("internal error; the log has the details under this request id")
            await error_response(Request(scope), defect)(scope, receive, send)
