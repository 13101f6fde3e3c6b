"""The confusion matrix, and everything that is read off it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monitors.performance import exact, figure
from monitors.performance.figure import Figure
from monitors.performance.tally import Tally, class_index, floats, labelled, weights
from monitors.types import Array, Columns


class Confusion(Tally):
    """Counts by (true class, predicted class) for an output that is a class, or one score per class (the largest wins).

    `classes`: the classes in the order of the scores. `weight`: the name of a feature that weighs rows. Rows without a
    usable prediction, label or weight are counted by what they lack.
    """

    def __init__(self, *, output: str, label: str, classes: Sequence[Any], weight: str | None = None) -> None:
        self._output, self._label, self._weight = output, label, weight
        self.classes = check_classes(classes)
        super().__init__(output=output, label=label, classes=self.classes, weight=weight)
        size = len(self.classes)
        self.counts = {
            "predicted": np.zeros(size + 1, np.int64),  # the last: no class of the model
            "matrix": np.zeros((size, size), np.int64),
            "unusable": np.zeros(3, np.int64),  # labelled rows without prediction, of no known class, without weight
        }
        self.sums = {} if weight is None else {"matrix": exact.zeros(size * size), "weights": exact.zeros(2)}

    def _predict(self, columns: Columns) -> None:
        predicted = self._predicted(columns)
        self.counts["predicted"] += np.bincount(predicted, minlength=len(self.classes) + 1)

    def _predicted(self, columns: Columns) -> Array:
        """The predicted class of each row, by place; the number of classes where there is none."""
        output, size = columns.outputs.get(self._output), len(self.classes)
        if output is not None and np.ndim(output) == 2:
            scores = floats(output, len(columns))
            if scores.shape[1] != size:
                return np.full(len(columns), size, np.int64)
            usable: Array = ~np.logical_or.reduce(np.isnan(scores), axis=1)
            return np.where(usable, np.where(usable[:, np.newaxis], scores, 0.0).argmax(axis=1), size)
        found = class_index(output, self.classes, len(columns))
        return np.where(found < 0, size, found)

    def _judge(self, columns: Columns, sign: int) -> None:
        rows, labels = labelled(columns, self._label)
        if not len(rows):
            return
        size = len(self.classes)
        predicted, actual = self._predicted(columns)[rows], class_index(labels, self.classes, len(rows))
        weight = weights(columns, self._weight, rows)
        lacking = np.select(
            [predicted == size, actual < 0, np.zeros(len(rows), bool) if weight is None else np.isnan(weight)],
            [0, 1, 2],
            3,
        )
        self.counts["unusable"] += sign * np.bincount(lacking, minlength=4)[:3]
        usable = lacking == 3
        cell = (actual * size + predicted)[usable]
        self.counts["matrix"] += sign * np.bincount(cell, minlength=size * size).reshape(size, size)
        if weight is not None:
            used = weight[usable]
            self.sums["matrix"] += sign * exact.sums(used, cell, size * size)
            both = np.concatenate((used, used * used))
            self.sums["weights"] += sign * exact.sums(both, np.repeat((0, 1), len(used)), 2)

    def matrix(self) -> Array:
        """Weights (rows where there are none) by true class and predicted class, (classes, classes)."""
        if "matrix" in self.sums:
            return exact.numbers(self.sums["matrix"]).reshape(self.counts["matrix"].shape)
        return self.counts["matrix"]

    def figures(self) -> Mapping[str, Any]:
        """Accuracy, averages over the classes, figures of each class, and what could not be used."""
        counts = self.counts["matrix"]
        rows, effective = int(np.maximum(counts, 0).sum()), None
        if self.sums:
            total, squares = exact.numbers(self.sums["weights"]).tolist()
            effective = effective_rows(total, squares)
        found = confusion_figures(np.maximum(self.matrix(), 0), rows, effective)
        predicted, no_class, no_weight = self.counts["unusable"].tolist()
        return {
            **found,
            "classes": {name: found["classes"][place] for place, name in enumerate(self.classes)},
            "predictions": int(self.counts["predicted"].sum()),
            "predicted": dict(zip((*self.classes, None), self.counts["predicted"].tolist(), strict=True)),
            "unusable": {"prediction": predicted, "label": no_class, "weight": no_weight},
            "negative": self.negative(),
        }


def check_classes(classes: Sequence[Any]) -> tuple[Any, ...]:
    """`classes` as a tuple. Raises ValueError where there are fewer than two, or one twice, or one of another type."""
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(f"expected at least two different classes, not {list(classes)!r}")
    if not all([isinstance(each, str | int | float) for each in classes]):
        raise ValueError("expected classes that are strings, numbers or booleans")
    return tuple(classes)


def effective_rows(total: float, squares: float) -> float:
    """How many equally weighted rows give as much certainty: (sum of weights)^2 / sum of squares (L. Kish, 1965)."""
    return total * total / squares if squares > 0 else 0.0


def confusion_figures(matrix: Array, rows: int, effective: float | None = None) -> dict[str, Any]:
    """Figures of a confusion matrix (classes, classes), true class first, that rests on `rows` rows.

    Averages are over the classes for which the figure is defined, that is, which occur; None where there is none.
    """
    total = float(matrix.sum())
    ratio = (rows if effective is None else effective) / total if total > 0 else 0.0
    hits, actual, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    classes = []
    for hit, truth, guess in zip(hits.tolist(), actual.tolist(), predicted.tolist(), strict=True):
        classes.append(one_class(hit, truth, guess, rows, ratio))
    found: dict[str, Any] = {"accuracy": figure.share(float(hits.sum()), total, rows, ratio * total)}
    for name in ("precision", "recall", "f1"):
        known = [
            (each[name].value or 0.0, truth)
            for each, truth in zip(classes, actual, strict=True)
            if each[name].value is not None
        ]
        found[f"{name}_macro"] = _average([value for value, _ in known], [1.0] * len(known), rows)
        found[f"{name}_weighted"] = _average([value for value, _ in known], [float(truth) for _, truth in known], rows)
    found["balanced_accuracy"] = found["recall_macro"]
    found["mcc"] = _matthews(matrix.astype(np.float64), rows)
    found["classes"] = classes
    return found


def one_class(hit: float, actual: float, predicted: float, rows: int, ratio: float = 1.0) -> dict[str, Figure]:
    """Precision, recall and F1 of one class from its masses; `ratio` is effective rows per unit of mass.

    F1 = 2 J / (1 + J) with J = hits / (hits + misses + false alarms), a share: its interval is J's, carried over.
    """
    either = actual + predicted - hit
    precision = figure.share(hit, predicted, rows, ratio * predicted)
    recall = figure.share(hit, actual, rows, ratio * actual)
    joint = figure.share(hit, either, rows, ratio * either)
    if joint.value is None or joint.low is None or joint.high is None:
        f1 = figure.undefined(rows)
    else:
        f1 = Figure(*(2 * joint.value / (1 + joint.value), rows), *(2 * j / (1 + j) for j in (joint.low, joint.high)))
    return {"precision": precision, "recall": recall, "f1": f1}


def _average(values: list[float], masses: list[float], rows: int) -> Figure:
    total = sum(masses)
    if not values or total <= 0:
        return figure.undefined(rows)
    return Figure(math.fsum(v * m for v, m in zip(values, masses, strict=True)) / total, rows)


def _matthews(matrix: Array, rows: int) -> Figure:
    """Matthews' correlation of true and predicted class; None where one of them does not vary (Gorodkin, 2004)."""
    total = float(matrix.sum())
    if total <= 0:
        return figure.undefined(rows)
    matrix = matrix / total
    actual, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    spread = (1 - float(actual @ actual)) * (1 - float(predicted @ predicted))
    if min(np.count_nonzero(actual), np.count_nonzero(predicted)) < 2 or spread <= 0:
        return figure.undefined(rows)
    covariance = float(np.trace(matrix)) - float(actual @ predicted)
    return Figure(min(1.0, max(-1.0, covariance / math.sqrt(spread))), rows)
