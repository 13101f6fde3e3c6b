"""Performance without labels: confidence-based estimation from the score histogram, and its reckoning with labels.

The baseline's labels say how often a score in a bin is right: its rate c_b, made non-decreasing. If that still holds,
N_b live rows of the bin hold N_b c_b positives, and every figure of the confusion matrix and of the ranking follows
from a few dozen counters. What it cannot see is a change of the rates themselves; `reconcile` measures that once labels
come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from monitors.performance import calibration, figure, ranking
from monitors.performance.figure import Figure
from monitors.performance.scores import Scores, decisions
from monitors.types import Array, Floats

# Figures of a decision as functions of the hits tp and misses fn, given n_a rows called positive and n_b others.
_DECISIONS: Mapping[str, Callable[[float, float, float, float], float]] = {
    "accuracy": lambda tp, fn, n_a, n_b: (tp + n_b - fn) / (n_a + n_b),
    "precision": lambda tp, fn, n_a, n_b: tp / n_a,
    "recall": lambda tp, fn, n_a, n_b: tp / (tp + fn),
    "f1": lambda tp, fn, n_a, n_b: 2 * tp / (n_a + tp + fn),
    "specificity": lambda tp, fn, n_a, n_b: (n_b - fn) / (n_a + n_b - tp - fn),
    "positive_rate": lambda tp, fn, n_a, n_b: (tp + fn) / (n_a + n_b),
}


@dataclass(frozen=True, slots=True)
class Calibration:
    """The rate of positives per score bin, (bins,), and the rows of the baseline that it was learnt from.

    `rates` are non-decreasing; `support` (bins,) is the number of rows of all the bins that share a rate, `blocks`
    (bins,) says which do.
    """

    rates: Floats
    support: Floats
    blocks: Array

    @classmethod
    def learn(cls, by_class: Array) -> Calibration:
        """From labelled negatives and positives per bin, (2, bins). Raises ValueError without any."""
        mass = np.asarray(by_class, np.float64).sum(axis=0)
        if not mass.sum() > 0:
            raise ValueError("a calibration is learnt from labelled rows, and there is none")
        rates = calibration.isotonic(np.asarray(by_class[1], np.float64), mass)
        blocks = np.cumsum(np.append(0, np.diff(rates) != 0))
        return cls(rates, np.bincount(blocks, mass)[blocks], blocks)

    def doubt(self, mass: Array, unknown: Array, gradient: Array) -> float:
        """The variance of a figure with `gradient` (bins,) per positive, where `unknown` (bins,) rows have no label.

        Two parts: the labels that will come differ from their rates, and the rates were learnt from finitely many
        rows; bins of a block share the error of their rate.
        """
        spread = self.rates * (1 - self.rates)
        labels = float((gradient**2 * unknown * spread).sum())
        together = np.bincount(self.blocks, gradient * unknown)
        per_block = np.bincount(self.blocks, spread / np.maximum(self.support, 1.0)) / np.bincount(self.blocks)
        return labels + float((together**2 * per_block).sum())


def estimate(predicted: Array, learnt: Calibration, cut: int, labelled: Array | None = None) -> dict[str, Any]:
    """Figures of rows without labels, from their number per score bin, (bins,), by name as in `Scores.figures`.

    `cut` is the first bin that is called positive. `labelled` (2, bins): negatives and positives among `predicted`
    whose labels are known; they count as they are. Intervals are for the figure that all labels would give: they hold
    label noise and the finite baseline, not a change of the rates.
    """
    predicted = np.asarray(predicted, np.float64)
    known = np.zeros((2, len(predicted))) if labelled is None else np.asarray(labelled, np.float64)
    unknown = np.maximum(predicted - known.sum(axis=0), 0.0)
    positives = known[1] + unknown * learnt.rates
    negatives = known[0] + unknown * (1 - learnt.rates)
    rows = round(float((positives + negatives).sum()))
    called = np.arange(len(predicted)) >= cut
    found = decisions(negatives, positives, cut, rows)
    n_a, n_b = (float((positives + negatives)[side].sum()) for side in (called, ~called))
    tp, fn = float(positives[called].sum()), float(positives[~called].sum())
    figures: dict[str, Any] = {"confusion": found["confusion"], "mcc": Figure(found["mcc"].value, rows)}
    for name, function in _DECISIONS.items():
        figures[name] = figure.undefined(rows)
        value = _try(function, tp, fn, n_a, n_b)
        if value is not None:
            slopes = (_slope(function, 0, tp, fn, n_a, n_b), _slope(function, 1, tp, fn, n_a, n_b))
            doubt = learnt.doubt(predicted, unknown, np.where(called, *slopes))
            figures[name] = _within(figure.around(value, doubt, rows))
    auc = ranking.roc_auc(positives, negatives, (max(1, round(positives.sum())), max(1, round(negatives.sum()))))
    figures["roc_auc"] = auc
    if auc.value is not None:
        doubt = learnt.doubt(predicted, unknown, _auc_gradient(positives, negatives, auc.value))
        figures["roc_auc"] = _within(figure.around(auc.value, doubt, rows, error=auc.error))
    precision = ranking.average_precision(positives, negatives, (max(1, round(positives.sum())), rows))
    figures["average_precision"] = Figure(precision.value, rows, error=precision.error)
    return figures


@dataclass(frozen=True, slots=True)
class Reconciled:
    """An estimate beside what the labels said, for the rows that have them.

    `z`: their difference in units of its standard deviation if the baseline's rates still held; beyond about 4 they
    do not, whatever the inputs look like. None where one of the two is not defined.
    """

    estimated: Figure
    realised: Figure
    difference: float | None
    z: float | None


def reconcile(state: Scores, learnt: Calibration) -> dict[str, Any]:
    """The reckoning of the estimate with the labels that have come, from one state that holds both.

    `labelled`: figures by name, each `Reconciled`, on the labelled rows alone, so that like is compared with like.
    `combined`: figures of all rows, labels where known and rates elsewhere. `coverage`: the share of rows with a label.
    `surplus`: positives beyond expectation per labelled row, with its z: the rates moved up or down.
    """
    if len(learnt.rates) != state.bins:
        raise ValueError(f"the calibration has {len(learnt.rates)} bins and the scores have {state.bins}")
    by_class, predicted, realised = state.by_class(), state.predicted(), state.figures()
    mass = by_class.sum(axis=0)
    rows = int(np.maximum(state.counts["labelled"], 0).sum())
    guessed = estimate(mass, learnt, state.cut)
    compared = {}
    for name in (*_DECISIONS, "roc_auc"):
        compared[name] = _compare(guessed[name], realised[name])
    expected, seen = float(mass @ learnt.rates), float(by_class[1].sum())
    doubt = learnt.doubt(mass, mass, np.ones(state.bins))
    total, everything = float(mass.sum()), int(np.maximum(state.counts["rows"], 0).sum())
    return {
        "labelled": compared,
        "combined": estimate(np.maximum(predicted, mass), learnt, state.cut, by_class),
        "coverage": figure.share(total, float(np.maximum(predicted, mass).sum()), max(everything, rows)),
        "surplus": Figure((seen - expected) / total, rows) if total > 0 else figure.undefined(rows),
        "surplus_z": (seen - expected) / math.sqrt(doubt) if doubt > 0 else None,
    }


def _compare(estimated: Figure, realised: Figure) -> Reconciled:
    if estimated.value is None or realised.value is None:
        return Reconciled(estimated, realised, None, None)
    difference = realised.value - estimated.value
    if estimated.low is None or estimated.high is None or estimated.high <= estimated.low:
        return Reconciled(estimated, realised, difference, None)
    # Of the two sides of the interval the one towards the labels: the other may be cut off at 0 or 1.
    side = estimated.high - estimated.value if difference > 0 else estimated.value - estimated.low
    deviation = max(side, (estimated.high - estimated.low) / 2) / figure.Z
    return Reconciled(estimated, realised, difference, difference / deviation)


def _try(function: Callable[..., float], *arguments: float) -> float | None:
    try:
        return min(1.0, max(0.0, function(*arguments)))
    except ZeroDivisionError:
        return None


def _slope(function: Callable[..., float], place: int, tp: float, fn: float, n_a: float, n_b: float) -> float:
    """The derivative by tp (`place` 0) or fn (1), by a central difference; the figures are smooth in both."""
    step = 1e-5 * max(n_a + n_b, 1.0)
    up, down = [tp, fn], [tp, fn]
    up[place] += step
    down[place] -= step
    try:
        return (function(*up, n_a, n_b) - function(*down, n_a, n_b)) / (2 * step)
    except ZeroDivisionError:
        return 0.0


def _auc_gradient(positives: Array, negatives: Array, value: float) -> Array:
    """The derivative of the AUC by the positives of a bin whose rows stay as many."""
    p, n = float(positives.sum()), float(negatives.sum())
    below = np.cumsum(negatives) - 0.5 * negatives
    above = p - np.cumsum(positives) + 0.5 * positives
    gradient: Array = (below - above) / (p * n) - value * (1 / p - 1 / n)
    return gradient


def _within(found: Figure) -> Figure:
    """A figure whose interval is cut off at 0 and 1."""
    low, high = (None if each is None else min(1.0, max(0.0, each)) for each in (found.low, found.high))
    return Figure(found.value, found.n, low, high, found.error)
