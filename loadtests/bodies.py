"""Request bodies: infer requests as clients send them, in JSON or with binary tensors, and the file wrk reads.

Numbers are doubles with all their digits, as they come from a data frame or a sensor, and every body is different, so
that neither a parser nor a branch predictor learns the one request by heart. Only the standard library is used: the
locust users share this module and live in an environment without numpy.
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from uuid import NAMESPACE_OID, uuid5

FORMS = ("json", "binary", "named")

CARRIERS = ("UA", "B6", "EV", "DL", "AA", "MQ", "US", "9E", "WN", "VX")
ORIGINS = ("EWR", "JFK", "LGA")
DESTINATIONS = ("ORD", "ATL", "LAX", "BOS", "MCO", "CLT", "SFO", "FLL", "MIA", "DCA", "DEN", "SEA")

WIDTHS: dict[str, tuple[int, ...]] = {
    "tiny": (30,),
    "trees": (100,),
    "mlp": (512,),
    "conv": (3, 224, 224),
    "identity": (16,),
}
"""The shape of one row of the models that have a single FP32 input, x."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input of a request, flat in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[float] | Sequence[str]


@dataclass(frozen=True, slots=True)
class Body:
    """An infer request: what it holds and how it looks on the wire; `json_length` is None for a body all of JSON."""

    tensors: tuple[Tensor, ...]
    content: bytes
    json_length: int | None

    @property
    def headers(self) -> dict[str, str]:
        """The headers that tell what the body is."""
        if self.json_length is None:
            return {"Content-Type": "application/json"}
        return {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(self.json_length),
        }


def make(model: str, form: str, rows: int, count: int) -> list[Body]:
    """`count` different bodies of `rows` rows for `model`; the same call gives the same bytes."""
    random = Random(f"{model} {rows}")
    draw: Callable[[], tuple[Tensor, ...]] = (
        (lambda: _flights(random, rows)) if model == "flights" else (lambda: (_normal(random, rows, WIDTHS[model]),))
    )
    encode = {"json": as_json, "binary": as_binary, "named": as_named}[form]
    return [encode(draw()) for _ in range(count)]


def as_json(tensors: tuple[Tensor, ...]) -> Body:
    """The request with its numbers in JSON."""
    inputs = [{**_head(tensor), "data": list(tensor.data)} for tensor in tensors]
    return Body(tensors, _dump({"inputs": inputs}), None)


def as_binary(tensors: tuple[Tensor, ...]) -> Body:
    """The request with binary tensors behind the JSON, asking for binary outputs."""
    blobs = [_blob(tensor) for tensor in tensors]
    inputs = [
        {**_head(tensor), "parameters": {"binary_data_size": len(blob)}}
        for tensor, blob in zip(tensors, blobs, strict=True)
    ]
    text = _dump({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return Body(tensors, text + b"".join(blobs), len(text))


def as_named(tensors: tuple[Tensor, ...]) -> Body:
    """The request with its numbers in JSON as clients of the protocol write it: with spaces, an id, and a wish."""
    inputs = [{**_head(tensor), "data": list(tensor.data)} for tensor in tensors]
    document = {"id": str(uuid5(NAMESPACE_OID, repr(inputs))), "inputs": inputs}
    return Body(tensors, json.dumps({**document, "parameters": {"binary_data_output": True}}).encode(), None)


def write(path: Path, bodies: Sequence[Body]) -> None:
    """Write the file that rotate.lua reads: before each body a line ``bytes json_length``, 0 where all is JSON."""
    with open(path, "wb") as file:
        for body in bodies:
            file.write(b"%d %d\n" % (len(body.content), body.json_length or 0))
            file.write(body.content)


def _normal(random: Random, rows: int, width: tuple[int, ...]) -> Tensor:
    size = rows * math.prod(width)
    return Tensor("x", "FP32", (rows, *width), [random.gauss(0, 1) for _ in range(size)])


def _flights(random: Random, rows: int) -> tuple[Tensor, ...]:
    """Departures as an airline's system would report them: the model's columns, each an input of shape [rows, 1]."""
    numbers: dict[str, Callable[[], float]] = {
        "dep_delay": lambda: round(random.expovariate(1 / 25)) - 8,
        "sched_dep_minute": lambda: random.randrange(300, 1439),
        "sched_arr_minute": lambda: random.randrange(0, 1439),
        "day_of_week": lambda: random.randint(1, 7),
        "distance": lambda: random.randint(94, 2586),
        "temp": lambda: round(random.uniform(12, 100), 2),
        "wind_speed": lambda: random.randrange(0, 34) * 1.15078,
        "precip": lambda: round(max(0.0, random.gauss(-0.1, 0.1)), 2),
        "visib": lambda: min(10.0, random.expovariate(1 / 12)),
        "pressure": lambda: round(random.uniform(985, 1042), 1),
    }
    strings = {"carrier": CARRIERS, "origin": ORIGINS, "dest": DESTINATIONS}
    shape = (rows, 1)
    return (
        *(Tensor(name, "FP32", shape, [float(draw()) for _ in range(rows)]) for name, draw in numbers.items()),
        *(Tensor(name, "BYTES", shape, random.choices(words, k=rows)) for name, words in strings.items()),
    )


def _head(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}


def _dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _blob(tensor: Tensor) -> bytes:
    """The protocol's binary form. `array` writes the order of this machine, which for every CPU served is little."""
    if tensor.datatype == "BYTES":
        encoded = [str(value).encode() for value in tensor.data]
        return b"".join(struct.pack("<I", len(value)) + value for value in encoded)
    return array("f", [float(value) for value in tensor.data]).tobytes()
