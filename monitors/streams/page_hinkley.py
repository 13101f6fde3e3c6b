"""Page-Hinkley: cumulative deviations from the running mean, against their least and greatest."""

from __future__ import annotations

from typing import Literal

import numpy as np

from monitors.streams.detector import Array, Bools, Detector, State, running_mean


class PageHinkley(Detector):
    """Alarms when the faded sum of deviations has risen by `threshold` from its minimum (or fallen from its maximum).

    With m the running mean: up_t = alpha * up_{t-1} + (x_t - m_t) - delta, down_t = alpha * down_{t-1} + (x_t - m_t) +
    delta; the alarm is up - min(up) > threshold for `mode` "up", max(down) - down > threshold for "down".
    `threshold` and `delta` are in units of the loss. E. S. Page, Biometrika 41 (1954).
    """

    def __init__(
        self,
        streams: int,
        *,
        min_instances: int = 30,
        delta: float = 0.005,
        threshold: float = 50.0,
        alpha: float = 1 - 0.0001,
        mode: Literal["up", "down", "both"] = "both",
    ) -> None:
        if mode not in ("up", "down", "both"):
            raise ValueError(f"mode must be up, down or both, not {mode!r}")
        self._min_instances, self._delta, self._threshold, self._alpha = min_instances, delta, threshold, alpha
        self._up, self._down = mode != "down", mode != "up"
        super().__init__(streams, min_instances=min_instances, delta=delta, threshold=threshold, alpha=alpha, mode=mode)

    def _initial(self) -> State:
        start = {"count": 0.0, "mean": 0.0, "up": 0.0, "down": 0.0, "lowest": np.inf, "highest": -1.0}
        return {name: np.array(value) for name, value in start.items()}

    def _step(self, state: State, values: Array) -> tuple[Bools, Bools]:
        count, up, down, lowest, highest = (state[name] for name in ("count", "up", "down", "lowest", "highest"))
        running_mean(count, state["mean"], values)
        deviation = values - state["mean"]
        up *= self._alpha
        up += deviation
        up -= self._delta
        down *= self._alpha
        down += deviation
        down += self._delta
        np.minimum(lowest, up, out=lowest)
        np.maximum(highest, down, out=highest)
        alarm = np.zeros(len(values), np.bool_)
        if self._up:
            alarm |= up - lowest > self._threshold
        if self._down:
            alarm |= highest - down > self._threshold
        alarm &= count >= self._min_instances
        return alarm, np.zeros_like(alarm)
