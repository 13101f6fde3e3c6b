"""A report of drift and data quality: what is known of every feature, by name, for people and for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from monitors.baseline.document import Baseline
from monitors.drift.divergence import psi
from monitors.drift.report import drift
from monitors.drift.statistic import Pair
from monitors.features import discrepancy
from monitors.quality.report import constant, quality
from monitors.seen import Seen
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


def rows_report(baseline: Baseline, seen: Seen) -> dict[str, Any]:
    """All that is known of some rows beside the baseline: by feature, of whole rows, and by slice."""
    reference, names = baseline.state, baseline.layout.names
    stuck = constant(reference, seen.state)
    return {
        "features": table(reference, seen.state),
        "constant": [name for name, is_stuck in zip(names, stuck, strict=True) if is_stuck],
        "joint": joint_drift(baseline, seen),
        "repeated": seen.repeated.value(),
        "slices": {
            column: {
                value: _slice(own, seen.slices[column][value], seen.rows, reference.rows)
                for value, own in values.items()
            }
            for column, values in baseline.slices.items()
        },
    }


def joint_drift(baseline: Baseline, seen: Seen) -> dict[str, float] | None:
    """Drift of whole rows, the squared discrepancy, with its deviation where nothing drifted; None where unknown."""
    if baseline.joint is None or seen.joint is None:
        return None
    found = discrepancy(baseline.joint, seen.joint)
    if found is None:
        return None
    value, sd = found
    return {"value": value, "null_mean": 0.0, "null_sd": sd, "n": seen.joint.n, "m": baseline.joint.n}


def _slice(reference: State, current: State, rows: int, baseline_rows: int) -> dict[str, Any]:
    """How large a slice is and was, and the drift of each feature within it."""
    found = psi(Pair(reference.layout, reference.counts, current.counts))
    names = reference.layout.names
    return {
        "rows": current.rows,
        "share": current.rows / rows if rows else None,
        "expected_share": reference.rows / baseline_rows if baseline_rows else None,
        "psi": {
            name: {field: float(getattr(found, field)[row]) for field in ("value", "debiased", "null_sd", "n", "m")}
            for row, name in enumerate(names)
        },
    }


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
