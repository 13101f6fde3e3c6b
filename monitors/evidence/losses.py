"""A detector that the mean loss has risen above a bound, by betting: for labelled errors, or any number in [0, 1].

Its null hypothesis is that every loss has, given the past, a mean of at most `bound`. Nothing else is asked: neither
the same distribution nor independence. For each of a few bets λ, M <- (M + 1) Π (1 + λ (x - bound)) over a block is a
Shiryaev-Roberts e-detector, and so is their average: an alarm at M >= c comes after c blocks or more, on average.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitors.evidence.pack import pack, unpack
from monitors.types import Floats

__all__ = ["LossDetector"]

KIND = "evidence.losses"
ARRAYS = ("rows", "log_m", "log_cusum", "began", "total")
FIELDS = {"blocks": int, **dict.fromkeys(ARRAYS, np.ndarray)}
# Shares of the largest bet that a loss of 0 cannot ruin; Kelly's bet against a loss rate r is (r - m) / (1 - m) of it.
BETS = tuple(2.0**-each for each in range(1, 10))


class LossDetector:
    """One stream of losses against one bound. `update` block by block; `log_m` is to be compared with ln c."""

    def __init__(self, bound: float) -> None:
        """`bound` in (0, 1): the mean loss that is still all right, tolerance included."""
        if not 0 < bound < 1:
            raise ValueError(f"expected a bound between 0 and 1, got {bound}")
        self.bound = bound
        self._bets = np.asarray(BETS) / bound
        self.restart()

    def restart(self) -> None:
        """Forget all evidence."""
        self.blocks = 0
        self._log_m = np.full(len(BETS), -np.inf)
        # The sum over starts says that there was a change; where the greatest start lies, cumulative sums say.
        self._log_cusum = np.zeros(len(BETS))
        self._began = np.zeros(len(BETS), dtype=np.int64)
        self._rows = np.zeros(len(BETS), dtype=np.int64)
        self._total = np.zeros(len(BETS))

    def update(self, values: npt.ArrayLike, counts: npt.ArrayLike | None = None, began: int = 0) -> None:
        """Take the losses of a block in any order: `values` (n,), each as often as `counts` (n,) says, once if None.

        `began` marks the beginning of the block (Unix ns). Raises ValueError for a value outside [0, 1]; an empty block
        changes nothing. What the same losses give does not depend on their order, to the last bit.
        """
        losses = np.asarray(values, dtype=np.float64)
        weights = np.ones(losses.shape, np.int64) if counts is None else np.asarray(counts, dtype=np.int64)
        if losses.ndim != 1 or losses.shape != weights.shape or np.any(weights < 0):
            raise ValueError(f"expected losses (n,) and counts >= 0 like them, got {losses.shape}, {weights.shape}")
        if not np.all((losses >= 0) & (losses <= 1)):
            raise ValueError("expected losses between 0 and 1")
        rows = int(weights.sum())
        if not rows:
            return
        each, where = np.unique(losses, return_inverse=True)
        times = np.asarray(np.bincount(where, weights=weights, minlength=len(each)), dtype=np.float64)
        gain = np.log1p(self._bets[:, None] * (each - self.bound)) @ times
        self._log_m = gain + np.logaddexp(self._log_m, 0.0)
        fresh = self._log_cusum <= 0
        self._began = np.where(fresh, began, self._began)
        self._rows = np.where(fresh, 0, self._rows) + rows
        self._total = np.where(fresh, 0.0, self._total) + float(each @ times)
        self._log_cusum = gain + np.maximum(self._log_cusum, 0.0)
        self.blocks += 1

    @property
    def log_m(self) -> float:
        """ln M, the average over bets; minus infinity before the first block."""
        return float(np.logaddexp.reduce(self._log_m)) - float(np.log(len(BETS)))

    @property
    def began(self) -> int:
        """The mark of the block with which the change most likely began."""
        return int(self._began[int(np.argmax(self._log_cusum))])

    @property
    def since(self) -> tuple[int, float]:
        """Rows, and their mean loss, from `began` on; (0, 0.0) before the first block."""
        best = int(np.argmax(self._log_cusum))
        rows = int(self._rows[best])
        return rows, float(self._total[best]) / rows if rows else 0.0

    def to_bytes(self) -> bytes:
        """The state; equal blocks give equal bytes."""
        arrays: dict[str, Floats | npt.NDArray[np.int64]] = {
            "log_m": self._log_m,
            "log_cusum": self._log_cusum,
            "began": self._began,
            "rows": self._rows,
            "total": self._total,
        }
        return pack(KIND, {"blocks": self.blocks, **arrays})

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is not that of such a detector."""
        state = unpack(KIND, data, FIELDS)
        if any(state[name].shape != (len(BETS),) for name in ARRAYS):
            raise ValueError(f"expected a state with {len(BETS)} bets")
        self.blocks, self._log_m, self._log_cusum = state["blocks"], state["log_m"], state["log_cusum"]
        self._began, self._rows, self._total = state["began"], state["rows"], state["total"]
