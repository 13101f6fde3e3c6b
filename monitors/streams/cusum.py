"""CUSUM: the tabular cumulative sums of standardised deviations from a mean that is learnt and then frozen."""

from __future__ import annotations

from typing import Literal

import numpy as np

from monitors.streams.detector import Array, Bools, Detector, State, running_mean


class CUSUM(Detector):
    """Alarms when the sum of deviations beyond `slack` standard deviations exceeds `threshold` standard deviations.

    Mean and standard deviation (n - 1) are those of the first `min_instances` values and then stay: a running mean
    would chase the change. S+ = max(0, S+ + (x - mean) - slack sd), S- likewise downwards; alarm at S > threshold sd.
    At the classical 0.5 and 5 a false alarm comes every few hundred values of a stable normal stream.
    E. S. Page, Biometrika 41 (1954).
    """

    def __init__(
        self,
        streams: int,
        *,
        min_instances: int = 30,
        slack: float = 0.5,
        threshold: float = 5.0,
        mode: Literal["up", "down", "both"] = "both",
    ) -> None:
        if min_instances < 1 or slack < 0 or threshold <= 0:
            raise ValueError("min_instances must be at least 1, slack at least 0 and threshold above 0")
        if mode not in ("up", "down", "both"):
            raise ValueError(f"mode must be up, down or both, not {mode!r}")
        self._min_instances, self._slack, self._threshold = min_instances, slack, threshold
        self._up, self._down = mode != "down", mode != "up"
        super().__init__(streams, min_instances=min_instances, slack=slack, threshold=threshold, mode=mode)

    def _initial(self) -> State:
        names = ("count", "mean", "squares", "up", "down", "reference", "deviation")
        return {name: np.array(0.0) for name in names}

    def _step(self, state: State, values: Array) -> tuple[Bools, Bools]:
        count, mean, squares, up, down = (state[name] for name in ("count", "mean", "squares", "up", "down"))
        before = values - mean
        running_mean(count, mean, values)
        learning = count <= self._min_instances
        np.add(squares, before * (values - mean), out=squares, where=learning)
        learnt = count == self._min_instances
        if learnt.any():
            np.copyto(state["reference"], mean, where=learnt)
            spread = np.sqrt(squares / max(self._min_instances - 1, 1))
            np.copyto(state["deviation"], spread, where=learnt)
        ready = count >= self._min_instances
        off = values - state["reference"]
        slack, limit = self._slack * state["deviation"], self._threshold * state["deviation"]
        np.copyto(up, np.maximum(0.0, up + off - slack), where=ready)
        np.copyto(down, np.maximum(0.0, down - off - slack), where=ready)
        alarm = np.zeros(len(values), np.bool_)
        if self._up:
            alarm |= up > limit
        if self._down:
            alarm |= down > limit
        alarm &= ready
        return alarm, np.zeros_like(alarm)
