"""Between HTTP and the rest: bodies read within limits, JSON replies, errors in the one shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import HeadgateError, PayloadTooLarge
from gateway.http.head import too_large, twice
from gateway.oip import compression
from gateway.oip.jsontext import parse_object

JSON = "application/json"


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON reply."""
    return Response(orjson.dumps(document), status, headers, media_type=JSON)


def request_id(request: Request) -> str:
    """The id that the request-id middleware gave this request."""
    return str(request.scope["state"]["request_id"])


def error_response(request: Request, error: HeadgateError) -> Response:
    """The one error shape. After a body that is too large the connection ends: the rest of it may not be read."""
    if isinstance(error, PayloadTooLarge):
        error.headers["Connection"] = "close"
    return json_response(error.body(request_id(request)), error.status, error.headers)


def single_header(request: Request, name: str) -> str | None:
    """A header that may stand once. Raises InvalidRequest."""
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise twice(name)
    return values[0] if values else None


def reply_headers(
    prediction_id: bytes, body: bytes, json_length: int, coding: str | None
) -> tuple[dict[str, str], bytes]:
    """The headers of an inference reply, and its body under the coding that the client takes (None: as it is)."""
    headers = {"headgate-prediction-id": prediction_id.decode(), "content-type": JSON}
    if json_length < len(body):
        headers["content-type"] = "application/octet-stream"
        headers["inference-header-content-length"] = str(json_length)
    if coding is not None:
        body = compression.deflate(body, coding)
        headers["content-encoding"] = coding
        headers["vary"] = "Accept-Encoding"
    return headers, body


async def read_raw(request: Request, max_bytes: int) -> bytes:
    """The whole body as it came. Raises PayloadTooLarge before reading where the length is announced."""
    announced = request.headers.get("content-length", "").lstrip("0")
    if announced.isdecimal() and (len(announced) > 20 or int(announced) > max_bytes):
        raise too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, inflated."""
    body = await read_raw(request, max_bytes)
    return compression.inflate(body, ", ".join(request.headers.getlist("content-encoding")), max_bytes)


async def read_document(request: Request, max_bytes: int = 1 << 20) -> dict[str, Any]:
    """A JSON object, where an empty body is an empty object."""
    body = await read_body(request, max_bytes)
    return parse_object(body, 32) if body.strip() else {}
