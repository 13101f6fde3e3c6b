"""Export: predictions with the labels that were resolved for them, as one table for training and analysis.

What is exported is right for a point in time: inputs are those that the model was given then, and with `as_of` the
labels are those that were known at that moment, resolved from what had been received by then.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from gateway.errors import HeadgateError
from gateway.feedback.rules import FeedbackRule, Value
from gateway.journal.columns import Tensor, source_of, tensors_of, to_array
from gateway.journal.ids import PREFIX_LENGTH
from gateway.journal.reader import Damaged
from gateway.journal.sources import Source, read, sources
from gateway.progress import Progress
from gateway.types import Array

NAMED = ("prediction_id", "row", "time", "version", "key")
"""What stands in front of the tensors: `key` is the hash of the client's key, null without one."""

_PART_BITS = np.uint64(30)


class ExportFailed(HeadgateError):
    """What was asked for cannot be exported; the message says why."""

    code = "export-failed"


class Label(Protocol):
    """A resolved label (ledger.reading.ResolvedLabel), as far as an export needs it."""

    @property
    def prediction_id(self) -> str:
        """Of its request."""
        ...

    @property
    def part(self) -> int:
        """The row of the request."""
        ...

    @property
    def value(self) -> Value | None:
        """What is true."""
        ...

    @property
    def received_ns(self) -> int:
        """When it was received."""
        ...


class Wish(msgspec.Struct, frozen=True):
    """What is to be exported: predictions of [since_ns, until_ns), all versions where none is named.

    labelled: only rows with a label, of whichever name. everything: also what was refused or failed. outputs: what the
    model answered. flat: a column for each element of a tensor.
    """

    model: str
    versions: tuple[int, ...] = ()
    since_ns: int = 0
    until_ns: int = 1 << 62
    labelled: bool = False
    everything: bool = False
    outputs: bool = True
    flat: bool = False


class LabelColumn(NamedTuple):
    """The labels of one name, in the order of their prediction ids."""

    name: str
    rule: FeedbackRule
    labels: Iterator[Label]


class Exported(msgspec.Struct):
    """What an export did. `unused`: labels by name that no exported row has. `bare`: rows without their inputs.

    `damaged`: what could not be read and is missing, in words.
    """

    rows: int = 0
    labelled: dict[str, int] = {}
    unused: dict[str, int] = {}
    bare: int = 0
    columns: tuple[str, ...] = ()
    damaged: list[str] = []


def export(data: Path, wish: Wish, labels: Sequence[LabelColumn], target: Path, progress: Progress) -> Exported:
    """Write the table to `target`, CSV if its name ends so, else Parquet; under that name only when it is complete.

    Raises ExportFailed, OSError.
    """
    damaged: list[str] = []
    found = sources(data, wish.model, wish.versions, wish.until_ns, damaged.append)
    if not found:
        beside = f" that can be read ({damaged[0]})" if damaged else ""
        raise ExportFailed(f"there are no predictions of model {wish.model!r}{beside} in that folder, version and time")
    tensors = _union(found, wish)
    as_csv = target.suffix == ".csv"
    if as_csv and (varying := [each.field for each in tensors if not (each.fixed and (wish.flat or each.width == 1))]):
        raise ExportFailed(f"{varying[0]} has several values a row: use --flat, or Parquet where their number varies")
    schema = _schema(tensors, labels, flat=wish.flat)
    joins = [Join(each) for each in labels]
    told = Exported(columns=tuple(schema.names), damaged=damaged)
    progress.total = sum(each.rows for each in found)
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.writing")
    try:
        with _writer(scratch, schema, as_csv=as_csv) as writer:
            for source in found:
                for join in joins:
                    join.begin(source.prefix)
                try:
                    for batch in read(data, source):
                        rows = _rows(batch, source, wish, tensors, joins, schema)
                        progress.advance(batch.num_rows)
                        if rows is not None:
                            writer.write_table(pa.Table.from_batches([rows]))
                            told.rows += rows.num_rows
                            told.bare += rows.num_rows if source.bare else 0
                except Damaged as error:
                    damaged.append(str(error))
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
    for join in joins:
        told.labelled[join.name] = join.used
        told.unused[join.name] = join.seen + join.rest() - join.used
    return told


def _union(found: Sequence[Source], wish: Wish) -> list[Tensor]:
    """The tensors of all sources, each once. Raises ExportFailed where versions disagree."""
    tensors: dict[str, tuple[Tensor, int]] = {}
    for source in found:
        for tensor in tensors_of(source_of(source.schema).segment):
            if tensor.keep.startswith("digest") or (tensor.group == "output" and not wish.outputs):
                continue
            known, version = tensors.setdefault(tensor.field, (tensor, source.version))
            if (known.type, known.shape) != (tensor.type, tensor.shape):
                raise ExportFailed(
                    f"{tensor.field} of version {source.version} is {tensor.dtype} {list(tensor.shape)}, of version "
                    f"{version} {known.dtype} {list(known.shape)}; export them apart"
                )
    return [tensor for tensor, _ in tensors.values()]


def _schema(tensors: Sequence[Tensor], labels: Sequence[LabelColumn], *, flat: bool) -> pa.Schema:
    types = (pa.string(), pa.int32(), pa.timestamp("us", "UTC"), pa.int64(), pa.uint64())
    fields = [pa.field(name, type_) for name, type_ in zip(NAMED, types, strict=True)]
    for tensor in tensors:
        if flat and tensor.fixed and tensor.width != 1:
            element = tensor.type.value_type
            fields += [pa.field(f"{tensor.field}_{index}", element) for index in range(tensor.width)]
        else:
            fields.append(pa.field(tensor.field, tensor.type))
        if not tensor.fixed:
            fields.append(pa.field(f"shape_{tensor.field}", pa.list_(pa.int32())))
    for each in labels:
        fields.append(pa.field(f"label_{each.name}", _label_type(each.rule)))
        fields.append(pa.field(f"label_{each.name}_received", pa.timestamp("us", "UTC")))
    return pa.schema(fields)


def _label_type(rule: FeedbackRule) -> pa.DataType:
    if rule.type == "category":
        whole = all(isinstance(value, int) for value in rule.values)
        return pa.int64() if whole and rule.values else pa.string()
    return {"boolean": pa.bool_(), "number": pa.float64(), "integer": pa.int64(), "text": pa.string()}[rule.type]


def _rows(
    batch: pa.RecordBatch,
    source: Source,
    wish: Wish,
    tensors: Sequence[Tensor],
    joins: Sequence[Join],
    schema: pa.Schema,
) -> pa.RecordBatch | None:
    """The rows of a batch that are wanted, in the columns of the export; None where there are none."""
    time_ns = batch.column("time_ns").to_numpy(zero_copy_only=False)
    wanted = (time_ns >= wish.since_ns) & (time_ns < wish.until_ns)
    wanted &= np.asarray(batch.column("prediction_id").is_valid())
    if not wish.everything:
        wanted &= batch.column("status").to_numpy(zero_copy_only=False) == 200
    if not wanted.all():
        batch = batch.filter(pa.array(wanted))
    if not batch.num_rows:
        return None
    keys = keys_of(batch)
    labels = [join.column(keys) for join in joins]
    if wish.labelled:
        some = np.zeros(batch.num_rows, np.bool_)
        for values, _ in labels:
            some |= np.asarray(values.is_valid())
        batch = batch.filter(pa.array(some))
        labels = [(values.filter(pa.array(some)), times.filter(pa.array(some))) for values, times in labels]
        if not batch.num_rows:
            return None
    count = batch.num_rows
    columns: list[pa.Array] = [batch.column(name) for name in ("prediction_id", "row", "time")]
    columns.append(pa.array(np.full(count, source.version, np.int64)))
    columns.append(batch.column("key"))
    for tensor in tensors:
        columns += _tensor(batch, tensor, flat=wish.flat)
    for values, times in labels:
        columns += [values, times]
    return pa.record_batch(columns, schema=schema)


def _tensor(batch: pa.RecordBatch, tensor: Tensor, *, flat: bool) -> list[pa.Array]:
    names = batch.schema.names
    count = batch.num_rows
    column = batch.column(tensor.field) if tensor.field in names else pa.nulls(count, tensor.type)
    if flat and tensor.fixed and tensor.width != 1:
        values = to_array(column, tensor).reshape(count, -1)
        mask = None if not column.null_count else np.asarray(column.is_null())
        element = tensor.type.value_type
        return [pa.array(np.ascontiguousarray(values[:, index]), element, mask=mask) for index in range(tensor.width)]
    if tensor.fixed:
        return [column]
    shape = f"shape_{tensor.field}"
    return [column, batch.column(shape) if shape in names else pa.nulls(count, pa.list_(pa.int32()))]


def keys_of(batch: pa.RecordBatch) -> Array:
    """A number for each row that grows within a segment: its request's row there, and its row in the request."""
    text = batch.column("prediction_id")
    start = text.offset
    data = np.frombuffer(text.buffers()[2], np.uint8)
    offsets = np.frombuffer(text.buffers()[1], np.int32)[start : start + len(text) + 1]
    digits = data[offsets[0] : offsets[-1]].reshape(len(text), 36)[:, PREFIX_LENGTH:]
    nibbles = (digits & 15) + 9 * (digits >> 6)
    rows: Array = np.zeros(len(text), np.uint64)
    for place in range(8):
        rows = (rows << np.uint64(4)) | nibbles[:, place]
    parts: Array = batch.column("row").to_numpy(zero_copy_only=False).astype(np.uint64)
    keys: Array = (rows << _PART_BITS) | parts
    return keys


class Join:
    """The labels of one name on their way to their rows: both come in the order of prediction ids."""

    def __init__(self, column: LabelColumn) -> None:
        self.name = column.name
        self.seen = 0
        self.used = 0
        self._type = _label_type(column.rule)
        self._labels = iter(column.labels)
        self._next = next(self._labels, None)
        self._keys: Array = np.empty(0, np.uint64)
        self._values: pa.Array = pa.nulls(0, self._type)
        self._times: pa.Array = pa.nulls(0, pa.timestamp("us", "UTC"))

    def begin(self, prefix: str) -> None:
        """Hold the labels of a segment; those of segments before it have no rows."""
        keys, values, times = [], [], []
        while self._next is not None and (name := self._next.prediction_id)[:PREFIX_LENGTH] <= prefix:
            self.seen += 1
            if name.startswith(prefix):
                keys.append(int(name[PREFIX_LENGTH:], 16) << int(_PART_BITS) | self._next.part)
                values.append(self._next.value)
                times.append(self._next.received_ns // 1000)
            self._next = next(self._labels, None)
        order = np.argsort(np.array(keys, np.uint64))
        self._keys = np.array(keys, np.uint64)[order]
        texts = pa.types.is_string(self._type)
        shown: list[Any] = [str(value) if texts and value is not None else value for value in values]
        self._values = pa.array(shown, self._type).take(pa.array(order))
        self._times = pa.array(times, pa.timestamp("us", "UTC")).take(pa.array(order))

    def column(self, keys: Array) -> tuple[pa.Array, pa.Array]:
        """Values and times for rows with these keys, null where there is no label."""
        if not len(self._keys):
            return pa.nulls(len(keys), self._type), pa.nulls(len(keys), pa.timestamp("us", "UTC"))
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = 0
        has = self._keys[at] == keys
        self.used += int(has.sum())
        indices = pa.array(at, mask=~has)
        return pc.take(self._values, indices), pc.take(self._times, indices)

    def labels(self, batch: pa.RecordBatch) -> pa.Array:
        """The labels of the rows of a batch."""
        return self.column(keys_of(batch))[0]

    def rest(self) -> int:
        """How many labels follow the last segment."""
        return (self._next is not None) + sum(1 for _ in self._labels)


def _writer(path: Path, schema: pa.Schema, *, as_csv: bool) -> Any:
    path.unlink(missing_ok=True)
    if as_csv:
        return csv.CSVWriter(path, schema)
    texts = [field.name for field in schema if pa.types.is_string(field.type) and field.name != "prediction_id"]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["version", *texts],
        column_encoding={"prediction_id": "DELTA_BYTE_ARRAY"},
        write_statistics=[*NAMED],
    )
