"""Columns that are views of one matrix: found, and copied column by column without reading the rows again and again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monitors.types import Array

_STRIPE = 512  # rows copied at a time: their cache lines are still there for the next column


def as_matrix(columns: Sequence[Array]) -> Array | None:
    """`columns` as one (n, F) view where they are neighbours in the rows of a matrix, as a journal's are; else None."""
    places = places_in_rows(columns)
    if places is None or places != list(range(len(columns))):
        return None
    return span(columns, len(columns))


def places_in_rows(columns: Sequence[Array]) -> list[int] | None:
    """Where each column lies in the rows of the matrix that they are views of; None where they are not of one matrix.

    Arrays with one stride whose addresses differ by less than that stride and that have two rows or more interleave, so
    they can only be views of the same memory.
    """
    step, size = columns[0].strides[0], columns[0].itemsize
    if step <= size or len(columns[0]) < 2:
        return None
    starts = [column.__array_interface__["data"][0] for column in columns]
    offsets = [start - min(starts) for start in starts]
    alike = all([column.strides[0] == step and column.dtype == columns[0].dtype for column in columns])
    if not alike or max(offsets) + size > step or any([offset % size for offset in offsets]):
        return None
    return [offset // size for offset in offsets]


def span(columns: Sequence[Array], width: int) -> Array:
    """The view (n, width) of the rows that `columns` lie in, from the leftmost of them on."""
    first = min(columns, key=lambda column: column.__array_interface__["data"][0])
    shape = (len(first), width)
    return np.lib.stride_tricks.as_strided(first, shape, (first.strides[0], first.itemsize), writeable=False)


def contiguous(columns: Sequence[Array], start: int, stop: int) -> Array:
    """Rows `start` to `stop` of columns of one type, as a new array (F, stop - start) with each column in one piece."""
    copied = np.empty((len(columns), stop - start), columns[0].dtype)
    places = places_in_rows(columns)
    if places is None:
        for row, column in zip(copied, columns, strict=True):
            row[:] = column[start:stop]
        return copied
    matrix = span(columns, max(places) + 1)
    for begin in range(start, stop, _STRIPE):
        end = min(begin + _STRIPE, stop)
        stripe = matrix[begin:end]
        if places != list(range(len(columns))):
            stripe = np.take(stripe, places, axis=1)
        copied[:, begin - start : end - start] = stripe.T
    return copied
