"""KSWIN: Kolmogorov-Smirnov between the newest values of a window and a sample of the older ones."""

from __future__ import annotations

import math
import random

import numpy as np

from monitors.streams.detector import Array, Bools, Detector, State

_GENERATOR_VERSION, _GENERATOR_WORDS = 3, 625  # the form of random.Random's state


class KSWIN(Detector):
    """Alarms when the newest `stat_size` values and as many drawn from the rest of the window differ (p <= alpha).

    The window holds `window_size` values; the p-value is the exact one of the two-sample test, which depends on the
    statistic k / stat_size alone, so it is a table of stat_size + 1 rows. A difference of 0.1 or less is none.
    Every stream draws as a generator with `seed` of its own would, beginning again after an alarm.
    Raab, Heusinger, Schleif, Neurocomputing 416 (2020).
    """

    def __init__(
        self, streams: int, *, alpha: float = 0.005, window_size: int = 100, stat_size: int = 30, seed: int = 0
    ) -> None:
        if not 0 <= alpha <= 1 or stat_size < 1 or window_size < 2 * stat_size:
            raise ValueError(
                "alpha must lie in [0, 1], and window_size be at least twice stat_size, which is at least 1"
            )
        self._window, self._recent, self._seed = window_size, stat_size, seed
        self._differs = np.array([_differs(k, stat_size, alpha) for k in range(stat_size + 1)])
        # By the number of draws since the start; streams with as many draws share the generator.
        self._generators = {0: random.Random(seed)}
        self._words = np.zeros((streams, _GENERATOR_WORDS), np.uint32)
        super().__init__(streams, alpha=alpha, window_size=window_size, stat_size=stat_size, seed=seed)

    def _initial(self) -> State:
        return {"ring": np.zeros(self._window), "count": np.array(0), "draws": np.array(0)}

    def _step(self, state: State, values: Array) -> tuple[Bools, Bools]:
        ring, count, draws = state["ring"], state["count"], state["draws"]
        ring[np.arange(len(values)), count % self._window] = values
        count += 1
        alarm = np.zeros(len(values), np.bool_)
        rows = np.flatnonzero(count >= self._window)
        if rows.size:
            start = count[rows, np.newaxis]  # the oldest value lies where the next will be written
            old = ring[rows[:, np.newaxis], (start + self._drawn(draws[rows])) % self._window]
            newest = np.arange(self._window - self._recent, self._window)
            new = ring[rows[:, np.newaxis], (start + newest) % self._window]
            draws[rows] += 1
            alarm[rows] = self._differs[_steps_apart(old, new)]
        return alarm, np.zeros_like(alarm)

    def _drawn(self, draws: Array) -> Array:
        """The places, (rows, stat_size), that a generator draws after `draws` (rows,) draws before."""
        groups, group_of = np.unique(draws, return_inverse=True)
        drawn = np.empty((len(groups), self._recent), np.int64)
        everyone = len(draws) == self.streams
        for position, done in enumerate(groups[::-1].tolist(), start=1):
            # Where another stream may stay behind it keeps the generator, and these go on with a copy.
            generator = self._generators.pop(done) if everyone else self._copied(self._generators[done])
            drawn[-position] = generator.sample(range(self._window - self._recent), self._recent)
            self._generators[done + 1] = generator
        return drawn[group_of]

    def _copied(self, generator: random.Random) -> random.Random:
        copy = random.Random()
        copy.setstate(generator.getstate())
        return copy

    def _advance(self, values: Array, rows: Array | None, alarms: Bools) -> None:
        super()._advance(values, rows, alarms)
        in_use = set(self._state["draws"].tolist())
        self._generators = {done: each for done, each in self._generators.items() if done in in_use}
        if 0 in in_use and 0 not in self._generators:
            self._generators[0] = random.Random(self._seed)

    def _arrays(self) -> State:
        return super()._arrays() | {"words": self._words}

    def to_bytes(self) -> bytes:
        words = {done: each.getstate()[1] for done, each in self._generators.items()}
        self._words[:] = [words[done] for done in self._state["draws"].tolist()]
        return super().to_bytes()

    def load(self, data: bytes) -> None:
        super().load(data)
        self._generators = {}
        for done, words in zip(self._state["draws"].tolist(), self._words.tolist(), strict=True):
            if done not in self._generators:
                self._generators[done] = random.Random()
                self._generators[done].setstate((_GENERATOR_VERSION, tuple(words), None))


def _differs(apart: int, size: int, alpha: float) -> bool:
    """Whether two samples of `size` whose distribution functions are `apart` / size away from each other differ.

    The exact p-value: of the C(2 n, n) orders, 2 sum_j (-1)^(j - 1) C(2 n, n - j apart) come as far apart or further
    (the reflection principle; Gnedenko and Korolyuk, 1951).
    """
    if apart == 0:
        return False
    orders = sum((-1) ** (j - 1) * math.comb(2 * size, size - j * apart) for j in range(1, size // apart + 1))
    return 2 * orders / math.comb(2 * size, size) <= alpha and apart / size > 0.1


def _steps_apart(old: Array, new: Array) -> Array:
    """The Kolmogorov-Smirnov statistic of the rows of two arrays (rows, n), in units of 1 / n."""
    both = np.concatenate((old, new), axis=1)
    order = np.argsort(both, axis=1, kind="stable")
    ranked = np.take_along_axis(both, order, axis=1)
    steps = np.cumsum(np.where(order < old.shape[1], 1, -1), axis=1)
    # Distribution functions are read after the last of equal values.
    last = np.ones(both.shape, np.bool_)
    last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    apart: Array = np.where(last, np.abs(steps), 0).max(axis=1)
    return apart
