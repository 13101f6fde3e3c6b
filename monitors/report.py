"""A report of drift and data quality: what is known of every feature, by name, for people and for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from monitors.drift.report import drift
from monitors.quality.report import quality
from monitors.state import State

STATISTIC = ("value", "debiased", "null_mean", "null_sd", "lower", "upper", "p", "n", "m")
RATE = ("rate", "low", "high", "expected")


def table(reference: State, current: State) -> dict[str, dict[str, dict[str, float]]]:
    """By feature and by statistic or rate its fields; NaN for what is not known. Raises ValueError as `drift` does."""
    names = reference.layout.names
    features: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    for statistic, result in drift(reference, current).items():
        for row, name in enumerate(names):
            features[name][statistic] = {field: float(getattr(result, field)[row]) for field in STATISTIC}
    for kind, rate in quality(reference, current).items():
        for row, name in enumerate(names):
            features[name][kind] = {field: float(getattr(rate, field)[row]) for field in RATE}
    return features


def plain(value: Any) -> Any:
    """The same without numbers that JSON lacks: they become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
