"""HDDM-W: McDiarmid's bound on the difference between two exponentially weighted means."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from monitors.streams.detector import Array, Bools, Detector, State


class HDDMW(Detector):
    """Alarms when the weighted mean since the best cut is above the weighted mean up to it by more than chance allows.

    A sample has a weighted mean z_t = lambda x_t + (1 - lambda) z_{t-1} and the sum of its squared weights; the cut is
    where mean + bound was lowest (highest mean - bound for decreases, with `two_sided_test`). Alarm at a difference of
    more than sqrt((w_1 + w_2) ln(1 / confidence) / 2). Values are losses in [0, 1].
    Frias-Blanco et al., IEEE TKDE 27 (2014), W-test.
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(
        self,
        streams: int,
        *,
        drift_confidence: float = 0.001,
        warning_confidence: float = 0.005,
        lambda_val: float = 0.05,
        two_sided_test: bool = False,
    ) -> None:
        self._two_sided, self._weight = two_sided_test, lambda_val
        self._log_drift, self._log_warning = math.log(1 / drift_confidence), math.log(1 / warning_confidence)
        self._weight_squared, self._kept_squared = lambda_val * lambda_val, (1 - lambda_val) ** 2
        super().__init__(
            streams,
            drift_confidence=drift_confidence,
            warning_confidence=warning_confidence,
            lambda_val=lambda_val,
            two_sided_test=two_sided_test,
        )

    def _initial(self) -> State:
        # A sample is a row of three: values so far, weighted mean, sum of squared weights.
        names = ("all", "rise_before", "rise_after", "fall_before", "fall_after")
        samples = {name: np.array([0.0, 0.0, 1.0]) for name in names}
        return {**samples, "rise_cut": np.array(np.inf), "fall_cut": np.array(-np.inf)}

    def _step(self, state: State, values: Array) -> tuple[Bools, Bools]:
        everything = state["all"]
        self._move(everything, values, np.ones(len(values), np.bool_))
        bound = np.sqrt(everything[:, 2] * self._log_drift / 2)
        cut = everything[:, 1] + bound
        lower = cut < state["rise_cut"]
        self._cut(state, "rise", lower, cut, values)
        alarm, warning = self._beyond(state["rise_before"], state["rise_after"])
        if self._two_sided:
            cut = everything[:, 1] - bound
            self._cut(state, "fall", cut > state["fall_cut"], cut, values)
            fell, fell_warning = self._beyond(state["fall_after"], state["fall_before"])
            alarm, warning = alarm | fell, warning | fell_warning
        return alarm, warning

    def _move(self, sample: Array, values: Array, where: Bools) -> None:
        mean = np.where(sample[:, 0] == 0, values, self._weight * values + (1.0 - self._weight) * sample[:, 1])
        np.copyto(sample[:, 1], mean, where=where)
        np.copyto(sample[:, 2], self._weight_squared + self._kept_squared * sample[:, 2], where=where)
        sample[:, 0] += where

    def _cut(self, state: State, side: str, new: Bools, cut: Array, values: Array) -> None:
        """Where there is a new cut, all values so far lie before it; elsewhere the value comes after the old one."""
        np.copyto(state[f"{side}_cut"], cut, where=new)
        self._move(state[f"{side}_after"], values, ~new)
        state[f"{side}_before"][new] = state["all"][new]
        state[f"{side}_after"][new] = self._fresh[f"{side}_after"]

    def _beyond(self, low: Array, high: Array) -> tuple[Bools, Bools]:
        both = (low[:, 0] > 0) & (high[:, 0] > 0)
        weights = low[:, 2] + high[:, 2]
        difference = high[:, 1] - low[:, 1]
        drift = both & (difference > np.sqrt(weights * self._log_drift / 2))
        warning = both & (difference > np.sqrt(weights * self._log_warning / 2))
        return drift, warning & ~drift
