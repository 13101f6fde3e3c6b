"""The infer endpoint: headers and body in, the pipeline, headers and body out."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response

from gateway.http.messages import JSON, read_body, request_id, single_header
from gateway.oip import compression
from gateway.state import gateway_of


async def infer(request: Request) -> Response:
    """``POST /v2/models/{model}[/versions/{version}]/infer``."""
    started = time.monotonic_ns()
    pipeline = gateway_of(request).pipeline
    model, slot = request.path_params["model"], request.path_params.get("version")
    header = single_header(request, "Inference-Header-Content-Length")

    async def read() -> bytes:
        return await read_body(request, pipeline.limits.max_body_bytes)

    answer = await pipeline.infer(model, slot, read, header, request_id(request), started)
    content = answer.reply.body
    headers = {"headgate-prediction-id": answer.prediction_id}
    if answer.reply.header_length is not None:
        headers["inference-header-content-length"] = str(answer.reply.header_length)
    coding = compression.choose(request.headers.get("accept-encoding"))
    if coding is not None:
        content = compression.deflate(content, coding)
        headers["content-encoding"] = coding
        headers["vary"] = "Accept-Encoding"
    media = JSON if answer.reply.header_length is None else "application/octet-stream"
    return Response(content, 200, headers, media_type=media)
