"""Content codings of requests and replies: gzip, and deflate, which means zlib (RFC 1950)."""

from __future__ import annotations

import gzip
import zlib

from gateway.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding
from gateway.oip.jsontext import quote

_WINDOW = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_PIECE = 1 << 20
"""Bytes that are inflated at a time, so that a body over the limit never takes much more memory than the limit."""

MAX_MEMBERS = 32
"""Members of one gzip body. Each one copies the bytes behind it, so thousands of empty ones would hold the loop."""


def inflate(body: bytes, encoding: str | None, max_bytes: int) -> bytes:
    """Undo one content coding, never making more than `max_bytes` of output.

    Raises UnsupportedEncoding for any coding but gzip, deflate and identity and for a chain of codings,
    PayloadTooLarge past the limit, InvalidRequest for a damaged or cut-off stream.
    """
    coding = (encoding or "identity").strip().lower()
    if coding in ("identity", ""):
        return body
    if coding not in _WINDOW:
        error = UnsupportedEncoding(f"content encoding {quote(coding)} is not supported, only gzip or deflate")
        error.field = "Content-Encoding"
        raise error
    parts: list[bytes] = []
    size = 0
    rest = body
    # A gzip file may hold several members one after another.
    for _ in range(MAX_MEMBERS):
        stream = zlib.decompressobj(_WINDOW[coding])
        while not stream.eof:
            try:
                part = stream.decompress(rest, _PIECE)
            except zlib.error:
                raise InvalidRequest(f"the body is not valid {coding} data", field="Content-Encoding") from None
            size += len(part)
            if size > max_bytes:
                raise PayloadTooLarge(f"the body inflates to more than {max_bytes} bytes", field="body")
            if len(part) < _PIECE and not stream.eof:
                raise InvalidRequest(f"the {coding} body ends before its data does", field="Content-Encoding")
            parts.append(part)
            rest = stream.unconsumed_tail
        rest = stream.unused_data
        if not rest:
            return b"".join(parts)
        if coding == "deflate":
            raise InvalidRequest("the deflate body has bytes left over after its data", field="Content-Encoding")
    raise InvalidRequest(f"the gzip body has more than {MAX_MEMBERS} members", field="Content-Encoding")


def choose(accept: str | None) -> str | None:
    """The coding for a reply, from Accept-Encoding: gzip before deflate, None for neither."""
    if not accept:
        return None
    offered: dict[str, float] = {}
    for item in accept.split(","):
        name, _, parameter = item.partition(";")
        weight = parameter.replace(" ", "").removeprefix("q=")
        try:
            offered[name.strip().lower()] = float(weight) if weight else 1.0
        except ValueError:
            continue
    best = [name for name in ("gzip", "deflate") if offered.get(name, 0.0) > 0]
    return max(best, key=lambda name: offered[name], default=None)


def deflate(body: bytes, coding: str) -> bytes:
    """Apply a coding that `choose` named. Level 1: replies are short-lived and the loop is shared."""
    return gzip.compress(body, compresslevel=1, mtime=0) if coding == "gzip" else zlib.compress(body, 1)
