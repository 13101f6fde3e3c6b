"""The ASGI door: the infer route under any ASGI server. The fast door answers the same with the same bytes."""

from __future__ import annotations

import asyncio
import time

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.errors import HeadgateError
from gateway.http.head import MAX_KEY, TIMEOUT_HEADER, timeout_of, trace_of, wrong_timeout
from gateway.http.messages import read_raw, reply_headers, request_id, single_header
from gateway.inference.call import Call
from gateway.oip import compression
from gateway.state import gateway_of


class _Waiting:
    """The door of one request: what the pipeline says becomes the result of a future."""

    def __init__(self) -> None:
        self.future: asyncio.Future[tuple[bytes, int]] = asyncio.get_running_loop().create_future()

    def answer(self, call: Call, body: bytes, json_length: int) -> None:
        """See Door."""
        if not self.future.done():
            self.future.set_result((body, json_length))

    def refuse(self, call: Call, error: HeadgateError) -> None:
        """See Door."""
        if not self.future.done():
            self.future.set_exception(error)


async def infer(request: Request) -> Response:
    """``POST /v2/models/{model}[/versions/{version}]/infer``."""
    arrived_ns = time.monotonic_ns()
    gateway = gateway_of(request)
    pipeline = gateway.pipeline
    model, slot = request.path_params["model"], request.path_params.get("version")
    door = _Waiting()
    keys = request.headers.getlist(gateway.settings.client_key_header) or [""]
    trace = trace_of((request.headers.getlist("traceparent") or [""])[-1].encode("latin-1"))
    timeouts = request.headers.getlist(TIMEOUT_HEADER.decode())
    timeout_s = timeout_of(timeouts[-1].encode("latin-1")) if timeouts else None
    names = request_id(request), keys[-1][:MAX_KEY], trace
    call = pipeline.admit((model, slot), door, arrived_ns, *names, timeout_s)
    try:
        if timeouts and timeout_s is None:
            raise wrong_timeout(timeouts[-1].encode("latin-1"))
        header = single_header(request, "Inference-Header-Content-Length")
        body = await read_raw(request, pipeline.limits.max_body_bytes)
        encoding = ", ".join(request.headers.getlist("content-encoding")) or None
        pipeline.submit(call, body, header, encoding, time.monotonic_ns())
    except HeadgateError as error:
        pipeline.refuse(call, error)
    except (ClientDisconnect, asyncio.CancelledError):
        pipeline.abandon(call)
        raise
    try:
        body, json_length = await door.future
    except asyncio.CancelledError:
        pipeline.abandon(call)
        raise
    coding = compression.choose(",".join(request.headers.getlist("accept-encoding")))
    headers, body = reply_headers(call.prediction_id, body, json_length, coding)
    return Response(body, 200, headers)
