"""Runs: rows of the journal as arrays, grouped as they ran together. Kernels may sum in another order for another
number of rows, so to get the same bits the same rows have to run together again. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from gateway.journal.columns import Tensor, cell, to_array
from gateway.types import Array

Span = tuple[int, int]


class Ids:
    """The prediction ids of the rows of a batch. They are read when the first is asked for: few replays ever do."""

    def __init__(self, read: Callable[[], pa.Array]) -> None:
        self._read = read

    def __getitem__(self, at: int) -> str:
        return str(self._all[at])

    @cached_property
    def _all(self) -> pa.Array:
        return self._read()


class Rows(NamedTuple):
    """Some rows in the order of the journal. `first` is True where a request begins; `has` where all inputs are there.

    `ids`: of the batch that they begin at row `start` of. `parts`: of the request, (rows,). `inputs`: by name,
    (rows, *shape). `logged`: the answers, and `answered`: which rows have them, by name.
    """

    ids: Ids
    start: int
    parts: Array
    batch: Array
    run_ns: Array
    first: Array
    has: Array
    inputs: dict[str, Array]
    logged: dict[str, Array]
    answered: dict[str, Array]

    def __len__(self) -> int:
        return len(self.batch)

    def name(self, at: int) -> str:
        """The prediction id of a row."""
        return f"{self.ids[self.start + at]}#{self.parts[at]}"


def rows_of(batch: pa.RecordBatch, ids: Ids, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Rows:
    """The rows of a batch of journal.sources, whose tensors all have fixed shapes."""
    found = {tensor.name: to_array(batch.column(tensor.field), tensor) for tensor in inputs}
    has = np.ones(batch.num_rows, np.bool_)
    for tensor in inputs:
        has &= _valid(batch.column(tensor.field))
    return _rows(
        batch,
        ids,
        0,
        has,
        found,
        {tensor.name: to_array(batch.column(tensor.field), tensor) for tensor in outputs},
        {tensor.name: _valid(batch.column(tensor.field)) for tensor in outputs},
    )


def requests_of(batch: pa.RecordBatch, ids: Ids, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Rows]:
    """The requests of a batch one by one, for tensors whose shapes vary: each has the arrays that it was run with.

    Its arrays need not have its rows as axis 0, so a request is always compared as one row.
    """
    starts = np.flatnonzero(batch.column("row").to_numpy(zero_copy_only=False) == 0).tolist()
    found = []
    for start, stop in zip(starts, [*starts[1:], batch.num_rows], strict=True):
        values = {tensor.field: _together(batch, tensor, start, stop) for tensor in (*inputs, *outputs)}
        fed = {tensor.name: array for tensor in inputs if (array := values[tensor.field]) is not None}
        logged = {tensor.name: array for tensor in outputs if (array := values[tensor.field]) is not None}
        found.append(
            _rows(
                batch.slice(start, 1),
                ids,
                start,
                np.array([len(fed) == len(inputs)]),
                fed,
                logged,
                {tensor.name: np.array([tensor.name in logged]) for tensor in outputs},
            )
        )
    return found


def _rows(
    batch: pa.RecordBatch,
    ids: Ids,
    start: int,
    has: Array,
    inputs: dict[str, Array],
    logged: dict[str, Array],
    answered: dict[str, Array],
) -> Rows:
    batch_rows, run_ns, parts = (
        batch.column(name).to_numpy(zero_copy_only=False) for name in ("batch", "run_ns", "row")
    )
    return Rows(ids, start, parts, batch_rows, run_ns, parts == 0, has, inputs, logged, answered)


def _together(batch: pa.RecordBatch, tensor: Tensor, start: int, stop: int) -> Array | None:
    """The values of a request; None where any is missing."""
    cells = [cell(batch, tensor, at) for at in range(start, stop)]
    whole = [value for value in cells if value is not None]
    if len(whole) < len(cells) or len({value.shape for value in whole}) > 1:
        return None
    return whole[0] if batch.column("whole")[start].as_py() else np.stack(whole)


def _valid(column: pa.Array) -> Array:
    if not column.null_count:
        return np.ones(len(column), np.bool_)
    return np.asarray(column.is_valid())


def runs(batch: Array, run_ns: Array) -> list[Span]:
    """Rows [start, stop) that ran together, from how many did and how long it took; rows that never ran are in none.

    Runs of one length that took the same time are told apart by their number of rows.
    """
    if not len(batch):
        return []
    change = np.flatnonzero((batch[1:] != batch[:-1]) | (run_ns[1:] != run_ns[:-1])) + 1
    starts = np.concatenate(([0], change))
    stops = np.concatenate((change, [len(batch)]))
    rows = batch[starts].astype(np.int64)
    ran = rows > 0
    starts, stops, rows = starts[ran], stops[ran], rows[ran]
    pieces = -(-(stops - starts) // rows)
    first = np.cumsum(pieces) - pieces
    inner = np.arange(pieces.sum()) - np.repeat(first, pieces)
    begins = np.repeat(starts, pieces) + inner * np.repeat(rows, pieces)
    ends = np.minimum(begins + np.repeat(rows, pieces), np.repeat(stops, pieces))
    return list(zip(begins.tolist(), ends.tolist(), strict=True))


def pieces(span: Span, rows: int) -> list[Span]:
    """A run in pieces of at most `rows` rows, as a server runs a request that is larger than a batch may be."""
    start, stop = span
    return [(at, min(at + rows, stop)) for at in range(start, stop, rows)]


def requests(span: Span, first: Array) -> list[Span]:
    """The requests of a run, each alone."""
    start, stop = span
    begins = [start, *(start + 1 + np.flatnonzero(first[start + 1 : stop])).tolist()]
    return list(zip(begins, [*begins[1:], stop], strict=True))


def feeds(inputs: Mapping[str, Array], spans: Sequence[Span]) -> Iterator[dict[str, Array]]:
    """The inputs of each run."""
    if len(inputs) != 1:
        return ({name: values[start:stop] for name, values in inputs.items()} for start, stop in spans)
    ((only, single),) = inputs.items()
    return ({only: single[start:stop]} for start, stop in spans)


def put(targets: Sequence[Array], start: int, stop: int, results: Sequence[Array]) -> None:
    """Put the results of a run into their rows. Raises ValueError where they do not fit."""
    for target, array in zip(targets, results, strict=True):
        target[start:stop] = array


def put_all(results: Mapping[str, Array], spans: Sequence[Span], found: Sequence[Sequence[Array]]) -> None:
    """Put the results of many runs into their rows: one copy for all that lie side by side. Raises as put."""
    breaks = [at for at in range(1, len(spans)) if spans[at][0] != spans[at - 1][1]]
    for output, target in enumerate(results.values()):
        for first, last in pairwise([0, *breaks, len(spans)]):
            # Where one gave too many rows and another too few, those between are not the same as what was logged.
            rows = target[spans[first][0] : spans[last - 1][1]]
            np.concatenate([each[output] for each in found[first:last]], out=rows, casting="unsafe")


def inside(spans: Sequence[Span], rows: int) -> Array:
    """Which of some rows lie in a span, (rows,); spans do not overlap."""
    if sum(stop - start for start, stop in spans) == rows:
        return np.ones(rows, np.bool_)
    edges = np.zeros(rows + 1, np.int8)
    if spans:
        starts, stops = np.array(spans).T
        edges[starts] += 1
        edges[stops] -= 1
    found: Array = np.cumsum(edges[:-1], dtype=np.int8).astype(np.bool_)
    return found


def touched(spans: Sequence[Span], rows: Array) -> Iterator[Span]:
    """The spans that hold any of some rows."""
    at = np.flatnonzero(rows)
    if not len(at):
        return
    starts = np.array([start for start, _ in spans])
    for index in np.unique(np.searchsorted(starts, at, side="right") - 1).tolist():
        yield spans[index]


def batches(ran: Array, rows: int) -> list[Span]:
    """Stretches of rows that can be run, in batches of at most `rows`."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], ran, [False])).astype(np.int8)))
    return [span for start, stop in edges.reshape(-1, 2).tolist() for span in pieces((start, stop), rows)]
