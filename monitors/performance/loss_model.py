"""A small model of how large the error of a prediction will be: boosted oblivious trees on binned columns.

It only has to order rows by their expected loss; what the loss then is, `DirectLoss` learns per bin of its output. A
tree asks the same `DEPTH` questions of every row, so predicting is a few comparisons of whole columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import msgspec
import numpy as np

from monitors.performance.tally import one_column
from monitors.types import Array, Columns, Floats

DEPTH = 3
_BINS = 32  # of a numeric column, beside the one for what is missing
_CATEGORIES = 200  # of a column of strings; rarer ones count as missing


class Column(msgspec.Struct, frozen=True):
    """How a column becomes bins: edges of a number, or categories in the order of their mean loss; 0 is missing."""

    kind: str  # "feature" or "output"
    name: str
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] | None = None

    def bins(self, columns: Columns) -> Array:
        """The bin of each row, (n,) int64: 0 for what is missing, not finite or not known."""
        values = (columns.features if self.kind == "feature" else columns.outputs).get(self.name)
        if self.categories is not None:
            places = {each: place for place, each in enumerate(self.categories, start=1)}
            given = [] if values is None else np.asarray(values).tolist()
            found = [places.get(each, 0) if isinstance(each, str) else 0 for each in given]
            return np.array(found, np.int64) if values is not None else np.zeros(len(columns), np.int64)
        numbers = one_column(values, len(columns))
        place = np.searchsorted(self.edges, numbers, side="right") + 1
        return np.where(np.isfinite(numbers), place, 0)


class _Tree(msgspec.Struct, frozen=True):
    """Questions 'is bin > cut' of `DEPTH` columns, and the value of each of the 2^DEPTH sets of answers."""

    columns: tuple[int, ...]
    cuts: tuple[int, ...]
    values: tuple[float, ...]


class LossModel(msgspec.Struct, frozen=True):
    """Predicts the loss of a row from its features and from the prediction itself."""

    columns: tuple[Column, ...]
    start: float
    trees: tuple[_Tree, ...]

    @classmethod
    def fit(
        cls,
        columns: Columns,
        loss: Array,
        *,
        outputs: Sequence[str] = (),
        trees: int = 60,
        rate: float = 0.15,
        least: int = 20,
    ) -> Self:
        """From rows with their finite `loss` (n,); all features are used, and the named outputs.

        `least`: the rows that a value is shrunk by, so that small leaves say little. Deterministic. Raises ValueError
        without rows.
        """
        target = np.asarray(loss, np.float64)
        if not len(target) or not np.isfinite(target).all() or len(target) != len(columns):
            raise ValueError("a model of the loss is learnt from at least one row, each with a finite loss")
        named = [("feature", name, values) for name, values in columns.features.items()]
        named += [("output", name, columns.outputs[name]) for name in outputs]
        known = tuple(_column(kind, name, np.asarray(values), target) for kind, name, values in named)
        binned = np.array([each.bins(columns) for each in known], np.int64).reshape(len(known), len(target))
        start = float(target.mean())
        rest, grown = target - start, []
        for _ in range(trees if known else 0):
            tree = _grow(binned, rest, rate, least)
            if tree is None:
                break
            rest = rest - np.array(tree.values)[_leaves(tree, binned)]
            grown.append(tree)
        return cls(known, start, tuple(grown))

    def predict(self, columns: Columns) -> Floats:
        """The expected loss of each row, (n,) float64, always finite."""
        binned = [each.bins(columns) for each in self.columns]
        total = np.full(len(columns), self.start)
        for tree in self.trees:
            total += np.array(tree.values)[_leaves(tree, binned)]
        return total

    def to_bytes(self) -> bytes:
        """The model; equal models give equal bytes."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The reverse of `to_bytes`. Raises ValueError for anything else."""
        try:
            model = msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise ValueError("not a saved model of the loss") from error
        for tree in model.trees:
            if len(tree.columns) != len(tree.cuts) or len(tree.values) != 2 ** len(tree.cuts):
                raise ValueError("a tree of the saved model of the loss is not whole")
            if any([not 0 <= each < len(model.columns) for each in tree.columns]):
                raise ValueError("a tree of the saved model of the loss asks for a column that is not there")
        return model


def _column(kind: str, name: str, values: Array, loss: Array) -> Column:
    if values.dtype.kind in "OUS":
        given = values.tolist()
        strings = [each for each in given if isinstance(each, str)]
        if strings:
            return Column(kind, name, categories=_categories(given, loss))
    numbers = one_column(values, len(values))
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return Column(kind, name)
    edges = np.unique(np.quantile(numbers, np.arange(1, _BINS) / _BINS))
    return Column(kind, name, edges=tuple(edges.tolist()))


def _categories(values: list[Any], loss: Array) -> tuple[str, ...]:
    """The most frequent strings, from the least mean loss to the largest."""
    totals: dict[str, list[float]] = {}
    for each, one in zip(values, loss.tolist(), strict=True):
        if isinstance(each, str):
            total = totals.setdefault(each, [0.0, 0.0])
            total[0] += 1
            total[1] += one
    kept = sorted(totals, key=lambda each: (-totals[each][0], each))[:_CATEGORIES]
    return tuple(sorted(kept, key=lambda each: (totals[each][1] / totals[each][0], each)))


def _leaves(tree: _Tree, binned: Sequence[Array] | Array) -> Array:
    leaf = np.zeros(len(binned[0]) if len(binned) else 0, np.int64)
    for column, cut in zip(tree.columns, tree.cuts, strict=True):
        leaf = 2 * leaf + (binned[column] > cut)
    return leaf


def _grow(binned: Array, rest: Array, rate: float, least: int) -> _Tree | None:
    """The tree whose questions, chosen one after the other, leave least of `rest`; None where none helps."""
    leaf = np.zeros(len(rest), np.int64)
    columns: list[int] = []
    cuts: list[int] = []
    for depth in range(DEPTH):
        best: tuple[float, int, int] | None = None
        for column, bins in enumerate(binned):
            gains = _gains(leaf, bins, rest, 2**depth, least)
            cut = int(gains.argmax()) if len(gains) else 0
            if len(gains) and (best is None or gains[cut] > best[0] * (1 + 1e-12)):
                best = (float(gains[cut]), column, cut)
        if best is None:
            break
        columns.append(best[1])
        cuts.append(best[2])
        leaf = 2 * leaf + (binned[best[1]] > best[2])
    if not columns:
        return None
    size = 2 ** len(columns)
    count, total = np.bincount(leaf, minlength=size), np.bincount(leaf, rest, minlength=size)
    return _Tree(tuple(columns), tuple(cuts), tuple((rate * total / (count + least)).tolist()))


def _gains(leaf: Array, bins: Array, rest: Array, leaves: int, least: int) -> Floats:
    """What each cut of a column explains of the squares of `rest`, over all leaves together; (cuts,)."""
    width = int(bins.max()) + 1
    cell = leaf * width + bins
    count = np.bincount(cell, minlength=leaves * width).reshape(leaves, width).cumsum(axis=1)
    total = np.bincount(cell, rest, minlength=leaves * width).reshape(leaves, width).cumsum(axis=1)
    below, above = total[:, :-1], total[:, -1:] - total[:, :-1]
    gains: Floats = (below**2 / (count[:, :-1] + least) + above**2 / (count[:, -1:] - count[:, :-1] + least)).sum(
        axis=0
    )
    return gains
