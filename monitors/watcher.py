"""Watcher: everything that is known of one model version from its rows: drift, quality, operation, alarms."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from monitors.alarms import Alarm, Alarms
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import Baseline
from monitors.evidence.budget import Budget
from monitors.evidence.findings import Features
from monitors.evidence.reference import Reference
from monitors.evidence.watches import BaselineWatch, RecentWatch
from monitors.labelled import Labelled
from monitors.state import State
from monitors.task import Task
from monitors.types import Columns

log = logging.getLogger("headgate.monitors")

SECOND_NS = 1_000_000_000
PANES = 24
"""A window is the sum of so many panes."""


class Rule(msgspec.Struct, frozen=True):
    """How a model is watched: `[monitor]` of its `model.toml`.

    `alarm_budget`: false alarms of each of the two kinds. `tolerance`: drift in PSI units that nobody wants to be told.
    `window_s`: what "now" means in the drift that is shown. `block_s`: how often evidence is looked at. `learn_rows`:
    rows that a baseline is learned from where the version has none.
    """

    enabled: bool = True
    alarm_budget: str = "1 per model-year"
    tolerance: float = 0.02
    window_s: float = 86_400.0
    block_s: float = 300.0
    learn_rows: int = 5000


class _Document(msgspec.Struct, frozen=True):
    baseline: bytes
    given: bool
    cursors: dict[str, int]
    total: bytes
    panes: list[tuple[int, bytes]]
    blocks: list[tuple[int, bytes]]
    closed_ns: int
    late: int
    loose: int
    alarms: bytes
    performance: bytes = b""


class Progress(NamedTuple):
    """Rows counted, rows in the window, rows that came after their block was closed, rows without columns."""

    rows: int
    window: int
    late: int
    loose: int


class Watcher:
    """One version. Feed it rows in any order, then `close` the blocks that are complete; `baseline` None: learning."""

    def __init__(
        self, model: str, version: int, rule: Rule, baseline: Baseline | None, task: Task | None = None
    ) -> None:
        """`task`: what its labels say about which output. Raises ValueError where the rule's budget cannot be read."""
        self.model, self.version, self.rule = model, version, rule
        self.budget = Budget.parse(rule.alarm_budget)
        self.given = baseline is not None
        self.baseline: Baseline | None = None
        self.cursors: dict[str, int] = {}
        self.late = self.loose = 0
        self._learning: list[Columns] = []
        self._closed_ns = 0
        self._block_ns = int(rule.block_s * SECOND_NS)
        self._pane_ns = int(rule.window_s * SECOND_NS / PANES)
        self._blocks: dict[int, State] = {}
        self.performance: Labelled | None = None
        if task is not None:
            self.performance = Labelled.of((model, version), task, baseline, self.budget, rule.block_s)
        if baseline is not None:
            self._begin(baseline)

    def _begin(self, baseline: Baseline) -> None:
        self.baseline = baseline
        layout = baseline.layout
        features = Features.of(layout)
        reference = Reference.build(
            baseline.state.counts, valid=features.valid, ordered=features.ordered, tolerance=self.rule.tolerance
        )
        self._training = BaselineWatch(features, [reference], self.budget, self.rule.block_s)
        self._recent = RecentWatch(features, self.budget, self.rule.block_s, tolerance=self.rule.tolerance)
        self.alarms = Alarms(self.model, self.version, {"training": self._training, "recent": self._recent})
        self.total = State(layout)
        self.window = State(layout)
        self._panes: dict[int, State] = {}

    @property
    def progress(self) -> Progress:
        """How far it is."""
        if self.baseline is None:
            return Progress(sum(map(len, self._learning)), 0, self.late, self.loose)
        waiting = sum(state.rows for state in self._blocks.values())
        return Progress(self.total.rows + waiting, self.window.rows, self.late, self.loose)

    def counted(self) -> State:
        """The counts of all rows so far, also of those in blocks that are not complete. Not while learning."""
        counted = self.total.copy()
        for state in self._blocks.values():
            counted.merge(state)
        return counted

    def update(self, columns: Columns, loose: int = 0) -> None:
        """Count rows; `loose` others have no columns."""
        self.loose += loose
        if not len(columns):
            return
        if self.performance is not None:
            self.performance.update(columns)
        if self.baseline is None:
            # No more rows are learned from than were asked for: what follows them is compared with them.
            needed = self.rule.learn_rows - sum(map(len, self._learning))
            self._learn(columns.take(slice(0, needed)))
            columns = columns.take(slice(needed, None))
            if not len(columns):
                return
        times = columns.time_ns
        first, last = int(times.min()) // self._block_ns, int(times.max()) // self._block_ns
        if first == last:
            self._count(first, columns)
            return
        blocks = times // self._block_ns
        order = np.flatnonzero(np.diff(blocks)) + 1
        # Rows of a segment come in the order of their arrival, so most stretches are whole blocks.
        for start, stop in zip([0, *order.tolist()], [*order.tolist(), len(blocks)], strict=True):
            self._count(int(blocks[start]), columns.take(slice(start, stop)))

    def _count(self, block: int, columns: Columns) -> None:
        assert self.baseline is not None
        began_ns = block * self._block_ns
        if began_ns + self._block_ns <= self._closed_ns:
            # The evidence of its time has been looked at: it counts as what came now.
            self.late += len(columns)
            block = self._closed_ns // self._block_ns
        state = self._blocks.get(block)
        if state is None:
            state = self._blocks[block] = State(self.baseline.layout)
        state.update(columns)

    def _learn(self, columns: Columns) -> None:
        # What is kept must outlive the segment that it lies in.
        copied = {name: np.array(values) for name, values in columns.features.items()}
        outputs = {name: np.array(values) for name, values in columns.outputs.items()}
        self._learning.append(Columns(np.array(columns.time_ns), copied, outputs))
        if sum(map(len, self._learning)) < self.rule.learn_rows:
            return
        names = set.intersection(*[set(each.features) for each in self._learning])
        kept = {name: np.concatenate([each.features[name] for each in self._learning]) for name in sorted(names)}
        answers = {
            name: np.concatenate([each.outputs[name] for each in self._learning]) for name in self._learning[0].outputs
        }
        times = np.concatenate([each.time_ns for each in self._learning])
        self._learning.clear()
        self._begin(build(Arrays(kept, answers, time_ns=times), learned=True))

    def is_due(self, until_ns: int) -> bool:
        """Whether there is a block that ended by then, whose evidence nobody has looked at."""
        return bool(self._blocks) and (min(self._blocks) + 1) * self._block_ns <= until_ns

    def close(self, until_ns: int) -> Sequence[Alarm]:
        """Look at the evidence of every block that ended by then; alarms that are due. Blocks close in order, once."""
        raised: list[Alarm] = []
        while self.is_due(until_ns):
            raised += self.close_next()
        if self.baseline is not None:
            self._closed_ns = max(self._closed_ns, until_ns // self._block_ns * self._block_ns)
        return raised

    def close_next(self) -> Sequence[Alarm]:
        """Look at the evidence of the oldest block, which must be complete; the alarms that are due."""
        block = min(self._blocks)
        began_ns = block * self._block_ns
        state = self._blocks.pop(block)
        self._training.update(state.counts, began_ns)
        self._recent.update(state.counts, began_ns)
        self._slide(began_ns, state)
        self._closed_ns = max(self._closed_ns, began_ns + self._block_ns)
        return self.alarms.check(began_ns + self._block_ns)

    def _slide(self, began_ns: int, state: State) -> None:
        pane = began_ns // self._pane_ns
        self.total.merge(state)
        self.window.merge(state)
        if pane in self._panes:
            self._panes[pane].merge(state)
        else:
            self._panes[pane] = state
        newest = max(self._panes)
        for old in [each for each in self._panes if each <= newest - PANES]:
            self.window.subtract(self._panes.pop(old))

    def to_bytes(self) -> bytes:
        """The whole state and the cursors behind it, in one piece: after a crash both are of the same moment."""
        if self.baseline is None:
            # Rows that are learned from are read again.
            return b""
        return msgspec.msgpack.encode(
            _Document(
                b"" if self.given else self.baseline.to_bytes(),
                self.given,
                self.cursors,
                self.total.to_bytes(),
                [(pane, state.to_bytes()) for pane, state in sorted(self._panes.items())],
                [(block, state.to_bytes()) for block, state in sorted(self._blocks.items())],
                self._closed_ns,
                self.late,
                self.loose,
                self.alarms.to_bytes(),
                b"" if self.performance is None else self.performance.predictions_to_bytes(),
            )
        )

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is not of this baseline."""
        try:
            document = msgspec.msgpack.decode(data, type=_Document)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the checkpoint cannot be read: {error}") from None
        if document.given != self.given:
            raise ValueError("the checkpoint was made with another baseline")
        if not document.given:
            self._begin(Baseline.from_bytes(document.baseline))
        assert self.baseline is not None
        self.total.load(document.total)
        self._panes = {pane: self._state(saved) for pane, saved in document.panes}
        self._blocks = {block: self._state(saved) for block, saved in document.blocks}
        for state in self._panes.values():
            self.window.merge(state)
        self._closed_ns, self.late, self.loose = document.closed_ns, document.late, document.loose
        self.cursors = dict(document.cursors)
        self.alarms.load(document.alarms)
        if self.performance is not None and document.performance:
            try:
                self.performance.load_predictions(document.performance)
            except ValueError as error:
                # Judged in another way from now on: predictions count from here, all else goes on.
                facts = {"model": self.model, "version": self.version, "reason": str(error)}
                log.warning("predictions are judged anew", extra={"event": "performance-anew", **facts})

    @property
    def every_alarms(self) -> list[Alarms]:
        """Its alarms: of rows, once there is a baseline, and of labels."""
        rows = [] if self.baseline is None else [self.alarms]
        return rows if self.performance is None else [*rows, self.performance.alarms]

    def _state(self, data: bytes) -> State:
        assert self.baseline is not None
        state = State(self.baseline.layout)
        state.load(data)
        return state

    def value(self) -> Mapping[str, Any]:
        """What a person is told: where it stands, its baseline, its watches."""
        progress = self.progress._asdict()
        if self.baseline is None:
            return {"learning": True, "needed": self.rule.learn_rows, **progress}
        facts = self.baseline.facts
        return {
            "learning": False,
            "baseline": {"rows": facts.rows, "learned": facts.learned, "source": facts.source},
            "watches": self.alarms.value(),
            "alarms": [alarm.explain() for alarm in self.alarms.all],
            **progress,
        }
