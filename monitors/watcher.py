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
from monitors.labelled import Labelled
from monitors.operation import Operation
from monitors.quality.freshness import Freshness
from monitors.rowwatches import RowWatches
from monitors.rule import Rule
from monitors.seen import PANES, Seen, Window
from monitors.state import State
from monitors.task import Task
from monitors.types import Columns
from monitors.window import Panes

log = logging.getLogger("headgate.monitors")

SECOND_NS = 1_000_000_000


class _Document(msgspec.Struct, frozen=True):
    baseline: bytes
    given: bool
    cursors: dict[str, int]
    block_ns: int
    pane_ns: int
    total: bytes
    panes: list[tuple[int, bytes]]
    blocks: list[tuple[int, bytes]]
    closed_ns: int
    late: int
    loose: int
    fresh: bytes
    operation: bytes
    alarms: bytes
    performance: bytes = b""


class Progress(NamedTuple):
    """Rows counted, rows in the window, rows that came after their block was closed, rows without columns."""

    rows: int
    window: int
    late: int
    loose: int


class Watcher:
    """One version. Feed it rows in any order, then `close` the blocks that are complete; `baseline` None: learning.

    `total`: all rows of blocks that are closed; `shown`: of the newest of them; `fresh`: the times of all rows.
    """

    def __init__(
        self, model: str, version: int, rule: Rule, baseline: Baseline | None, task: Task | None = None
    ) -> None:
        """`task`: what its labels say about which output. Raises ValueError where the rule's budget cannot be read."""
        self.model, self.version, self.rule, self.task = model, version, rule, task
        self.given = baseline is not None
        self.baseline: Baseline | None = None
        self.cursors: dict[str, int] = {}
        self.late = self.loose = 0
        self.fresh = Freshness()
        self._learning: list[Columns] = []
        self._closed_ns = 0
        self._block_ns = int(rule.block_s * SECOND_NS)
        self._pane_ns = int(rule.window_s * SECOND_NS / PANES)
        self._blocks: dict[int, Seen] = {}
        self.operation: Panes[Operation] = Panes(Operation, self._pane_ns, PANES)
        self.performance: Labelled | None = None
        if task is not None:
            self.performance = Labelled.of((model, version), task, baseline, rule)
        if baseline is not None:
            self._begin(baseline)

    def _begin(self, baseline: Baseline) -> None:
        self.baseline = baseline
        self.watches = RowWatches((self.model, self.version), baseline, self.rule, self.task)
        self.total = self._empty()
        self.shown = Window(self._empty, self._pane_ns)

    def _empty(self) -> Seen:
        assert self.baseline is not None
        return Seen(self.baseline)

    @property
    def alarms(self) -> Alarms:
        """Those of rows. Not while learning."""
        return self.watches.alarms

    @property
    def window(self) -> State:
        """The counts of the newest rows. Not while learning."""
        return self.shown.state

    @property
    def progress(self) -> Progress:
        """How far it is."""
        if self.baseline is None:
            return Progress(sum(map(len, self._learning)), 0, self.late, self.loose)
        waiting = sum(seen.rows for seen in self._blocks.values())
        return Progress(self.total.rows + waiting, self.window.rows, self.late, self.loose)

    def counted(self) -> Seen:
        """All rows so far, also those in blocks that are not complete. Not while learning."""
        counted = self._empty()
        for seen in (self.total, *self._blocks.values()):
            counted.merge(seen)
        return counted

    def operation_value(self) -> dict[str, Any]:
        """Requests of the window: how many, how many a second, what became of them, how long they took."""
        found = dict(self.operation.last(PANES).value())
        return {**found, "per_second": found["requests"] / self.rule.window_s}

    @property
    def nbytes(self) -> int:
        """Bytes of the counts of rows: they do not grow with rows. 0 while learning."""
        if self.baseline is None:
            return 0
        # In all, a window and its sum, the block that fills, and one that rows of two workers still come to.
        return (PANES + 4) * self.total.nbytes

    def update(self, columns: Columns, loose: int = 0, requests: Columns | None = None) -> None:
        """Count rows; `loose` others have no columns. `requests`: see `monitors.operation.Operation`."""
        self.loose += loose
        if requests is not None:
            self.operation.update(requests)
        if not len(columns):
            return
        self.fresh.update(columns)
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
        began_ns = block * self._block_ns
        if began_ns + self._block_ns <= self._closed_ns:
            # The evidence of its time has been looked at: it counts as what came now.
            self.late += len(columns)
            block = self._closed_ns // self._block_ns
        seen = self._blocks.get(block)
        if seen is None:
            seen = self._blocks[block] = self._empty()
        seen.update(columns)

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
        slices = [name for name in self.rule.slices if name in kept]
        self._begin(build(Arrays(kept, answers, time_ns=times), slices=slices, learned=True))

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
        seen = self._blocks.pop(block)
        self.watches.update(seen.state.counts, began_ns)
        self.total.merge(seen)
        self.shown.add(began_ns, seen)
        self._closed_ns = max(self._closed_ns, began_ns + self._block_ns)
        return self.alarms.check(began_ns + self._block_ns)

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
                self._block_ns,
                self._pane_ns,
                self.total.to_bytes(),
                [(pane, seen.to_bytes()) for pane, seen in sorted(self.shown.panes.items())],
                [(block, seen.to_bytes()) for block, seen in sorted(self._blocks.items())],
                self._closed_ns,
                self.late,
                self.loose,
                self.fresh.to_bytes(),
                self.operation.to_bytes(),
                self.alarms.to_bytes(),
                b"" if self.performance is None else self.performance.predictions_to_bytes(),
            )
        )

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is not of this baseline.

        Blocks and panes may have another length by now: what was counted moves to those of its time.
        """
        try:
            document = msgspec.msgpack.decode(data, type=_Document)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the checkpoint cannot be read: {error}") from None
        if document.given != self.given:
            raise ValueError("the checkpoint was made with another baseline")
        if not document.given:
            self._begin(Baseline.from_bytes(document.baseline))
        self.total.load(document.total)
        for pane, saved in document.panes:
            self.shown.add(pane * document.pane_ns, self._loaded(saved))
        for block, saved in document.blocks:
            number = block * document.block_ns // self._block_ns
            self._blocks.setdefault(number, self._empty()).merge(self._loaded(saved))
        self._closed_ns, self.late, self.loose = document.closed_ns, document.late, document.loose
        self.cursors = dict(document.cursors)
        self.fresh.load(document.fresh)
        if document.pane_ns == self._pane_ns:
            self.operation.load(document.operation)
        self.alarms.load(document.alarms)
        if self.performance is not None and document.performance:
            try:
                self.performance.load_predictions(document.performance)
            except ValueError as error:
                # Judged in another way from now on: predictions count from here, all else goes on.
                facts = {"model": self.model, "version": self.version, "reason": str(error)}
                log.warning("predictions are judged anew", extra={"event": "performance-anew", **facts})

    def _loaded(self, data: bytes) -> Seen:
        seen = self._empty()
        seen.load(data)
        return seen

    @property
    def every_alarms(self) -> list[Alarms]:
        """Its alarms: of rows, once there is a baseline, and of labels."""
        rows = [] if self.baseline is None else [self.alarms]
        return rows if self.performance is None else [*rows, self.performance.alarms]

    def value(self) -> Mapping[str, Any]:
        """What a person is told: where it stands, its baseline, its watches."""
        progress = {**self.progress._asdict(), "newest_ns": self.fresh.last_ns, "memory_bytes": self.nbytes}
        if self.baseline is None:
            return {"learning": True, "needed": self.rule.learn_rows, **progress}
        facts = self.baseline.facts
        return {
            "learning": False,
            "baseline": {
                "rows": facts.rows,
                "learned": facts.learned,
                "source": facts.source,
                "classes_of_hours": self.watches.classes,
                "copies": float(self.watches.copies.max(initial=1.0)),
                "tolerance": float(self.watches.tolerance.max(initial=self.rule.tolerance)),
            },
            "watches": self.alarms.value(),
            "alarms": [alarm.explain() for alarm in self.alarms.all],
            **progress,
        }
