"""RowWatches: what is asked of the rows of a version, block by block: as in training, as last week, in any order?"""

from __future__ import annotations

import numpy as np

from monitors.alarms import Alarms
from monitors.baseline.document import Baseline
from monitors.baseline.layout import Layout
from monitors.baseline.usual import Usual
from monitors.evidence.calibration import HOURS, hours_of_week
from monitors.evidence.findings import Features
from monitors.evidence.reference import Reference
from monitors.evidence.watches import BaselineWatch, RecentWatch, ScoreWatch, Watch
from monitors.rule import Rule
from monitors.task import Task
from monitors.types import Counts

SECOND_NS = 1_000_000_000
DELTA = 0.01
"""How often, at most, a baseline misrepresents its truth by more than is allowed for."""


class RowWatches:
    """The watches of one version and their `alarms`. Each block of counts goes to all of them.

    Where the baseline knows what is usual (see `monitors.baseline.usual`), rows are compared with those of the same
    class of hours, counts are divided by its copies, and as far as its past strayed is tolerated.
    """

    def __init__(self, key: tuple[str, int], baseline: Baseline, rule: Rule, task: Task | None) -> None:
        """`task`: says which output is the score. Raises ValueError where a budget cannot be read."""
        layout, block_s = baseline.layout, rule.block_s
        features = Features.of(layout)
        usual = Usual.of(baseline.parts)
        self._kinds = usual.kinds(int(block_s * SECOND_NS))
        self.classes = int(self._kinds.max()) + 1
        self.copies = np.array(usual.copies or np.ones(layout.shape[0]))
        self.tolerance = np.maximum(np.array(usual.strayed or np.zeros(layout.shape[0])), rule.tolerance)
        counts = [baseline.state.counts]
        if self.classes > 1:
            assert baseline.hours is not None
            counts = [baseline.hours[self._kinds == each].sum(axis=0) for each in range(self.classes)]
        references = [
            Reference.build(
                each,
                valid=features.valid,
                ordered=features.ordered,
                delta=DELTA / self.classes,
                tolerance=self.tolerance,
                copies=self.copies,
            )
            for each in counts
        ]
        self._training = BaselineWatch(features, references, rule.budget("training"), block_s)
        self._recent = RecentWatch(
            features,
            rule.budget("recent"),
            block_s,
            tolerance=self.tolerance,
            copies=self.copies,
            kinds=self.classes,
        )
        watches: dict[str, Watch] = {"training": self._training, "recent": self._recent}
        self._score_row = score_row(layout, task)
        self._scores: ScoreWatch | None = None
        if self._score_row is not None:
            copies = float(self.copies[self._score_row])
            # Hours of one class are alike, but not so much that their order in the day means nothing.
            self._groups = HOURS if self.classes > 1 else 1
            watches["scores"] = self._scores = ScoreWatch(
                layout.shape[1], rule.budget("scores"), block_s, groups=self._groups, copies=copies
            )
        self.alarms = Alarms(*key, watches, baseline="learned" if baseline.facts.learned else "built")

    def update(self, counts: Counts, began_ns: int) -> None:
        """Take the counts (F, B) of a block that began then."""
        hour = int(hours_of_week(began_ns))
        kind = int(self._kinds[hour])
        self._training.update(counts, began_ns, kind)
        self._recent.update(counts, began_ns, kind)
        if self._scores is not None:
            self._scores.update_counts(counts[self._score_row], began_ns, hour % self._groups)


def score_row(layout: Layout, task: Task | None) -> int | None:
    """The row of counts of the model's score: the output that its task names, else its first; None without outputs."""
    outputs = [name for name, is_output in zip(layout.names, layout.outputs, strict=True) if is_output]
    if not outputs:
        return None
    wanted = [] if task is None else [task.score, f"{task.score}[{task.positive}]", f"{task.score}[0]"]
    chosen = next((name for name in wanted if name in outputs), outputs[0])
    return layout.names.index(chosen)
