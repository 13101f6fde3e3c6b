"""Retrieving the record of one prediction from the archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gateway.journal import archive, ids, shelves
from gateway.journal.columns import cell, prediction_ids, source_of, tensors_of
from gateway.journal.reader import Record
from gateway.journal.schema import META, Form


def request_rows(folder: Path, prefix: str, row: int) -> pa.RecordBatch | None:
    """The rows of the request that begins at `row` of an archived segment; None where it is not there.

    Raises Damaged, OSError.
    """
    path = shelves.find(folder, prefix)
    if path is None:
        return None
    wanted = prediction_ids(prefix, np.array([row]))[0].as_py()
    try:
        with archive.reading(path):
            schema = pq.read_schema(path)
            found = pq.read_table(
                path,
                filters=[("prediction_id", "==", wanted)],
                partitioning=None,
                page_checksum_verification=True,
            )
    except FileNotFoundError:
        return None
    pieces = found.replace_schema_metadata(schema.metadata).combine_chunks().to_batches()
    return pieces[0] if pieces and pieces[0].num_rows else None


def record(batch: pa.RecordBatch, part: int | None) -> Record | None:
    """The record of one row of a request (None: the first), from `request_rows`."""
    whole = batch.column("whole")[0].as_py()
    span = batch.column("span")[0].as_py()
    if part is not None and not 0 <= part < span:
        return None
    at = 0 if whole else part or 0
    spec = source_of(batch.schema).segment
    values: dict[str, dict[str, Any]] = {"input": {}, "output": {}}
    for tensor in tensors_of(spec):
        value = cell(batch, tensor, at)
        if value is not None:
            values[tensor.group][tensor.name] = value if part is None or not whole else value[part]
    extra = _extra(batch)
    meta = {name: 0 for name, _ in META}
    for name in ("time_ns", "latency_ns", "queue_ns", "run_ns", "batch", "route", "status", "span"):
        meta[name] = int(batch.column(name)[at].as_py())
    meta["key"] = int(batch.column("key")[at].as_py() or 0)
    meta["form"] = int(Form.FRAME if whole else Form.COLUMNS)
    prediction_id = batch.column("prediction_id")[0].as_py()
    own = ids.parse(prediction_id)
    frame: dict[str, Any] = {"row": own.row if own is not None else 0, "n": span} | extra
    if (code := batch.column("code")[at].as_py()) is not None:
        frame["code"] = code
    called = [batch.column(each)[0].as_py() or "" for each in ("request_id", "id", "trace")]
    if any(called):
        frame["notes"] = [[frame["row"], *called]]
    full = prediction_id if part is None else f"{prediction_id}#{part}"
    return Record(full, spec.model, spec.version, spec.digest, spec, meta, values["input"], values["output"], frame)


def _extra(batch: pa.RecordBatch) -> dict[str, Any]:
    """What had no column of its own, of all rows of the request."""
    found: dict[str, Any] = {}
    if "extra" in batch.schema.names:
        for packed in batch.column("extra").drop_null().to_pylist():
            found |= msgspec.msgpack.decode(packed)
    return found
