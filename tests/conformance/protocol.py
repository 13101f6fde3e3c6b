"""A small client of the Open Inference Protocol, written for the tests alone: it shares no code with the server."""

from __future__ import annotations

import http.client
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(object),
}
ONLY_BINARY = ("FP16", "BF16")

Format = Literal["json", "binary"]


@dataclass
class Refused(Exception):
    """A reply other than 200."""

    status: int
    message: str

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"


class Client:
    """One connection that is kept open."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=60)

    def close(self) -> None:
        self._connection.close()

    def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[tuple[str, str]], format_: Format
    ) -> dict[str, np.ndarray]:
        """The outputs by name; `outputs` are the (name, datatype) that are asked for. Raises Refused.

        With "json" every tensor travels as JSON that can: not FP16 and BF16, and no infinite input.
        """
        documents, blobs = [], []
        for name, array in inputs.items():
            document, blob = _encode(name, array, format_)
            documents.append(document)
            blobs.append(blob)
        wanted = [
            {"name": name, "parameters": {"binary_data": format_ == "binary" or datatype in ONLY_BINARY}}
            for name, datatype in outputs
        ]
        parameters = {"nonfinite": "literal"}
        head = json.dumps({"inputs": documents, "outputs": wanted, "parameters": parameters}, allow_nan=False).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        self._connection.request("POST", f"/v2/models/{model}/infer", head + b"".join(blobs), headers)
        reply = self._connection.getresponse()
        body = reply.read()
        if reply.status != 200:
            raise Refused(reply.status, json.loads(body)["error"])
        length = int(reply.headers.get("Inference-Header-Content-Length") or len(body))
        document, rest = json.loads(body[:length]), body[length:]
        answers = {}
        for item in document["outputs"]:
            size = item.get("parameters", {}).get("binary_data_size")
            if (size is None) == next(
                each["parameters"]["binary_data"] for each in wanted if each["name"] == item["name"]
            ):
                raise AssertionError(f"output {item['name']} did not come in the format that was asked for")
            answers[item["name"]] = _decode(item, rest[: size or 0])
            rest = rest[size or 0 :]
        assert not rest, f"{len(rest)} bytes are left over after the last output"
        return answers


def datatype_of(array: np.ndarray) -> str:
    """The protocol's name for the type of an array."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    return next(name for name, dtype in DTYPES.items() if dtype == array.dtype)


def _encode(name: str, array: np.ndarray, format_: Format) -> tuple[dict[str, Any], bytes]:
    datatype = datatype_of(array)
    document: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
    infinite = datatype in ("FP32", "FP64") and bool(np.isinf(array).any())
    if format_ == "json" and datatype not in ONLY_BINARY and not infinite:
        values = array.ravel().tolist()
        if datatype in ("FP32", "FP64"):
            values = [None if math.isnan(value) else value for value in values]
        document["data"] = values
        return document, b""
    if datatype == "BYTES":
        parts = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel()]
        blob = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    else:
        blob = np.ascontiguousarray(array).tobytes()
    document["parameters"] = {"binary_data_size": len(blob)}
    return document, blob


def _decode(document: dict[str, Any], blob: bytes) -> np.ndarray:
    datatype, shape = document["datatype"], document["shape"]
    if "data" in document:
        return np.array(document["data"], DTYPES[datatype]).reshape(shape)
    if datatype != "BYTES":
        return np.frombuffer(blob, DTYPES[datatype]).reshape(shape)
    values, at = np.empty(math.prod(shape), object), 0
    for index in range(values.size):
        (length,) = struct.unpack_from("<I", blob, at)
        values[index] = blob[at + 4 : at + 4 + length].decode()
        at += 4 + length
    assert at == len(blob)
    return values.reshape(shape)
