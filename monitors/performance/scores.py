"""The score histogram of a binary classifier, with labels: ranking, probabilities and decisions from one state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monitors.performance import calibration, exact, figure, ranking
from monitors.performance.confusion import confusion_figures, effective_rows
from monitors.performance.figure import Figure
from monitors.performance.tally import Tally, class_index, labelled, one_column, weights
from monitors.types import Array, Columns, Floats

SMALLEST = float(np.finfo(np.float64).eps)  # scores are held away from 0 and 1 by it before a logarithm is taken


def score_edges(scores: Array | None = None, *, bins: int = 57, threshold: float = 0.5) -> tuple[float, ...]:
    """At most `bins` - 1 edges for a score in [0, 1], with `threshold` among them.

    Quantiles of the baseline's `scores` (n,), tails included; a grid that is fine at both ends where there are none.
    What is no score is left out. Raises ValueError for fewer than 12 bins.
    """
    if bins < 12:
        raise ValueError(f"expected at least 12 bins of a score, not {bins}")
    inner = bins - 2  # the threshold may be one more
    known = np.zeros(0) if scores is None else np.asarray(scores, np.float64)
    known = known[(known >= 0) & (known <= 1)]
    if len(known):
        edges = np.quantile(known, [1e-3, *np.linspace(0, 1, inner)[1:-1], 0.999])
    else:
        tails = [1e-4, 1e-3, 2e-3, 5e-3]
        edges = np.array([*tails, *np.linspace(0, 1, inner - 2 * len(tails) + 2)[1:-1], *(1 - t for t in tails)])
    kept = np.unique(np.append(edges[(edges > 0) & (edges <= 1)], threshold))
    return tuple(kept.tolist())


class Scores(Tally):
    """Rows, and labels, by bin of the score of the positive class.

    `output`: probability of the positive class, (n,) or the last column of (n, k). `positive` and `negative` are the
    labels of the two classes. `edges`: bin b holds edges[b-1] <= score < edges[b]; `threshold` must be one of them, so
    that decisions (score >= threshold) and all that follows from them are exact. `weight`: a feature that weighs rows.
    """

    def __init__(
        self,
        *,
        output: str,
        label: str,
        edges: Sequence[float] | None = None,
        threshold: float = 0.5,
        positive: Any = 1,
        negative: Any = 0,
        weight: str | None = None,
    ) -> None:
        self.edges = score_edges(threshold=threshold) if edges is None else tuple(float(each) for each in edges)
        if list(self.edges) != sorted(set(self.edges)) or threshold not in self.edges:
            raise ValueError(f"expected rising edges with the threshold {threshold} among them")
        if positive == negative:
            raise ValueError(f"the positive and the negative class are both {positive!r}")
        self._output, self._label, self._weight = output, label, weight
        self._classes, self.threshold, self.bins = (negative, positive), threshold, len(self.edges) + 1
        super().__init__(
            output=output,
            label=label,
            edges=self.edges,
            threshold=threshold,
            positive=positive,
            negative=negative,
            weight=weight,
        )
        self.counts = {
            "rows": np.zeros(self.bins, np.int64),
            "labelled": np.zeros((2, self.bins), np.int64),  # negatives, positives
            "unusable": np.zeros(4, np.int64),  # predictions without score; labelled rows without, of no class, weight
        }
        # losses: w, w^2, then sums of the logarithmic loss and its square, the squared error and its square
        self.sums = {"scores": exact.zeros(self.bins), "labelled": exact.zeros(self.bins), "losses": exact.zeros(6)}
        if weight is not None:
            self.sums |= {"rows": exact.zeros(self.bins), "classes": exact.zeros(2 * self.bins)}

    def _scores(self, columns: Columns) -> Array:
        """The score of each row; NaN where there is none in [0, 1]."""
        scores = one_column(columns.outputs.get(self._output), len(columns), -1)
        return np.where((scores >= 0) & (scores <= 1), scores, np.nan)

    def _bin(self, scores: Array) -> Array:
        return np.searchsorted(self.edges, scores, side="right")

    def _predict(self, columns: Columns) -> None:
        scores = self._scores(columns)
        weight = weights(columns, self._weight, np.arange(len(columns)))
        usable = ~np.isnan(scores) if weight is None else ~np.isnan(scores) & ~np.isnan(weight)
        scores = scores[usable]
        place = self._bin(scores)
        self.counts["rows"] += np.bincount(place, minlength=self.bins)
        self.counts["unusable"][0] += len(usable) - len(scores)
        if weight is not None:
            scores = scores * weight[usable]
            self.sums["rows"] += exact.sums(weight[usable], place, self.bins, bits=exact.SHORT_BITS)
        self.sums["scores"] += exact.sums(scores, place, self.bins, bits=exact.SHORT_BITS)

    def _judge(self, columns: Columns, sign: int) -> None:
        rows, labels = labelled(columns, self._label)
        if not len(rows):
            return
        scores, classes = self._scores(columns)[rows], class_index(labels, self._classes, len(rows))
        weight = weights(columns, self._weight, rows)
        given = np.ones(len(rows)) if weight is None else weight
        lacking = np.select([np.isnan(scores), classes < 0, np.isnan(given)], [1, 2, 3], 0)
        self.counts["unusable"] += sign * (np.bincount(lacking, minlength=4) * np.array([0, 1, 1, 1]))
        usable = lacking == 0
        score, positive, given = scores[usable], classes[usable], given[usable]
        place = self._bin(score)
        cell = positive * self.bins + place
        self.counts["labelled"] += sign * np.bincount(cell, minlength=2 * self.bins).reshape(2, self.bins)
        self.sums["labelled"] += sign * exact.sums(score * given, place, self.bins, bits=exact.SHORT_BITS)
        held = np.clip(score, SMALLEST, 1 - SMALLEST)
        surprise = -np.log(np.where(positive == 1, held, 1 - held))
        off = (score - positive) ** 2
        losses = (given, given * given, given * surprise, given * surprise**2, given * off, given * off**2)
        self.sums["losses"] += sign * exact.sums(
            np.concatenate(losses), np.repeat(np.arange(6), len(score)), 6, bits=exact.SHORT_BITS
        )
        if weight is not None:
            self.sums["classes"] += sign * exact.sums(given, cell, 2 * self.bins, bits=exact.SHORT_BITS)

    def predicted(self) -> Floats:
        """The mass of predictions per bin, (bins,): rows, or their weights."""
        if self._weight is None:
            return np.maximum(self.counts["rows"], 0).astype(np.float64)
        return np.maximum(exact.numbers(self.sums["rows"], bits=exact.SHORT_BITS), 0.0)

    def by_class(self) -> Floats:
        """The mass of labelled negatives and positives per bin, (2, bins)."""
        if self._weight is None:
            return np.maximum(self.counts["labelled"], 0).astype(np.float64)
        masses = exact.numbers(self.sums["classes"], bits=exact.SHORT_BITS).reshape(2, self.bins)
        return np.maximum(masses, 0.0)

    @property
    def cut(self) -> int:
        """The first bin whose rows are predicted positive."""
        return self.edges.index(self.threshold) + 1

    def figures(self) -> Mapping[str, Any]:
        """Every figure of the labelled rows, and the mean score and share of positives of all predictions."""
        by_class, counts = self.by_class(), np.maximum(self.counts["labelled"], 0)
        negatives, positives = by_class
        classes = (int(counts[1].sum()), int(counts[0].sum()))
        rows, mass = sum(classes), by_class.sum(axis=0)
        labelled_scores = exact.numbers(self.sums["labelled"], bits=exact.SHORT_BITS)
        total, squares, *losses = exact.numbers(self.sums["losses"], bits=exact.SHORT_BITS).tolist()
        effective = None if self._weight is None else effective_rows(total, squares)
        chance = calibration.chance_level(mass, labelled_scores, counts.sum(axis=0))
        error = calibration.expected_calibration_error(mass, labelled_scores, positives, rows)
        ratio = 1.0 if effective is None or rows == 0 else effective / rows
        missing, *unusable = self.counts["unusable"].tolist()
        return {
            **decisions(negatives, positives, self.cut, rows, effective),
            "roc_auc": ranking.roc_auc(positives, negatives, classes, ratio),
            "average_precision": ranking.average_precision(positives, negatives, classes, ratio),
            "log_loss": figure.mean(losses[0], losses[1], total, rows, effective),
            "brier": figure.mean(losses[2], losses[3], total, rows, effective),
            "ece": error,
            "ece_by_chance": Figure(chance, rows),
            "positive_rate": figure.share(float(positives.sum()), float(mass.sum()), rows, effective),
            **self._outputs(),
            "unusable": {"prediction": missing, **dict(zip(("score", "label", "weight"), unusable, strict=True))},
            "negative": self.negative(),
        }

    def _outputs(self) -> dict[str, Figure]:
        mass, rows = self.predicted(), int(self.counts["rows"].sum())
        if not mass.sum() > 0:
            return {"score_mean": figure.undefined(rows), "predicted_positive_rate": figure.undefined(rows)}
        scores = float(exact.numbers(self.sums["scores"], bits=exact.SHORT_BITS).sum())
        return {
            "score_mean": Figure(scores / float(mass.sum()), rows),
            "predicted_positive_rate": figure.share(float(mass[self.cut :].sum()), float(mass.sum()), rows),
        }


def decisions(
    negatives: Array, positives: Array, cut: int, rows: int, effective: float | None = None
) -> dict[str, Any]:
    """What follows from the decision to call the bins from `cut` on positive: the matrix and its figures."""
    matrix = np.array(
        [[negatives[:cut].sum(), negatives[cut:].sum()], [positives[:cut].sum(), positives[cut:].sum()]], np.float64
    )
    found = confusion_figures(matrix, rows, effective)
    negative, positive = found["classes"]
    return {
        "accuracy": found["accuracy"],
        **positive,
        "specificity": negative["recall"],
        "balanced_accuracy": found["balanced_accuracy"],
        "mcc": found["mcc"],
        "confusion": dict(zip(("tn", "fp", "fn", "tp"), matrix.ravel().tolist(), strict=True)),
    }
