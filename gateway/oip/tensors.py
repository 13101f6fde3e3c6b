"""One tensor between the wire and an array: JSON values and binary data, both ways.

Shapes are multiplied as Python integers and compared with what was sent before an array is made.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np

from gateway.errors import InvalidRequest
from gateway.oip.datatypes import DATATYPES, Datatype
from gateway.oip.jsontext import kind, quote
from gateway.oip.limits import Limits
from gateway.types import Array, TensorSpec

_LENGTH = struct.Struct("<I")
_ELEMENT_TYPES: dict[str, tuple[set[type], str]] = {
    "BOOL": ({bool}, "true or false"),
    "FP32": ({int, float, type(None)}, "a number or null"),
    "FP64": ({int, float, type(None)}, "a number or null"),
    "FP16": ({int, float, type(None)}, "a number or null"),
    "BYTES": ({str}, "a string"),
}


def check_datatype(value: object, spec: TensorSpec, path: str) -> Datatype:
    """The datatype named in a request, equal to the contract's. Raises InvalidRequest."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{path} must be a string, got {kind(value)}", field=path)
    if value != spec.datatype:
        known = "" if value in DATATYPES else ", which is not a datatype of the protocol"
        raise InvalidRequest(
            f"{path}: input {spec.name!r} expects {spec.datatype}, got {quote(value)}{known}", field=path
        )
    return DATATYPES[value]


def check_shape(value: object, spec: TensorSpec, limits: Limits, path: str) -> tuple[int, ...]:
    """The shape named in a request: within the limits and as the contract has it. Raises InvalidRequest."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{path} must be a list of integers, got {kind(value)}", field=path)
    if len(value) > limits.max_rank:
        raise InvalidRequest(f"{path} has {len(value)} dimensions, at most {limits.max_rank} are taken", field=path)
    for axis, dim in enumerate(value):
        if type(dim) is not int:
            raise InvalidRequest(f"{path}[{axis}] must be an integer, got {kind(dim)}", field=f"{path}[{axis}]")
        if dim < 0:
            raise InvalidRequest(f"{path}[{axis}] must not be negative, got {dim}", field=f"{path}[{axis}]")
        if dim > limits.max_elements:  # also beside a zero, where there are no elements
            raise InvalidRequest(
                f"{path}[{axis}] is {dim}, at most {limits.max_elements} are taken", field=f"{path}[{axis}]"
            )
    shape = tuple(value)
    if math.prod(shape) > limits.max_elements:
        raise InvalidRequest(
            f"{path} asks for {math.prod(shape)} elements, at most {limits.max_elements} are taken", field=path
        )
    if spec.shape is None:
        return shape
    if len(shape) != len(spec.shape):
        raise InvalidRequest(
            f"{path}: input {spec.name!r} expects {len(spec.shape)} dimensions {show(spec.shape)}, "
            f"got {len(shape)} {show(shape)}",
            field=path,
        )
    for axis, (want, got) in enumerate(zip(spec.shape, shape, strict=True)):
        if want not in (-1, got):
            raise InvalidRequest(
                f"{path}[{axis}]: input {spec.name!r} expects shape {show(spec.shape)}, got {show(shape)}",
                field=f"{path}[{axis}]",
            )
    return shape


def show(shape: Iterable[int]) -> str:
    """A shape as it stands in messages and metadata: ``[-1,30]``."""
    return "[" + ",".join(map(str, shape)) + "]"


def from_json(data: object, shape: tuple[int, ...], datatype: Datatype, path: str) -> Array:
    """An array from JSON `data`: flat in row-major order, or nested exactly like `shape`; a scalar may stand bare.

    No value is coerced: true is no number, 1.0 is no integer. null is NaN in FP32 and FP64 and an error elsewhere.
    Raises InvalidRequest, naming the first element that is wrong.
    """
    if not datatype.in_json:
        raise InvalidRequest(
            f"{path}: {datatype.name} data cannot be sent as JSON; use the binary tensor format", field=path
        )
    size = math.prod(shape)
    lists: tuple[int, ...] = (size,)  # their lengths level by level, for the path of an element
    if not isinstance(data, list):
        if shape or data is None or isinstance(data, dict):
            raise InvalidRequest(f"{path} must be a list, got {kind(data)}", field=path)
        data = [data]
        lists = ()
    flat = data
    if data and type(data[0]) is list:
        flat = _flatten(data, shape, path)
        lists = shape
    if len(flat) != size:
        raise InvalidRequest(f"{path} holds {len(flat)} elements, but shape {show(shape)} needs {size}", field=path)
    allowed, wanted = _ELEMENT_TYPES.get(datatype.name, ({int}, "an integer"))
    if not set(map(type, flat)) <= allowed:
        index = next(i for i, value in enumerate(flat) if type(value) not in allowed)
        where = _element(path, index, lists)
        raise InvalidRequest(f"{where} must be {wanted} for {datatype.name}, got {kind(flat[index])}", field=where)
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype=datatype.dtype)
        # JSON has no infinities, so one in the array is a finite number that was too large.
        fits = datatype.name != "FP32" or not np.isinf(array).any()
    except OverflowError:
        fits = False
    if not fits:
        index = next(i for i, value in enumerate(flat) if not _fits(value, datatype))
        where = _element(path, index, lists)
        raise InvalidRequest(f"{where} does not fit {datatype.name}: {kind(flat[index])}", field=where)
    return array.reshape(shape)


def _element(path: str, index: int, lists: tuple[int, ...]) -> str:
    """The path of an element of lists of these lengths."""
    return path + "".join(f"[{at}]" for at in np.unravel_index(index, lists))


def _fits(value: Any, datatype: Datatype) -> bool:
    if datatype.name == "FP32":
        return value is None or abs(float(value)) <= float(np.finfo(np.float32).max)
    info = np.iinfo(datatype.dtype)
    return bool(info.min <= value <= info.max)


def _flatten(data: list[Any], shape: tuple[int, ...], path: str) -> list[Any]:
    """Nested lists as one list; every level must be as long as its axis."""
    level: list[Any] = [data]
    for axis, dim in enumerate(shape):
        for index, row in enumerate(level):
            if type(row) is not list or len(row) != dim:
                found = f"{len(row)} elements" if type(row) is list else kind(row)
                raise InvalidRequest(
                    f"{path} is nested unlike its shape {show(shape)}: list {index} at depth {axis} "
                    f"should hold {dim} elements, got {found}",
                    field=path,
                )
        level = list(chain.from_iterable(level))
    return level


def from_binary(blob: memoryview, shape: tuple[int, ...], datatype: Datatype, path: str) -> Array:
    """An array from the protocol's binary form: little-endian, row-major, packed; BYTES as length-prefixed UTF-8.

    The bytes are copied, so that the array is aligned and does not hold the request body alive.
    """
    size = math.prod(shape)
    if datatype.size == 0:
        return _strings(blob, size, path).reshape(shape)
    if len(blob) != size * datatype.size:
        raise InvalidRequest(
            f"{path} is {len(blob)} bytes, but {datatype.name}{show(shape)} needs {size * datatype.size}", field=path
        )
    if datatype.name == "BOOL":
        bits = np.frombuffer(blob, np.uint8)
        if size and bits.max() > 1:
            index = int(np.argmax(bits > 1))
            raise InvalidRequest(f"{path}: byte {index} of a BOOL tensor must be 0 or 1, got {bits[index]}", field=path)
    return np.frombuffer(blob, datatype.dtype).reshape(shape).copy()


def _strings(blob: memoryview, size: int, path: str) -> Array:
    # Every element takes at least its length prefix, so this holds before a list is made.
    if size * _LENGTH.size > len(blob):
        raise InvalidRequest(f"{path} is {len(blob)} bytes, too few for {size} length-prefixed strings", field=path)
    values = np.empty(size, dtype=object)
    at = 0
    for index in range(size):
        start = at + _LENGTH.size
        if start > len(blob):
            raise InvalidRequest(f"{path} ends inside the length of string {index}", field=path)
        at = start + _LENGTH.unpack_from(blob, at)[0]
        if at > len(blob):
            raise InvalidRequest(f"{path} ends inside string {index}", field=path)
        values[index] = text(blob[start:at], index, path)
    if at != len(blob):
        raise InvalidRequest(f"{path} has {len(blob) - at} bytes left over after its {size} strings", field=path)
    return values


def text(blob: memoryview, index: int, path: str) -> str:
    """One string element: ONNX strings are UTF-8. Raises InvalidRequest."""
    try:
        return str(blob, "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path}: string {index} is not UTF-8 at byte {error.start}", field=path) from None


def to_binary(array: Array, datatype: Datatype) -> bytes:
    """The binary form of an array."""
    if datatype.size:
        return array.astype(datatype.dtype, copy=False).tobytes()
    parts: list[bytes] = []
    for value in array.ravel():
        encoded = value if isinstance(value, bytes) else str(value).encode()
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)
