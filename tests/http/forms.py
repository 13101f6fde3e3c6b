"""Good requests to every model of the corpus, in every form that the protocol has."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gateway.oip.datatypes import DATATYPES
from gateway.types import TensorSpec
from tests.http.messages import chunked, message
from tests.oip import corpus

ROWS = 3
VALUES: Mapping[str, list[Any]] = {
    "BOOL": [True, False, True],
    "FP16": [0.5, -2.0, 65504.0],
    "FP32": [0.1, -3.4e38, 1e-45],
    "FP64": [0.1, -1.7e308, 5e-324],
    "BF16": [0x3F80, 0x7F80, 0x8000],
    "BYTES": ["é", "", 'quote " and \\'],
}
BINARY_REPLIES = frozenset({"json, binary reply", "binary", "mixed reply", "packed binary", "raw"})
"""Forms whose replies hold binary data."""

_BINARY_REPLY = {"parameters": {"binary_data_output": True}}


def forms() -> Iterator[tuple[str, str, bytes]]:
    """(model, form, request) of every good request."""
    for model in corpus.MODELS:
        for form, request in _forms_of(model):
            yield model, form, request


def _forms_of(model: str) -> Iterator[tuple[str, bytes]]:
    contract = corpus.MODELS[model]
    inputs = [spec.name for spec in contract.inputs]
    if all(DATATYPES[spec.datatype].in_json for spec in contract.inputs):
        body, _ = _body(model, id="a")
        yield "json", _sent(model, body)
        yield "nested", _sent(model, *_body(model, nested=True))
        yield "json, binary reply", _sent(model, *_body(model, **_BINARY_REPLY))
        yield "one input binary", _sent(model, *_body(model, inputs[:1]))
        yield "chunked", _sent(model, chunked(body, 1, 20), None, "Transfer-Encoding: chunked", length=False)
        yield "gzip", _sent(model, gzip.compress(body), None, "Content-Encoding: gzip", "Accept-Encoding: gzip")
        yield (
            "deflate",
            _sent(model, zlib.compress(body), None, "Content-Encoding: deflate", "Accept-Encoding: deflate"),
        )
    yield "binary", _sent(model, *_body(model, inputs, **_BINARY_REPLY))
    outputs = [{"name": spec.name, "parameters": {"binary_data": at == 0}} for at, spec in enumerate(contract.outputs)]
    yield "mixed reply", _sent(model, *_body(model, inputs, outputs=outputs))
    body, json_length = _body(model, inputs, **_BINARY_REPLY)
    codings = ("Content-Encoding: gzip", "Accept-Encoding: deflate;q=0.5, gzip")
    yield "packed binary", _sent(model, gzip.compress(body), json_length, *codings)
    if len(inputs) == 1 and contract.inputs[0].datatype != "BYTES":
        blob = _blob(contract.inputs[0])
        yield "raw", _sent(model, blob[: len(blob) // (ROWS if contract.batched else 1)], "0")


def _values(spec: TensorSpec) -> list[Any]:
    """A value for every element of an input, row by row."""
    count = int(np.prod([ROWS if dim == -1 else dim for dim in spec.shape or ()]))
    least = np.iinfo(DATATYPES[spec.datatype].dtype).min if "INT" in spec.datatype else 0
    some = VALUES.get(spec.datatype, [least, 1, 127])
    return [some[at % len(some)] for at in range(count)]


def _blob(spec: TensorSpec) -> bytes:
    """The same as binary data."""
    if spec.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(each)) + each for each in map(str.encode, _values(spec)))
    dtype = "<u2" if spec.datatype == "BF16" else DATATYPES[spec.datatype].dtype
    return np.array(_values(spec), dtype).tobytes()


def _body(model: str, binary: Sequence[str] = (), *, nested: bool = False, **members: Any) -> tuple[bytes, str | None]:
    """A body whose inputs of these names are binary data, and the length of its JSON part where there are any."""
    items, blobs = [], []
    for spec in corpus.MODELS[model].inputs:
        shape = [ROWS if dim == -1 else dim for dim in spec.shape or ()]
        item: dict[str, Any] = {"name": spec.name, "shape": shape, "datatype": spec.datatype}
        if spec.name in binary:
            blobs.append(_blob(spec))
            item["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            item["data"] = np.array(_values(spec), object).reshape(shape).tolist() if nested else _values(spec)
        items.append(item)
    text = json.dumps({"inputs": items, **members}).encode()
    return text + b"".join(blobs), str(len(text)) if binary else None


def _sent(model: str, body: bytes, json_length: str | None = None, *headers: str, length: bool = True) -> bytes:
    own = [f"Inference-Header-Content-Length: {json_length}"] if json_length is not None else []
    return message(body, *own, *headers, path=f"/v2/models/{model}/infer", length=length)
