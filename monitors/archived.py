"""Values of predictions that have gone into the archive, many of one file at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gateway.journal import archive, shelves
from gateway.journal.columns import cell, fields_of, source_of, tensors_of
from monitors.types import Array

ANSWERED = 200

Values = dict[tuple[str, str], Array]
"""By group (input, output) and name, the value of a row in its shape."""


def values(
    folder: Path, prefix: str, names: Collection[tuple[str, str]], wanted: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], Values | str]:
    """By (prediction id, row) the values of tensors (group, name) there, without those that are not kept.

    In words why there is none where the prediction is not there or failed. Raises Damaged, OSError.
    """
    found: dict[tuple[str, int], Values | str] = dict.fromkeys(wanted, "the prediction is not kept any more")
    path = shelves.find(folder, prefix)
    if path is None:
        return found
    schema = archive.read_schema(path)
    tensors = [each for each in tensors_of(source_of(schema).segment) if (each.group, each.name) in names]
    tensors = [each for each in tensors if each.field in schema.names]
    columns = ["prediction_id", "row", "status", "whole", *(name for each in tensors for name in fields_of(each))]
    known = pa.array(sorted({each[0] for each in wanted}), pa.string())
    with archive.reading(path):
        rows = pq.read_table(
            path, columns=columns, filters=pc.field("prediction_id").isin(known), partitioning=None,
            page_checksum_verification=True, use_threads=False,
        )  # fmt: skip
    for batch in rows.combine_chunks().to_batches():
        ids, parts = batch.column("prediction_id").to_pylist(), batch.column("row").to_pylist()
        status, whole = batch.column("status").to_pylist(), batch.column("whole").to_pylist()
        for at, each in enumerate(zip(ids, parts, strict=True)):
            if each not in found:
                continue
            if status[at] != ANSWERED:
                found[each] = "the prediction failed"
                continue
            own = {(tensor.group, tensor.name): cell(batch, tensor, at) for tensor in tensors}
            # Of values that belong to all rows of a request none is that of one row.
            found[each] = {} if whole[at] else {key: np.asarray(it) for key, it in own.items() if it is not None}
    return found
