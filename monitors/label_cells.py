"""LabelCells: labels counted by what the score said: the shares that the watch on their meaning compares."""

from __future__ import annotations

import numpy as np

from monitors.performance.multiclass import ClassScores
from monitors.performance.scores import Scores
from monitors.performance.tally import Tally
from monitors.types import Counts, Floats

GROUPS = 10
"""Classes of scores of about equal shares: finer ones have too few labels each."""


class LabelCells:
    """`baseline`: int64 (classes of scores, classes of labels) of the labelled training data; `labels`: their names."""

    def __init__(self, learnt: Tally) -> None:
        """`learnt`: what was counted of the training data. Raises ValueError where that has no classes."""
        self._edges: tuple[float, ...] | None = None
        if isinstance(learnt, Scores):
            by_bin = learnt.by_class().T
            share = by_bin.sum(axis=1) / max(int(by_bin.sum()), 1)
            group = np.minimum((GROUPS * (np.cumsum(share) - share / 2)).astype(np.int64), GROUPS - 1)
            # A group that no bin reaches is left out.
            self._group = np.unique(group, return_inverse=True)[1]
            self._edges = learnt.edges
            self.baseline: Counts = np.zeros((int(self._group.max()) + 1, 2), np.int64)
            np.add.at(self.baseline, self._group, by_bin)
        elif isinstance(learnt, ClassScores):
            # What was true, by what was said to be most likely.
            self.baseline = np.asarray(learnt.counts["matrix"].T, np.int64)
        else:
            raise ValueError("labels without classes mean numbers")
        self.size = self.baseline.size

    def count(self, scores: Floats, truth: Floats) -> Counts:
        """Labels (n,) with their scores, (n,) or (n, classes): int64 (size,), row by row of the table."""
        usable = ~np.isnan(truth) & (np.isfinite(scores) if scores.ndim == 1 else np.isfinite(scores).all(axis=1))
        scores, label = scores[usable], truth[usable].astype(np.int64)
        if self._edges is None:
            cell = scores.argmax(axis=1) if len(scores) else np.zeros(0, np.int64)
        else:
            cell = self._group[np.searchsorted(self._edges, scores, side="right")]
        return np.bincount(cell * self.baseline.shape[1] + label, minlength=self.size)
