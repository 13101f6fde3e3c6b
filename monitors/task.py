"""Task: what "good" means for a model: which of its outputs is compared with which labels, and by which losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from gateway.journal.schema import SegmentSpec
from gateway.models.config import ModelConfig
from gateway.models.performance import classes_of
from monitors.performance.multiclass import ClassScores
from monitors.performance.regression import Regression
from monitors.performance.scores import Scores, score_edges
from monitors.performance.tally import Tally, floats
from monitors.types import Array, Columns, Floats

WEEK_NS = 7 * 86_400 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Task:
    """`classes`: values of the label in the order of the columns of the output `score`; none: a regression.

    `positive`, `threshold`: of two classes. `tolerance`: points by which a loss may be above that of training.
    `window_ns`: how far back "now" reaches. `learn_labels`: of how many labels a usual loss is learned.
    `loss_detectors`: names in `monitors.loss_streams.DETECTORS` of detectors that look at losses one by one.
    """

    label: str
    score: str
    classes: tuple[Any, ...] = ()
    positive: int = 1
    threshold: float = 0.5
    tolerance: float = 0.02
    window_ns: int = WEEK_NS
    learn_labels: int = 1000
    loss_detectors: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: ModelConfig) -> Self | None:
        """What a `model.toml` says labels are about; None where it says nothing."""
        rule = config.monitor.performance
        if rule is None:
            return None
        feedback = config.feedback[rule.label]
        named = config.outputs.get(rule.score)
        return cls(
            label=rule.label,
            score=rule.score,
            classes=classes_of(rule, feedback, () if named is None else named.labels),
            positive=rule.positive,
            threshold=rule.threshold,
            tolerance=rule.tolerance,
            window_ns=int(rule.window_s * 1e9) or WEEK_NS + feedback.maturity_ns,
            learn_labels=rule.learn_labels,
            loss_detectors=rule.loss_detectors,
        )

    @property
    def kind(self) -> str:
        """binary, multiclass or regression."""
        return {0: "regression", 2: "binary"}.get(len(self.classes), "multiclass")

    @property
    def loss_names(self) -> tuple[str, ...]:
        """What `losses` gives."""
        return ("relative_error",) if self.kind == "regression" else ("error", "brier")

    @property
    def widths(self) -> tuple[int, ...]:
        """How many columns the score may have."""
        return {"regression": (1,), "binary": (1, 2)}.get(self.kind, (len(self.classes),))

    def trouble(self, spec: SegmentSpec) -> str:
        """Why the predictions of a segment cannot be judged, in words; empty where they can."""
        found = [each for each in (*spec.columns, *spec.side) if each.group == "output" and each.name == self.score]
        if not found:
            named = sorted(each.name for each in (*spec.columns, *spec.side) if each.group == "output")
            return f"monitor.performance.score {self.score!r} is no output of the model: it has {', '.join(named)}"
        if self.score not in [each.name for each in spec.columns]:
            kept = spec.kept.get(self.score, "full")
            return f"the journal has no column of the output {self.score!r} (kept: {kept}), so it cannot be judged"
        width = int(np.prod(found[0].shape, dtype=np.int64))
        if width not in self.widths:
            wanted = " or ".join(map(str, self.widths))
            return f"the output {self.score!r} has {width} values a row; a {self.kind} of {self.label!r} needs {wanted}"
        return ""

    def scores(self, outputs: Mapping[str, Array], rows: int) -> Floats | None:
        """What is judged, float64: (n,), or (n, classes) for many classes; None where the outputs do not hold it.

        A table has the output in one column or, as ``score[0]`` and so on, in several.
        """
        given = outputs.get(self.score)
        if given is not None:
            found = floats(given, rows).reshape(rows, -1) if rows else np.zeros((0, self.widths[-1]))
        else:
            apart = [outputs.get(f"{self.score}[{place}]") for place in range(self.widths[-1])]
            if any(each is None for each in apart):
                return None
            found = np.stack([floats(each, rows) for each in apart], axis=1)
        if found.shape[1] not in self.widths:
            return None
        if self.kind == "multiclass":
            return found
        column: Floats = found[:, self.positive if found.shape[1] == 2 else 0]
        return column

    def truth(self, values: Sequence[Any] | Array) -> Floats:
        """Labels as numbers, (n,): 1 for the positive of two classes, the place among many; NaN for no such value."""
        given = values.tolist() if isinstance(values, np.ndarray) else list(values)
        if self.kind == "regression":
            return np.array([float(each) if isinstance(each, int | float) else np.nan for each in given], np.float64)
        places = {each: float(place) for place, each in enumerate(self.classes)}
        known = [places.get(each, np.nan) if isinstance(each, str | int | float) else np.nan for each in given]
        found = np.array(known, np.float64)
        if self.kind == "binary" and self.positive == 0:
            found = 1 - found
        return found

    def columns(self, time_ns: Array, scores: Floats, truth: Floats, features: Mapping[str, Array]) -> Columns:
        """Rows with labels, as monitors take them."""
        return Columns(time_ns, features, {self.score: scores}, {self.label: truth})

    def tally(self, edges: Sequence[float] | None) -> Tally:
        """An empty monitor; `edges` of the score, None: a grid."""
        if self.kind == "regression":
            return Regression(output=self.score, label=self.label)
        if self.kind == "binary":
            own = score_edges(threshold=self.threshold) if edges is None else edges
            return Scores(output=self.score, label=self.label, edges=own, threshold=self.threshold)
        return ClassScores(output=self.score, label=self.label, classes=range(len(self.classes)), edges=edges)

    def losses(self, scores: Floats, truth: Floats, scale: float) -> dict[str, Floats]:
        """Losses from 0 to 1 of the rows that have a score and a label, by name, each (m,).

        error: the decision was wrong. brier: the squared error of the probability (of many classes halved, so that it
        is at most 1). relative_error, of a regression: e / (e + `scale`) for the absolute error e; 1/2 at `scale`.
        """
        if self.kind == "regression":
            with np.errstate(over="ignore", invalid="ignore"):
                off = np.abs(truth - scores)
                off = off[np.isfinite(off)]
                return {"relative_error": off / (off + scale) if scale > 0 else (off > 0).astype(np.float64)}
        if self.kind == "binary":
            usable = (scores >= 0) & (scores <= 1) & ~np.isnan(truth)
            score, actual = scores[usable], truth[usable]
            wrong = (score >= self.threshold) != (actual == 1)
            return {"error": wrong.astype(np.float64), "brier": (score - actual) ** 2}
        usable = ((scores >= 0) & (scores <= 1)).all(axis=1) & ~np.isnan(truth)
        probabilities, place = scores[usable], truth[usable].astype(np.int64)
        own = np.zeros(probabilities.shape)
        own[np.arange(len(place)), place] = 1.0
        wrong = probabilities.argmax(axis=1) != place
        return {
            "error": wrong.astype(np.float64),
            "brier": np.minimum(np.square(probabilities - own).sum(axis=1) / 2, 1.0),
        }
