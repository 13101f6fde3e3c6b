"""Requests as bytes, put together from what a client may choose."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

INFER = "/v2/models/m/infer"


def message(
    body: bytes = b"",
    *headers: str,
    method: str = "POST",
    path: str = INFER,
    version: str = "1.1",
    length: bool = True,
) -> bytes:
    """A request."""
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *headers]
    if length and method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def document(*values: float, **members: Any) -> bytes:
    """A body of as many rows as there are values."""
    data = [each for value in values for each in (value, -value)]
    item = {"name": "x", "shape": [len(values), 2], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [item], **members}).encode()


def chunked(body: bytes, *sizes: int) -> bytes:
    """A body in chunks of these sizes, and one of the rest."""
    pieces = []
    for size in (*sizes, len(body)):
        piece, body = body[:size], body[size:]
        if piece:
            pieces.append(b"%x\r\n%b\r\n" % (len(piece), piece))
    return b"".join(pieces) + b"0\r\n\r\n"


def binary(*values: float) -> bytes:
    """A request whose tensor travels as binary data, and its reply too."""
    array = np.array([[value, -value] for value in values], "<f4")
    item = {
        "name": "x",
        "shape": list(array.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": array.nbytes},
    }
    text = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    return message(text + array.tobytes(), f"Inference-Header-Content-Length: {len(text)}")


KINDS: Mapping[str, bytes] = {
    "json": message(document(1)),
    "two rows": message(document(2, 3, id="an id")),
    "binary": binary(4),
    "gzip": message(gzip.compress(document(5), mtime=0), "Content-Encoding: gzip", "Accept-Encoding: gzip"),
    "chunked": message(chunked(document(6), 1, 20), "Transfer-Encoding: chunked", length=False),
    "own id": message(document(7), "X-Request-Id: mine-1", "traceparent: 00-ab-cd-01"),
    "wrong": message(b'{"inputs":'),
    "empty": message(),
    "unknown model": message(document(8), path="/v2/models/nobody/infer"),
    "unknown version": message(document(9), path="/v2/models/m/versions/9/infer"),
    "header twice": message(document(9), *["Inference-Header-Content-Length: 5"] * 2),
    "metadata": message(method="GET", path="/v2/models/m"),
    "live": message(method="GET", path="/v2/health/live"),
    "index": message(b"{}", path="/v2/repository/index"),
    "no route": message(b"some body", path="/nowhere"),
    "wrong verb": message(method="GET"),
    "odd path": message(document(10), path=INFER + "?x=1"),
}
"""Requests of every kind, each of which leaves its connection open."""

HEADS: Mapping[str, tuple[str, ...]] = {
    "plain": (),
    "white space": ("Accept-Encoding: gzip \t", "Expect: 100-continue\t "),
    "id": ("X-Request-Id: abc",),
    "id in other case": ("x-REQUEST-id:abc",),
    "id behind two spaces": ("X-Request-Id:  abc",),
    "id with a space behind": ("X-Request-Id: abc ",),
    "id of two words": ("X-Request-Id: a b",),
    "id with a bad character": ("X-Request-Id: a;b",),
    "empty id": ("X-Request-Id:",),
    "long id": ("X-Request-Id: " + "a" * 128,),
    "too long an id": ("X-Request-Id: " + "a" * 129,),
    "two ids": ("X-Request-Id: abc", "X-Request-Id: def"),
    "a good and a bad id": ("X-Request-Id: abc", "X-Request-Id: d f"),
    "a bad and a good id": ("X-Request-Id: a c", "X-Request-Id: def"),
    "trace": ("traceparent: 00-4bf92f3577b34da6-01", "tracestate: a=b"),
    "keep alive": ("Connection: keep-alive",),
    "close": ("Connection: close",),
    "upgrade": ("Connection: Upgrade", "Upgrade: h2c"),
    "expect": ("Expect: 100-continue",),
    "gzip": ("Accept-Encoding: gzip",),
    "codings twice": ("Accept-Encoding: identity", "Accept-Encoding: deflate"),
    "content type": ("Content-Type: application/json", "User-Agent: test"),
}
"""Headers that may stand in any infer request."""
