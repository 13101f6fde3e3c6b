"""Columns: what the rows of a segment are called and typed as in a table, for archive, export and replay.

Columns that every model has are named in `FIELDS`; a tensor is ``input_NAME`` or ``output_NAME``: a plain column where
its rows have one element, a list of fixed length where they have a fixed shape, else a list with its shape beside it in
``shape_input_NAME``. A tensor that is kept as a digest is ``digest_...`` and ``summary_...`` instead. What fits none of
these is in ``extra``, as MessagePack: nothing that a segment holds is left out.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from gateway.journal.keep import DIGEST_BYTES, SUMMARY
from gateway.journal.reader import Damaged
from gateway.journal.schema import SegmentSpec
from gateway.types import Array

FORMAT = 1
METADATA = b"headgate"
"""Key of the metadata of a schema: a `Source` as JSON."""

FIELDS = pa.schema(
    [
        ("prediction_id", pa.string()),
        ("row", pa.int32()),
        ("span", pa.int32()),
        ("time", pa.timestamp("us", "UTC")),
        ("time_ns", pa.int64()),
        ("latency_ns", pa.int64()),
        ("queue_ns", pa.int64()),
        ("run_ns", pa.int64()),
        ("key", pa.uint64()),
        ("batch", pa.int32()),
        ("route", pa.int32()),
        ("sample_rate", pa.float64()),
        ("redaction_version", pa.string()),
        ("status", pa.int16()),
        ("whole", pa.bool_()),
        ("code", pa.string()),
        ("message", pa.string()),
        ("request_id", pa.string()),
        ("id", pa.string()),
        ("trace", pa.string()),
        ("extra", pa.binary()),
    ]
)
"""prediction_id: null for a request that was refused before it had one. row: of the request; span: rows of the request.
key: null where the client gave none. sample_rate, redaction_version: of the rules by which the row was kept.
whole: the values are those of all rows of the request, whose axis 0 is no batch.
code, message: of a refusal. request_id, id, trace: what the client called it. The others are as in schema.META."""

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


class Source(msgspec.Struct, frozen=True):
    """Where the rows of a table come from. `bare`: their inputs have been taken away. `damage`: what was missing."""

    segment: SegmentSpec
    format: int = FORMAT
    bare: bool = False
    damage: tuple[str, ...] = ()


class Tensor(NamedTuple):
    """An input or output as a column: `shape` is that of one row, with -1 where it varies."""

    group: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    keep: str

    @property
    def field(self) -> str:
        """The name of its column."""
        return f"{self.group}_{self.name}"

    @property
    def fixed(self) -> bool:
        """True where every row has the same shape."""
        return -1 not in self.shape

    @property
    def width(self) -> int:
        """Elements of a row, where that is fixed."""
        return math.prod(self.shape)

    @property
    def type(self) -> pa.DataType:
        """Of its column."""
        base = pa.string() if self.dtype == "|O" else pa.from_numpy_dtype(np.dtype(self.dtype))
        if self.fixed and self.width == 1:
            return base
        if self.fixed and self.width > 1 and self.dtype != "|O":
            return pa.list_(pa.field("element", base), self.width)
        return pa.list_(pa.field("element", base))


def tensors_of(spec: SegmentSpec) -> list[Tensor]:
    """The tensors of which anything is kept, inputs first."""
    found = [
        Tensor(column.group, column.name, column.dtype, column.shape, spec.kept.get(column.name, "full"))
        for column in (*spec.columns, *spec.side)
        if column.group != "meta"
    ]
    return sorted((each for each in found if each.keep.split()[0] != "none"), key=lambda each: each.group)


def fields_of(tensor: Tensor) -> list[str]:
    """The names of the columns of a tensor."""
    if tensor.keep.startswith("digest"):
        return [f"digest_{tensor.field}", f"summary_{tensor.field}"]
    return [tensor.field] if tensor.fixed else [tensor.field, f"shape_{tensor.field}"]


def schema_of(spec: SegmentSpec, damage: tuple[str, ...] = ()) -> pa.Schema:
    """The schema of a segment's rows; `damage`: what in words is missing of them."""
    fields = list(FIELDS)
    for tensor in tensors_of(spec):
        if tensor.keep.startswith("digest"):
            types = [pa.binary(DIGEST_BYTES), pa.list_(pa.float32(), len(SUMMARY))]
        else:
            types = [tensor.type, pa.list_(pa.int32())]
        fields += [pa.field(name, type_) for name, type_ in zip(fields_of(tensor), types, strict=False)]
    return pa.schema(fields, {METADATA: msgspec.json.encode(Source(spec, damage=damage))})


# A server imports this when it is first asked for an archived record, by any of its threads: see gateway/structs.py.
_SOURCE = msgspec.json.Decoder(Source)


def source_of(schema: pa.Schema) -> Source:
    """Where a table comes from. Raises Damaged where it does not say so in a way that is understood."""
    try:
        return _SOURCE.decode((schema.metadata or {})[METADATA])
    except (KeyError, msgspec.DecodeError):
        raise Damaged("a table does not say which segment it comes from") from None


@cache
def _four_digits() -> Array:
    """The four hexadecimal digits of every 16-bit number, as they lie in memory, (65536,) uint32."""
    places = np.arange(1 << 16)[:, np.newaxis] >> np.array([12, 8, 4, 0]) & 15
    found: Array = _HEX[places].view(np.uint32).reshape(-1)
    return found


def prediction_ids(prefix: str, rows: Array) -> pa.Array:
    """Ids of the requests that begin at `rows` (integers) of a segment, as strings."""
    # Four characters are moved at a time: 28 of the prefix, and eight digits that are looked up in two parts.
    text = np.empty((len(rows), 9), np.uint32)
    text[:, :7] = np.frombuffer(prefix.encode(), np.uint32)
    digits = rows.astype(np.uint32)
    table = _four_digits()
    text[:, 7] = table[digits >> np.uint32(16)]
    text[:, 8] = table[digits & np.uint32(0xFFFF)]
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * np.int32(36)
    return pa.StringArray.from_buffers(len(rows), pa.py_buffer(offsets), pa.py_buffer(text))


def to_array(column: pa.Array, tensor: Tensor) -> Array:
    """The values of a tensor of fixed shape: (rows, *shape). What stands in rows without a value means nothing."""
    if tensor.dtype == "|O":
        values = column.to_pylist()
        if tensor.width != 1:
            values = [each or [""] * tensor.width for each in values]
        return np.array(values, dtype=object).reshape(len(column), *tensor.shape)
    if tensor.width == 0:
        return np.empty((len(column), *tensor.shape), tensor.dtype)
    if tensor.width > 1:
        column = column.values.slice(column.offset * tensor.width, len(column) * tensor.width)
    if column.null_count:
        column = column.fill_null(False if tensor.dtype == "|b1" else 0)
    return np.asarray(column.to_numpy(zero_copy_only=False), tensor.dtype).reshape(-1, *tensor.shape)


def cell(batch: pa.RecordBatch, tensor: Tensor, at: int) -> Array | None:
    """The value of a tensor in one row, in its shape; None where there is none."""
    if tensor.field not in batch.schema.names:
        return None
    value = batch.column(tensor.field)[at]
    if not value.is_valid:
        return None
    shape = tensor.shape if tensor.fixed else tuple(batch.column(f"shape_{tensor.field}")[at].as_py())
    if isinstance(value, pa.ListScalar | pa.FixedSizeListScalar):
        items = value.values
        flat = np.array(items.to_pylist(), object) if tensor.dtype == "|O" else items.to_numpy(zero_copy_only=False)
    else:
        flat = np.array([value.as_py()], tensor.dtype)
    return flat.astype(tensor.dtype, copy=False).reshape(shape)
