"""Which features an alarm is about: the e-Benjamini-Hochberg rule."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitors.types import Array

__all__ = ["e_bh"]


def e_bh(log_e: npt.ArrayLike, log_threshold: float) -> Array:
    """Which of F hypotheses are rejected, bool (F,), given their log evidence; the threshold is 1 / level.

    Rejects the k largest for the largest k with e_(k) >= F * threshold / k. With e-values the expected share of false
    rejections is at most the level under any dependence (Wang and Ramdas, "False discovery rate control with e-values",
    2022). With the M of detectors, whose expectation grows with time, that share is bounded for each block waited:
    at the threshold of an alarm budget, false names are as rare as false alarms. NaN is never rejected.
    """
    values = np.nan_to_num(np.asarray(log_e, dtype=np.float64), nan=-np.inf)
    order = np.argsort(-values, kind="stable")
    needed = np.log(len(values) / np.arange(1, len(values) + 1)) + log_threshold
    enough = np.flatnonzero(values[order] >= needed)
    rejected = np.zeros(len(values), dtype=np.bool_)
    if len(enough):
        rejected[order[: enough[-1] + 1]] = True
    return rejected
