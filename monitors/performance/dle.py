"""The error of a regression without labels: direct loss estimation, from counts by expected loss.

A `LossModel` says how large the error of a row is expected to be. Rows are counted by bins of that; the baseline's
labels say what the errors in each bin really were; the live counts, weighed with it, give MAE and RMSE before any label
has come. It follows the inputs to where the model is known to be worse, and cannot see that it became worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from monitors.performance import exact, figure
from monitors.performance.figure import Figure
from monitors.performance.loss_model import LossModel
from monitors.performance.tally import LARGEST, Tally, floats, labelled, one_column
from monitors.types import Array, Columns, Floats

_POWERS = ("|e|", "|e|^2", "|e|^4")


class DirectLoss(Tally):
    """Rows, and errors of the labelled ones, by bin of the expected loss.

    `model` is a saved `LossModel`; `edges` are quantiles of what it predicts on the baseline (`loss_edges`), so every
    bin has as many rows there. Rows without a usable prediction or label are left out and counted.
    """

    def __init__(self, *, output: str, label: str, model: bytes, edges: tuple[float, ...]) -> None:
        self._output, self._label = output, label
        self._model, self._edges = LossModel.from_bytes(model), tuple(edges)
        if list(self._edges) != sorted(set(self._edges)):
            raise ValueError("expected rising edges")
        super().__init__(output=output, label=label, model=model, edges=self._edges)
        self.bins = len(self._edges) + 1
        self.counts = {
            "rows": np.zeros(self.bins, np.int64),
            "labelled": np.zeros(self.bins, np.int64),
            "unusable": np.zeros(2, np.int64),  # predictions, labelled rows
        }
        self.sums = {name: exact.zeros(self.bins) for name in ("expected", "expected of labelled", *_POWERS)}

    def _predicted(self, columns: Columns) -> Array:
        found = one_column(columns.outputs.get(self._output), len(columns))
        return np.where(np.abs(found) < LARGEST, found, np.nan)

    def _bin(self, expected: Array) -> Array:
        return np.searchsorted(self._edges, expected, side="right")

    def _predict(self, columns: Columns) -> None:
        usable = ~np.isnan(self._predicted(columns))
        expected = self._model.predict(columns)[usable]
        place = self._bin(expected)
        self.counts["rows"] += np.bincount(place, minlength=self.bins)
        self.sums["expected"] += exact.sums(expected, place, self.bins)
        self.counts["unusable"][0] += (~usable).sum()

    def _judge(self, columns: Columns, sign: int) -> None:
        rows, labels = labelled(columns, self._label)
        if not len(rows):
            return
        actual = floats(labels, len(rows))
        actual = np.where(np.abs(actual) < LARGEST, actual, np.nan)
        error = np.abs(actual - self._predicted(columns)[rows])
        usable = ~np.isnan(error)
        expected, error = self._model.predict(columns)[rows[usable]], error[usable]
        place = self._bin(expected)
        self.counts["unusable"][1] += sign * (~usable).sum()
        self.counts["labelled"] += sign * np.bincount(place, minlength=self.bins)
        self.sums["expected of labelled"] += sign * exact.sums(expected, place, self.bins)
        for power, exponent in zip(_POWERS, (1, 2, 4), strict=True):
            self.sums[power] += sign * exact.sums(error**exponent, place, self.bins)

    def learn(self) -> LossCalibration:
        """What the errors in each bin are, from the labelled rows. Raises ValueError where there is none."""
        counts = np.maximum(self.counts["labelled"], 0).astype(np.float64)
        if not counts.any():
            raise ValueError("the errors of the baseline are learnt from labelled rows, and there is none")
        sums = [exact.numbers(self.sums[name]) for name in ("expected of labelled", *_POWERS)]
        everything = [total.sum() / counts.sum() for total in sums]
        # A bin that the baseline has no labels of has the errors of all.
        some = np.maximum(counts, 1.0)
        means = [np.where(counts > 0, total / some, mean) for total, mean in zip(sums, everything, strict=True)]
        return LossCalibration(some, *means)

    def expected(self) -> Floats:
        """The sum of the expected loss of all rows per bin, (bins,)."""
        return exact.numbers(self.sums["expected"])

    def figures(self) -> Mapping[str, Any]:
        """The realised errors of the labelled rows, and how many rows there are."""
        counts = int(np.maximum(self.counts["labelled"], 0).sum())
        first, second, fourth = (exact.number(sum(self.sums[power].tolist())) for power in _POWERS)
        mse = figure.mean(second, fourth, counts, counts)
        rows = int(np.maximum(self.counts["rows"], 0).sum())
        return {
            "mae": figure.mean(first, second, counts, counts),
            "mse": mse,
            "rmse": figure.root(mse),
            "rows": rows,
            "coverage": figure.share(counts, max(rows, counts), max(rows, counts)),
            "unusable": dict(zip(("prediction", "labelled"), self.counts["unusable"].tolist(), strict=True)),
            "negative": self.negative(),
        }


@dataclass(frozen=True, slots=True)
class LossCalibration:
    """Means per bin, (bins,): of the expected loss, of |e|, e^2 and e^4; and the labelled rows behind them."""

    support: Floats
    expected: Floats
    absolute: Floats
    squared: Floats
    fourth: Floats

    def scale(self, rows: Array, expected: Array) -> Floats:
        """How much larger the loss expected of live rows is than that of the baseline's in the same bin, (bins,).

        Bins are wide at their ends, where rows go when inputs move: inside a bin errors follow the expectation.
        """
        there = (rows > 0) & (self.expected > 0) & (expected > 0)
        ratio = expected / np.where(there, rows * self.expected, 1.0)
        return np.where(there, ratio, 1.0)

    def estimate(self, rows: Array, expected: Array) -> dict[str, Figure]:
        """MAE, MSE and RMSE of rows without labels, from their number and the sum of their expected loss, (bins,) each.

        Intervals are for what all labels would say: they hold the noise of errors and the finite baseline.
        """
        mass, scale = np.asarray(rows, np.float64), self.scale(rows, expected)
        total, count = float(mass.sum()), round(float(mass.sum()))
        if not total > 0:
            return dict.fromkeys(("mae", "mse", "rmse"), figure.undefined(0))
        found = {}
        moments = ((self.absolute * scale, self.squared * scale**2), (self.squared * scale**2, self.fourth * scale**4))
        for name, (mean, square) in zip(("mae", "mse"), moments, strict=True):
            spread = np.maximum(square - mean**2, 0.0)
            doubt = float((mass * spread + mass**2 * spread / self.support).sum()) / total**2
            found[name] = figure.around(float(mass @ mean) / total, doubt, count)
        return {**found, "rmse": figure.root(found["mse"])}


def loss_edges(model: LossModel, columns: Columns, *, bins: int = 24) -> tuple[float, ...]:
    """At most `bins` - 1 quantiles of the loss that `model` expects of the rows of the baseline, with an upper tail."""
    expected = model.predict(columns)
    if not len(expected):
        return ()
    shares = np.append(np.arange(1, bins - 3) / (bins - 3), (0.98, 0.99, 0.998))
    return tuple(np.unique(np.quantile(expected, shares)).tolist())


def reconcile_loss(state: DirectLoss, learnt: LossCalibration) -> dict[str, Any]:
    """The estimate beside the labels that have come: for MAE and MSE of the labelled rows, their difference and its z.

    |z| beyond about 4: the errors have changed where the inputs have not. `combined` is the MAE of all rows, errors
    where they are known and the estimate elsewhere.
    """
    counts, rows = (np.maximum(state.counts[name], 0).astype(np.float64) for name in ("labelled", "rows"))
    labelled_expected = exact.numbers(state.sums["expected of labelled"])
    guessed, realised = learnt.estimate(counts, labelled_expected), state.figures()
    found: dict[str, Any] = {}
    for name in ("mae", "mse"):
        low, high = guessed[name], realised[name]
        difference, z = None, None
        if low.value is not None and high.value is not None:
            difference = high.value - low.value
            deviation = ((low.high or 0.0) - (low.low or 0.0)) / (2 * figure.Z)
            z = difference / deviation if deviation > 0 else None
        found[name] = {"estimated": low, "realised": high, "difference": difference, "z": z}
    known, unknown = float(counts.sum()), np.maximum(rows - counts, 0.0)
    total = known + float(unknown.sum())
    if total > 0:
        seen = known * (realised["mae"].value or 0.0)
        rest = learnt.absolute * learnt.scale(unknown, state.expected() - labelled_expected)
        found["combined"] = Figure((seen + float(unknown @ rest)) / total, round(total))
    else:
        found["combined"] = figure.undefined(0)
    return {**found, "coverage": realised["coverage"]}
