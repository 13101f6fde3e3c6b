"""Engine: what runs one loaded version: its reader, its batcher, its cost model, its session, its writer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

from gateway.inference.batcher import Batch, Batcher
from gateway.inference.call import Call
from gateway.inference.cost import INLINE_S, Cost
from gateway.inference.reader import Reader
from gateway.inference.writer import ReplyPlan, Writer
from gateway.journal.journal import Journal
from gateway.models.servable import Servable
from gateway.oip.limits import Limits
from gateway.types import Array, OutputRequest


class Part(msgspec.Struct, gc=False):
    """Calls that ran together and their outputs, or the error that the model raised for the single call.

    `plain` as in Batch.
    """

    calls: list[Call]
    names: tuple[str, ...]
    arrays: tuple[Array, ...]
    first_row: int | None
    error: Exception | None = None
    plain: bool = False


class Outcome(msgspec.Struct, gc=False):
    """What became of a batch: one part when all went well. Times are monotonic nanoseconds.

    `computed_ns`: how long its thread had a core, where that is known.
    """

    parts: list[Part]
    rows: int
    began_ns: int
    ended_ns: int
    computed_ns: int | None = None


class Engine:
    """Belongs to the loop's thread, but for `execute`, which may run in the engine's own thread, one at a time.

    `behind`: what waits did not fit into a turn, so that a call that comes now has to wait.
    """

    def __init__(self, servable: Servable, limits: Limits, journal: Journal | None = None) -> None:
        config, report = servable.config, servable.report
        if servable.session is None:
            raise ValueError(f"{servable.model} version {servable.version} is not loaded in this process")
        self.servable = servable
        self._session = servable.session
        self.reader = Reader(
            servable.contract, limits, servable.model, refuse_nonfinite=config.nonfinite_inputs == "refuse"
        )
        self.recorder = None if journal is None else journal.recorder(servable, self.reader.layout)
        if self.recorder is not None:
            self.reader.source = self.recorder
        self.writer = Writer(servable.model, servable.version, servable.contract, servable.labels)
        self._outputs = self.reader.everything
        self._plan = self.writer.plan(self._outputs)
        self.batcher = Batcher()
        self.cost = Cost(report.run_s, report.batch_run_s, report.batch_rows)
        # A loop may take any time for another input than those that were seen; the event loop must not wait for it.
        self.inline_s = 0.0 if report.unbounded else INLINE_S
        self.max_rows = max(1, servable.max_batch_rows)
        self.joins = servable.contract.batched
        self.scheduled = False
        self.running: Batch | None = None
        self.behind = False
        self.running_until_ns = 0
        self._inputs = tuple(spec.name for spec in servable.contract.inputs)
        self._thread: ThreadPoolExecutor | None = None

    def plan(self, outputs: tuple[OutputRequest, ...]) -> ReplyPlan:
        """The plan of the replies that these outputs ask for."""
        # The reader gives requests that are alike the same tuple: looking it up would hash all of it each time.
        if outputs is not self._outputs:
            self._outputs, self._plan = outputs, self.writer.plan(outputs)
        return self._plan

    @property
    def thread(self) -> ThreadPoolExecutor:
        """The version's own thread, made when a long run first needs it."""
        if self._thread is None:
            name = f"run-{self.servable.model}-{self.servable.version}"
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        return self._thread

    def close(self) -> None:
        """Give the thread back."""
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    @property
    def is_busy(self) -> bool:
        """True where a call that comes now has to wait for others."""
        return self.behind or self.running is not None

    def next_rows(self, now_ns: int) -> int:
        """Rows to run together now.

        A first call that has waited may wait as long again for others, if that is not half of what is left to it.
        """
        first = self.batcher.first if self.joins else None
        if first is None:
            return 1
        patience_ns = min(now_ns - first.decoded_ns, (first.deadline_ns - now_ns) // 2)
        return self.cost.best_rows(self.max_rows, patience_ns * 1e-9)

    def wait_s(self, now_ns: int) -> float:
        """Expected seconds until a call that comes now would begin to run."""
        left = max(0.0, (self.running_until_ns - now_ns) / 1e9) if self.running is not None else 0.0
        rows, calls = self.batcher.rows, len(self.batcher)
        # A call is not cut below `max_rows`, however much it is above what runs together.
        runs = min(-(-rows // self.cost.best_rows(self.max_rows)), calls + (rows - calls) // self.max_rows)
        return left + rows * self.cost.a + runs * self.cost.b

    def execute(self, batch: Batch) -> Outcome:
        """Run a batch; where it fails, run its calls one by one, so that only the bad one fails."""
        began = time.monotonic_ns()
        try:
            parts = [self._run(batch)]
        except Exception as error:  # a model raises what it likes; onnxruntime's errors share no base of their own
            if len(batch.calls) == 1:
                parts = [Part(batch.calls, (), (), None, error)]
            else:
                parts = [self._alone(call) for call in batch.calls]
        return Outcome(parts, batch.rows, began, time.monotonic_ns())

    def execute_apart(self, batch: Batch) -> Outcome:
        """`execute` in a thread that does nothing else."""
        before_ns = time.thread_time_ns()
        outcome = self.execute(batch)
        if self._session.computes_alone:
            outcome.computed_ns = time.thread_time_ns() - before_ns
        return outcome

    def learn(self, outcome: Outcome) -> None:
        """What the run took is what others are expected to take, where it went well."""
        if len(outcome.parts) == 1 and outcome.parts[0].error is None:
            computed_s = None if outcome.computed_ns is None else outcome.computed_ns / 1e9
            self.cost.learn(outcome.rows, (outcome.ended_ns - outcome.began_ns) / 1e9, computed_s)

    def _alone(self, call: Call) -> Part:
        batch = Batch([call], call.block, call.row, call.row + call.rows)
        try:
            return self._run(batch)
        except Exception as error:
            return Part([call], (), (), None, error)

    def _run(self, batch: Batch) -> Part:
        calls, rows = batch.calls, batch.rows
        plan = calls[0].plan
        assert plan is not None
        names = plan.names if batch.plain else _union(calls)
        feed = batch.feed(self._inputs)
        if self.joins and rows > self.max_rows:
            arrays = self._pieces(feed, names, rows)
        else:
            arrays = self._session.run(feed, names)
        if len(calls) == 1:
            return Part(calls, names, arrays, None, None, batch.plain)
        if not _follow(arrays, rows):
            # Quarantine saw one row out for one row in; these rows are different, so they run alone.
            self.joins = False
            raise ValueError(f"a batch of {rows} rows gave {[array.shape for array in arrays]}")
        if batch.block is not None:
            return Part(calls, names, arrays, batch.start, None, batch.plain)
        row = 0
        for call in calls:
            call.row = row
            row += call.rows
        return Part(calls, names, arrays, 0)

    def _pieces(self, feed: dict[str, Array], names: tuple[str, ...], rows: int) -> tuple[Array, ...]:
        """A request of more rows than a batch may have, run in pieces; whole where its outputs cannot be joined."""
        results: list[tuple[Array, ...]] = []
        for start in range(0, rows, self.max_rows):
            piece = {name: array[start : start + self.max_rows] for name, array in feed.items()}
            results.append(self._session.run(piece, names))
            count = min(self.max_rows, rows - start)
            if not _follow(results[-1], count) or _trailing(results[-1]) != _trailing(results[0]):
                self.joins = False
                return self._session.run(feed, names)
        return tuple(np.concatenate(column) for column in zip(*results, strict=True))


def _follow(arrays: tuple[Array, ...], rows: int) -> bool:
    """True where axis 0 of every output is the batch."""
    return not any(array.ndim == 0 or len(array) != rows for array in arrays)


def _trailing(arrays: tuple[Array, ...]) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in arrays]


def _union(calls: list[Call]) -> tuple[str, ...]:
    """The outputs that any of the calls wants, in order of first mention."""
    first = calls[0].plan
    assert first is not None
    if len(calls) == 1 or all([call.plan is first for call in calls]):
        return first.names
    return tuple(dict.fromkeys(name for call in calls if call.plan is not None for name in call.plan.names))
