"""ADWIN: a window that is compared with itself at every cut of an exponential histogram."""

from __future__ import annotations

import math

import numpy as np

from monitors.streams.detector import Array, Bools, Detector, State

LEVELS = 48  # buckets of up to 2**47 values: more than any stream has


class ADWIN(Detector):
    """Alarms when some cut of the window parts it into two whose means differ by more than chance allows.

    The window is a histogram of buckets of 2^i values, at most `max_buckets` of each size, so its state is fixed.
    Every `clock` values all cuts between buckets are tried: |mean_0 - mean_1| > sqrt(2 m v d) + 2/3 m d, where v is the
    variance of the window, d = ln(2 ln(width) / delta) and m = 1 / (n_0 - l + 1) + 1 / (n_1 - l + 1) with l =
    `min_window_length`.
    The bound is one for independent, bounded losses: scale them to [0, 1]. Bifet and Gavalda, SDM 2007.

    Between two trials nothing but sums is needed, so values wait in `pending` and go in `clock` at a time; all sums are
    taken in the order in which they would be one by one.
    """

    def __init__(
        self,
        streams: int,
        *,
        delta: float = 0.002,
        clock: int = 32,
        max_buckets: int = 5,
        min_window_length: int = 5,
        grace_period: int = 10,
    ) -> None:
        if not 0 < delta <= 1 or clock < 1 or max_buckets < 2 or min_window_length < 1:
            raise ValueError(
                "delta must lie in (0, 1], clock and min_window_length be at least 1, max_buckets at least 2"
            )
        self._delta, self._clock, self._slots = delta, clock, max_buckets
        self._shortest, self._grace = float(min_window_length), grace_period
        super().__init__(
            streams,
            delta=delta,
            clock=clock,
            max_buckets=max_buckets,
            min_window_length=min_window_length,
            grace_period=grace_period,
        )

    def _initial(self) -> State:
        return {
            "fill": np.array(0),
            "pending": np.zeros(self._clock),
            "width": np.array(0.0),
            "total": np.array(0.0),
            "variance": np.array(0.0),
            "counts": np.zeros(LEVELS, np.int64),
            # Axis 1: sum of a bucket's values, and of their squared deviations; axis 3: its slots, oldest first.
            "buckets": np.zeros((2, LEVELS, self._slots)),
        }

    def _step(self, state: State, values: Array) -> tuple[Bools, Bools]:
        fill = state["fill"]
        state["pending"][np.arange(len(values)), fill] = values
        fill += 1
        alarm = np.zeros(len(values), np.bool_)
        full = fill == self._clock
        if full.any():
            fill[full] = 0
            part = state if full.all() else {name: array[full] for name, array in state.items()}
            self._take(part)
            alarm[full] = self._changed(part)
            if part is not state:
                for name, array in part.items():
                    state[name][full] = array
        return alarm, np.zeros_like(alarm)

    def _take(self, part: State) -> None:
        """Move the pending values into window sums and buckets."""
        pending, width = part["pending"], part["width"]
        widths = width[:, np.newaxis] + np.arange(1.0, self._clock + 1)
        totals = np.add.accumulate(np.column_stack((part["total"], pending)), axis=1)
        off = pending - totals[:, :-1] / np.maximum(widths - 1.0, 1.0)
        gains = (widths - 1.0) * off * off / widths  # 0 for the first value of a window
        part["variance"] = np.add.accumulate(np.column_stack((part["variance"], gains)), axis=1)[:, -1]
        part["total"] = totals[:, -1]
        width += self._clock
        self._insert(part["counts"], part["buckets"], np.stack((pending, np.zeros_like(pending)), axis=1))

    def _insert(self, counts: Array, buckets: Array, arriving: Array) -> None:
        """Add buckets at level 0, arriving (rows, 2, n); wherever a level overflows its oldest pairs move up, merged.

        Merging one pair whenever a level overflows or all of them at the end gives the same buckets: a level of c that
        gets a more ends with c + a - 2 m, m = ceil((c + a - slots) / 2) merged pairs from its old end.
        """
        slots, rows = self._slots, len(counts)
        number = np.full(rows, arriving.shape[2])
        for level in range(LEVELS):
            count = counts[:, level]
            most = arriving.shape[2]
            line = np.zeros((rows, 2, slots + most + 1))
            line[:, :, :slots] = buckets[:, :, level]
            pairs = np.maximum(0, (count + number - slots + 1) // 2)
            if (count == count[0]).all() and (number == number[0]).all():  # streams in step, as they mostly are
                first, moved = int(count[0]), 2 * int(pairs[0])
                line[:, :, first : first + most] = arriving
                kept = np.zeros_like(line[:, :, :slots])
                kept[:, :, : first + most - moved] = line[:, :, moved : first + most]
            else:
                row, slot = np.nonzero(np.arange(most) < number[:, np.newaxis])
                line[row, :, count[row] + slot] = arriving[row, :, slot]
                places = 2 * pairs[:, np.newaxis] + np.arange(slots)
                kept = np.take_along_axis(line, np.minimum(places, slots + most)[:, np.newaxis], axis=2)
            buckets[:, :, level] = kept
            counts[:, level] = count + number - 2 * pairs
            ups = int(pairs.max(initial=0))
            if ups == 0:
                return
            arriving, number = _merged(line[:, :, : 2 * ups], 2.0**level), pairs

    def _changed(self, part: State) -> Bools:
        """Whether any cut of a row's window is beyond the bound."""
        counts, width = part["counts"], part["width"]
        rows = len(width)
        top = int(np.flatnonzero(counts.any(axis=0))[-1]) + 1
        sums = part["buckets"][:, 0, top - 1 :: -1].reshape(rows, -1) if top else np.zeros((rows, 0))
        there = np.arange(self._slots) < counts[:, top - 1 :: -1, np.newaxis]
        sizes = np.where(there, 2.0 ** np.arange(top - 1, -1, -1)[:, np.newaxis], 0.0).reshape(rows, -1)
        n0 = np.add.accumulate(sizes, axis=1)
        n1 = width[:, np.newaxis] - n0
        sum0 = np.add.accumulate(sums, axis=1)
        sum1 = np.subtract.accumulate(np.column_stack((part["total"], sums)), axis=1)[:, 1:]
        row, cut = np.nonzero((n0 >= self._shortest) & (n1 >= self._shortest))
        n0, n1 = n0[row, cut], n1[row, cut]
        # By the C library's logarithm, as numpy's may differ in the last bit.
        widths, same = np.unique(width, return_inverse=True)
        logs = [math.log(2.0 * math.log(max(each, 2.0)) / self._delta) for each in widths.tolist()]
        log_term = np.array(logs)[same[row]]
        spread = (np.maximum(part["variance"], 0.0) / width)[row]
        share = 1.0 / (n0 - self._shortest + 1.0) + 1.0 / (n1 - self._shortest + 1.0)
        bound = np.sqrt(2.0 * share * spread * log_term) + 2.0 / 3.0 * log_term * share
        beyond = np.abs(sum0[row, cut] / n0 - sum1[row, cut] / n1) > bound
        changed = np.zeros(rows, np.bool_)
        changed[row[beyond]] = True
        return changed & (width > self._grace)


def _merged(line: Array, size: float) -> Array:
    """Pairs of buckets of `size` values, (rows, 2, 2 n), as (rows, 2, n) of twice the size."""
    old, new = line[:, :, 0::2], line[:, :, 1::2]
    off = old[:, 0] / size - new[:, 0] / size
    squares = old[:, 1] + new[:, 1] + size * 0.5 * off * off
    return np.stack((old[:, 0] + new[:, 0], squares), axis=1)
