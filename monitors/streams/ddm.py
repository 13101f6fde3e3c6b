"""DDM: the error rate against the lowest it has been."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from monitors.streams.detector import Array, Bools, Detector, State, running_mean


class DDM(Detector):
    """Alarms when error rate p plus its standard deviation s leaves the band above their smallest sum so far.

    Values are errors, 0 or 1, or losses in [0, 1]; s = sqrt(p (1 - p) / n). Alarm: p + s > p_min + drift_threshold *
    s_min; warning likewise with warning_threshold; neither before more than `warm_start` values.
    Gama, Medas, Castillo, Rodrigues, SBIA 2004.
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(
        self, streams: int, *, warm_start: int = 30, warning_threshold: float = 2.0, drift_threshold: float = 3.0
    ) -> None:
        self._warm_start, self._warning, self._drift = warm_start, warning_threshold, drift_threshold
        super().__init__(
            streams, warm_start=warm_start, warning_threshold=warning_threshold, drift_threshold=drift_threshold
        )

    def _initial(self) -> State:
        start = {"count": 0.0, "mean": 0.0, "lowest_mean": np.inf, "lowest_deviation": 0.0}
        return {name: np.array(value) for name, value in start.items()}

    def _step(self, state: State, values: Array) -> tuple[Bools, Bools]:
        count, mean = state["count"], state["mean"]
        lowest_mean, lowest_deviation = state["lowest_mean"], state["lowest_deviation"]
        running_mean(count, mean, values)
        deviation = np.sqrt(mean * (1 - mean) / count)
        ready = count > self._warm_start
        level = mean + deviation
        lower = ready & (level <= lowest_mean + lowest_deviation)
        np.copyto(lowest_mean, mean, where=lower)
        np.copyto(lowest_deviation, deviation, where=lower)
        alarm = ready & (level > lowest_mean + self._drift * lowest_deviation)
        warning = ready & (level > lowest_mean + self._warning * lowest_deviation)
        return alarm, warning & ~alarm
