"""Evidence that bin counts came from elsewhere than the baseline: a robust e-process, for all features and starts.

For counts N of n rows and a mixture of alternatives q fixed beforehand,

    log E = log Σ_q w_q q(N) - sup { Σ_b N_b ln p_b : KL(p̂ ‖ p) <= radius }.

Whatever p in the ball is true, E is at most q(N) / p(N), a fair bet under p; so E is an e-process under all of them,
and a function of summed counts alone. The supremum is bounded from above by its Lagrange dual

    g(λ) = Σ_b (N_b + λ p̂_b) ln((N_b + λ p̂_b) / (n + λ)) + λ (radius - Σ_b p̂_b ln p̂_b)        for any λ >= 0,

which is tight where KL(p̂ ‖ p(λ)) = radius, p(λ) = (N + λ p̂) / (n + λ). As *every* λ gives a bound, a search for λ that
stops early costs evidence and never validity.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln

from monitors.evidence.reference import Reference
from monitors.types import Counts, Floats

__all__ = ["log_evidence"]

DUAL_STEPS = 4
AGREES = 1e-13
TINY = np.finfo(np.float64).tiny


def log_evidence(reference: Reference, counts: Counts) -> Floats:
    """log E (S, F) for counts (S, F, B): natural logarithm, 0 where a feature has no rows, never NaN.

    Cost: about 2 microseconds for each feature and start with 20 bins.
    """
    seen = counts / reference.copies[:, None]
    rows = seen.sum(axis=2)
    result = _alternatives(reference, seen, rows) - _null(reference, seen, rows)
    return np.where((rows > 0) & np.isfinite(reference.ball), result, 0.0)


def _alternatives(reference: Reference, seen: Floats, rows: Floats) -> Floats:
    """The log probability of the counts (of one order of the rows) under the mixture of alternatives, (S, F)."""
    logs = []
    for prior, constant in zip(reference.prior, reference.prior_log_gamma, strict=True):
        # Padding holds parameters of 1 and no rows: its two terms cancel in the sum over bins.
        total = np.where(reference.valid, prior, 0.0).sum(axis=1)
        bins = gammaln(seen + prior).sum(axis=2) - constant.sum(axis=1)
        logs.append(bins + gammaln(total) - gammaln(rows + total))
    dirichlet = np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))
    tilts = np.matmul(seen.transpose(1, 0, 2), reference.tilted.transpose(0, 2, 1)).transpose(1, 0, 2)
    tilt = np.logaddexp.reduce(tilts, axis=2) - np.log(tilts.shape[2])
    return np.asarray(np.where(reference.ordered.any(axis=1), np.logaddexp(dirichlet, tilt) - np.log(2), dirichlet))


def _null(reference: Reference, seen: Floats, rows: Floats) -> Floats:
    """An upper bound, nearly tight, of the log probability of the counts under any shares in the ball, (S, F)."""
    share, ball, negentropy = reference.share, np.minimum(reference.ball, 1e6), reference.negentropy
    n = np.maximum(rows, 1.0)
    weight = n.copy()
    for _ in range(DUAL_STEPS):
        # The divergence falls nearly as (n / (n + λ))², so that its inverse root is nearly straight in λ.
        mixed = np.maximum(seen + weight[:, :, None] * share, TINY)
        total = rows + weight
        divergence = negentropy - np.einsum("sfb,fb->sf", np.log(mixed), share) + np.log(total)
        slope = 1 / np.maximum(total, TINY) - np.einsum("sfb,fb->sf", share / mixed, share)
        divergence = np.maximum(divergence, 1e-300)
        step = 2 * divergence * (np.sqrt(divergence / np.maximum(ball, 1e-300)) - 1) / np.minimum(slope, -1e-300)
        # Where the rows agree with the baseline to the last bit no slope is left; the ball holds them at weight 0.
        weight = np.where(divergence < AGREES, 0.0, weight - step)
        weight = np.clip(weight, 1e-9 * n, 1e6 * n)
    mixed = seen + weight[:, :, None] * share
    logs = np.log(np.maximum(mixed, TINY)) - np.log(rows + weight)[:, :, None]
    return np.asarray(np.einsum("sfb,sfb->sf", mixed, logs) + weight * (ball - negentropy))
