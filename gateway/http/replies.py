"""Replies of the fast door as bytes: the plain one from a form, the others line by line."""

from __future__ import annotations

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.errors import HeadgateError
from gateway.oip import compression

OK = (
    b"HTTP/1.1 200 OK\r\n%bheadgate-prediction-id: %b\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nx-request-id: %b\r\n\r\n%b"
)
"""The reply to most requests: default headers, prediction id, length, request id, body."""


BINARY = (
    b"HTTP/1.1 200 OK\r\n%bheadgate-prediction-id: %b\r\ncontent-type: application/octet-stream\r\n"
    b"inference-header-content-length: %d\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n%b"
)
"""The same with binary data behind the JSON: default headers, prediction id, both lengths, request id, body."""


class Refusal:
    """A reply that needs no call, in its place among the others."""

    __slots__ = ("close", "reply")

    def __init__(self, reply: bytes, *, close: bool) -> None:
        self.reply: bytes | None = reply
        self.close = close


def unusual(
    dates: bytes,
    prediction_id: bytes,
    request_id: bytes,
    body: bytes,
    json_length: int,
    *,
    coding: str | None,
    close: bool,
) -> bytes:
    """A reply under a coding, or the last of its connection; binary data may stand behind `json_length` bytes."""
    lines = [b"HTTP/1.1 200 OK\r\n", dates, b"headgate-prediction-id: ", prediction_id]
    if json_length < len(body):
        lines.append(b"\r\ncontent-type: application/octet-stream\r\n")
        lines.append(b"inference-header-content-length: %d\r\n" % json_length)
    else:
        lines.append(b"\r\ncontent-type: application/json\r\n")
    if coding is not None:
        body = compression.deflate(body, coding)
        lines.append(b"content-encoding: %b\r\nvary: Accept-Encoding\r\n" % coding.encode())
    lines.append(b"content-length: %d\r\nx-request-id: %b\r\n" % (len(body), request_id))
    lines.append(b"connection: close\r\n\r\n" if close else b"\r\n")
    lines.append(body)
    return b"".join(lines)


def refusal(dates: bytes, error: HeadgateError, request_id: str, *, close: bool) -> bytes:
    """An error in the one shape."""
    body = orjson.dumps(error.body(request_id))
    lines = [STATUS_LINE[error.status], dates]
    lines += [f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in error.headers.items()]
    lines.append(b"content-length: %d\r\ncontent-type: application/json\r\n" % len(body))
    lines.append(b"x-request-id: %b\r\n" % request_id.encode("latin-1"))
    lines.append(b"connection: close\r\n\r\n" if close else b"\r\n")
    lines.append(body)
    return b"".join(lines)
