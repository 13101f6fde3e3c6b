"""The corpus of bad requests: data files under tests/corpus/bad_requests, one request and its answer each.

A file holds
  why       one sentence: what is wrong
  model     one of MODELS
  layer     "http" where the codecs alone cannot see the fault; absent: both the codecs and the server must
  method, path, headers     of the request; absent: an infer request of the model; a list is a header sent again
  body      a recipe, see `build`; `chunked`: sent without a length; `announce`: the Content-Length that is claimed
  expect    status, code, field (the exact path, null where the URL or the verb is at fault), message (a part of it)
            and headers of the reply
Adding a bad request is adding a file.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper

from gateway.oip.datatypes import DATATYPES
from gateway.types import Contract, TensorSpec
from tests.onnx_models import build as build_model
from tests.onnx_models import put
from tests.servers import Server

FOLDER = Path(__file__).resolve().parent.parent / "corpus" / "bad_requests"

_ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}

MODELS: Mapping[str, Contract] = {
    name: Contract(
        tuple(TensorSpec(each, datatype, shape) for each, datatype, shape in inputs),
        tuple(TensorSpec(each, datatype, shape) for each, (_, datatype, shape) in zip(outputs, inputs, strict=True)),
        batched=all(shape[:1] == (-1,) for _, _, shape in inputs),
    )
    for name, inputs, outputs in (
        ("echo", (("x", "FP32", (-1, 4)),), "y"),
        ("finite", (("x", "FP32", (-1, 4)),), "y"),
        ("scalar", (("x", "FP32", ()),), "y"),
        ("two_inputs", (("a", "FP32", (-1, 2)), ("b", "INT64", (-1, 1))), "cd"),
        ("fp16", (("x", "FP16", (-1, 4)),), "y"),
        ("bf16", (("x", "BF16", (-1, 4)),), "y"),
        ("string", (("x", "BYTES", (-1,)),), "y"),
        *(
            (datatype.lower(), (("x", datatype, (-1,)),), "y")
            for datatype in DATATYPES
            if datatype not in ("FP16", "BF16", "BYTES")
        ),
    )
}
"""Every model passes its inputs on. `finite` refuses NaN and infinities."""

GOOD: Mapping[str, Any] = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]}
"""A good request to `echo`."""


def write_models(folder: Path) -> Path:
    """A repository with version 1 of every model; returns the folder."""
    for name, contract in MODELS.items():
        nodes = [
            helper.make_node("Identity", [source.name], [target.name])
            for source, target in zip(contract.inputs, contract.outputs, strict=True)
        ]
        model = build_model(nodes, _tensors(contract.inputs), _tensors(contract.outputs))
        put(folder, name, 1, model, 'nonfinite_inputs = "refuse"\n' if name == "finite" else None)
    return folder


def _tensors(specs: Sequence[TensorSpec]) -> list[tuple[str, int, list[int | str]]]:
    return [
        (spec.name, _ONNX_TYPES[spec.datatype], ["n" if dim == -1 else dim for dim in spec.shape or ()])
        for spec in specs
    ]


def load() -> dict[str, Any]:
    """Every case by the name of its file."""
    return {path.stem: json.loads(path.read_bytes()) for path in sorted(FOLDER.glob("*.json"))}


def build(recipe: Any) -> bytes:
    """The bytes of a recipe.

    A string is its UTF-8, a list its parts one after another; the objects are ``{"hex"}``, ``{"base64"}``,
    ``{"repeat", "times"}``, ``{"gzip"}``, ``{"zlib"}`` and ``{"deflate"}`` (without a wrapper) of a recipe,
    ``{"cut": n, "of"}`` without the last n bytes, and ``{"flip": i, "of"}`` with all bits of byte i turned round.
    """
    match recipe:
        case str():
            return recipe.encode()
        case list():
            return b"".join(map(build, recipe))
        case {"hex": str(text)}:
            return bytes.fromhex(text)
        case {"base64": str(text)}:
            return base64.b64decode(text, validate=True)
        case {"repeat": part, "times": int(times)}:
            return build(part) * times
        case {"gzip": part}:
            return gzip.compress(build(part), mtime=0)
        case {"zlib": part}:
            return zlib.compress(build(part))
        case {"deflate": part}:
            stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            return stream.compress(build(part)) + stream.flush()
        case {"cut": int(count), "of": part}:
            return build(part)[:-count]
        case {"flip": int(index), "of": part}:
            body = bytearray(build(part))
            body[index] ^= 0xFF
            return bytes(body)
    raise AssertionError(f"no such recipe: {recipe!r}"[:200])


def send(server: Server, case: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """Send a case to a server over a connection of its own; returns status, headers in lower case, and the body."""
    host, port = server.address.rsplit(":", 1)
    body = build(case["body"]) if "body" in case else None
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.putrequest(
            case.get("method", "POST"), case.get("path", f"/v2/models/{case['model']}/infer"), skip_accept_encoding=True
        )
        for name, values in case.get("headers", {}).items():
            for value in [values] if isinstance(values, str) else values:
                connection.putheader(name, value.encode("latin-1"))
        if case.get("chunked"):
            assert body is not None
            connection.putheader("Transfer-Encoding", "chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        elif body is not None:
            connection.putheader("Content-Length", str(case.get("announce", len(body))))
        connection.endheaders(body)
        reply = connection.getresponse()
        return reply.status, {key.lower(): value for key, value in reply.getheaders()}, reply.read()
    finally:
        connection.close()
