"""The protocol's datatypes beside those of numpy and ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gateway.types import Array


@dataclass(frozen=True, slots=True)
class Datatype:
    """One row of the table: the name on the wire, bytes per element (0: variable), the array dtype and ORT's name.

    `in_json` is False where the protocol allows the datatype only as binary data.
    """

    name: str
    size: int
    dtype: np.dtype
    ort: str
    in_json: bool = True

    @property
    def config_name(self) -> str:
        """The name in a model configuration, such as ``TYPE_FP32``."""
        return "TYPE_STRING" if self.name == "BYTES" else f"TYPE_{self.name}"


_ROWS = (
    Datatype("BOOL", 1, np.dtype(np.bool_), "tensor(bool)"),
    Datatype("UINT8", 1, np.dtype(np.uint8), "tensor(uint8)"),
    Datatype("UINT16", 2, np.dtype("<u2"), "tensor(uint16)"),
    Datatype("UINT32", 4, np.dtype("<u4"), "tensor(uint32)"),
    Datatype("UINT64", 8, np.dtype("<u8"), "tensor(uint64)"),
    Datatype("INT8", 1, np.dtype(np.int8), "tensor(int8)"),
    Datatype("INT16", 2, np.dtype("<i2"), "tensor(int16)"),
    Datatype("INT32", 4, np.dtype("<i4"), "tensor(int32)"),
    Datatype("INT64", 8, np.dtype("<i8"), "tensor(int64)"),
    Datatype("FP16", 2, np.dtype("<f2"), "tensor(float16)", in_json=False),
    Datatype("FP32", 4, np.dtype("<f4"), "tensor(float)"),
    Datatype("FP64", 8, np.dtype("<f8"), "tensor(double)"),
    # numpy has no bfloat16: the array holds the bits.
    Datatype("BF16", 2, np.dtype("<u2"), "tensor(bfloat16)", in_json=False),
    Datatype("BYTES", 0, np.dtype(object), "tensor(string)"),
)

DATATYPES = {row.name: row for row in _ROWS}
BY_ORT_NAME = {row.ort: row for row in _ROWS}


def is_float(name: str) -> bool:
    """True for the datatypes that can hold NaN and infinities."""
    return name in ("FP16", "FP32", "FP64", "BF16")


def nonfinite_count(array: Array, name: str) -> int:
    """How many elements of `array` (datatype `name`) are NaN or infinite."""
    if name == "BF16":
        return int(np.count_nonzero((array & 0x7F80) == 0x7F80))
    return int(array.size - np.count_nonzero(np.isfinite(array)))
