"""Pure ASGI middleware: request ids, the access log and the count of every route."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.telemetry.store import CounterStore

log = logging.getLogger("headgate.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
PRIVATE = frozenset({"/f/{token}"})
"""Routes whose path is a permission: whoever reads the log must not get it."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class RequestId:
    """Gives every request an id: the client's X-Request-Id where it is a plain short word, else a new one.

    The id goes back in the same header, into error bodies and into the log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        offered = Headers(scope=scope).getlist("x-request-id") or [""]
        request_id = offered[-1] if REQUEST_ID.fullmatch(offered[-1]) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class Access:
    """Counts each reply by route and status, and writes the access log where it is on.

    The route is the pattern that matched, never the path: a client cannot make new label values.
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
            route = getattr(scope.get("route"), "path", "_unmatched_")
            self.counters.count("http", route, str(status))
            if self.log_requests:
                facts = {
                    "request_id": scope["state"]["request_id"],
                    "method": scope["method"] if scope["method"] in _METHODS else "other",
                    "path": route if route in PRIVATE else scope["path"],
                    "status": status,
                    "ms": round((time.monotonic() - started) * 1000, 3),
                    "client": (scope.get("client") or ("",))[0],
                }
                log.info("request", extra={"event": "request", **facts})
