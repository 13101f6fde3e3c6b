"""Labelled: how good one model version is, from its predictions as they are made and its labels as they come.

It has two states, which add up. Predictions are counted with the rows of the journal, and saved with the cursors of
these; labels are counted with the changes of the ledger, and saved with the cursor of those. So each is exact across a
crash by itself, and neither waits for the other: a label may be counted before its prediction is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from monitors.alarms import Alarm, Alarms
from monitors.baseline.document import Baseline
from monitors.by_time import PANES, AnyTally, ByTime
from monitors.count import texts
from monitors.evidence.watches import LabelWatch, LossWatch, Watch
from monitors.label_cells import LabelCells
from monitors.learnt import PART, Learnt, bounds
from monitors.loss_streams import LossStreams
from monitors.performance.figure import Figure
from monitors.performance.slices import Sliced
from monitors.rule import Rule
from monitors.task import Task
from monitors.types import Columns, Counts, Floats

STEPS = 1024
"""Losses of a block are rounded down to so many steps and counted: little evidence is lost, and a block of any number
of labels takes as much memory as one of a few."""

SECOND_NS = 1_000_000_000
WATCH, LABELS = "performance", "labels"
SLICE = "slice "
"""What the name of a tally by slices begins with; the column follows."""

CELLS = "(labels)"
"""Among the counts of a block by loss: those of labels by score."""

Slices = Mapping[str, Sequence[str]]


class Rows(msgspec.Struct, frozen=True):
    """Labelled rows, side by side: `columns` at the times of their predictions, and when each label came, int64 (n,).

    `expected`: whether the features of a row are there, so that its expected loss can be told, bool (n,).
    """

    columns: Columns
    arrived_ns: Counts
    expected: Counts

    def __len__(self) -> int:
        return len(self.columns)


class _Labels(msgspec.Struct, frozen=True):
    tallies: dict[str, bytes]
    learning: dict[str, tuple[float, int]]
    errors: list[float]
    scale: float
    bounds: dict[str, float]
    block_ns: int
    pending: list[tuple[int, dict[str, dict[int, int]]]]
    alarms: bytes
    seen: dict[str, int]
    streams: bytes = b""


class Labelled:
    """One version. `update` takes predictions, `label` and `retract` take labels, `close` looks at the evidence.

    `trouble` says why predictions cannot be judged, `unlearnt` why nothing is known from the baseline's labels; both
    are empty where all is well.
    """

    def __init__(
        self, model: str, version: int, task: Task, learnt: Learnt | None, rule: Rule, slices: Slices | None = None
    ) -> None:
        """`slices`: values of features by which performance is told apart, as the baseline has them."""
        self.model, self.version, self.task, self.learnt, self.rule = model, version, task, learnt, rule
        self._slices, self._block_ns = slices or {}, int(rule.block_s * SECOND_NS)
        self.trouble = self.unlearnt = ""
        self.predictions = self._tallies()
        self.empty_labels()

    @classmethod
    def of(cls, key: tuple[str, int], task: Task, baseline: Baseline | None, rule: Rule) -> Labelled:
        """One version with what its baseline, where it has one, says about labels and slices."""
        slices = {}
        if baseline is not None:
            inputs = {each.name for each in baseline.layout.features if each.role == "feature"}
            slices = {name: tuple(values) for name, values in baseline.slices.items() if name in inputs}
        part = None if baseline is None else baseline.parts.get(PART)
        if part is None:
            made = cls(*key, task, None, rule, slices)
            made.unlearnt = "there is no baseline" if baseline is None else "the baseline has no labels"
            return made
        try:
            return cls(*key, task, Learnt(task, part), rule, slices)
        except ValueError as error:
            made = cls(*key, task, None, rule, slices)
            made.unlearnt = str(error)
            return made

    def _tallies(self) -> dict[str, ByTime]:
        edges = None if self.learnt is None else self.learnt.edges
        makers: dict[str, Callable[[], AnyTally]] = {"score": lambda: self.task.tally(edges)}
        loss = None if self.learnt is None else self.learnt.loss_tally()
        if loss is not None:
            makers["loss"] = loss.fresh
        for name, values in self._slices.items():
            makers[SLICE + name] = Sliced(monitor=self.task.tally(edges), by=name, values=values).fresh
        return {name: ByTime(make, self.task.window_ns) for name, make in makers.items()}

    @property
    def features(self) -> tuple[str, ...]:
        """Those of a prediction that its label is counted with: which the model of the loss looks at, and slices."""
        return (*(() if self.learnt is None else self.learnt.loss_features), *self._slices)

    def empty_labels(self) -> None:
        """Forget all labels, as if none had ever come."""
        self.labels = self._tallies()
        self.arrived = ByTime(self.labels["score"].total.fresh, self.task.window_ns)
        self.seen = {"labels": 0, "superseded": 0, "withdrawn": 0, "apart": 0}
        self._pending: dict[int, dict[str, Counts]] = {}
        self._learning: dict[str, tuple[float, int]] = {}
        self._errors: list[float] = []
        self.scale = 0.0 if self.learnt is None else self.learnt.scale
        self._bounds: dict[str, float] = {}
        self._watch: LossWatch | None = None
        self._labels_watch: LabelWatch | None = None
        self._cells: LabelCells | None = None
        self.streams = LossStreams(self.task.loss_detectors, self.task.loss_names)
        self.alarms = Alarms(self.model, self.version, {})
        if self.learnt is not None:
            self._begin(self.learnt.bounds())

    def _begin(self, limits: Mapping[str, float]) -> None:
        self._bounds = dict(limits)
        block_s = self.rule.block_s
        self._watch = LossWatch(self._bounds, self.rule.budget(WATCH), block_s)
        watches: dict[str, Watch] = {WATCH: self._watch}
        if self.learnt is not None and self.task.classes:
            self._cells = LabelCells(self.learnt.state)
            names = [str(each) for each in self.task.classes]
            if self.task.kind == "binary" and self.task.positive == 0:
                names.reverse()
            self._labels_watch = LabelWatch(
                self._cells.baseline, names, self.rule.budget(LABELS), block_s, tolerance=self.rule.tolerance
            )
            watches[LABELS] = self._labels_watch
        learned = "learned" if self.learnt is None else "built"
        self.alarms = Alarms(self.model, self.version, watches, baseline=learned)

    # -- what comes in

    def update(self, columns: Columns) -> None:
        """Count predictions."""
        scores = self.task.scores(columns.outputs, len(columns))
        if scores is None:
            return
        rows = Columns(columns.time_ns, columns.features, {self.task.score: scores})
        for name, by_time in self.predictions.items():
            by_time.change(self._rows(name, rows), "update")

    @staticmethod
    def _rows(tally: str, rows: Columns) -> Columns:
        """Rows as one of the tallies takes them: slices are told apart by text, which 1, 1.0 and "1" are alike."""
        name = tally.removeprefix(SLICE)
        if name == tally or name not in rows.features:
            return rows
        return replace(rows, features={name: texts(rows.features[name])})

    def label(self, rows: Rows) -> None:
        """Count labels."""
        self._change(rows, "label")
        self.seen["labels"] += len(rows)

    def retract(self, rows: Rows) -> None:
        """Take labels out again that were counted, given exactly as they were."""
        self._change(rows, "retract")
        self.seen["labels"] -= len(rows)

    def _change(self, rows: Rows, how: str) -> None:
        columns = rows.columns
        for name, by_time in self.labels.items():
            own = columns.take(np.asarray(rows.expected, bool)) if name == "loss" else columns
            by_time.change(self._rows(name, own), how)
        self.arrived.change(Columns(rows.arrived_ns, {}, columns.outputs, columns.labels), how)

    def hear(self, rows: Rows) -> None:
        """Take labels as evidence: of each prediction the first that ever came, as a bet cannot be taken back."""
        if not len(rows):
            return
        blocks = rows.arrived_ns // self._block_ns
        for block in np.unique(blocks).tolist():
            own = rows.columns.take(blocks == block)
            scores, truth = own.outputs[self.task.score], own.labels[self.task.label]
            if self._watch is None:
                self._learn(scores, truth)
                continue
            # Blocks close in the order of time: what comes late counts in the one that is open.
            at = max([block, *self._pending])
            losses = self.task.losses(scores, truth, self.scale)
            self.streams.update(losses, int(rows.arrived_ns[blocks == block].max()))
            for name, values in losses.items():
                self._wait(at, name, np.bincount((values * STEPS).astype(np.int64), minlength=STEPS + 1))
            if self._cells is not None:
                self._wait(at, CELLS, self._cells.count(scores, truth))

    def _wait(self, block: int, loss: str, counts: Counts) -> None:
        pending = self._pending.setdefault(block, {})
        pending[loss] = counts if loss not in pending else pending[loss] + counts

    def _learn(self, scores: Floats, truth: Floats) -> None:
        """What losses are usual, where no baseline says it: those of the first labels."""
        if self.task.kind == "regression":
            off = np.abs(truth - scores)
            self._errors += off[np.isfinite(off)].tolist()
            if len(self._errors) < self.task.learn_labels:
                return
            errors = np.array(self._errors)
            self.scale = float(errors.mean())
            losses = self.task.losses(np.zeros(len(errors)), errors, self.scale)
            self._errors = []
        else:
            losses = self.task.losses(scores, truth, self.scale)
        for name, values in losses.items():
            total, rows = self._learning.get(name, (0.0, 0))
            self._learning[name] = total + float(values.sum()), rows + len(values)
        if all(rows >= self.task.learn_labels for _, rows in self._learning.values()):
            self._begin(bounds(self.task, self._learning))

    def is_due(self, until_ns: int) -> bool:
        """Whether `close` has something to do."""
        return len(self._pending) > 1 or any((block + 1) * self._block_ns <= until_ns for block in self._pending)

    def close(self, until_ns: int) -> Sequence[Alarm]:
        """Look at the evidence of every block that ended by then; alarms that are due."""
        raised: list[Alarm] = []
        newest = max(self._pending, default=0)
        for block in sorted(self._pending):
            if block == newest and (block + 1) * self._block_ns > until_ns:
                break
            assert self._watch is not None
            began_ns = block * self._block_ns
            for name, counts in sorted(self._pending.pop(block).items()):
                if name != CELLS:
                    self._watch.update(name, np.arange(STEPS + 1) / STEPS, counts, began_ns)
                elif self._labels_watch is not None and self._cells is not None:
                    self._labels_watch.update(counts.reshape(self._cells.baseline.shape), began_ns)
            raised += self.alarms.check((block + 1) * self._block_ns)
        return raised

    # -- states

    def predictions_to_bytes(self) -> bytes:
        """The counts of predictions."""
        return msgspec.msgpack.encode({name: each.to_bytes() for name, each in self.predictions.items()})

    def load_predictions(self, data: bytes) -> None:
        """Go on where `predictions_to_bytes` was called. Raises ValueError where they were judged in another way."""
        self.predictions = _load(self._tallies(), _decoded(data, dict[str, bytes]))

    def labels_to_bytes(self) -> bytes:
        """All that is known from labels, alarms included."""
        tallies = {name: each.to_bytes() for name, each in self.labels.items()}
        return msgspec.msgpack.encode(
            _Labels(
                {**tallies, "arrived": self.arrived.to_bytes()},
                self._learning,
                self._errors,
                self.scale,
                self._bounds,
                self._block_ns,
                [
                    (block, {name: {int(at): int(counts[at]) for at in np.flatnonzero(counts)} for name, counts in own})
                    for block, own in sorted((block, sorted(losses.items())) for block, losses in self._pending.items())
                ],
                self.alarms.to_bytes(),
                self.seen,
                self.streams.to_bytes(),
            )
        )

    def load_labels(self, data: bytes) -> None:
        """Go on where `labels_to_bytes` was called. Raises ValueError where they were judged in another way.

        Where only the bounds of the losses are others now, alarms stay, and evidence is gathered anew.
        """
        saved: _Labels = _decoded(data, _Labels)
        self.empty_labels()
        self.labels = _load(self._tallies(), {name: each for name, each in saved.tallies.items() if name != "arrived"})
        self.arrived.load(saved.tallies.get("arrived", b""))
        self._learning, self._errors, self.scale = dict(saved.learning), list(saved.errors), saved.scale
        self.seen = dict(saved.seen)
        self.streams.load(saved.streams)
        for block, losses in saved.pending:
            for name, steps in losses.items():
                if name == CELLS and self._cells is None:
                    continue
                size = STEPS + 1 if name != CELLS or self._cells is None else self._cells.size
                counts = np.zeros(size, np.int64)
                counts[list(steps)] = list(steps.values())
                self._wait(block * saved.block_ns // self._block_ns, name, counts)
        if saved.bounds and self.learnt is None:
            self._begin(bounds(self.task, self._learning))
        self.alarms.load(saved.alarms)
        if self._watch is not None and self._bounds != saved.bounds:
            self._watch.restart()

    # -- what it says

    def windows(self, wanted: Sequence[str] = ("score", "loss")) -> dict[str, Any]:
        """Predictions and labels of the window up to the newest prediction or label, by names of tallies."""
        sides = (self.predictions["score"].panes.latest, self.labels["score"].panes.latest)
        newest = max((each for each in sides if each is not None), default=0)
        found = {}
        for name in set(wanted) & set(self.predictions):
            found[name] = self.predictions[name].since(newest - PANES + 1)
            found[name].merge(self.labels[name].since(newest - PANES + 1))
        return found

    def figures(self) -> dict[str, dict[str, Figure]]:
        """Figures of the window, by kind (realised, estimated) and name; classes one by one are left out."""
        now = self.windows()
        found = {"realised": now["score"].figures(), "estimated": {}}
        if self.learnt is not None:
            found["estimated"] = self.learnt.estimated(now["score"], now.get("loss"))
        return {
            kind: {name: each for name, each in figures.items() if isinstance(each, Figure)}
            for kind, figures in found.items()
        }

    def value(self) -> dict[str, Any]:
        """Everything, as plain mappings."""
        now, everything = self.windows(tuple(self.predictions)), self.predictions["score"].total.fresh()
        everything.merge(self.predictions["score"].total)
        everything.merge(self.labels["score"].total)
        found: dict[str, Any] = {
            "task": {"kind": self.task.kind, "label": self.task.label, "score": self.task.score},
            "window_s": self.task.window_ns / SECOND_NS,
            "trouble": self.trouble,
            "unlearnt": self.unlearnt,
            "realised": now["score"].value(),
            "realised_by_arrival": self.arrived.since((self.arrived.panes.latest or 0) - PANES + 1).value(),
            "since_beginning": everything.value(),
            "estimated": {},
            "reconciled": {},
            "labels": dict(self.seen),
            "watches": self.alarms.value(),
            "bounds": {"learned": self.learnt is None, "losses": self._bounds},
            "detections": self.streams.value(),
            "slices": {name: now[SLICE + name].value() for name in self._slices},
        }
        if self.learnt is not None:
            estimated = self.learnt.estimated(now["score"], now.get("loss"))
            found["estimated"] = {
                name: msgspec.to_builtins(each) for name, each in estimated.items() if isinstance(each, Figure)
            }
            found["reconciled"] = self.learnt.reconciled(now["score"], now.get("loss"))
        return found


def _load(tallies: dict[str, ByTime], saved: Mapping[str, bytes]) -> dict[str, ByTime]:
    if set(saved) != set(tallies):
        raise ValueError(f"the state holds {sorted(saved)}, expected {sorted(tallies)}")
    for name, by_time in tallies.items():
        by_time.load(saved[name])
    return tallies


def _decoded(data: bytes, type_: Any) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=type_)
    except msgspec.MsgspecError as error:
        raise ValueError(f"the state of the labels cannot be read: {error}") from None
