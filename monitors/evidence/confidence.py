"""Confidence sequences: intervals for the mean of numbers in [0, 1] that hold at all times at once, however one looks.

`mean_interval` is a function of a sum and a count, so it merges over workers and suits rates. `BettingInterval` reads
the numbers in order and adapts to their variance, so it is narrower for losses that vary little.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, xlog1py, xlogy

from monitors.evidence.pack import pack, unpack
from monitors.types import Floats

__all__ = ["BettingInterval", "highest_mean", "lowest_mean", "mean_interval"]

KIND = "evidence.betting_interval"
FIELDS = {"n": int, "total": float, "squares": float, "up": np.ndarray, "down": np.ndarray, "out": np.ndarray}
HALVINGS = 60


def mean_interval(total: npt.ArrayLike, rows: npt.ArrayLike, alpha: float) -> tuple[Floats, Floats]:
    """Ends of the confidence sequence, any shape, for numbers in [0, 1] with this sum and count.

    Those means m where the uniform mixture of bets on all means, B(S + 1, n - S + 1) / (m^S (1 - m)^(n - S)), is below
    1 / alpha (Robbins 1970). By convexity it is an e-process for any numbers in [0, 1], not only for 0 and 1.
    """
    s, n = np.broadcast_arrays(np.asarray(total, dtype=np.float64), np.asarray(rows, dtype=np.float64))
    if np.any(s < 0) or np.any(s > n):
        raise ValueError("expected sums between 0 and the count")
    centre = np.where(n > 0, s / np.maximum(n, 1), 0.5)
    allowed = betaln(s + 1, n - s + 1) - np.log(1 / alpha)

    def inside(m: Floats) -> npt.NDArray[np.bool_]:
        return np.asarray(xlogy(s, m) + xlog1py(n - s, -m) >= allowed)

    return _outermost(centre, np.zeros_like(centre), inside), _outermost(centre, np.ones_like(centre), inside)


def highest_mean(total: npt.ArrayLike, rows: npt.ArrayLike, delta: float) -> Floats:
    """The largest mean that a fixed sample in [0, 1] leaves possible at level delta; 1 where there are no rows.

    Chernoff's bound in Hoeffding's form: the u >= mean with n kl(mean, u) = ln(1 / delta). For numbers seen once, such
    as a baseline; a monitor that looks again and again needs `mean_interval`.
    """
    s, n = np.broadcast_arrays(np.asarray(total, dtype=np.float64), np.asarray(rows, dtype=np.float64))
    if np.any(s < 0) or np.any(s > n):
        raise ValueError("expected sums between 0 and the count")
    mean = np.where(n > 0, s / np.maximum(n, 1), 0.5)
    best = xlogy(mean, mean) + xlog1py(1 - mean, -mean)

    def inside(u: Floats) -> npt.NDArray[np.bool_]:
        return np.asarray(n * (best - xlogy(mean, u) - xlog1py(1 - mean, -u)) <= np.log(1 / delta))

    return _outermost(mean, np.ones_like(mean), inside)


def lowest_mean(total: npt.ArrayLike, rows: npt.ArrayLike, delta: float) -> Floats:
    """The smallest mean that a fixed sample in [0, 1] leaves possible at level delta; see `highest_mean`."""
    n = np.asarray(rows, dtype=np.float64)
    return 1 - highest_mean(n - np.asarray(total, dtype=np.float64), n, delta)


def _outermost(inner: Floats, outer: Floats, inside: object) -> Floats:
    """Bisect for the end of an interval that holds `inner`, always returning a point just outside or at `outer`."""
    assert callable(inside)
    near, far = inner.astype(np.float64), outer.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        all_in = inside(far)
        for _ in range(HALVINGS):
            middle = (near + far) / 2
            good = inside(middle)
            near, far = np.where(good, middle, near), np.where(good, far, middle)
    return np.where(all_in, outer, far)


class BettingInterval:
    """Confidence sequence for a mean in [0, 1] by betting against every mean on a grid, both ways.

    The capital against m is max(K+ / 2, K- / 2), K = Π (1 + λ (x - m)), with λ the approximate Kelly bet
    (μ - m) / (σ² + (μ - m)²) of the past, held in bounds where no bet can be lost entirely (Waudby-Smith and Ramdas,
    "Estimating means of bounded random variables by betting", 2023). Where it ever reached 1 / alpha, m is out.
    """

    def __init__(self, alpha: float, grid: int = 1000) -> None:
        """`grid`: into how many steps [0, 1] is cut; an interval is wider than need be by two steps at most."""
        self.alpha, self.grid = alpha, grid
        self._means = np.linspace(0, 1, grid + 1)
        self._n, self._total, self._squares = 0, 0.0, 0.0
        self._up, self._down = np.zeros(grid + 1), np.zeros(grid + 1)
        self._out = np.zeros(grid + 1, dtype=np.bool_)

    def update(self, values: npt.ArrayLike) -> None:
        """Take numbers in order, (n,). Raises ValueError for one outside [0, 1]."""
        x = np.asarray(values, dtype=np.float64)
        if not np.all((x >= 0) & (x <= 1)):
            raise ValueError("expected numbers between 0 and 1")
        for value in x.tolist():
            self._bet(value)

    def _bet(self, x: float) -> None:
        # One made-up observation, 1/2 with variance 1/4, stands in for the past where there is none.
        mean = (0.5 + self._total) / (1 + self._n)
        variance = (0.25 + self._squares) / (1 + self._n)
        edge = mean - self._means
        kelly = edge / (variance + edge**2)
        with np.errstate(divide="ignore"):
            up = np.clip(kelly, 0, 0.5 / self._means)
            down = np.clip(-kelly, 0, 0.5 / (1 - self._means))
        self._up += np.log1p(up * (x - self._means))
        self._down += np.log1p(-down * (x - self._means))
        self._out |= np.maximum(self._up, self._down) - np.log(2) >= np.log(1 / self.alpha)
        self._n += 1
        self._total += x
        self._squares += (x - (0.5 + self._total) / (1 + self._n)) ** 2

    def interval(self) -> tuple[float, float]:
        """Both ends. Where numbers contradict every mean (they drift) it is the whole of [0, 1]: nothing is claimed."""
        left = np.flatnonzero(~self._out)
        if not len(left):
            return 0.0, 1.0
        return float(self._means[max(left[0] - 1, 0)]), float(self._means[min(left[-1] + 1, self.grid)])

    def to_bytes(self) -> bytes:
        """The state; equal numbers in equal order give equal bytes."""
        state = {"n": self._n, "total": self._total, "squares": self._squares, "up": self._up, "down": self._down}
        return pack(KIND, state | {"out": self._out.astype(np.int64)})

    def load(self, data: bytes) -> None:
        """Go on where `to_bytes` was called. Raises ValueError where the state is not that of such an interval."""
        state = unpack(KIND, data, FIELDS)
        if any(state[name].shape != self._means.shape for name in ("up", "down", "out")):
            raise ValueError(f"expected a state with a grid of {self.grid} steps")
        self._n, self._total, self._squares = state["n"], state["total"], state["squares"]
        self._up, self._down, self._out = state["up"], state["down"], state["out"] != 0
