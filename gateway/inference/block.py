"""Block: preallocated rows of one version, inputs side by side: requests are decoded into it, sessions run on it.

A column is contiguous, so a run of rows is a slice and batching copies nothing.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from gateway.inference.ids import new_prefix
from gateway.oip.datatypes import DATATYPES
from gateway.oip.limits import Limits
from gateway.types import Array, Contract, TensorSpec

BLOCK_BYTES = 8 << 20
MIN_ROWS, MAX_ROWS = 8, 4096

_PACK = {
    "FP32": "f", "FP64": "d", "INT64": "q", "INT32": "i", "INT16": "h", "INT8": "b",
    "UINT64": "Q", "UINT32": "I", "UINT16": "H", "UINT8": "B",
}  # fmt: skip


class ColumnSpec:
    """How one input lies in a block: `width` elements and `row_bytes` bytes a row (0 for strings)."""

    def __init__(self, spec: TensorSpec) -> None:
        assert spec.shape is not None
        self.name = spec.name
        self.datatype = spec.datatype
        self.trailing = spec.shape[1:]
        self.width = math.prod(self.trailing)
        row = DATATYPES[spec.datatype]
        self.dtype = row.dtype
        self.row_bytes = row.size * self.width
        self.one_row = [1, *self.trailing]
        letter = _PACK.get(spec.datatype)
        self.letter = letter
        # Of a datatype that is not packed this is never called.
        self.pack = struct.Struct(f"<{self.width}{letter or 'x'}").pack_into


class Layout:
    """The columns of a contract. `fits` is False where rows have no fixed shape: then there is no block."""

    def __init__(self, contract: Contract, limits: Limits) -> None:
        shapes = [spec.shape for spec in contract.inputs]
        fixed = contract.batched and all(shape is not None and -1 not in shape[1:] for shape in shapes)
        self.columns = tuple(ColumnSpec(spec) for spec in contract.inputs) if fixed else ()
        row_bytes = sum(column.row_bytes or 8 * column.width for column in self.columns)
        widest = max((column.width for column in self.columns), default=0)
        rows = max(MIN_ROWS, min(MAX_ROWS, BLOCK_BYTES // max(1, row_bytes)))
        # A request that fills the block must still be within the limits of a request.
        self.capacity = min(rows, limits.max_elements // max(1, widest))
        rank = max((len(column.one_row) for column in self.columns), default=0)
        self.fits = (
            widest > 0 and self.capacity > 0 and rank <= limits.max_rank and len(self.columns) <= limits.max_tensors
        )


class Block:
    """`fill` rows are taken; `held` calls still need theirs; `full` when another block took its place.

    `prefix` begins the ids of its predictions.
    """

    __slots__ = ("arrays", "capacity", "fill", "full", "held", "prefix", "raw")

    def __init__(self, layout: Layout) -> None:
        self.capacity = layout.capacity
        self.arrays: tuple[Array, ...] = tuple(
            np.zeros((layout.capacity, *column.trailing), column.dtype) for column in layout.columns
        )
        # Bytes of each column, to pack numbers into; strings have none.
        self.raw: tuple[memoryview, ...] = tuple(
            array.reshape(-1).view(np.uint8).data if column.row_bytes else memoryview(bytearray())
            for array, column in zip(self.arrays, layout.columns, strict=True)
        )
        self.fill = 0
        self.held = 0
        self.full = False
        self.prefix = new_prefix()

    def reset(self) -> None:
        """Begin anew with other ids; only when nothing is held."""
        self.fill = 0
        self.prefix = new_prefix()
