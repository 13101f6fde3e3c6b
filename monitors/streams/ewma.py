"""EWMA: an exponentially weighted mean against the mean of everything, in units of its own standard error."""

from __future__ import annotations

from typing import Literal

import numpy as np

from monitors.streams.detector import Array, Bools, Detector, State, running_mean


class EWMA(Detector):
    """Alarms when the weighted mean z leaves the running mean by more than `threshold` of its standard errors.

    z = alpha x + (1 - alpha) z; the variance is exponentially weighted too, in the form that does not cancel:
    v = (1 - alpha) (v + alpha (x - z)^2). Bound: threshold * sqrt(v * alpha / (2 - alpha) * (1 - (1 - alpha)^(2 n))).
    S. W. Roberts, Technometrics 1 (1959).
    """

    def __init__(
        self,
        streams: int,
        *,
        alpha: float = 0.1,
        threshold: float = 4.0,
        min_instances: int = 30,
        mode: Literal["up", "down", "both"] = "both",
    ) -> None:
        if not 0 < alpha <= 1 or threshold <= 0 or min_instances < 1:
            raise ValueError("alpha must lie in (0, 1], threshold above 0 and min_instances be at least 1")
        if mode not in ("up", "down", "both"):
            raise ValueError(f"mode must be up, down or both, not {mode!r}")
        self._alpha, self._threshold, self._min_instances = alpha, threshold, min_instances
        self._up, self._down = mode != "down", mode != "up"
        super().__init__(streams, alpha=alpha, threshold=threshold, min_instances=min_instances, mode=mode)

    def _initial(self) -> State:
        return {name: np.array(0.0) for name in ("count", "mean", "weighted", "variance")}

    def _step(self, state: State, values: Array) -> tuple[Bools, Bools]:
        count, weighted, variance = state["count"], state["weighted"], state["variance"]
        running_mean(count, state["mean"], values)
        first = count == 1
        np.copyto(weighted, values, where=first)
        off = values - weighted
        np.copyto(variance, (1 - self._alpha) * (variance + self._alpha * off * off))
        np.copyto(weighted, self._alpha * values + (1 - self._alpha) * weighted, where=~first)
        settled = self._alpha / (2 - self._alpha) * (1 - (1 - self._alpha) ** (2 * count))
        bound = self._threshold * np.sqrt(variance * settled)
        above = weighted - state["mean"]
        alarm = np.zeros(len(values), np.bool_)
        if self._up:
            alarm |= above > bound
        if self._down:
            alarm |= -above > bound
        alarm &= count >= self._min_instances
        return alarm, np.zeros_like(alarm)
