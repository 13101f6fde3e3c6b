"""HDDM-A: Hoeffding's bound on the difference between the mean of a prefix and the mean of all."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from monitors.streams.detector import Array, Bools, Detector, State, running_mean


class HDDMA(Detector):
    """Alarms when the mean of all values is above that of the best prefix by more than chance allows.

    The prefix is the one that minimises mean + bound(n), bound(n) = sqrt(ln(1 / drift_confidence) / (2 n)); with
    `two_sided_test` also the one that maximises mean - bound(n), for decreases. Values are losses in [0, 1].
    Alarm at a difference of at least sqrt(m / 2 * ln(2 / confidence)), m = (n - k) / (k n) for a prefix of k.
    Frias-Blanco et al., IEEE TKDE 27 (2014), A-test.
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(
        self,
        streams: int,
        *,
        drift_confidence: float = 0.001,
        warning_confidence: float = 0.005,
        two_sided_test: bool = False,
    ) -> None:
        self._two_sided = two_sided_test
        self._log_bound = math.log(1.0 / drift_confidence)
        self._log_drift, self._log_warning = math.log(2.0 / drift_confidence), math.log(2.0 / warning_confidence)
        super().__init__(
            streams,
            drift_confidence=drift_confidence,
            warning_confidence=warning_confidence,
            two_sided_test=two_sided_test,
        )

    def _initial(self) -> State:
        names = ("count", "mean", "low_count", "low_mean", "high_count", "high_mean")
        return {name: np.array(0.0) for name in names}

    def _step(self, state: State, values: Array) -> tuple[Bools, Bools]:
        count, mean = state["count"], state["mean"]
        low_count, low_mean = state["low_count"], state["low_mean"]
        high_count, high_mean = state["high_count"], state["high_mean"]
        running_mean(count, mean, values)
        first = low_count == 0
        for prefix_count, prefix_mean in ((low_count, low_mean), (high_count, high_mean)):
            np.copyto(prefix_count, count, where=first)
            np.copyto(prefix_mean, mean, where=first)
        bound = self._bound(count)
        lower = low_mean + self._bound(low_count) >= mean + bound
        np.copyto(low_count, count, where=lower)
        np.copyto(low_mean, mean, where=lower)
        higher = high_mean - self._bound(high_count) <= mean - bound
        np.copyto(high_count, count, where=higher)
        np.copyto(high_mean, mean, where=higher)
        alarm, warning = self._beyond(mean - low_mean, low_count, count)
        if self._two_sided:
            fell, fell_warning = self._beyond(high_mean - mean, high_count, count)
            alarm, warning = alarm | fell, warning | fell_warning
        return alarm, warning

    def _bound(self, count: Array) -> Array:
        bound: Array = np.sqrt(1.0 / (2 * count) * self._log_bound)
        return bound

    def _beyond(self, difference: Array, prefix: Array, count: Array) -> tuple[Bools, Bools]:
        """Where the difference is beyond chance: at the drift confidence, and only at the warning confidence."""
        share = (count - prefix) / prefix * (1.0 / count)
        more = prefix != count
        drift = more & (difference >= np.sqrt(share / 2 * self._log_drift))
        warning = more & (difference >= np.sqrt(share / 2 * self._log_warning))
        return drift, warning & ~drift
