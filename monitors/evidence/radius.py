"""How far the truth may lie from a baseline of finitely many rows, in Kullback-Leibler divergence.

A baseline of m rows with shares p̂ leaves the true shares p uncertain: with D = m KL(p̂ ‖ p), Chernoff's bound gives
P(D >= x) <= E exp(t D) exp(-t x) for every t in (0, 1). Two views of a baseline, and the larger x of both is taken:

* Bins fixed beforehand: counts are multinomial given p. D is a sum over bins of binomial divergences, each given the
  bins before it (Agrawal, "Finite-sample concentration of the multinomial in relative entropy", 2020), and for all
  binomials E exp(t n kl) <= C (1 - t)^-1/2 with C = 1.11: found by computing it (a test does so over sizes, shares
  and t), where Agrawal proves 1 / (1 - t). One factor for each bin but one.
* Bins cut at quantiles of the baseline itself: p is a Dirichlet vector given the counts R of the bins that have any,
  and E exp(t D) is known in closed form. The empty bins are fixed ones and have a factor each as above.

Neither is an approximation for large m, as the usual chi-squared quantile is, which is smaller than both.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, xlogy

from monitors.types import Counts, Floats

__all__ = ["WORST_BINOMIAL", "psi_to_kl", "radius", "widened"]

WORST_BINOMIAL = 1.11
# Any t gives a bound; so many come near the best one.
STEPS = 99


def radius(counts: Counts, bins: npt.ArrayLike, delta: float) -> Floats:
    """The r (F,) for which P(KL(p̂ ‖ p) >= r) <= delta, for baseline counts (F, B) in `bins` (F,) bins each; nats.

    Where there are no rows the radius is infinite: nothing is known, so nothing can be evidence. With one bin there is
    nothing to be wrong about, and it is 0.
    """
    k = np.broadcast_to(np.asarray(bins, dtype=np.float64), len(counts))
    if not 0 < delta < 1 or np.any(k < 1) or np.any(counts < 0):
        raise ValueError("expected counts >= 0, at least one bin and 0 < delta < 1")
    rows = counts.sum(axis=1).astype(np.float64)
    t = (np.arange(STEPS) + 1.0)[:, None] / (STEPS + 1)
    factor = np.log(WORST_BINOMIAL) - np.log1p(-t) / 2
    fixed = (k - 1) * factor
    cut = (k - (counts > 0).sum(axis=1)) * factor + _dirichlet(counts, rows, t)
    x = np.min((np.maximum(fixed, cut) - np.log(delta)) / t, axis=0)
    with np.errstate(divide="ignore"):
        return np.where(rows > 0, np.where(k == 1, 0.0, x / rows), np.inf)


def _dirichlet(counts: Counts, rows: Floats, t: Floats) -> Floats:
    """ln E exp(t Σ R ln(p̂ / p)) for p from a Dirichlet distribution with parameters R, (T, F)."""
    sums = np.zeros((len(t), len(counts)))
    m = np.maximum(rows, 1.0)
    for r in counts.T.astype(np.float64):
        some, held = r > 0, np.maximum(r, 1.0)
        sums += np.where(some, t * xlogy(r, r / m) + gammaln(held * (1 - t)) - gammaln(held), 0.0)
    return np.asarray(sums - gammaln(m * (1 - t)) + gammaln(m))


def psi_to_kl(psi: npt.ArrayLike) -> Floats:
    """A population stability index as a divergence in nats: near 0 the index is twice the divergence."""
    return np.asarray(psi, dtype=np.float64) / 2


def widened(known: npt.ArrayLike, tolerated: npt.ArrayLike) -> Floats:
    """The radius around p̂ of a null hypothesis that holds the truth behind the baseline, and all that is tolerated.

    The tolerance counts from the baseline *as it was counted*, so the two radii do not add, and nothing is approximate.
    """
    return np.asarray(np.maximum(known, tolerated), dtype=np.float64)
