"""Data sets as watches see them: blocks of counts, and alarms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as parquet

from monitors.baseline.build import Arrays, build
from monitors.baseline.document import Baseline
from monitors.evidence.budget import Budget
from monitors.evidence.calibration import clumping
from monitors.evidence.confidence import highest_mean
from monitors.evidence.findings import Features
from monitors.evidence.reference import Reference
from monitors.evidence.watches import BaselineWatch, LabelWatch, LossWatch
from monitors.types import Array, Columns, Counts, Floats

BLOCK = 64
YEARLY = Budget.parse("1 per model-year")
MINUTE_S = 60.0


def read(path: Path) -> dict[str, Array]:
    """The columns of a Parquet file; texts as object arrays with None for missing."""
    table = parquet.read_table(path)
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if column.type in ("string", "large_string") or str(column.type).startswith(("dictionary", "large_string")):
            columns[name] = np.array(column.to_pylist(), dtype=object)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


def rows(columns: Mapping[str, Array], first: int, last: int | None = None) -> dict[str, Array]:
    """Rows first to last - 1 of all columns."""
    return {name: values[first:last] for name, values in columns.items()}


def baseline_of(columns: Mapping[str, Array], timed: npt.NDArray[np.int64] | None = None) -> Baseline:
    """A baseline of these columns, all of them features."""
    return build(Arrays(dict(columns), time_ns=timed))


def blocks_of(baseline: Baseline, columns: Mapping[str, Array], block: int = BLOCK) -> Iterator[tuple[int, Counts]]:
    """Blocks of counts (F, B) with the number of their first row."""
    how_many = len(next(iter(columns.values())))
    for first in range(0, how_many - block + 1, block):
        state = baseline.new_state()
        state.update(Columns(np.zeros(block, np.int64), rows(columns, first, first + block)))
        yield first, state.counts


@dataclass
class Told:
    """The alarms of a watch over a stream. Rows are counted from the beginning of what was watched.

    `at`: the last row of the block that raised an alarm. `began`: the row where the change began by the estimate.
    `about`: the features (or losses) that were named first, with their PSI (or mean). The evidence starts anew after
    each alarm, so that a change that stays is told again and again. `loudest`: ln M at most, where nothing was raised.
    `evidence`: ln M after each block.
    """

    at: list[int] = field(default_factory=list)
    began: list[int] = field(default_factory=list)
    about: list[str] = field(default_factory=list)
    loudest: float = -np.inf
    watched: int = 0
    evidence: list[float] = field(default_factory=list)


def copies_of(baseline: Baseline, known: Mapping[str, Array]) -> Floats:
    """In how many copies the rows of a baseline come, by feature."""
    return np.asarray(clumping(np.array([counts for _, counts in blocks_of(baseline, known, 16)])))


def watch_inputs(
    baseline: Baseline,
    columns: Mapping[str, Array],
    *,
    tolerance: npt.ArrayLike = 0.01,
    copies: npt.ArrayLike = 1.0,
    most: int = 10_000,
) -> Told:
    """What "different from training" says about a stream, up to `most` alarms."""
    features = Features.of(baseline.layout)
    reference = Reference.build(
        baseline.state.counts, valid=features.valid, ordered=features.ordered, tolerance=tolerance, copies=copies
    )
    watch, told = BaselineWatch(features, [reference], YEARLY, MINUTE_S), Told()
    for first, counts in blocks_of(baseline, columns):
        watch.update(counts, first)
        told.watched = first + BLOCK
        told.evidence.append(watch.log_m)
        if watch.log_m >= watch.log_threshold:
            finding = watch.finding()
            told.at.append(first + BLOCK - 1)
            told.began.append(finding.began_ns or 0)
            told.about.append(", ".join(f"{each.feature} {each.psi:.2f}" for each in finding.features[:2]))
            watch.restart()
            if len(told.at) >= most:
                break
        elif not told.at:
            told.loudest = max(told.loudest, watch.log_m)
    return told


def watch_losses(losses: Floats, bound: float, most: int = 10_000) -> Told:
    """What "performs worse" says about a stream of losses in [0, 1], up to `most` alarms."""
    watch, told = LossWatch({"error": bound}, YEARLY, MINUTE_S), Told()
    for first in range(0, len(losses) - BLOCK + 1, BLOCK):
        watch.update("error", losses[first : first + BLOCK], None, first)
        told.watched = first + BLOCK
        if watch.log_m >= watch.log_threshold:
            finding = watch.finding()
            told.at.append(first + BLOCK - 1)
            told.began.append(finding.began_ns or 0)
            told.about.append(f"{finding.losses[0].mean:.3f} over {bound:.3f}")
            watch.restart()
            if len(told.at) >= most:
                break
        elif not told.at:
            told.loudest = max(told.loudest, watch.log_m)
    return told


def error_bound(errors: Array, tolerance: float = 0.01, delta: float = 0.01) -> float:
    """The mean error that is still all right: the most that the baseline leaves possible, and the tolerance."""
    return float(highest_mean(float(np.sum(errors)), len(errors), delta)) + tolerance


def polynomial(x: Floats) -> Floats:
    """Terms up to the second degree (n, t) of columns (n, d)."""
    columns = [np.ones(len(x)), *x.T]
    return np.stack([*columns, *(a * b for place, a in enumerate(x.T) for b in x.T[place:])], axis=1)


def least_squares(x: Floats, y: Array, train: slice) -> Floats:
    """Scores (n,) of a model that was trained on the rows `train`: above 0 it says 1."""
    return _fitted(polynomial(x), y, train)


def _fitted(terms: Floats, y: Array, train: slice) -> Floats:
    weights = np.linalg.lstsq(terms[train], 2 * y[train] - 1, rcond=None)[0]
    return np.asarray(terms @ weights)


@dataclass(frozen=True)
class LabelAlarm:
    """An alarm of the label monitors: its row, which watch raised it, and where the change began by its estimate."""

    row: int
    watch: str
    began: int


def label_alarms(x: Floats, y: Array, train: int = 1500, check: int = 6000) -> list[LabelAlarm]:
    """The alarms of the label monitors of a model whose owner trains it anew after each of them.

    From row 0, and again from each alarm, the next `train` rows train a model (least squares on polynomials: any would
    do) and the `check` rows after them are its baseline; then "performs worse" and "labels differ" watch.
    """
    terms, found, begin = polynomial(x), list[LabelAlarm](), 0
    while begin + train + check + BLOCK < len(x):
        known, checked = slice(begin, begin + train), slice(begin + train, begin + train + check)
        score = _fitted(terms, y, known)
        errors = ((score > 0) != y).astype(np.float64)
        alarm = _first_label_alarm(score, y.astype(np.int64), errors, checked)
        if alarm is None:
            break
        found.append(alarm)
        begin = alarm.row + 1
    return found


def _first_label_alarm(score: Floats, y: Counts, errors: Floats, checked: slice) -> LabelAlarm | None:
    edges = np.quantile(score[checked], np.arange(1, 10) / 10)
    cell = 2 * np.searchsorted(edges, score, side="right") + y
    known = np.bincount(cell[checked], minlength=20).reshape(10, 2)
    labels = LabelWatch(known, ("0", "1"), YEARLY, MINUTE_S)
    losses = LossWatch({"error": error_bound(errors[checked])}, YEARLY, MINUTE_S)
    for first in range(checked.stop, len(score) - BLOCK + 1, BLOCK):
        block = slice(first, first + BLOCK)
        labels.update(np.bincount(cell[block], minlength=20).reshape(10, 2), first)
        losses.update("error", errors[block], None, first)
        for watch in (labels, losses):
            if watch.log_m >= watch.log_threshold:
                return LabelAlarm(block.stop - 1, watch.kind, watch.finding().began_ns or 0)
    return None
