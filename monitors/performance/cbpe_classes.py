"""Performance of a classifier of many classes without labels, from its score histograms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from monitors.performance import figure, ranking
from monitors.performance.cbpe import Calibration
from monitors.performance.figure import Figure
from monitors.performance.multiclass import ClassScores
from monitors.types import Array


@dataclass(frozen=True, slots=True)
class ClassCalibration:
    """Per class: the rate of that class by its probability, and of being right by the probability of the prediction.

    None for a class that the baseline never had, or never predicted.
    """

    of_class: tuple[Calibration | None, ...]
    of_prediction: tuple[Calibration | None, ...]

    @classmethod
    def learn(cls, state: ClassScores) -> ClassCalibration:
        """From the labelled rows of the baseline's state. Raises ValueError where there is none."""
        if not state.counts["judged"].sum() > 0:
            raise ValueError("a calibration is learnt from labelled rows, and there is none")
        both = (state.counts["labelled"], state.counts["judged"])
        learnt = [[_learn(counts[:, place]) for place in range(len(state.classes))] for counts in both]
        return cls(tuple(learnt[0]), tuple(learnt[1]))


def estimate_classes(state: ClassScores, learnt: ClassCalibration) -> dict[str, Any]:
    """Accuracy, and precision, recall, F1 and AUC of each class, of all rows of `state`, whether labelled or not.

    A class without a calibration counts as never right; `uncalibrated` is the number of rows predicted to be one.
    """
    rows, top = (np.maximum(state.counts[name], 0).astype(np.float64) for name in ("rows", "top"))
    total = round(float(top.sum()))
    found, hits, doubt, uncalibrated = {}, 0.0, 0.0, 0
    for place, name in enumerate(state.classes):
        right, own = learnt.of_prediction[place], learnt.of_class[place]
        guessed = float(top[place].sum())
        hit = 0.0 if right is None else float(top[place] @ right.rates)
        uncalibrated += round(guessed) if right is None else 0
        doubt += 0.0 if right is None else right.doubt(top[place], top[place], np.ones(state.bins))
        hits += hit
        actual = 0.0 if own is None else max(float(rows[place] @ own.rates), hit)
        found[name] = {
            "precision": _ratio(hit, guessed, total),
            "recall": _ratio(hit, actual, total),
            "f1": _ratio(2 * hit, guessed + actual, total),
            "roc_auc": figure.undefined(total) if own is None else _auc(rows[place], own, total),
        }
    accuracy = figure.undefined(total)
    if total > 0:
        accuracy = figure.around(hits / total, doubt / total**2, total)
    return {
        "accuracy": accuracy,
        **{
            f"{name}_macro": _macro([each[name] for each in found.values()], total)
            for name in ("precision", "recall", "f1", "roc_auc")
        },
        "classes": found,
        "uncalibrated": uncalibrated,
    }


def _learn(by_class: Array) -> Calibration | None:
    return Calibration.learn(by_class) if by_class.sum() > 0 else None


def _auc(mass: Array, own: Calibration, rows: int) -> Figure:
    found = ranking.roc_auc(mass * own.rates, mass * (1 - own.rates), (rows, rows))
    return Figure(found.value, rows, error=found.error)


def _ratio(part: float, whole: float, rows: int) -> Figure:
    return Figure(min(1.0, part / whole), rows) if whole > 0 else figure.undefined(rows)


def _macro(figures: list[Figure], rows: int) -> Figure:
    known = [each for each in figures if each.value is not None]
    if not known:
        return figure.undefined(rows)
    error = sum(each.error for each in known) / len(known)
    return Figure(sum(each.value or 0.0 for each in known) / len(known), rows, error=error)
