"""Block: preallocated rows of one version, inputs side by side: requests are decoded into it, sessions run on it.

A column is contiguous, so a run of rows is a slice and batching copies nothing. With the journal on, the rows are those
of its segment, so that keeping them copies nothing either.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gateway.journal.ids import new_prefix
from gateway.oip.datatypes import DATATYPES
from gateway.oip.limits import Limits
from gateway.types import Array, Contract, TensorSpec

if TYPE_CHECKING:
    from gateway.journal.segment import Segment

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
    """Rows that calls are decoded into. `fill` of them are taken; `held` calls still need theirs.

    `full`: another block took its place. It is a window on a segment of the journal from row `base` on, or (segment
    None) memory that is used again. `prefix` begins the ids of its predictions, whose rows count from `base`.
    `scratch`: those of its arrays that are no part of the segment.
    """

    __slots__ = ("arrays", "base", "capacity", "fill", "full", "held", "prefix", "raw", "scratch", "segment")

    def __init__(
        self,
        layout: Layout,
        segment: Segment | None = None,
        base: int = 0,
        capacity: int | None = None,
        arrays: tuple[Array, ...] | None = None,
    ) -> None:
        self.capacity = layout.capacity if capacity is None else capacity
        self.arrays = self.allocate(layout) if arrays is None else arrays
        # Bytes of each column, to pack numbers into; strings have none.
        self.raw: tuple[memoryview, ...] = tuple(
            array.reshape(-1).view(np.uint8).data if column.row_bytes else memoryview(bytearray())
            for array, column in zip(self.arrays, layout.columns, strict=True)
        )
        self.fill = 0
        self.held = 0
        self.full = False
        self.base = base
        self.segment = segment
        self.prefix = new_prefix() if segment is None else segment.prefix
        self.scratch: tuple[Array, ...] = ()

    @staticmethod
    def allocate(layout: Layout, except_for: Sequence[bool] = ()) -> tuple[Array, ...]:
        """Arrays in memory for the columns, `capacity` rows each, but for those that lie elsewhere."""
        elsewhere = except_for or [False] * len(layout.columns)
        return tuple(
            np.zeros((layout.capacity, *column.trailing), column.dtype)
            for column, is_elsewhere in zip(layout.columns, elsewhere, strict=True)
            if not is_elsewhere
        )

    def reset(self) -> None:
        """Begin anew with other ids; only when nothing is held."""
        self.fill = 0
        self.prefix = new_prefix()


class Blocks:
    """Where a version's blocks come from when nothing keeps them: memory that is used again and again."""

    def __init__(self, layout: Layout, spare: int) -> None:
        self._layout = layout
        self._spare = spare
        self.free: list[Block] = []

    def next(self, lane: int, rows: int, previous: Block | None) -> Block:
        """A block with room for `rows`, in place of `previous`."""
        if previous is not None and not previous.held:
            block = previous
        else:
            if previous is not None:
                previous.full = True
            block = self.free.pop() if self.free else Block(self._layout)
        block.reset()
        return block

    def give(self, block: Block) -> None:
        """Nobody needs the rows of a block any more."""
        block.full = False
        if len(self.free) < self._spare:
            self.free.append(block)
