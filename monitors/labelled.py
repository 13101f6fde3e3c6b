"""Labelled: how good one model version is, from its predictions as they are made and its labels as they come.

It has two states, which add up. Predictions are counted with the rows of the journal, and saved with the cursors of
these; labels are counted with the changes of the ledger, and saved with the cursor of those. So each is exact across a
crash by itself, and neither waits for the other: a label may be counted before its prediction is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from monitors.alarms import Alarm, Alarms
from monitors.baseline.document import Baseline
from monitors.evidence.budget import Budget
from monitors.evidence.watches import LossWatch
from monitors.learnt import PART, Learnt, bounds
from monitors.performance.figure import Figure
from monitors.performance.tally import Tally
from monitors.task import Task
from monitors.types import Columns, Counts, Floats
from monitors.window import Panes

PANES = 24
"""A window is the sum of so many panes."""

STEPS = 1024
"""Losses of a block are rounded down to so many steps and counted: little evidence is lost, and a block of any number
of labels takes as much memory as one of a few."""

SECOND_NS = 1_000_000_000
WATCH = "performance"

How = Callable[[Tally, Columns], None]


class ByTime:
    """A tally of everything, and one of each pane of time; `make` gives an empty one."""

    def __init__(self, make: Callable[[], Tally], window_ns: int) -> None:
        self.total = make()
        self.panes: Panes[Tally] = Panes(make, max(1, window_ns // PANES), PANES)

    def change(self, columns: Columns, how: How) -> None:
        """Do something (``Tally.update``, ``label`` or ``retract``) with rows, in all and in the panes of their times.

        A pane that is not held any more stays as it is: it never comes back.
        """
        if len(columns):
            how(self.total, columns)
            self.panes.update(columns, how)

    def since(self, pane: int) -> Tally:
        """The sum of the panes from a number on."""
        found = self.panes.make()
        for began_ns, _, state in self.panes.panes():
            if began_ns >= pane * self.panes.pane_ns:
                found.merge(state)
        return found

    def to_bytes(self) -> bytes:
        """Everything; equal histories give equal bytes."""
        return msgspec.msgpack.encode((self.total.to_bytes(), self.panes.to_bytes()))

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is of another tally."""
        try:
            total, panes = msgspec.msgpack.decode(data, type=tuple[bytes, bytes])
        except msgspec.MsgspecError as error:
            raise ValueError(f"the state of a window cannot be read: {error}") from None
        self.total.load(total)
        self.panes.load(panes)


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


class Labelled:
    """One version. `update` takes predictions, `label` and `retract` take labels, `close` looks at the evidence.

    `trouble` says why predictions cannot be judged, `unlearnt` why nothing is known from the baseline's labels; both
    are empty where all is well.
    """

    def __init__(
        self, model: str, version: int, task: Task, learnt: Learnt | None, budget: Budget, block_s: float
    ) -> None:
        self.model, self.version, self.task, self.learnt, self.budget = model, version, task, learnt, budget
        self._block_s, self._block_ns = block_s, int(block_s * SECOND_NS)
        self.trouble = self.unlearnt = ""
        self.predictions = self._tallies()
        self.empty_labels()

    @classmethod
    def of(
        cls, key: tuple[str, int], task: Task, baseline: Baseline | None, budget: Budget, block_s: float
    ) -> Labelled:
        """One version with what its baseline, where it has one, says about labels."""
        part = None if baseline is None else baseline.parts.get(PART)
        if part is None:
            made = cls(*key, task, None, budget, block_s)
            made.unlearnt = "there is no baseline" if baseline is None else "the baseline has no labels"
            return made
        try:
            return cls(*key, task, Learnt(task, part), budget, block_s)
        except ValueError as error:
            made = cls(*key, task, None, budget, block_s)
            made.unlearnt = str(error)
            return made

    def _tallies(self) -> dict[str, ByTime]:
        edges = None if self.learnt is None else self.learnt.edges
        makers: dict[str, Callable[[], Tally]] = {"score": lambda: self.task.tally(edges)}
        loss = None if self.learnt is None else self.learnt.loss_tally()
        if loss is not None:
            makers["loss"] = loss.fresh
        return {name: ByTime(make, self.task.window_ns) for name, make in makers.items()}

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
        self.alarms = Alarms(self.model, self.version, {})
        if self.learnt is not None:
            self._begin(self.learnt.bounds())

    def _begin(self, limits: Mapping[str, float]) -> None:
        self._bounds = dict(limits)
        self._watch = LossWatch(self._bounds, self.budget, self._block_s)
        self.alarms = Alarms(self.model, self.version, {WATCH: self._watch})

    # -- what comes in

    def update(self, columns: Columns) -> None:
        """Count predictions."""
        scores = self.task.scores(columns.outputs, len(columns))
        if scores is None:
            return
        rows = Columns(columns.time_ns, columns.features, {self.task.score: scores})
        for by_time in self.predictions.values():
            by_time.change(rows, Tally.update)

    def label(self, rows: Rows) -> None:
        """Count labels."""
        self._change(rows, Tally.label)
        self.seen["labels"] += len(rows)

    def retract(self, rows: Rows) -> None:
        """Take labels out again that were counted, given exactly as they were."""
        self._change(rows, Tally.retract)
        self.seen["labels"] -= len(rows)

    def _change(self, rows: Rows, how: How) -> None:
        self.labels["score"].change(rows.columns, how)
        if "loss" in self.labels:
            self.labels["loss"].change(rows.columns.take(np.asarray(rows.expected, bool)), how)
        columns = rows.columns
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
            for name, values in self.task.losses(scores, truth, self.scale).items():
                self._wait(at, name, np.bincount((values * STEPS).astype(np.int64), minlength=STEPS + 1))

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
            for name, counts in sorted(self._pending.pop(block).items()):
                self._watch.update(name, np.arange(STEPS + 1) / STEPS, counts, block * self._block_ns)
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
        for block, losses in saved.pending:
            for name, steps in losses.items():
                counts = np.zeros(STEPS + 1, np.int64)
                counts[list(steps)] = list(steps.values())
                self._wait(block * saved.block_ns // self._block_ns, name, counts)
        if saved.bounds and self.learnt is None:
            self._begin(bounds(self.task, self._learning))
        self.alarms.load(saved.alarms)
        if self._watch is not None and self._bounds != saved.bounds:
            self._watch.restart()

    # -- what it says

    def windows(self) -> dict[str, Tally]:
        """Predictions and labels of the window up to the newest prediction or label, by "score" and "loss"."""
        sides = (self.predictions["score"].panes.latest, self.labels["score"].panes.latest)
        newest = max((each for each in sides if each is not None), default=0)
        found = {}
        for name, by_time in self.predictions.items():
            found[name] = by_time.since(newest - PANES + 1)
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
        now, everything = self.windows(), self.predictions["score"].total.fresh()
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
