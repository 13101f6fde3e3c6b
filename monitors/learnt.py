"""Learnt: what the labels of the training data say: how often a score is right, how large errors are, usual losses.

It is the part `performance` of a baseline. Two passes over the data: one for a sample of rows, from which edges and,
for a regression, a model of the loss are made; one in which all other rows (for a classification all) are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from monitors.evidence.confidence import highest_mean
from monitors.performance import exact
from monitors.performance.cbpe import Calibration, estimate, reconcile
from monitors.performance.cbpe_classes import ClassCalibration, estimate_classes
from monitors.performance.dle import DirectLoss, LossCalibration, loss_edges, reconcile_loss
from monitors.performance.figure import plain
from monitors.performance.loss_model import LossModel
from monitors.performance.multiclass import ClassScores
from monitors.performance.scores import Scores, score_edges
from monitors.performance.tally import Tally, labelled
from monitors.task import Task
from monitors.types import Array, Columns, Floats

PART = "performance"
"""The name of the part in a baseline."""

SAMPLE = 1 << 16
"""At most so many rows, equally far apart, are kept for edges and for the model of the loss."""

DELTA = 0.01
"""How often, at most, the usual loss of a finite sample is believed to be less than it is."""

LARGEST_BOUND = 0.999


class _Document(msgspec.Struct, frozen=True):
    task: str
    edges: tuple[float, ...]
    scale: float
    losses: dict[str, tuple[float, int]]
    state: bytes
    model: bytes = b""
    loss_edges: tuple[float, ...] = ()
    loss_state: bytes = b""


class Learnt:
    """What a part says, ready to estimate with."""

    def __init__(self, task: Task, data: bytes) -> None:
        """Raises ValueError where the part cannot be read or is about another task."""
        try:
            document = msgspec.msgpack.decode(data, type=_Document)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the baseline's labels cannot be read: {error}") from None
        if document.task != identity(task):
            raise ValueError(f"the baseline's labels are about {document.task}, and not about {identity(task)}")
        self.task, self.edges, self.scale = task, document.edges, document.scale
        self.losses = document.losses
        state = task.tally(self.edges)
        state.load(document.state)
        self.state = state
        self._calibration: Calibration | ClassCalibration | LossCalibration | None = None
        self._loss: tuple[bytes, tuple[float, ...]] | None = None
        if isinstance(state, Scores):
            self._calibration = Calibration.learn(state.by_class())
        elif isinstance(state, ClassScores):
            self._calibration = ClassCalibration.learn(state)
        elif document.model:
            self._loss = document.model, document.loss_edges
            loss = self.loss_tally()
            assert loss is not None
            loss.load(document.loss_state)
            self._calibration = loss.learn()

    def loss_tally(self) -> DirectLoss | None:
        """An empty monitor of the expected loss; None where there is no model of it."""
        if self._loss is None:
            return None
        return DirectLoss(output=self.task.score, label=self.task.label, model=self._loss[0], edges=self._loss[1])

    @property
    def loss_features(self) -> tuple[str, ...]:
        """The features that the model of the loss looks at."""
        if self._loss is None:
            return ()
        return tuple(each.name for each in LossModel.from_bytes(self._loss[0]).columns if each.kind == "feature")

    def bounds(self) -> dict[str, float]:
        """By loss, the mean that is still all right: the baseline's, its doubt, the tolerance."""
        return bounds(self.task, self.losses)

    def estimated(self, state: Tally, loss: Tally | None) -> dict[str, Any]:
        """Figures of all rows of a window without their labels, by name."""
        learnt = self._calibration
        if isinstance(state, Scores) and isinstance(learnt, Calibration):
            return estimate(state.predicted(), learnt, state.cut)
        if isinstance(state, ClassScores) and isinstance(learnt, ClassCalibration):
            return estimate_classes(state, learnt)
        if isinstance(loss, DirectLoss) and isinstance(learnt, LossCalibration):
            return dict(learnt.estimate(np.maximum(loss.counts["rows"], 0), loss.expected()))
        return {}

    def reconciled(self, state: Tally, loss: Tally | None) -> dict[str, Any]:
        """The estimate beside the labels of the same rows, as plain mappings; empty where that is not offered."""
        learnt = self._calibration
        if isinstance(state, Scores) and isinstance(learnt, Calibration):
            return dict(plain(reconcile(state, learnt)))
        if isinstance(loss, DirectLoss) and isinstance(learnt, LossCalibration):
            return dict(plain(reconcile_loss(loss, learnt)))
        return {}


def bounds(task: Task, losses: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    """By loss, the largest mean that its sum over so many rows leaves possible, and the tolerance above that."""
    found = {}
    for name, (total, rows) in sorted(losses.items()):
        highest = float(highest_mean(min(max(total, 0.0), rows), rows, DELTA))
        found[name] = min(highest + task.tolerance, LARGEST_BOUND)
    return found


def identity(task: Task) -> str:
    """What the labels of a baseline must be about to be of use for a task."""
    classes = f" of {list(task.classes)}, class {task.positive}" if task.classes else ""
    at = f", from {task.threshold:g}" if task.kind == "binary" else ""
    return f"{task.kind} {task.score!r} by {task.label!r}{classes}{at}"


class Learner:
    """A monitor of the labelled rows of training data. Make it with `of`; `to_bytes` is the part."""

    def __init__(self, task: Task, edges: tuple[float, ...], scale: float, model: bytes, steps: tuple[int, Columns]):
        """`steps`: every how many rows one was sampled, and the sampled rows."""
        self.task, self.edges, self.scale, self._model = task, edges, scale, model
        self._step, sample = steps
        self._row = 0
        self.state = task.tally(edges)
        self._losses: dict[str, tuple[int, int]] = {}
        self._loss: DirectLoss | None = None
        if model:
            inner = loss_edges(LossModel.from_bytes(model), sample)
            self._loss = DirectLoss(output=task.score, label=task.label, model=model, edges=inner)

    @classmethod
    def of(cls, task: Task, source: Iterable[Columns]) -> Learner:
        """Choose edges, scale and model from a sample of the labelled rows of a source.

        Raises ValueError where a labelled row has no output that fits, or there is no labelled row.
        """
        step, rows = _sample(task, source)
        if not len(rows):
            raise ValueError(f"the data has no label {task.label!r} beside an output {task.score!r}")
        scores, truth = np.asarray(rows.outputs[task.score]), np.asarray(rows.labels[task.label])
        if task.kind != "regression":
            edges = score_edges(scores.ravel(), threshold=task.threshold)
            return cls(task, edges, 0.0, b"", (step, rows))
        off = np.abs(truth - scores)
        usable = np.isfinite(off)
        if not usable.any():
            raise ValueError(f"no row of the data has a finite output {task.score!r} and a finite label {task.label!r}")
        model = LossModel.fit(rows.take(usable), off[usable], outputs=[task.score])
        return cls(task, (), float(off[usable].mean()), model.to_bytes(), (step, rows))

    def update(self, columns: Columns) -> None:
        """Count the labelled rows."""
        first, self._row = self._row, self._row + len(columns)
        own = judged(self.task, columns)
        if own is None:
            return
        self.state.update(own[1])
        scores, truth = own[1].outputs[self.task.score], own[1].labels[self.task.label]
        for name, values in self.task.losses(scores, truth, self.scale).items():
            total, rows = self._losses.get(name, (0, 0))
            self._losses[name] = total + sum(exact.sums(values).tolist()), rows + len(values)
        if self._loss is not None:
            # What the model was fitted to looks better than the rest.
            self._loss.update(own[1].take((own[0] + first) % self._step != 0))

    def value(self) -> Mapping[str, Any]:
        """The figures of the labelled rows."""
        return self.state.value()

    def to_bytes(self) -> bytes:
        """The part. Raises ValueError where there was no labelled row."""
        losses = {name: (exact.number(total), rows) for name, (total, rows) in sorted(self._losses.items())}
        extra = (b"", (), b"") if self._loss is None else (self._model, self._loss.settings["edges"], b"")
        document = _Document(identity(self.task), self.edges, self.scale, losses, self.state.to_bytes(), *extra)
        if self._loss is not None:
            document = msgspec.structs.replace(document, loss_state=self._loss.to_bytes())
        return msgspec.msgpack.encode(document)

    def merge(self, other: Learner) -> None:
        """Two of them are never merged."""
        raise ValueError("the labels of a baseline are learnt in one pass")

    def load(self, data: bytes) -> None:
        """A part is read by `Learnt`."""
        raise ValueError("the labels of a baseline are read by Learnt")


def judged(task: Task, columns: Columns) -> tuple[Array, Columns] | None:
    """The rows (places (m,), and what is compared) that have a label; None where there is none.

    Raises ValueError where a row has a label and the output does not fit.
    """
    rows, values = labelled(columns, task.label)
    if not len(rows):
        return None
    scores = task.scores(columns.outputs, len(columns))
    if scores is None:
        wanted = " or ".join(map(str, task.widths))
        names = ", ".join(sorted(columns.outputs)) or "none"
        raise ValueError(f"the output {task.score!r} with {wanted} values a row is not among the outputs: {names}")
    features = {name: np.asarray(each)[rows] for name, each in columns.features.items()}
    return rows, task.columns(columns.time_ns[rows], scores[rows], task.truth(values), features)


def _sample(task: Task, source: Iterable[Columns]) -> tuple[int, Columns]:
    """Every how many rows one was taken, at least 2; and those of them that have a label."""
    step, seen = 2, 0
    parts: list[tuple[Array, Columns]] = []
    for columns in source:
        own = judged(task, columns)
        if own is not None:
            places = own[0] + seen
            kept = places % step == 0
            parts.append((places[kept], own[1].take(kept)))
        seen += len(columns)
        while sum(len(places) for places, _ in parts) > SAMPLE:
            step *= 2
            parts = [(places[places % step == 0], rows.take(places % step == 0)) for places, rows in parts]
    return step, joined([rows for _, rows in parts])


def joined(parts: list[Columns]) -> Columns:
    """Rows of several stretches with the same columns, as one."""

    def put(group: str) -> dict[str, Floats]:
        names = list(getattr(parts[0], group)) if parts else []
        return {name: np.concatenate([np.asarray(getattr(each, group)[name]) for each in parts]) for name in names}

    times = np.concatenate([each.time_ns for each in parts]) if parts else np.zeros(0, np.int64)
    return Columns(times, put("features"), put("outputs"), put("labels"), put("labelled"))
