"""Counters of one model version: a flat block of 64-bit integers with a fixed layout, one writer, no locks.

Metrics and the protocol's statistics are both read from it, so they cannot disagree. The block only ever grows in
value; it outlives the version, so that a counter never goes backwards.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

OUTCOMES = (
    "ok",
    "invalid-request",
    "invalid-json",
    "payload-too-large",
    "unsupported-encoding",
    "request-timeout",
    "not-ready",
    "queue-full",
    "quota-exceeded",
    "deadline-exceeded",
    "client-gone",
    "payload-blocked",
    "model-failed",
    "internal",
    "other",
)
"""What a request came to: `ok`, or the code of its error."""

CLASSES = {
    "ok": "ok",
    "not-ready": "overload",
    "queue-full": "overload",
    "quota-exceeded": "overload",
    "deadline-exceeded": "overload",
    "model-failed": "server",
    "internal": "server",
}
"""Who is to blame: `ok`, `overload`, `server`; every other outcome is `client`."""

PHASES = ("decode", "queue", "run", "encode", "total")
BUCKETS_S = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
MAX_BATCH = 128
"""Runs of more rows are counted as runs of this many."""

VECTOR = 12
"""From this many values on numpy counts faster than a loop."""

_BUCKETS_NS = tuple(int(bound * 1e9) for bound in BUCKETS_S)
_BOUNDS_NS = np.array(_BUCKETS_NS, np.int64)
_WIDTH = len(BUCKETS_S) + 2
_SUM = _WIDTH - 1
_OUTCOME_AT = {name: index for index, name in enumerate(OUTCOMES)}
_PHASE_AT = {name: len(OUTCOMES) + index * _WIDTH for index, name in enumerate(PHASES)}
_DECODE, _QUEUE, _RUN, _ENCODE, _TOTAL = _PHASE_AT.values()
_ROWS = len(OUTCOMES) + len(PHASES) * _WIDTH
_RUNS, _FAIL_NS, _LAST_MS, _NONFINITE = _ROWS + 1, _ROWS + 2, _ROWS + 3, _ROWS + 4
_IN_FLIGHT, _COST_ROW_NS, _COST_FIXED_NS = _ROWS + 5, _ROWS + 6, _ROWS + 7
_BATCHES = _ROWS + 8
CELLS = _BATCHES + (MAX_BATCH + 1) * 4
GAUGES = [_LAST_MS, _COST_ROW_NS, _COST_FIXED_NS]
"""Cells of which the largest counts, not the sum, where several processes serve a version."""


Times = Sequence[int] | NDArray[np.int64]


class Histogram(NamedTuple):
    """Counts per bucket, the last one unbounded, and the sum in nanoseconds."""

    counts: tuple[int, ...]
    sum_ns: int

    @property
    def total(self) -> int:
        """All observations."""
        return sum(self.counts)


class BatchStat(NamedTuple):
    """Runs of one batch size and their nanoseconds by phase."""

    rows: int
    runs: int
    input_ns: int
    infer_ns: int
    output_ns: int


class VersionCounters:
    """The counters of one version. Durations are nanoseconds of a monotonic clock."""

    def __init__(self, cells: memoryview | None = None) -> None:
        """Counters over `cells`, CELLS 64-bit integers; None makes a private block."""
        self._cells = cells if cells is not None else memoryview(bytearray(CELLS * 8)).cast("q")
        self._array = np.frombuffer(self._cells, np.int64)

    def served(
        self,
        decode_ns: Times,
        queue_ns: Times,
        run_ns: int,
        encode_ns: int,
        total_ns: Times,
        rows: int,
    ) -> None:
        """The requests of one batch were answered: their own times, and those they had in common.

        Times of VECTOR and more requests may come as arrays, which need no conversion then.
        """
        cells = self._cells
        count = len(total_ns)
        cells[0] += count
        cells[_ROWS] += rows
        if count == 1:
            # Written out: a loop over the phases takes twice the time, which nothing shares here.
            decode, queue, total = decode_ns[0], queue_ns[0], total_ns[0]
            cells[_DECODE + bisect_left(_BUCKETS_NS, decode)] += 1
            cells[_DECODE + _SUM] += decode
            cells[_QUEUE + bisect_left(_BUCKETS_NS, queue)] += 1
            cells[_QUEUE + _SUM] += queue
            cells[_RUN + bisect_left(_BUCKETS_NS, run_ns)] += 1
            cells[_RUN + _SUM] += run_ns
            cells[_ENCODE + bisect_left(_BUCKETS_NS, encode_ns)] += 1
            cells[_ENCODE + _SUM] += encode_ns
            cells[_TOTAL + bisect_left(_BUCKETS_NS, total)] += 1
            cells[_TOTAL + _SUM] += total
            return
        for phase, value in (("run", run_ns), ("encode", encode_ns)):
            at = _PHASE_AT[phase]
            cells[at + bisect_left(_BUCKETS_NS, value)] += count
            cells[at + _SUM] += value * count
        for phase, values in (("decode", decode_ns), ("queue", queue_ns), ("total", total_ns)):
            at = _PHASE_AT[phase]
            if count < VECTOR:
                for value in values:
                    cells[at + bisect_left(_BUCKETS_NS, value)] += 1
            else:
                values = np.asarray(values, np.int64)
                found = np.searchsorted(_BOUNDS_NS, values, side="left")
                self._array[at : at + _SUM] += np.bincount(found, minlength=_SUM)
            cells[at + _SUM] += int(values.sum()) if isinstance(values, np.ndarray) else sum(values)

    def ran(self, rows: int, input_ns: int, infer_ns: int, output_ns: int, now_ms: int) -> None:
        """The session ran once over `rows` rows."""
        cells = self._cells
        cells[_RUNS] += 1
        if now_ms > cells[_LAST_MS]:
            cells[_LAST_MS] = now_ms
        at = _BATCHES + (rows if rows < MAX_BATCH else MAX_BATCH) * 4
        cells[at] += 1
        cells[at + 1] += input_ns
        cells[at + 2] += infer_ns
        cells[at + 3] += output_ns

    def failed(self, outcome: str, total_ns: int) -> None:
        """A request was refused or failed; `outcome` is the code of its error."""
        self._cells[_OUTCOME_AT.get(outcome, _OUTCOME_AT["other"])] += 1
        self._cells[_FAIL_NS] += total_ns

    def nonfinite(self, count: int) -> None:
        """Output values that were NaN or infinite and travelled as JSON."""
        self._cells[_NONFINITE] += count

    def gauge(self, in_flight: int, cost_row_ns: int, cost_fixed_ns: int) -> None:
        """What holds now: requests in flight, and the learned cost of a run in nanoseconds."""
        self._cells[_IN_FLIGHT] = in_flight
        self._cells[_COST_ROW_NS] = cost_row_ns
        self._cells[_COST_FIXED_NS] = cost_fixed_ns

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return self._cells[_IN_FLIGHT]

    @property
    def cost_ns(self) -> tuple[int, int]:
        """Learned nanoseconds of a run: for each row, and besides."""
        return self._cells[_COST_ROW_NS], self._cells[_COST_FIXED_NS]

    def outcome(self, name: str) -> int:
        """Requests that came to this outcome."""
        return self._cells[_OUTCOME_AT[name]]

    def histogram(self, phase: str) -> Histogram:
        """The latency histogram of one of PHASES."""
        at = _PHASE_AT[phase]
        return Histogram(tuple(self._cells[at : at + _SUM]), self._cells[at + _SUM])

    @property
    def rows(self) -> int:
        """Rows of answered requests."""
        return self._cells[_ROWS]

    @property
    def runs(self) -> int:
        """Runs of the session."""
        return self._cells[_RUNS]

    @property
    def failures(self) -> tuple[int, int]:
        """Requests that were not answered, and their nanoseconds."""
        return sum(self._cells[1 : len(OUTCOMES)]), self._cells[_FAIL_NS]

    @property
    def last_inference_ms(self) -> int:
        """Milliseconds since the epoch of the last run, 0 before the first."""
        return self._cells[_LAST_MS]

    @property
    def nonfinite_outputs(self) -> int:
        """See `nonfinite`."""
        return self._cells[_NONFINITE]

    def batches(self) -> Iterator[BatchStat]:
        """The batch sizes that were run."""
        for rows in range(MAX_BATCH + 1):
            at = _BATCHES + rows * 4
            if self._cells[at]:
                yield BatchStat(rows, *self._cells[at : at + 4])
