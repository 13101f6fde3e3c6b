"""Ways to get the numbers of a JSON request into a row of float32, timed by width: which one should decode?

Every way reads whole V2 bodies with doubles of all digits, 16 different ones in turn, and is checked against the
numbers that went in before it is timed.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from gateway.oip.limits import Limits
from gateway.oip.request import decode
from gateway.types import Contract, TensorSpec
from loadtests.bodies import Tensor, as_binary, as_json
from loadtests.clock import seconds_per_call

WIDTHS = (30, 100, 512, 150_528)
BODIES = 16
Floats = NDArray[np.float32]
Way = Callable[[bytes], object]


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class _Request(msgspec.Struct):
    inputs: list[_Input]


class Row:
    """One row of a block, and the ways to fill it from a body. `parse_only` ways do not fill it."""

    parse_only = ("json.loads", "orjson.loads", "msgspec, typed")

    def __init__(self, width: int) -> None:
        self.row: Floats = np.zeros(width, np.float32)
        self._bytes = self.row.view(np.uint8).data
        self._pack = struct.Struct(f"<{width}f").pack_into
        self._typed = msgspec.json.Decoder(_Request).decode
        spec = TensorSpec("x", "FP32", (-1, width))
        self._contract = Contract((spec,), (spec,), batched=True)
        self._limits = Limits()

    def ways(self) -> dict[str, Way]:
        """Every way by name, pysimdjson's where it is installed."""
        ways: dict[str, Way] = {
            "json.loads": json.loads,
            "orjson.loads": orjson.loads,
            "msgspec, typed": self._typed,
            "orjson, np.array to row": self._orjson_array,
            "orjson, pack_into row": self._orjson_pack,
            "msgspec, typed, pack_into row": self._msgspec_pack,
        }
        if importlib.util.find_spec("simdjson") is not None:
            ways["pysimdjson, as_buffer to row"] = self._simdjson()
        ways["gateway.oip.request, all checks"] = self._codec
        return ways

    def from_binary(self, body: bytes) -> None:
        """The binary form, in which no number is parsed: the bytes at the end of the body."""
        self._bytes[:] = memoryview(body)[-len(self._bytes) :]

    def _orjson_array(self, body: bytes) -> None:
        self.row[:] = np.array(orjson.loads(body)["inputs"][0]["data"], np.float32)

    def _orjson_pack(self, body: bytes) -> None:
        self._pack(self._bytes, 0, *orjson.loads(body)["inputs"][0]["data"])

    def _msgspec_pack(self, body: bytes) -> None:
        self._pack(self._bytes, 0, *self._typed(body).inputs[0].data)

    def _simdjson(self) -> Way:
        parser: Any = importlib.import_module("simdjson").Parser()

        def way(body: bytes) -> None:
            document = parser.parse(body)
            data = document.at_pointer("/inputs/0/data")
            self.row[:] = np.frombuffer(data.as_buffer(of_type="d"))

        return way

    def _codec(self, body: bytes) -> None:
        self.row[:] = decode(body, None, self._contract, self._limits, "m").inputs["x"][0]


def measure(width: int) -> dict[str, float]:
    """Microseconds a body for every way. Raises AssertionError where one reads other numbers than were sent."""
    random = Random(width)
    tensors = [Tensor("x", "FP32", (1, width), [random.gauss(0, 1) for _ in range(width)]) for _ in range(BODIES)]
    plain = [as_json((tensor,)).content for tensor in tensors]
    binary = [as_binary((tensor,)).content for tensor in tensors]
    expected = np.array(tensors[-1].data, np.float32)
    row = Row(width)
    found: dict[str, float] = {}
    for name, way in row.ways().items():
        row.row[:] = 0
        way(plain[-1])
        if name not in Row.parse_only and not np.array_equal(row.row, expected):
            raise AssertionError(f"{name} read other numbers than were sent")
        found[name] = _microseconds(way, plain)
    found["binary tensor to row"] = _microseconds(row.from_binary, binary)
    return found


def table(widths: tuple[int, ...] = WIDTHS) -> str:
    """Microseconds a body, ways down and widths across."""
    columns = [measure(width) for width in widths]
    lines = [f"| {'decoding, us':<32} |" + "".join(f" {width:>8,} |" for width in widths)]
    lines.append(f"|{'-' * 34}|" + "---------:|" * len(widths))
    for name in columns[0]:
        lines.append(f"| {name:<32} |" + "".join(f" {column[name]:>8,.2f} |" for column in columns))
    return "\n".join(lines)


def _microseconds(way: Way, contents: Sequence[bytes]) -> float:
    turn = itertools.cycle(contents)
    return seconds_per_call(lambda: way(next(turn))) * 1e6
