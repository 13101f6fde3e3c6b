"""False alarms on streams of independent rows without a change: model-years at coarse steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import rel_entr
from scipy.stats import lognorm, norm

from monitors.evidence.budget import YEAR_S, Budget
from monitors.evidence.confidence import highest_mean
from monitors.evidence.detector import Detector
from monitors.evidence.findings import Features
from monitors.evidence.losses import LossDetector
from monitors.evidence.radius import psi_to_kl, radius, widened
from monitors.evidence.reference import Reference
from monitors.evidence.watches import SECOND_NS, WEEK_S, RecentWatch
from monitors.types import Counts, Floats

DECILES = tuple(each / 10 for each in range(1, 10))
ROWS = 500
"""Of a block."""

Cut = Callable[[Floats], Floats]


def tallied(values: Floats, edges: Floats) -> Counts:
    """Counts (F, B) of values (F, n) on edges (F, B - 1)."""
    places = [np.searchsorted(e, x, side="right") for e, x in zip(edges, values, strict=True)]
    return np.array([np.bincount(each, minlength=edges.shape[1] + 1) for each in places])


def drawn(kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Floats, Cut]:
    """Values of a distribution, and its distribution function."""
    if kind == "normal":
        return rng.standard_normal(shape), norm.cdf
    if kind == "lognormal":
        return rng.lognormal(0, 1.5, shape), lognorm(1.5).cdf
    return (rng.random(shape) < 0.1).astype(np.float64), lambda x: np.where(x < 0, 0.0, np.where(x < 1, 0.9, 1.0))


def frozen(kind: str, rng: np.random.Generator, features: int, rows: int) -> tuple[Counts, Floats]:
    """Baselines of independent features: counts (F, B), and the true shares of their bins (F, B)."""
    values, cdf = drawn(kind, rng, (features, rows))
    edges = np.full((features, 1), 0.5) if kind == "Bernoulli" else np.quantile(values, DECILES, axis=1).T
    counts = tallied(values, edges)
    ends = np.concatenate([np.zeros((features, 1)), cdf(edges), np.ones((features, 1))], axis=1)
    return counts, np.diff(ends, axis=1)


def moved(share: Floats, kl: float) -> Floats:
    """Shares (B,) that lie towards the last bins, at KL(share, moved) = kl."""
    places = np.linspace(-1, 1, len(share))

    def tilted(strength: float) -> Floats:
        found = share * np.exp(strength * places)
        return np.asarray(found / found.sum())

    return tilted(brentq(lambda strength: float(rel_entr(share, tilted(strength)).sum()) - kl, 0, 10))


def years_with_alarms(
    kind: str, years: int, blocks: int, baseline: int, *, exact: bool = False, tolerance: float = 0.0
) -> tuple[int, float]:
    """In how many of so many model-years of 4 features an alarm came, at a budget of one a year; and the mean of M / t.

    A year has `blocks` blocks of ROWS rows. Each has a new baseline, so that those which happen to misrepresent
    their truth are counted in. `exact` takes the baseline for the truth, as fixed rules do. With a `tolerance` the
    truth is as far from the baseline as is tolerated. Proved is E M / t <= 1.
    """
    rng, found, ratios, part = np.random.default_rng(71), 0, [], 500
    for first in range(0, years, part):
        size = min(part, years - first)
        counts, truth = frozen(kind, rng, 4 * size, baseline)
        reference = Reference.build(counts, ordered=True, tolerance=tolerance)
        ball = widened(radius(reference.counts, reference.bins, 0.01 / 4), psi_to_kl(reference.tolerance))
        reference = replace(reference, ball=np.full_like(ball, 1e-9) if exact else ball)
        if tolerance:
            truth = np.array([moved(share, float(psi_to_kl(tolerance))) for share in reference.share])
        detector, loudest = Detector([reference]), np.full(size, -np.inf)
        for _ in range(blocks):
            detector.update(rng.multinomial(ROWS, truth))
            log_m = np.logaddexp.reduce(detector.reading().features.reshape(size, 4), axis=1) - np.log(4)
            loudest = np.maximum(loudest, log_m)
        found += int((loudest >= np.log(blocks)).sum())
        ratios.append(float(np.exp(np.minimum(log_m, 700)).mean() / blocks))
    return found, float(np.mean(ratios))


def recent_years(kind: str, years: int) -> tuple[int, float]:
    """The same for "changed since last week", with a block a day: each week is compared with the one before it."""
    rng, found, ratios = np.random.default_rng(76), 0, []
    days = round(YEAR_S / 86_400)
    for _ in range(years):
        _, truth = frozen(kind, rng, 4, 10_000)
        valid = np.ones(truth.shape, dtype=bool)
        names = tuple(tuple(map(str, range(truth.shape[1]))) for _ in truth)
        features = Features(("a", "b", "c", "d"), names, valid, valid)
        watch = RecentWatch(features, Budget(1, YEAR_S), 86_400.0, tolerance=0.0)
        loudest = -np.inf
        for day in range(days):
            watch.update(rng.multinomial(ROWS, truth), day * 86_400 * SECOND_NS)
            loudest = max(loudest, watch.log_m)
        found += loudest >= watch.log_threshold
        # Since the last epoch began: M over the blocks of its detector.
        ratios.append(np.exp(watch.log_m) / (days % round(WEEK_S / 86_400) or 7))
    return int(found), float(np.mean(ratios))


def loss_years(error: float, years: int, blocks: int, baseline: int) -> tuple[int, float]:
    """The same for "performs worse": errors of a rate; with `baseline` 0 the bound is that rate, the hardest case."""
    rng, found, ratios = np.random.default_rng(77), 0, []
    for _ in range(years):
        bound = error
        if baseline:
            bound = float(highest_mean(rng.binomial(baseline, error), baseline, 0.01))
        detector, loudest = LossDetector(bound), -np.inf
        for wrong in rng.binomial(ROWS, error, blocks):
            detector.update([0.0, 1.0], [ROWS - wrong, wrong])
            loudest = max(loudest, detector.log_m)
        found += loudest >= np.log(blocks)
        ratios.append(np.exp(detector.log_m) / blocks)
    return int(found), float(np.mean(ratios))


Row = tuple[object, ...]


def null_rows(quick: bool) -> list[Row]:
    """Lines of the table of what is compared with a baseline."""
    lines: list[Row] = []
    for kind, most in (("normal", 10_000), ("lognormal", 2_000), ("Bernoulli", 10_000)):
        for years, blocks, rows in ((most, 52, 10_000), (most // 5, 52, 1_000), (most // 50, 365, 10_000)):
            years = years // 20 if quick else years
            found, ratio = years_with_alarms(kind, years, blocks, rows)
            naive, _ = years_with_alarms(kind, max(years // 10, 50), blocks, rows, exact=True)
            share = f"{naive / max(years // 10, 50):.0%}"
            lines.append((kind, f"{rows:,}", blocks, f"{years:,}", f"{years:,}", found, f"{ratio:.2g}", share))
    return lines


def other_rows(quick: bool) -> list[Row]:
    """Lines of the table of tolerances and of the other watches: what holds, blocks, years, budget, alarms, M / t."""
    less = 20 if quick else 1
    lines: list[Row] = []
    for kind in ("normal", "Bernoulli"):
        for tolerance in (0.02, 0.1):
            years = 2_000 // less
            found, ratio = years_with_alarms(kind, years, 52, 10_000, tolerance=tolerance)
            what = f"different from training, tolerance {tolerance}: {kind}, moved by as much"
            lines.append((what, 52, f"{years:,}", f"{years:,}", found, f"{ratio:.2g}"))
    for kind in ("normal", "Bernoulli"):
        years = 200 // less
        found, ratio = recent_years(kind, years)
        lines.append((f"changed since last week: {kind}", 365, f"{years:,}", f"{years:,}", found, f"{ratio:.2g}"))
    for error, baseline in ((0.1, 1_000), (0.1, 0), (0.01, 0)):
        for blocks, years in ((52, 10_000 // less), (365, 1_000 // less)):
            found, ratio = loss_years(error, years, blocks, baseline)
            bound = f"bound from {baseline:,} labelled rows" if baseline else "bound at that rate"
            what = f"performs worse: {error:.0%} errors, {bound}"
            lines.append((what, blocks, f"{years:,}", f"{years:,}", found, f"{ratio:.2g}"))
    return lines
