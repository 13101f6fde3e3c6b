"""What a null hypothesis must hold for rows that depend on one another: seasons of the week, and slow wandering.

Every guarantee of this package supposes that rows are drawn independently, given the class of time. Where they are not,
clean data of the past tell how far blocks stray without anything being wrong. That is an estimate, not a guarantee.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

from monitors.evidence.multinomial import log_evidence
from monitors.evidence.reference import Reference
from monitors.types import Counts, Floats

__all__ = ["HOURS", "clumping", "hour_classes", "hours_of_week", "strayed"]

HOURS = 168
HOUR_NS = 3_600_000_000_000
# 1970-01-01 was a Thursday; hour 0 is Monday 00:00 UTC.
FIRST_HOUR = 72
HALVINGS = 14
FARTHEST_PSI = 8.0
LEAST_STRETCHES = 50


def hours_of_week(time_ns: npt.ArrayLike) -> Counts:
    """The hour of the week of Unix times in nanoseconds, int64 of any shape: 0 is Monday 00:00 UTC, 167 the last."""
    return (np.asarray(time_ns, dtype=np.int64) // HOUR_NS + FIRST_HOUR) % HOURS


def hour_classes(counts: npt.ArrayLike, most: int = 8, least_rows: int = 1000) -> Counts:
    """Which class each hour of the week belongs to, int64 (168,): hours that look alike share a reference.

    `counts`: int64 (168, F, B) of the baseline. Classes are merged, the most alike first, by the likelihood ratio per
    row of being two, until there are at most `most`, each with `least_rows` rows, and differing by more than chance:
    a week without seasons is one class. Numbered in the order of their first hour.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 3 or len(table) != HOURS or most < 1:
        raise ValueError(f"expected baseline counts of shape (168, features, bins), got {table.shape}")
    sums, classes = table.copy(), np.arange(HOURS)
    hours, alive = np.ones(HOURS), np.ones(HOURS, dtype=np.bool_)
    gain = np.array([_excess(sums, hours, each) for each in range(HOURS)])
    while alive.sum() > 1:
        places = np.flatnonzero(alive)
        among = gain[np.ix_(places, places)]
        rows = sums[places].sum(axis=2).min(axis=1)
        if rows.min() < least_rows:
            # The poorest class joins whichever it is most like.
            a = int(np.argmin(rows))
            b = int(np.argmin(among[a]))
        else:
            a, b = (int(each) for each in np.unravel_index(int(np.argmin(among)), among.shape))
            if len(places) <= most and among[a, b] > 0:
                break
        kept, gone = sorted((int(places[a]), int(places[b])))
        sums[kept] += sums[gone]
        hours[kept] += hours[gone]
        classes[classes == gone] = kept
        alive[gone] = False
        gain[kept] = gain[:, kept] = _excess(sums, hours, kept)
    return np.searchsorted(np.flatnonzero(alive), classes)


def _fit(table: Floats) -> Floats:
    """Log likelihood (...) of tables (..., F, B) under their own shares."""
    return np.asarray((xlogy(table, table).sum(axis=-1) - xlogy(table.sum(axis=-1), table.sum(axis=-1))).sum(axis=-1))


def _excess(sums: Floats, hours: Floats, one: int) -> Floats:
    """By how much each class (C,) and class `one` explain their rows better apart than together, per row.

    Beyond chance, that is. Classes were chosen for their likeness, which gathers the noise of all their hours in the
    difference of two: chance is what that many hours could add, and three standard deviations.
    """
    both = sums + sums[one]
    free = np.maximum((both > 0).sum(axis=2) - 1, 0).sum(axis=1) * (hours + hours[one] - 1)
    chance = (free + 3 * np.sqrt(2 * free)) / 2
    excess = (_fit(sums) + _fit(sums[one]) - _fit(both) - chance) / np.maximum(both.sum(axis=(1, 2)), 1)
    excess[one] = np.inf
    return np.asarray(excess)


def clumping(blocks: npt.ArrayLike) -> Floats:
    """As how many copies of one independent row the rows of a clean past behave, (F,), 1 or more: the design effect.

    `blocks`: int64 (T, F, B), clean blocks in order of time. The variance of the counts of stretches of 1, 2, 4, ...
    blocks over that of independent rows, in the direction where it is largest (Rao and Scott 1981 take the mean over
    directions), less what chance adds to a largest direction. Stretches are lengthened while 50 of them fit.
    """
    table = np.asarray(blocks, dtype=np.float64)
    if table.ndim != 3 or len(table) < LEAST_STRETCHES:
        raise ValueError(f"expected at least {LEAST_STRETCHES} blocks of counts (features, bins), got {table.shape}")
    whole = table.sum(axis=0)
    share = whole / np.maximum(whole.sum(axis=1, keepdims=True), 1)
    worst = np.ones(table.shape[1])
    length = 1
    while (stretches := len(table) // length) >= LEAST_STRETCHES:
        seen = table[: stretches * length].reshape(stretches, length, *table.shape[1:]).sum(axis=1)
        expected = seen.sum(axis=2, keepdims=True) * share
        scaled = np.where(expected > 0, (seen - expected) / np.sqrt(np.maximum(expected, 1e-300)), 0.0)
        covariance = np.einsum("tfa,tfb->fab", scaled, scaled) / stretches
        bins = (whole > 0).sum(axis=1)
        # The edge of the spectrum of pure noise (Marchenko and Pastur 1967).
        worst = np.maximum(worst, np.linalg.eigvalsh(covariance)[:, -1] / (1 + np.sqrt(bins / stretches)) ** 2)
        length *= 2
    return worst


def strayed(
    blocks: npt.ArrayLike,
    *,
    valid: npt.ArrayLike = True,
    ordered: npt.ArrayLike = False,
    copies: npt.ArrayLike = 1.0,
) -> Floats:
    """The least tolerance, in PSI units (F,), under which no stretch of a clean past would be evidence of change.

    `blocks`: int64 (T, F, B), clean blocks in order of time. Stretches of 1, 2, 4, ... blocks, at most an eighth of the
    past, each at every half of its own length, are held against the whole; `copies` as in `Reference`. Of S stretches
    E <= S is asked, as one in S may exceed S by chance; an alarm needs more. 0 where rows are as good as independent.
    As a stretch is part of the whole, its distance is scaled to the rest. A past that is shorter than the wandering it
    should show cannot show it.
    """
    table = np.asarray(blocks, dtype=np.int64)
    if table.ndim != 3 or len(table) < 16:
        raise ValueError(f"expected at least 16 blocks of counts (features, bins), got {table.shape}")
    upto = np.concatenate([np.zeros((1, *table.shape[1:]), dtype=np.int64), np.cumsum(table, axis=0)])
    worst = np.zeros(table.shape[1])
    length = 1
    while length <= len(table) // 8:
        firsts = np.arange(0, len(table) - length + 1, max(length // 2, 1))
        stretch = upto[firsts + length] - upto[firsts]
        within = (1 - length / len(table)) ** -2
        worst = np.maximum(worst, within * _tolerance(upto[-1], stretch, valid, ordered, copies))
        length *= 2
    return worst


def _tolerance(
    whole: Counts, stretch: Counts, valid: npt.ArrayLike, ordered: npt.ArrayLike, copies: npt.ArrayLike
) -> Floats:
    """Bisect for the least tolerance (F,) at which no stretch (S, F, B) has evidence above S."""
    low, high = np.zeros(len(whole)), np.full(len(whole), FARTHEST_PSI)
    for halving in range(HALVINGS):
        middle = low if halving == 0 else (low + high) / 2
        reference = Reference.build(whole, valid=valid, ordered=ordered, copies=copies, tolerance=middle)
        quiet = (log_evidence(reference, stretch) <= np.log(len(stretch))).all(axis=0)
        low, high = np.where(quiet, low, middle), np.where(quiet, middle, high)
        if not high.any():
            break
    return high
