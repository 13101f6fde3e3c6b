"""Score histograms of a classifier of many classes, one per class, with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monitors.performance import calibration, exact, figure, ranking
from monitors.performance.confusion import check_classes, confusion_figures
from monitors.performance.figure import Figure
from monitors.performance.scores import SMALLEST, score_edges
from monitors.performance.tally import Tally, class_index, floats, labelled
from monitors.types import Array, Columns, Floats


class ClassScores(Tally):
    """Rows and labels by class and by bin of its probability, and by predicted class and bin of its probability.

    `output`: probabilities (n, classes) in the order of `classes`; a row whose probabilities are not all in [0, 1] is
    counted as unusable, and the largest is the prediction. `edges` as for `Scores`, the same for all classes.
    """

    def __init__(
        self, *, output: str, label: str, classes: Sequence[Any], edges: Sequence[float] | None = None
    ) -> None:
        self.classes = check_classes(classes)
        self.edges = score_edges() if edges is None else tuple(float(each) for each in edges)
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError("expected rising edges")
        self._output, self._label = output, label
        super().__init__(output=output, label=label, classes=self.classes, edges=self.edges)
        size, self.bins = len(self.classes), len(self.edges) + 1
        self.counts = {
            "rows": np.zeros((size, self.bins), np.int64),  # by class and its probability: all rows
            "labelled": np.zeros((2, size, self.bins), np.int64),  # of another class, of this class
            "top": np.zeros((size, self.bins), np.int64),  # by predicted class and its probability: all rows
            "judged": np.zeros((2, size, self.bins), np.int64),  # labelled rows: wrong, right
            "matrix": np.zeros((size, size), np.int64),
            "unusable": np.zeros(3, np.int64),  # predictions; labelled rows by scores, label
        }
        # losses: logarithmic loss and its square, squared error summed over the classes and its square
        self.sums = {"confidence": exact.zeros(self.bins), "losses": exact.zeros(4)}

    def _scores(self, columns: Columns) -> tuple[Array, Array]:
        """Probabilities (n, classes), zeros for rows that are not usable; and a mask of those that are."""
        scores = floats(columns.outputs.get(self._output), len(columns))
        if scores.shape != (len(columns), len(self.classes)):
            return np.zeros((len(columns), len(self.classes))), np.zeros(len(columns), np.bool_)
        usable = np.logical_and.reduce((scores >= 0) & (scores <= 1), axis=1)
        return np.where(usable[:, np.newaxis], scores, 0.0), usable

    def _cells(self, scores: Array) -> Array:
        """The cell in (classes, bins) of every probability of (n, classes)."""
        cells: Array = np.searchsorted(self.edges, scores, side="right") + np.arange(len(self.classes)) * self.bins
        return cells

    def _count(self, cells: Array) -> Array:
        return np.bincount(cells.ravel(), minlength=len(self.classes) * self.bins).reshape(-1, self.bins)

    def _predict(self, columns: Columns) -> None:
        scores, usable = self._scores(columns)
        cells = self._cells(scores[usable])
        self.counts["rows"] += self._count(cells)
        best = scores[usable].argmax(axis=1)
        self.counts["top"] += self._count(cells[np.arange(len(best)), best])
        self.counts["unusable"][0] += (~usable).sum()

    def _judge(self, columns: Columns, sign: int) -> None:
        rows, labels = labelled(columns, self._label)
        if not len(rows):
            return
        scores, usable = (each[rows] for each in self._scores(columns))
        actual = class_index(labels, self.classes, len(rows))
        lacking = np.select([~usable, actual < 0], [1, 2], 0)
        self.counts["unusable"] += sign * (np.bincount(lacking, minlength=3) * np.array([0, 1, 1]))
        scores, actual = scores[lacking == 0], actual[lacking == 0]
        each, size = np.arange(len(actual)), len(self.classes)
        cells = self._cells(scores)
        own = np.zeros(scores.shape, np.bool_)
        own[each, actual] = True
        self.counts["labelled"] += sign * np.stack((self._count(cells[~own]), self._count(cells[own])))
        best = scores.argmax(axis=1)
        top, right = cells[each, best], best == actual
        self.counts["judged"] += sign * np.stack((self._count(top[~right]), self._count(top[right])))
        self.counts["matrix"] += sign * np.bincount(actual * size + best, minlength=size * size).reshape(size, size)
        confidence = scores[each, best]
        self.sums["confidence"] += sign * exact.sums(confidence, top % self.bins, self.bins, bits=exact.SHORT_BITS)
        surprise = -np.log(np.clip(scores[each, actual], SMALLEST, 1 - SMALLEST))
        off = np.square(scores - own).sum(axis=1)
        losses = np.concatenate((surprise, surprise**2, off, off**2))
        self.sums["losses"] += sign * exact.sums(losses, np.repeat(np.arange(4), len(off)), 4, bits=exact.SHORT_BITS)

    def figures(self) -> Mapping[str, Any]:
        """Figures of the decisions, of the probabilities, and of each class against the rest."""
        matrix, masses = np.maximum(self.counts["matrix"], 0), np.maximum(self.counts["labelled"], 0)
        rows = int(matrix.sum())
        found = confusion_figures(matrix, rows)
        others, own = masses.astype(np.float64)
        aucs = [self._auc(others[place], own[place]) for place in range(len(self.classes))]
        judged = np.maximum(self.counts["judged"], 0).sum(axis=1)
        confidence = exact.numbers(self.sums["confidence"], bits=exact.SHORT_BITS)
        losses = exact.numbers(self.sums["losses"], bits=exact.SHORT_BITS).tolist()
        chance = calibration.chance_level(judged.sum(axis=0), confidence, judged.sum(axis=0))
        by_class = zip(self.classes, found["classes"], aucs, strict=True)
        missing, *unusable = self.counts["unusable"].tolist()
        return {
            **found,
            "classes": {name: {**figures, "roc_auc": auc} for name, figures, auc in by_class},
            "roc_auc_macro": _average(aucs, np.ones(len(aucs)), rows),
            "roc_auc_weighted": _average(aucs, own.sum(axis=1), rows),
            "log_loss": figure.mean(losses[0], losses[1], rows, rows),
            "brier": figure.mean(losses[2], losses[3], rows, rows),
            "ece": calibration.expected_calibration_error(judged.sum(axis=0), confidence, judged[1], rows),
            "ece_by_chance": Figure(chance, rows),
            "predictions": int(np.maximum(self.counts["top"], 0).sum()),
            "unusable": {"prediction": missing, **dict(zip(("scores", "label"), unusable, strict=True))},
            "negative": self.negative(),
        }

    def _auc(self, others: Floats, own: Floats) -> Figure:
        return ranking.roc_auc(own, others, (int(own.sum()), int(others.sum())))


def _average(figures: list[Figure], masses: Array, rows: int) -> Figure:
    """The mean over the classes that have a figure; its error is theirs."""
    known = [
        (each.value, each.error, mass)
        for each, mass in zip(figures, masses.tolist(), strict=True)
        if each.value is not None
    ]
    total = sum(mass for _, _, mass in known)
    if total <= 0:
        return figure.undefined(rows)
    value, error = (sum(row[place] * row[2] for row in known) / total for place in (0, 1))
    return Figure(value, rows, error=error)
