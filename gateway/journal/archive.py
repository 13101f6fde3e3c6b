"""The archive: sealed segments as a Parquet dataset, ``model=NAME/version=N/date=YYYY-MM-DD/PREFIX.parquet``.

The date (UTC) is that on which the segment was opened, which its prefix tells; so a prediction id leads to its file.
Beside the dataset, ``_index/PREFIX.segment`` is what is left of each segment: for every row the few columns that
finding a prediction needs. Programs that read datasets pass over names that begin with ``_`` or ``.``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gateway.journal import schema, shelves
from gateway.journal.arrow import batches
from gateway.journal.columns import FIELDS, METADATA, Source, schema_of, source_of
from gateway.journal.reader import Damaged, Segment
from gateway.journal.schema import Control
from gateway.journal.segment import map_columns
from gateway.models import durable

INDEXED = ("time_ns", "key", "span", "status")
"""The columns that are left of an archived segment."""

MODE = 0o640
"""Of files: those of segments."""

MAX_DAMAGE = 8
"""Places of damage that a file tells of."""

_CODED = ("row", "span", "batch", "route", "sample_rate", "redaction_version", "status", "whole", "code", "message")


class Archived(NamedTuple):
    """A file of the archive: `rows` include the requests that were refused without a prediction id.

    `damage`: what in words is missing of them, because it could not be read.
    """

    path: Path
    rows: int
    size: int
    damage: tuple[str, ...] = ()


def write(segment: Segment, folder: Path) -> Archived:
    """Archive a sealed segment: returns when its file is complete, compared with it, and on the disk.

    Rows whose frame is damaged are there with what else they have, and say so in `extra`.
    Raises Damaged where its columns are, or where what was written is not what was read; OSError.
    """
    spec = segment.spec
    if wrong := segment.verify_rows():
        raise Damaged(f"segment {segment.path.name}: {'; '.join(wrong[:3])}")
    damage = tuple(each.words for each in segment.bad_frames()[:MAX_DAMAGE])
    target = shelves.path_of(folder, spec.model, spec.version, spec.prefix)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.writing")
    try:
        rows = _write(scratch, schema_of(spec, damage), batches(segment))
        _compare(scratch, segment)
        _write_index(segment, shelves.index_of(folder, spec.prefix))
        _publish(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
    return Archived(target, rows, target.stat().st_size, damage)


def strip(path: Path) -> Archived:
    """Take the inputs out of a file; its columns stay, and the rest of its rows. Raises OSError, Damaged.

    The column `extra` is emptied too: it may hold values of inputs.
    """
    source = read_source(path)
    bare = msgspec.structs.replace(source, bare=True)
    columns = read_schema(path).with_metadata({METADATA: msgspec.json.encode(bare)})
    scratch = path.with_name(f".{path.name}.writing")
    try:
        rows = _write(scratch, columns, (_without_inputs(piece, columns) for piece in read(path)))
        expected = pq.read_metadata(path).num_rows
        if rows != expected:
            raise Damaged(f"{path.name} had {expected} rows, without its inputs {rows}")
        _publish(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return Archived(path, rows, path.stat().st_size)


def _without_inputs(piece: pa.RecordBatch, columns: pa.Schema) -> pa.RecordBatch:
    count = piece.num_rows
    kept = [
        pa.nulls(count, field.type) if is_input(field.name) or field.name == "extra" else piece.column(field.name)
        for field in columns
    ]
    return pa.record_batch(kept, schema=columns)


def is_input(name: str) -> bool:
    """Whether a column holds an input, or something of one."""
    return name.removeprefix("digest_").removeprefix("summary_").removeprefix("shape_").startswith("input_")


def input_bytes(path: Path) -> int:
    """Bytes that the inputs in a file take. Raises Damaged, OSError."""
    with reading(path):
        metadata = pq.read_metadata(path)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    return sum(column.total_compressed_size for column in columns if is_input(column.path_in_schema))


def read_source(path: Path) -> Source:
    """What a file says about the segment that it was. Raises Damaged, OSError."""
    return source_of(read_schema(path))


def read_schema(path: Path) -> pa.Schema:
    """The schema of a file. Raises Damaged, OSError."""
    with reading(path):
        return pq.read_schema(path)


def count_rows(path: Path) -> int:
    """The rows of a file, those without an id included. Raises Damaged, OSError."""
    with reading(path):
        return int(pq.read_metadata(path).num_rows)


def read(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a file, of all or some columns; each batch ends with a run. Raises Damaged, OSError."""
    with reading(path), pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns, use_threads=False)
            yield from table.combine_chunks().to_batches()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What says that a file is not what it should be becomes Damaged; errors of the system stay as they are."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        # Of pages that do not fit their checksum, pyarrow speaks as of the system, but without its number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Damaged(f"{path.name} cannot be read: {(str(error).splitlines() or [''])[0][:200]}") from None


def _write(path: Path, columns: pa.Schema, pieces: Iterator[pa.RecordBatch | pa.Table]) -> int:
    """Write pieces, one row group each; returns the number of rows when they are on the disk."""
    texts = [
        field.name
        for field in columns
        if pa.types.is_string(field.type) and field.name not in ("prediction_id", "request_id", "id", "trace")
    ]
    path.unlink(missing_ok=True)
    # Who may not read segments may not read their archive.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, MODE))
    rows = 0
    plain = dict.fromkeys(("time", "time_ns"), "DELTA_BINARY_PACKED") | {"prediction_id": "DELTA_BYTE_ARRAY"}
    with pq.ParquetWriter(
        path,
        columns,
        compression="zstd",
        write_page_checksum=True,
        use_dictionary=[*(name for name in _CODED if name not in texts), *texts],
        column_encoding=plain,
        # Of numbers that are all different it would only cost time; with the others, readers skip what they need not.
        write_statistics=[name for name in FIELDS.names if name in columns.names],
    ) as writer:
        for piece in pieces:
            table = piece if isinstance(piece, pa.Table) else pa.Table.from_batches([piece])
            writer.write_table(table.cast(columns), row_group_size=max(1, table.num_rows))
            rows += table.num_rows
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return rows


def _publish(scratch: Path, target: Path) -> None:
    os.replace(scratch, target)
    durable.sync(target.parent)


def _compare(path: Path, segment: Segment) -> None:
    """Raises Damaged unless a file holds what its segment does."""
    written = read(path)
    for number, expected in enumerate(batches(segment)):
        found = next(written, None)
        if found is None or not is_same(expected, found):
            raise Damaged(f"segment {segment.path.name}: piece {number} of its archive is not what it should be")
    if next(written, None) is not None:
        raise Damaged(f"segment {segment.path.name}: its archive has more rows than it")


def is_same(one: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    """Whether two batches hold the same columns of the same values, floats bit for bit."""
    return one.schema.equals(other.schema) and all(
        _is_same(left, right) for left, right in zip(one.columns, other.columns, strict=True)
    )


def _is_same(one: pa.Array, other: pa.Array) -> bool:
    if len(one) != len(other) or one.null_count != other.null_count:
        return False
    if not one.is_valid().equals(other.is_valid()):
        return False
    if pa.types.is_fixed_size_list(one.type):
        return _is_same(one.flatten(), other.flatten())
    if pa.types.is_list(one.type):
        return bool(one.value_lengths().equals(other.value_lengths())) and _is_same(one.flatten(), other.flatten())
    if pa.types.is_floating(one.type):
        integers = {2: pa.uint16(), 4: pa.uint32(), 8: pa.uint64()}[one.type.bit_width // 8]
        return bool(one.view(integers).equals(other.view(integers)))
    return bool(one.equals(other))


def _write_index(segment: Segment, path: Path) -> None:
    """What finding the predictions of a segment needs, as a segment."""
    spec = segment.spec
    rows = segment.rows()
    kept = tuple(column for column in spec.columns if column.group == "meta" and column.name in INDEXED)
    small = schema.lay_out(msgspec.structs.replace(spec, columns=kept, side=(), capacity=max(1, rows)))
    data = bytearray(small.size)
    header = schema.pack_header(small)
    data[: len(header)] = header
    for (_, name), array in map_columns(data, small).items():
        array[:rows] = segment.column(name)[:rows]
    control = np.frombuffer(data, "<i8", len(Control), small.control_at)
    control[Control.ROWS] = control[Control.TAKEN] = rows
    control[Control.SEALED_NS] = max(1, shelves.opened_ns(spec.prefix))
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.writing")
    durable.write(scratch, bytes(data))
    scratch.chmod(MODE)
    _publish(scratch, path)
