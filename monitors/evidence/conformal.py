"""A detector that scores have stopped being exchangeable, with no baseline at all: a conformal test martingale.

Each score's rank among all scores so far is, whatever their distribution, uniform and independent of the ranks before
as long as their order means nothing. A simple jumper (Vovk, "Testing randomness online", 2021) bets against that;
the ratios of its capital feed a Shiryaev-Roberts sum with a start at every block, so that an alarm at R >= c comes, on
average, after c blocks or more. Scores from after a change join the ranking, so that a change that is not found soon is
found late or not at all: use it beside a baseline, not in place of one.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from monitors.evidence.pack import pack, unpack
from monitors.types import Floats

__all__ = ["ConformalDetector"]

KIND = "evidence.conformal"
FIELDS = {"rows": int, "counts": np.ndarray, "capital": np.ndarray, "log_sr": float}
JUMP = 0.01
CHUNK = 4096
SLOPES = (-1.0, 0.0, 1.0)


class ConformalDetector:
    """One stream of scores, given as bin numbers on frozen edges: ranks of bins are as exchangeable as scores.

    Ties are broken by random numbers that depend on `seed` and the row's number alone, so that a stream that is read
    again, or resumed, gives the same evidence. Scores may be ranked in groups, each among its own (hours of the week,
    say, where scores follow them): then only the order within a group has to mean nothing.
    """

    def __init__(self, bins: int, seed: int = 0, groups: int = 1) -> None:
        """`bins`: how many bins scores fall in. `groups`: how many there are, known before the score is."""
        if bins < 1 or groups < 1:
            raise ValueError(f"expected at least one bin and one group, got {bins} and {groups}")
        self.bins, self.seed, self.groups = bins, seed, groups
        self.restart()

    def restart(self) -> None:
        """Forget all scores and all evidence."""
        self.rows = 0
        self.log_sr = -math.inf
        self._counts = np.zeros((self.groups, self.bins), dtype=np.int64)
        self._capital = np.full(len(SLOPES), 1 / len(SLOPES))

    def p_values(self, scores: npt.ArrayLike, group: int = 0) -> Floats:
        """Take bin numbers in order, int (n,), and give their ranks among all of the group up to each.

        A rank is in (0, 1), and small if the score is high.
        """
        row = np.asarray(scores, dtype=np.int64)
        if row.ndim != 1 or np.any((row < 0) | (row >= self.bins)):
            raise ValueError(f"expected bin numbers from 0 to {self.bins - 1}")
        hot = np.zeros((len(row), self.bins), dtype=np.int64)
        hot[np.arange(len(row)), row] = 1
        known = self._counts[group]
        upto = known + np.cumsum(hot, axis=0)
        same = upto[np.arange(len(row)), row]
        above = upto.sum(axis=1) - np.cumsum(upto, axis=1)[np.arange(len(row)), row]
        ranks = (above + self._uniform(len(row)) * same) / (known.sum() + 1 + np.arange(len(row)))
        if len(row):
            self._counts[group] = upto[-1]
        self.rows += len(row)
        return np.asarray(ranks)

    def update(self, scores: npt.ArrayLike, group: int = 0) -> None:
        """Take the bin numbers of a block in order, int (n,), and bet on each rank. An empty block changes nothing."""
        if not np.size(scores):
            return
        low, flat, high = self._capital.tolist()
        # ln(R + 1) without overflow: the block is a new start.
        log_sr = max(self.log_sr, 0.0) + math.log1p(math.exp(-abs(self.log_sr)))
        moved = JUMP / len(SLOPES)
        for first in range(0, np.size(scores), CHUNK):
            for p in self.p_values(np.asarray(scores)[first : first + CHUNK], group).tolist():
                # Some capital jumps between the three slopes before each bet, so that none stays poor for ever.
                low = ((1 - JUMP) * low + moved) * (1.5 - p)
                flat = (1 - JUMP) * flat + moved
                high = ((1 - JUMP) * high + moved) * (0.5 + p)
                gain = low + flat + high
                log_sr += math.log(gain)
                # Only its growth matters: the capital is brought back to 1.
                low, flat, high = low / gain, flat / gain, high / gain
        self._capital, self.log_sr = np.array([low, flat, high]), log_sr

    def _uniform(self, how_many: int) -> Floats:
        """Random numbers of the next rows: a counter-based generator, advanced to the number of the row."""
        generator = np.random.Philox(key=self.seed)
        # One step of the counter gives four numbers.
        generator.advance(self.rows // 4)
        return np.random.Generator(generator).random(how_many + self.rows % 4)[self.rows % 4 :]

    def to_bytes(self) -> bytes:
        """The state; equal rows give equal bytes."""
        state = {"rows": self.rows, "counts": self._counts, "capital": self._capital, "log_sr": self.log_sr}
        return pack(KIND, state)

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is not that of such a detector."""
        state = unpack(KIND, data, FIELDS)
        if state["counts"].shape != (self.groups, self.bins) or state["capital"].shape != (len(SLOPES),):
            raise ValueError(f"expected a state with {self.bins} bins")
        self.rows, self.log_sr = state["rows"], state["log_sr"]
        self._counts, self._capital = state["counts"], state["capital"]
