"""Quality of answers against labels, as sums: of any number of pieces, in any order, the same. Pure."""

from __future__ import annotations

import msgspec
import numpy as np

from gateway.types import Array

BINS = 4096
"""Scores of positives and negatives are counted in so many equal bins from 0 to 1, for the area under the curve."""

_LEAST = 1e-15


class Quality(msgspec.Struct):
    """Sums over `rows` labelled rows. Of a score in [0, 1] and a boolean: Brier score, log loss, accuracy at 0.5, and
    the area under the ROC curve; of numbers: mean absolute and squared error; of classes: accuracy alone.

    Means are over the `judged` rows, whose answers are finite; an answer that is not is never right.
    """

    kind: str
    rows: int = 0
    judged: int = 0
    right: int = 0
    squared: float = 0.0
    absolute: float = 0.0
    log_loss: float = 0.0
    positives: dict[int, int] = {}
    negatives: dict[int, int] = {}

    def add(self, truth: Array, answer: Array) -> None:
        """Take rows in: labels and answers, (rows,)."""
        self.rows += len(truth)
        if self.kind == "class":
            self.right += int((truth == answer).sum())
            self.judged += len(truth)
            return
        finite = np.isfinite(answer)
        self.judged += int(finite.sum())
        truth = truth[finite].astype(np.float64)
        answer = answer[finite].astype(np.float64)
        self.squared += float(((answer - truth) ** 2).sum())
        self.absolute += float(np.abs(answer - truth).sum())
        if self.kind == "boolean":
            score = np.clip(answer, 0.0, 1.0)
            self.right += int(((score > 0.5) == (truth > 0.5)).sum())
            of_truth = np.clip(np.where(truth > 0.5, score, 1 - score), _LEAST, 1.0)
            self.log_loss -= float(np.log(of_truth).sum())
            bins = np.minimum((score * BINS).astype(np.int64), BINS - 1)
            for counts, chosen in ((self.positives, bins[truth > 0.5]), (self.negatives, bins[truth <= 0.5])):
                for at, count in zip(*(part.tolist() for part in np.unique(chosen, return_counts=True)), strict=True):
                    counts[at] = counts.get(at, 0) + count

    def result(self) -> dict[str, float]:
        """The figures; `auc_error` bounds how far binning may have moved `auc`."""
        if not self.rows:
            return {"rows": 0}
        found: dict[str, float] = {"rows": self.rows}
        if self.judged < self.rows:
            found["nonfinite"] = self.rows - self.judged
        if self.kind in ("class", "boolean"):
            found["accuracy"] = self.right / self.rows
        if self.kind == "boolean":
            found["brier"] = self.squared / max(1, self.judged)
            found["log_loss"] = self.log_loss / max(1, self.judged)
            found |= _area(self.positives, self.negatives)
        if self.kind == "number":
            found["mean_absolute_error"] = self.absolute / max(1, self.judged)
            found["root_mean_squared_error"] = float(np.sqrt(self.squared / max(1, self.judged)))
        return found


def _area(positives: dict[int, int], negatives: dict[int, int]) -> dict[str, float]:
    """The probability that a positive has a higher score than a negative; pairs of one bin count half."""
    over = np.zeros(BINS)
    under = np.zeros(BINS)
    for counts, array in ((positives, over), (negatives, under)):
        for at, count in counts.items():
            array[at] = count
    pairs = float(over.sum() * under.sum())
    if not pairs:
        return {}
    below = np.cumsum(under) - under
    ties = float((over * under).sum()) / 2
    return {"auc": (float((over * below).sum()) + ties) / pairs, "auc_error": ties / pairs}
