"""Repeated rows: the same features again, as when a client retries or a job runs twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from monitors.baseline.layout import Category, Layout
from monitors.baseline.scan import mixed
from monitors.count import as_floats, hashed, tallied, text_of
from monitors.state import flattened
from monitors.types import Array, Columns


class _Document(msgspec.Struct, frozen=True):
    layout: bytes
    size: int
    rows: int
    hashes: bytes
    times: bytes


class Duplicates:
    """How many rows repeat another, from a uniform sample of the distinct rows: fixed memory, exact while they are few.

    Every row of features is hashed to 64 bits; kept are the `size` smallest hashes and how often each came. A hash
    among the smallest of all rows was among the smallest of any part of them, so merging loses nothing and no order
    matters. The share of repeats d is estimated with a standard error of at most sqrt(d (1 - d) / size) where repeats
    are pairs.
    """

    def __init__(self, layout: Layout, size: int = 1024) -> None:
        self.layout = layout
        self.size = size
        self.rows = 0
        self._hashes = np.empty(0, dtype=np.uint64)
        self._times = np.empty(0, dtype=np.int64)

    def update(self, columns: Columns) -> None:
        """Hash rows by the features of the layout (not its outputs)."""
        if len(columns):
            self.rows += len(columns)
            self._keep(row_hashes(self.layout, columns), np.ones(len(columns), dtype=np.int64))

    def merge(self, other: Duplicates) -> None:
        """Add the rows of another sample of the same layout and size."""
        if (other.layout.digest, other.size) != (self.layout.digest, self.size):
            raise ValueError("samples of two different baselines or sizes cannot be merged")
        self.rows += other.rows
        self._keep(other._hashes, other._times)

    def _keep(self, hashes: Array, times: Array) -> None:
        if len(self._hashes) == self.size:
            small = hashes <= self._hashes[-1]
            hashes, times = hashes[small], times[small]
        distinct, place = np.unique(np.concatenate([self._hashes, hashes]), return_inverse=True)
        totals = np.zeros(len(distinct), dtype=np.int64)
        np.add.at(totals, place, np.concatenate([self._times, times]))
        self._hashes, self._times = distinct[: self.size].copy(), totals[: self.size].copy()

    def value(self) -> Mapping[str, Any]:
        """`share` of rows that repeat an earlier one, `distinct` rows in the sample, and whether the sample is all."""
        total = int(self._times.sum())
        return {
            "rows": self.rows,
            "distinct": len(self._hashes),
            "exact": len(self._hashes) < self.size,
            "share": (total - len(self._times)) / total if total else None,
        }

    def to_bytes(self) -> bytes:
        """The sample; equal samples give equal bytes."""
        hashes, times = self._hashes.astype("<u8").tobytes(), self._times.astype("<i8").tobytes()
        return msgspec.msgpack.encode(_Document(self.layout.digest, self.size, self.rows, hashes, times))

    def load(self, data: bytes) -> None:
        """Replace the sample by one that `to_bytes` gave. Raises ValueError where it is of another layout or size."""
        try:
            document = msgspec.msgpack.decode(data, type=_Document)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the bytes are no sample of rows: {error}") from error
        if (document.layout, document.size) != (self.layout.digest, self.size):
            raise ValueError("the sample belongs to another baseline or size")
        self.rows = document.rows
        self._hashes = np.frombuffer(document.hashes, "<u8").astype(np.uint64)
        self._times = np.frombuffer(document.times, "<i8").astype(np.int64)


def row_hashes(layout: Layout, columns: Columns) -> Array:
    """uint64 (n,): a hash of each row's features. Equal numbers hash alike whatever their type, and so do 0 and -0."""
    result = np.zeros(len(columns), dtype=np.uint64)
    features = flattened(columns.features)
    for place, feature in enumerate(layout.features):
        values = features.get(feature.name)
        if values is None:
            continue
        if isinstance(feature, Category):
            known = {}
            for value in tallied(values):
                key = text_of(value)
                known[key] = 1 if key is None else int.from_bytes(hashed(key), "little")
            bits = np.array([known[text_of(value)] for value in values.tolist()], dtype=np.uint64)
        else:
            numbers = as_floats(values)[0].astype(np.float64) + 0.0
            bits = np.where(np.isnan(numbers), np.nan, numbers).view(np.uint64)
        result = mixed(result ^ (bits + np.uint64(place)))
    return result
