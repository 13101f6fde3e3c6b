"""Errors of a regression, and whether its quantiles hold what they promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from monitors.performance import exact, figure
from monitors.performance.confusion import effective_rows
from monitors.performance.figure import Figure
from monitors.performance.tally import LARGEST, Tally, floats, labelled, one_column, weights
from monitors.types import Array, Columns

# The sums over labelled rows, each weighted; e is label minus prediction, y the label. Squares that matter for a
# variance are held exactly, as two doubles.
_SUMS = ("w", "w^2", "e", "|e|", "e^2", "e^4", "r", "r^2", "y", "y^2")
_SMALLEST = float(np.finfo(np.float64).eps)  # the least |y| that a relative error is divided by


class Regression(Tally):
    """Sums of errors of one output, (n,) or (n, 1), against a numeric label; exact, so the variance never cancels.

    `quantiles`: outputs that predict a quantile of the label, by name, with their levels in (0, 1). `weight`: a feature
    that weighs rows. Predictions and labels that are no finite number below 1e70 are counted by what they lack.
    """

    def __init__(
        self, *, output: str, label: str, quantiles: Mapping[str, float] | None = None, weight: str | None = None
    ) -> None:
        self._output, self._label, self._weight = output, label, weight
        self._quantiles = dict(sorted((quantiles or {}).items(), key=lambda each: (each[1], each[0])))
        if not all([0 < level < 1 for level in self._quantiles.values()]):
            raise ValueError(f"expected levels of quantiles between 0 and 1, not {list(self._quantiles.values())}")
        super().__init__(output=output, label=label, quantiles=self._quantiles, weight=weight)
        levels = len(self._quantiles)
        self.counts = {
            "rows": np.zeros(1, np.int64),
            "labelled": np.zeros(1, np.int64),
            "unusable": np.zeros(4, np.int64),  # predictions; labelled rows by prediction, label, weight
            "quantiles": np.zeros((3, levels), np.int64),  # labelled rows, of them without quantile, of them covered
            "interval": np.zeros(2, np.int64),  # labelled rows with the outer two quantiles, of them between
        }
        self.sums = {
            "prediction": exact.zeros(2),  # of all rows: w and w times the prediction
            "labelled": exact.zeros(len(_SUMS)),
            "quantiles": exact.zeros(4 * levels),  # w, w of covered rows, pinball loss, its square
        }

    def _numbers(self, columns: Columns, name: str) -> Array:
        found = one_column(columns.outputs.get(name), len(columns))
        return np.where(np.abs(found) < LARGEST, found, np.nan)

    def _predict(self, columns: Columns) -> None:
        predicted = self._numbers(columns, self._output)
        weight = weights(columns, self._weight, np.arange(len(columns)))
        given = np.ones(len(predicted)) if weight is None else weight
        usable = ~np.isnan(predicted) & ~np.isnan(given)
        self.counts["rows"] += usable.sum()
        self.counts["unusable"][0] += (~usable).sum()
        both = np.concatenate((given[usable], (given * predicted)[usable]))
        self.sums["prediction"] += exact.sums(both, np.repeat((0, 1), int(usable.sum())), 2)

    def _judge(self, columns: Columns, sign: int) -> None:
        rows, labels = labelled(columns, self._label)
        if not len(rows):
            return
        predicted, actual = self._numbers(columns, self._output)[rows], floats(labels, len(rows))
        weight = weights(columns, self._weight, rows)
        given = np.ones(len(rows)) if weight is None else weight
        without = ~(np.abs(actual) < LARGEST)
        lacking = np.select([np.isnan(predicted), without, np.isnan(given)], [1, 2, 3], 0)
        self.counts["unusable"] += sign * (np.bincount(lacking, minlength=4) * np.array([0, 1, 1, 1]))
        usable = lacking == 0
        self.counts["labelled"] += sign * int(usable.sum())
        self.sums["labelled"] += sign * _sums(predicted[usable], actual[usable], given[usable])
        self._judge_quantiles(columns, rows[~without & ~np.isnan(given)], actual[~without & ~np.isnan(given)], sign)

    def _judge_quantiles(self, columns: Columns, rows: Array, actual: Array, sign: int) -> None:
        weight = weights(columns, self._weight, rows)
        given = np.ones(len(rows)) if weight is None else weight
        bounds = [self._numbers(columns, name)[rows] for name in self._quantiles]
        for place, (bound, level) in enumerate(zip(bounds, self._quantiles.values(), strict=True)):
            there = ~np.isnan(bound)
            below = actual[there] <= bound[there]
            self.counts["quantiles"][:, place] += sign * np.array([len(rows), int((~there).sum()), int(below.sum())])
            off = actual[there] - bound[there]
            pinball = np.maximum(level * off, (level - 1) * off)
            used = given[there]
            parts = (used, used * below, used * pinball, used * pinball**2)
            cells = np.repeat(np.arange(4) * len(bounds) + place, len(used))
            self.sums["quantiles"] += sign * exact.sums(np.concatenate(parts), cells, 4 * len(bounds))
        if len(bounds) > 1:
            low, high = bounds[0], bounds[-1]
            between = (low <= actual) & (actual <= high)
            there = ~np.isnan(low) & ~np.isnan(high)
            self.counts["interval"] += sign * np.array([int(there.sum()), int((between & there).sum())])

    def figures(self) -> Mapping[str, Any]:
        """Errors with their intervals, R2, quantiles by name, the mean prediction, and what could not be used."""
        rows = max(int(self.counts["labelled"][0]), 0)
        sums = dict(zip(_SUMS, exact.numbers(self.sums["labelled"]).tolist(), strict=True))
        total, effective = sums["w"], None
        if self._weight is not None:
            effective = effective_rows(total, sums["w^2"])
        mse = figure.mean(sums["e^2"], sums["e^4"], total, rows, effective)
        missing, *unusable = self.counts["unusable"].tolist()
        mass, predicted = exact.numbers(self.sums["prediction"]).tolist()
        count = max(int(self.counts["rows"][0]), 0)
        return {
            "mae": figure.mean(sums["|e|"], sums["e^2"], total, rows, effective),
            "mse": mse,
            "rmse": figure.root(mse),
            "mape": figure.mean(sums["r"], sums["r^2"], total, rows, effective),
            "bias": figure.mean(sums["e"], sums["e^2"], total, rows, effective),
            "r2": self._determination(rows),
            "label_mean": figure.mean(sums["y"], sums["y^2"], total, rows, effective),
            "prediction_mean": Figure(predicted / mass, count) if mass > 0 else figure.undefined(count),
            "quantiles": {name: self._quantile(place) for place, name in enumerate(self._quantiles)},
            "interval_coverage": self._interval(),
            "unusable": {"prediction": missing, **dict(zip(("output", "label", "weight"), unusable, strict=True))},
            "negative": self.negative(),
        }

    def _determination(self, rows: int) -> Figure:
        """R2 = 1 - sum w e^2 / sum w (y - mean)^2, the second from exact integers; None where labels do not vary."""
        weight, label, squares, errors = (self.sums["labelled"][_SUMS.index(each)] for each in ("w", "y", "y^2", "e^2"))
        spread = weight * squares - label * label  # in units of 2**-(2 * ALL_BITS), times the sum of weights
        if rows < 2 or weight <= 0 or spread <= 0:
            return figure.undefined(rows)
        if (errors * weight).bit_length() - spread.bit_length() > 1000:  # beyond the largest double
            return figure.undefined(rows)
        return Figure(1 - (errors * weight) / spread, rows)

    def _quantile(self, place: int) -> dict[str, Any]:
        levels = len(self._quantiles)
        given, missing, _ = self.counts["quantiles"][:, place].tolist()
        rows = max(given - missing, 0)
        mass, covered, loss, squares = exact.numbers(self.sums["quantiles"][place::levels]).tolist()
        effective = None
        if self._weight is not None:
            total, weights_squared = exact.numbers(self.sums["labelled"][:2]).tolist()
            effective = min(effective_rows(total, weights_squared), rows)
        return {
            "level": list(self._quantiles.values())[place],
            "coverage": figure.share(covered, mass, rows, effective),
            "pinball": figure.mean(loss, squares, mass, rows, effective),
            "missing": missing,
        }

    def _interval(self) -> Figure:
        """The share of labels between the lowest and the highest quantile; unweighted."""
        given, between = self.counts["interval"].tolist()
        return figure.share(max(between, 0), max(given, 0), max(given, 0))


def _sums(predicted: Array, actual: Array, given: Array) -> Array:
    """The sums of `_SUMS` for usable rows."""
    error = actual - predicted
    relative = np.abs(error) / np.maximum(np.abs(actual), _SMALLEST)
    square, rest = exact.square(actual)
    factors = (np.ones(len(error)), given, error, np.abs(error), error**2, error**4, relative, relative**2, actual)
    parts = np.concatenate([given * each for each in (*factors, square, rest)])
    return exact.sums(parts, np.repeat([*range(len(_SUMS)), len(_SUMS) - 1], len(given)), len(_SUMS))
