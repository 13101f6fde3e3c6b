"""Cost: how long a run takes by its rows, learned from the runs themselves: seconds = a * rows + b."""

from __future__ import annotations

from collections import deque
from itertools import combinations
from statistics import median

REFIT_RUNS, REFIT_S = 32, 0.005
"""The line is drawn anew after so many runs, and after each one that took so long: it decides who is refused, and what
quarantine measured beside other work must not be held against clients for long."""

KEPT = 9
MAX_SIZES = 12

INLINE_S = 0.003
"""Runs that are expected to take longer leave the event loop and run in the version's own thread."""

LONGEST_BATCH_S = 0.05
"""A batch is cut so that it is expected to take no longer, unless its first call has waited long: see `best_rows`."""

TWICE = 2.0
"""A batch may take as many times as long as one row where that is longer than `LONGEST_BATCH_S`."""

WORTH_IT = 0.95
"""Batching is off where a row of a large batch takes more than this share of a row alone."""

SAVES = 0.99
"""Below this share, rows run together where calls wait for long: a full queue needs every hundredth, while a short one
would wait longer for its first answer than it gains."""

AROUND_S = 30e-6
"""What a run takes besides its session: records, counters and replies are written for a batch at once, too."""

TRIAL_RUNS = 64
TRIAL_ROWS = 16
"""Where batching is off, every so many runs one of so many rows is tried: what was measured once may be no longer so,
or may have been measured while something else ran."""


class Cost:
    """Robust: the median of the latest runs for each size, then the median of the slopes between sizes (Theil-Sen,
    Sen 1968). Sizes above 1 are kept by powers of two, with the median rows of their runs.

    What batching gains is often less than what a busy core adds to a run here and there: where it is known how long
    runs computed, the line is drawn through the best one of each size, and stretched to what runs took.
    Until runs were seen it holds what quarantine measured; `run_s` None means that nothing is known.
    """

    __slots__ = ("_computed", "_rows", "_runs", "_stretch", "_times", "a", "b", "known")

    def __init__(self, run_s: float | None, batch_s: float | None, batch_rows: int) -> None:
        self.known = run_s is not None
        self.a = self.b = 0.0
        self._runs = 0
        self._computed = False
        self._times: dict[int, deque[float]] = {}
        self._rows: dict[int, deque[int]] = {}
        self._stretch: deque[float] = deque(maxlen=KEPT)
        if run_s is not None:
            slope = max(0.0, (batch_s - run_s) / (batch_rows - 1)) if batch_s is not None else run_s
            self.a, self.b = min(slope, run_s), max(0.0, run_s - min(slope, run_s))

    def expect_s(self, rows: int) -> float:
        """Expected seconds of a run over `rows` rows; a long time where nothing is known."""
        return self.a * rows + self.b if self.known else 1.0

    def learn(self, rows: int, seconds: float, computed_s: float | None = None) -> None:
        """A run was done, of which so many seconds were its own. One of no rows tells nothing about rows."""
        if not rows:
            return
        size = rows.bit_length()
        times = self._times.get(size)
        if times is None:
            if len(self._times) >= MAX_SIZES:
                return
            first = not self._times
            times = self._times[size] = deque(maxlen=KEPT)
            self._rows[size] = deque(maxlen=KEPT)
            if not first:
                # It also took the memory that runs of this size will find.
                return
        self._computed = bool(computed_s)
        if not computed_s:
            computed_s = seconds
        times.append(computed_s)
        self._rows[size].append(rows)
        self._stretch.append(seconds / computed_s if computed_s > 0 else 1.0)
        self._runs += 1
        if self._runs % REFIT_RUNS == 0 or seconds >= REFIT_S or not self.known:
            self._fit()

    def _fit(self) -> None:
        sizes = [(rows, self._times[size]) for size, rows in self._rows.items() if rows]
        points: list[tuple[float, float]]
        if self._computed:
            points = [min(zip(*size, strict=True), key=lambda run: run[1] / run[0]) for size in sizes]
        else:
            points = [(median(rows), median(times)) for rows, times in sizes]
        stretch = median(self._stretch)
        if len(points) == 1:
            # One size cannot tell the two apart: keep the proportion that was known.
            rows, seconds = points[0]
            before = self.expect_s(1) if self.known else 0.0
            share = self.a / before if before > 0 else 1.0
            scale = seconds / (share * rows + 1 - share)
            self.a, self.b = share * scale * stretch, (1 - share) * scale * stretch
        else:
            slopes = [(t2 - t1) / (n2 - n1) for (n1, t1), (n2, t2) in combinations(points, 2) if n1 != n2]
            self.a = max(0.0, median(slopes))
            self.b = max(0.0, median(seconds - self.a * rows for rows, seconds in points))
            self.a, self.b = self.a * stretch, self.b * stretch
        self.known = True

    @property
    def batching_pays(self) -> bool:
        """True where rows that run together take clearly less than rows that run alone."""
        alone = self.a + self.b
        return alone <= 0 or self.a <= WORTH_IT * (alone + AROUND_S)

    def best_rows(self, limit: int, patience_s: float = 0.0) -> int:
        """Rows to run together, at most `limit`; the run may take `patience_s` where that is longer than usual."""
        if not self.known:
            return 1
        # Where most of a run is the same for any rows, to cut it would only make others wait for as many more runs.
        longest_s = max(LONGEST_BATCH_S, patience_s, TWICE * self.expect_s(1))
        if self.batching_pays:
            return self._rows_within(longest_s, limit)
        if self._runs % TRIAL_RUNS == TRIAL_RUNS - 1:
            # A power of two, as the first run of any other number is slow.
            return 1 << self._rows_within(longest_s, min(limit, TRIAL_ROWS)).bit_length() - 1
        return self._rows_within(patience_s, limit) if self.a <= SAVES * (self.a + self.b) else 1

    def _rows_within(self, seconds: float, limit: int) -> int:
        return max(1, min(limit, int((seconds - self.b) / self.a))) if self.a > 0 else limit
