"""Head: what the headers of an infer request say, read once for each different block of bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from gateway.errors import HeadgateError, InvalidRequest, PayloadTooLarge
from gateway.oip import compression

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_INFER = re.compile(rb"/v2/models/([A-Za-z0-9._-]{1,64})(?:/versions/([A-Za-z0-9_-]{1,32}))?/infer")

MAX_HEADS = 4096
MAX_HEAD_BYTES = 2048
"""Heads that are remembered, and the longest of them."""

MAX_KEY = 256
"""Characters by which clients are told apart."""


TIMEOUT_HEADER = b"headgate-timeout-ms"
"""How long the client will wait for its answer, for those who cannot put ``timeout`` into the request."""


class Names(NamedTuple):
    """What a client calls its request: an id, and where it stands in a trace (``traceparent``); empty for nothing."""

    request_id: str
    trace: str


NO_NAMES = Names("", "")


class Head:
    """What the headers of an infer request say. A head that was seen before is not parsed again.

    `target` is (model, version slot); `answered` the cell that counts its replies; `length` the announced body, -1
    where it is chunked. `keep` is False where the bytes of the head will hardly come again.
    """

    __slots__ = (
        "answered",
        "close",
        "coding",
        "encoding",
        "expects",
        "header",
        "keep",
        "key",
        "length",
        "request_id",
        "route",
        "target",
        "timeout_s",
        "trace",
    )

    def __init__(self, target: tuple[str, str | None], route: str, answered: int, *, close: bool) -> None:
        self.target = target
        self.route = route
        self.answered = answered
        self.close = close
        self.keep = not close
        self.expects = False
        self.length = -1
        self.header: str | None = None
        self.encoding: str | None = None
        self.coding: str | None = None
        self.request_id = ""
        self.trace = ""
        self.key = ""
        self.timeout_s: float | None = None

    def read(self, headers: list[tuple[bytes, bytes]], key_header: bytes, max_body_bytes: int) -> HeadgateError | None:
        """Take what matters from the headers; names are in lower case. Returns what is wrong with them, if anything.

        A list that is spread over several headers is one; of other headers that stand twice the last one counts.
        """
        accepted = b""
        timeout: bytes | None = None
        trouble: HeadgateError | None = None
        for name, value in headers:
            if name == b"content-length":
                # The parser has refused what is no number or beyond 64 bits, but it takes any count of leading zeros.
                self.length = int(value.lstrip(b"0") or b"0")
                if self.length > max_body_bytes:
                    trouble = trouble or too_large(max_body_bytes)
            elif name == b"inference-header-content-length":
                if self.header is not None:
                    trouble = twice("Inference-Header-Content-Length")
                self.header = value.decode("latin-1")
            elif name == b"content-encoding":
                text = value.decode("latin-1")
                self.encoding = text if self.encoding is None else f"{self.encoding}, {text}"
            elif name == b"accept-encoding":
                accepted += b"," + value
            elif name == b"x-request-id":
                text = value.decode("latin-1")
                self.request_id = text if REQUEST_ID.fullmatch(text) else ""
            elif name == b"traceparent":
                self.trace = trace_of(value)
            elif name == TIMEOUT_HEADER:
                timeout = value
            elif name == b"expect":
                self.expects = value.lower() == b"100-continue"
                self.keep = False
            elif name == b"transfer-encoding":
                self.keep = False
            if name == key_header:
                self.key = value.decode("latin-1")[:MAX_KEY]
        if timeout is not None:
            self.timeout_s = timeout_of(timeout)
            if self.timeout_s is None:
                trouble = trouble or wrong_timeout(timeout)
        if accepted:
            self.coding = compression.choose(accepted.decode("latin-1"))
        return trouble


def offered_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The request id that a client gave, empty where it gave none or one that is no plain short word."""
    offered = b""
    for name, value in headers:
        if name == b"x-request-id":
            offered = value
    # Not every server takes off the white space around a value.
    text = offered.strip(b" \t").decode("latin-1")
    return text if REQUEST_ID.fullmatch(text) else ""


_TRACE = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def trace_of(value: bytes) -> str:
    """The value of a ``traceparent`` as W3C Trace Context has it, empty for anything else."""
    return value.decode("ascii") if _TRACE.fullmatch(value) else ""


_VARYING = re.compile(
    rb"\r\n(?:[Xx]-[Rr]equest-[Ii][Dd]: ?([A-Za-z0-9._:/+=-]{1,128})|[Tt]raceparent: ?([!-~]{1,256})"
    rb"|[Tt]racestate: ?[!-~]{1,256})(?=\r\n)"
)
"""Headers that differ with every request, as clients spell them; a request id as REQUEST_ID has it."""


def split(block: bytes) -> tuple[bytes, Names]:
    """A head without the lines that differ with every request, and the names among them.

    What is taken out is a well-formed header line, so the parser would have read the rest the same without it.
    """
    parts = _VARYING.split(block)
    if len(parts) == 1:
        return block, NO_NAMES
    ids = [each for each in parts[1::3] if each]
    traces = [each for each in parts[2::3] if each]
    names = Names(ids[-1].decode("ascii") if ids else "", trace_of(traces[-1]) if traces else "")
    return b"".join(parts[::3]), names


def recall(heads: dict[bytes, Head], data: bytes) -> tuple[Head | None, int, Names, bytes | None]:
    """What the head that `data` begins with says if one like it is remembered; its size, its names, its key.

    No key holds the end of a head before its own end: what is equal to a key is a whole head.
    """
    size = data.find(b"\r\n\r\n") + 4
    if not 4 < size <= MAX_HEAD_BYTES:
        return None, 0, NO_NAMES, None
    key, names = data[:size], NO_NAMES
    head = heads.get(key)
    if head is None:
        key, names = split(key)
        head = heads.get(key)
    return head, size, names, key


def remember(heads: dict[bytes, Head], seen: bytes, head: Head) -> None:
    """Keep what a block of headers, as `split` left it, says to every request that brings it again."""
    # A request id that `split` left in must not become that of later requests.
    if head.keep and head.length >= 0 and len(seen) <= MAX_HEAD_BYTES and b"x-request-id" not in seen.lower():
        if len(heads) >= MAX_HEADS:
            heads.clear()
        heads[seen] = head


def find_route(url: bytes) -> tuple[tuple[str, str | None], str] | None:
    """((model, version slot), route pattern) of an infer URL, None for any other."""
    match = _INFER.fullmatch(url)
    if match is None:
        return None
    slot = match[2].decode() if match[2] else None
    pattern = "/v2/models/{model}/versions/{version}/infer" if slot else "/v2/models/{model}/infer"
    return (match[1].decode(), slot), pattern


def too_large(max_bytes: int) -> PayloadTooLarge:
    """The error for a body over the limit."""
    return PayloadTooLarge(f"the body is larger than {max_bytes} bytes", field="body")


def timeout_of(value: bytes) -> float | None:
    """Seconds of a TIMEOUT_HEADER, None where it is not a positive number of milliseconds."""
    text = value.strip(b" \t")
    return int(text) / 1e3 if text.isdigit() and len(text) <= 9 and int(text) else None


def wrong_timeout(value: bytes) -> InvalidRequest:
    """The error for a TIMEOUT_HEADER that says nothing."""
    name, found = TIMEOUT_HEADER.decode(), value[:32].decode("latin-1")
    return InvalidRequest(f"header {name} expects a positive number of milliseconds, got {found!r}", field=name)


def twice(name: str) -> InvalidRequest:
    """The error for a header that may stand once and stands more often."""
    return InvalidRequest(f"header {name} stands more than once, at most once is allowed", field=name)
