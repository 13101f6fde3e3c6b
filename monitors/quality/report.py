"""Data quality of every feature from the counts that drift uses too: rates beside the baseline's, with their noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from monitors.baseline.layout import MINUS_INF, MISSING, OTHER, PLUS_INF, UNSEEN
from monitors.moments import moments
from monitors.state import State
from monitors.types import Counts, Floats


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something happens to each of F features; float64 (F,), NaN where there are no rows.

    `count`, `n`: of current rows; `rate`: their quotient; `low`, `high`: its 95 % interval (Wilson 1927). `expected`:
    the rate in the baseline. `p`: of a rate as far from it, two-sided, by a pooled z test with Yates' half count; for
    one look, and where counts are small it errs towards 1.
    """

    count: Counts
    n: Counts
    rate: Floats
    low: Floats
    high: Floats
    expected: Floats
    p: Floats


def rate(count: Counts, n: Counts | int, reference: Counts, m: Counts | int) -> Rate:
    """The rate of `count` in `n` beside `reference` in `m`, each (F,)."""
    rows, base = (np.broadcast_to(np.asarray(each, dtype=np.int64), count.shape) for each in (n, m))
    z = -ndtri(0.025)
    with np.errstate(invalid="ignore", divide="ignore"):
        share, expected = count / rows, reference / base
        middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
        half = z * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2)) / (1 + z**2 / rows)
        pooled = (count + reference) / (rows + base)
        error = np.sqrt(pooled * (1 - pooled) * (1 / rows + 1 / base))
        distance = np.maximum(np.abs(share - expected) - 0.5 * (1 / rows + 1 / base), 0.0)
        p = np.where(error > 0, 2 * ndtr(-distance / error), np.where(np.isnan(share + expected), np.nan, 1.0))
    return Rate(count, rows, share, np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0), expected, p)


def quality(reference: State, current: State) -> Mapping[str, Rate]:
    """The rates by name, each over all F features of the layout.

    `missing`: null, NaN or no column; `absent`: rows whose batch had no such column; `infinite`; `unseen`: a category
    that the baseline never held, a value that is no number, or a fraction where there were two whole numbers; `other`:
    rare categories of the baseline; `out_of_range`: numbers below the baseline's minimum or above its maximum; `held`:
    numbers too far out for the moments. Raises ValueError where the two states are not of one layout.
    """
    if reference.layout.digest != current.layout.digest:
        raise ValueError("states of two different baselines cannot be compared")
    n, m = current.rows, reference.rows
    sides = (current, reference)

    def columns(*places: int) -> Rate:
        now, then = (state.counts[:, list(places)].sum(axis=1) for state in sides)
        return rate(now, n, then, m)

    return {
        "missing": columns(MISSING),
        "absent": rate(current.absent, n, reference.absent, m),
        "infinite": columns(MINUS_INF, PLUS_INF),
        "unseen": columns(UNSEEN),
        "other": columns(OTHER),
        "out_of_range": rate(current.below + current.above, n, reference.below + reference.above, m),
        "held": rate(current.held, n, reference.held, m),
    }


def constant(reference: State, current: State, rows: int = 100) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """bool (F,): features that had one value alone in at least `rows` current rows, but several in the baseline.

    For numbers the variance is 0 (to the resolution of the moments); for categories one bin holds every row.
    """
    _, _, then = moments(reference)
    _, _, now = moments(current)
    stuck = np.where(reference.layout.numeric, (now == 0) & ~(then == 0), False)
    one_bin = (current.counts > 0).sum(axis=1) == 1
    several = (reference.counts > 0).sum(axis=1) > 1
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (
        (stuck & (current.finite == current.rows)) | (one_bin & several & ~reference.layout.numeric)
    ) & (current.rows >= rows)
    return found
