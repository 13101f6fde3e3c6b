"""Intake: what a request has sent so far, held against the limits. Pure counting."""

from __future__ import annotations

from gateway.errors import HeadersTooLarge, HeadgateError, InvalidRequest, URITooLong
from gateway.http.head import too_large
from gateway.state import ConnectionLimits

CHUNK_BYTES = 24
MAX_SPARE_BYTES = 64 << 10
"""What the frame of a chunk may take, and what may stand around all of them: extensions and trailers."""


class Intake:
    """One for each connection. Every method returns the error of the limit that is passed, None while none is.

    A piece is what the socket gave at once. The one with which something begins is not counted: most of it may belong
    to other requests before.
    """

    __slots__ = ("_body", "_chunks", "_fields", "_head", "_limits", "_max_body_bytes", "_pieces", "_url")

    def __init__(self, limits: ConnectionLimits, max_body_bytes: int) -> None:
        self._limits = limits
        self._max_body_bytes = max_body_bytes
        self.begin()

    def begin(self) -> None:
        """A request begins."""
        self._url = self._fields = self._head = self._body = self._chunks = 0
        self._pieces = -1

    def begin_body(self) -> None:
        """Its headers are complete."""
        self._body = self._chunks = 0
        self._pieces = -1

    def url(self, count: int) -> HeadgateError | None:
        """Bytes of the target came."""
        self._url += count
        if self._url <= self._limits.max_url_bytes:
            return None
        return URITooLong(f"the path is longer than {self._limits.max_url_bytes} bytes")

    def header(self, count: int) -> HeadgateError | None:
        """A header field of so many bytes came, or a trailer."""
        self._fields += 1
        self._head += count
        limits = self._limits
        if self._fields <= limits.max_headers and self._head <= limits.max_header_bytes:
            return None
        return HeadersTooLarge(
            f"at most {limits.max_headers} headers of {limits.max_header_bytes} bytes in all are taken"
        )

    def head_piece(self, count: int) -> HeadgateError | None:
        """So many bytes came, and the headers go on: the parser keeps one that is not complete, whatever its length."""
        self._count(count)
        if self._pieces <= self._limits.max_header_bytes + self._limits.max_url_bytes:
            return None
        return HeadersTooLarge(f"the headers are larger than {self._limits.max_header_bytes} bytes")

    def body(self, count: int) -> HeadgateError | None:
        """A piece of the body came."""
        self._chunks += 1
        self._body += count
        if self._body > self._max_body_bytes:
            return too_large(self._max_body_bytes)
        if self._chunks > self._limits.max_chunks:
            return InvalidRequest(f"the body has more than {self._limits.max_chunks} chunks", field="body")
        return None

    def body_piece(self, count: int) -> HeadgateError | None:
        """So many bytes came, and the body goes on: the parser takes extensions and trailers of any size."""
        self._count(count)
        if self._pieces - self._body - self._chunks * CHUNK_BYTES <= MAX_SPARE_BYTES:
            return None
        return InvalidRequest("the chunks of the body have too much around them", field="body")

    def _count(self, count: int) -> None:
        self._pieces = self._pieces + count if self._pieces >= 0 else 0

    @property
    def many_chunks(self) -> bool:
        """True now and then where a body comes in many pieces: time to join them."""
        return self._chunks % 1024 == 0
