"""`InferResponse` to bytes: the JSON document and the binary data behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from gateway.oip import tensors
from gateway.oip.datatypes import DATATYPES, is_float, nonfinite_count
from gateway.types import Array, Contract, InferRequest, InferResponse, Scalar, TensorSpec


class Reply(NamedTuple):
    """An encoded reply: `header_length` is the length of the JSON part, None where all of it is JSON."""

    body: bytes
    header_length: int | None
    nonfinite: int


def encode(
    request: InferRequest,
    response: InferResponse,
    contract: Contract,
    annotations: Mapping[str, Scalar],
    labels: Mapping[str, Sequence[str]],
) -> Reply:
    """Encode a response.

    `annotations` become the response-level `parameters` (never those of an output: the C++ client takes any
    `parameters` there for binary data); `labels` are class names by output, for the classification extension.
    NaN and infinities in JSON are written as null, or bare when the request's parameter `nonfinite` is "literal".
    """
    specs = {spec.name: spec for spec in contract.outputs}
    documents: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    nonfinite = 0
    for wanted, array in zip(request.outputs, response.outputs, strict=True):
        spec = specs[wanted.name]
        if wanted.classification:
            array = classify(array, wanted.classification, contract.batched, labels.get(wanted.name, ()))
            spec = TensorSpec(wanted.name, "BYTES", None)
        document: dict[str, Any] = {"name": wanted.name, "datatype": spec.datatype, "shape": list(array.shape)}
        if wanted.binary:
            blob = tensors.to_binary(array, DATATYPES[spec.datatype])
            document["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            if is_float(spec.datatype):
                nonfinite += nonfinite_count(array, spec.datatype)
            document["data"] = _flat(array, spec)
        documents.append(document)
    text = _dump(
        {
            "model_name": response.model,
            "model_version": str(response.version),
            "id": request.id,
            "parameters": dict(annotations),
            "outputs": documents,
        },
        literal=nonfinite > 0 and request.parameters.get("nonfinite") == "literal",
    )
    binary = b"".join(blobs)
    return Reply(text + binary, len(text) if binary else None, nonfinite)


def _flat(array: Array, spec: TensorSpec) -> Any:
    if spec.datatype == "BYTES":
        return [value if isinstance(value, str) else str(value) for value in array.ravel()]
    return np.ascontiguousarray(array).reshape(-1)


def _dump(document: dict[str, Any], literal: bool) -> bytes:
    if literal:
        return json.dumps(document, default=lambda array: array.tolist(), separators=(",", ":")).encode()
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def classify(scores: Array, top: int, batched: bool, labels: Sequence[str]) -> Array:
    """The `top` highest scores as strings ``score:index[:label]``, shape [k], or [rows, k] where axis 0 is a batch.

    k = min(top, classes); equal scores keep the order of their indices; NaN comes last. Integer scores stay integers.
    """
    rows = scores.shape[0] if batched and scores.ndim > 0 else 1
    classes = math.prod(scores.shape[1:]) if batched else scores.size
    table = scores.reshape(rows, classes)
    k = min(top, classes)
    whole = table.dtype.kind in "iu"
    # ~x turns the order of integers round as -x does, but without overflow.
    order = np.argsort(~table if whole else -table, axis=1, kind="stable")[:, :k]
    result = np.empty(order.shape, dtype=object)
    for row, indices in enumerate(order):
        for column, index in enumerate(indices):
            label = f":{labels[index]}" if index < len(labels) else ""
            score = str(table[row, index]) if whole else f"{float(table[row, index]):f}"
            result[row, column] = f"{score}:{index}{label}"
    return result if batched else result[0]
