"""What a null hypothesis must hold for rows that depend on one another: seasons of the week, and slow wandering.

Every guarantee of this package supposes that rows are drawn independently, given the class of time. Where they are not,
clean data of the past tell how far blocks stray without anything being wrong. That is an estimate, not a guarantee.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitors.evidence.multinomial import log_evidence
from monitors.evidence.reference import Reference
from monitors.types import Counts, Floats

__all__ = ["HOURS", "hour_classes", "hours_of_week", "strayed"]

HOURS = 168
HOUR_NS = 3_600_000_000_000
# 1970-01-01 was a Thursday; hour 0 is Monday 00:00 UTC.
FIRST_HOUR = 72
HALVINGS = 25
FARTHEST_PSI = 8.0


def hours_of_week(time_ns: npt.ArrayLike) -> Counts:
    """The hour of the week of Unix times in nanoseconds, int64 of any shape: 0 is Monday 00:00 UTC, 167 the last."""
    return (np.asarray(time_ns, dtype=np.int64) // HOUR_NS + FIRST_HOUR) % HOURS


def hour_classes(counts: npt.ArrayLike, most: int = 8, least_rows: int = 1000) -> Counts:
    """Which class each hour of the week belongs to, int64 (168,): hours that look alike share a reference.

    `counts`: int64 (168, F, B) of the baseline. Classes are merged, the most alike first, by the likelihood ratio per row
    of being two, until there are at most `most` and each has `least_rows` rows. One class for all where the hours do
    not differ by more than chance. Numbered in the order of their first hour.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 3 or len(table) != HOURS or most < 1:
        raise ValueError(f"expected baseline counts of shape (168, features, bins), got {table.shape}")
    members = [[hour] for hour in range(HOURS)]
    sums = list(table)
    gain = np.full((HOURS, HOURS), np.inf)
    for first in range(HOURS):
        for second in range(first):
            gain[first, second] = gain[second, first] = _excess(sums[first], sums[second])
    alive = np.ones(HOURS, dtype=np.bool_)
    while alive.sum() > 1:
        places = np.flatnonzero(alive)
        rows = np.array([sums[each][0].sum() for each in places])
        among = gain[np.ix_(places, places)]
        if rows.min() < least_rows:
            # The poorest class joins whichever it is most like.
            a = int(np.argmin(rows))
            b = int(np.argmin(among[a]))
        else:
            a, b = (int(each) for each in np.unravel_index(int(np.argmin(among)), among.shape))
            if len(places) <= most and among[a, b] > 0:
                break
        kept, gone = sorted((int(places[a]), int(places[b])))
        sums[kept] = sums[kept] + sums[gone]
        members[kept] += members[gone]
        alive[gone] = False
        for other in np.flatnonzero(alive):
            if other != kept:
                gain[kept, other] = gain[other, kept] = _excess(sums[kept], sums[int(other)])
    classes = np.zeros(HOURS, dtype=np.int64)
    for number, place in enumerate(np.flatnonzero(alive)):
        classes[members[place]] = number
    return classes


def _excess(a: Floats, b: Floats) -> float:
    """How much better two tables (F, B) explain their rows than their sum does, beyond chance, in nats per row."""

    def fit(table: Floats) -> float:
        total = np.maximum(table.sum(axis=1, keepdims=True), 1.0)
        return float(np.sum(table * np.log(np.maximum(table, 1e-300) / total), where=table > 0))

    free = float(np.sum(np.maximum(((a + b) > 0).sum(axis=1) - 1, 0)))
    # Under homogeneity twice the gain is chi-squared with `free` degrees: three standard deviations are chance.
    chance = (free + 3 * np.sqrt(2 * free)) / 2
    rows = max(float(a.sum() + b.sum()), 1.0)
    return (fit(a) + fit(b) - fit(a + b) - chance) / rows


def strayed(blocks: npt.ArrayLike, *, bins: npt.ArrayLike | None = None, ordered: npt.ArrayLike = 0) -> Floats:
    """The least tolerance, in PSI units (F,), under which no stretch of a clean past would be evidence of change.

    `blocks`: int64 (T, F, B), clean blocks in order of time. Stretches of 1, 2, 4, ... blocks, at most an eighth of the
    past, each at every half of its own length, are held against the whole; E <= 1 is asked of each, while an alarm needs
    E in the thousands. 0 where rows are as good as independent. As a stretch is part of the whole, its distance
    is scaled to the rest. A past that is shorter than the wandering it should show cannot show it.
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
        worst = np.maximum(worst, within * _tolerance(upto[-1], stretch, bins, ordered))
        length *= 2
    return worst


def _tolerance(whole: Counts, stretch: Counts, bins: npt.ArrayLike | None, ordered: npt.ArrayLike) -> Floats:
    """Bisect for the least tolerance (F,) at which no stretch (S, F, B) has evidence above 1."""
    low, high = np.zeros(len(whole)), np.full(len(whole), FARTHEST_PSI)
    for halving in range(HALVINGS):
        middle = low if halving == 0 else (low + high) / 2
        reference = Reference.build(whole, bins=bins, ordered=ordered, tolerance=middle)
        quiet = (log_evidence(reference, stretch) <= 0).all(axis=0)
        low, high = np.where(quiet, low, middle), np.where(quiet, middle, high)
        if not high.any():
            break
    return high
