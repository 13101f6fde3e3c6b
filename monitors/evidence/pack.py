"""States as bytes: a MessagePack map of numbers, texts, lists and arrays; equal states give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from monitors.types import Array

__all__ = ["pack", "unpack"]

ARRAY = 1
DTYPES = ("<i8", "<f8")


def pack(kind: str, state: Mapping[str, Any]) -> bytes:
    """`state` as bytes, its keys in order. Arrays are int64 or float64; floats keep every bit."""
    return msgspec.msgpack.Encoder(enc_hook=_encode, order="sorted").encode({"kind": kind, "state": dict(state)})


def unpack(kind: str, data: bytes, fields: Mapping[str, type]) -> dict[str, Any]:
    """The state that `pack` was given. Raises ValueError where the bytes are damaged, or of other things."""
    try:
        document = msgspec.msgpack.Decoder(ext_hook=_decode).decode(data)
        if document["kind"] != kind:
            raise ValueError(f"expected the state of {kind}, got that of {document['kind']}")
        state = dict(document["state"])
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise ValueError(f"the state of {kind} cannot be read: {error}") from error
    found = {name: type(value) for name, value in state.items()}
    if found != dict(fields):
        raise ValueError(f"expected the state of {kind} to hold {sorted(fields)}, got {sorted(found)} or other types")
    return state


def _encode(value: object) -> msgspec.msgpack.Ext:
    if not isinstance(value, np.ndarray) or value.dtype.str not in DTYPES:
        raise TypeError(f"a state cannot hold {type(value).__name__}")
    head = {"dtype": value.dtype.str, "shape": list(value.shape)}
    return msgspec.msgpack.Ext(ARRAY, msgspec.msgpack.encode([head, value.tobytes()]))


def _decode(code: int, data: memoryview) -> Array:
    if code != ARRAY:
        raise ValueError(f"expected an array, got extension {code}")
    head, body = msgspec.msgpack.decode(data, type=tuple[dict[str, Any], bytes])
    if head["dtype"] not in DTYPES:
        raise ValueError(f"expected int64 or float64, got {head['dtype']}")
    return np.frombuffer(body, dtype=head["dtype"]).reshape(head["shape"]).copy()
