"""How far the truth may lie from a baseline of finitely many rows, in Kullback-Leibler divergence.

A baseline of m rows with shares p̂ leaves the true shares p uncertain. Both for fixed bins (counts are multinomial given
p) and for bins cut at the baseline's own quantiles (p is then a Dirichlet vector given the counts),

    P(KL(p̂ ‖ p) >= r) <= exp(-m r) (e m r / k)^k        for m r > k, k the number of bins.

Fixed bins: Agrawal, "Finite-sample concentration of the multinomial in relative entropy", 2020 (with k - 1 for k).
Quantile bins: write p as gamma variables g_b of shape R_b over their sum G. Then m KL <= Σ (R ln(R/g) - R + g), because
ln x <= x - 1, and each term has a moment generating function of at most 1/(1 - t) for integer R >= 1; Chernoff's bound
over t gives the same expression. It holds for every m; the chi-squared approximation is smaller, and only asymptotic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitors.types import Floats

__all__ = ["psi_to_kl", "radius", "widened"]

NEWTON_STEPS = 40


def radius(rows: npt.ArrayLike, bins: npt.ArrayLike, delta: npt.ArrayLike) -> Floats:
    """The r for which P(KL(p̂ ‖ p) >= r) <= delta, for `rows` baseline rows in `bins` bins; nats, any shape.

    Solves x - k - k ln(x / k) = ln(1 / delta) for x = m r > k. Where there are no rows the radius is infinite: nothing
    is known, so nothing can be evidence. With one bin there is nothing to be wrong about, and it is 0.
    """
    m, k, d = np.broadcast_arrays(*(np.asarray(each, dtype=np.float64) for each in (rows, bins, delta)))
    if np.any(m < 0) or np.any(k < 1) or np.any((d <= 0) | (d >= 1)):
        raise ValueError("expected rows >= 0, bins >= 1 and 0 < delta < 1")
    wanted = np.log(1 / d)
    # Right of the root the convex left side makes Newton's steps fall monotonically to it: start there.
    x = k + wanted + np.sqrt(2 * k * wanted)
    for _ in range(NEWTON_STEPS):
        x = x - (x - k - k * np.log(x / k) - wanted) / (1 - k / x)
    with np.errstate(divide="ignore"):
        return np.where(k == 1, 0.0, x / m)


def psi_to_kl(psi: npt.ArrayLike) -> Floats:
    """A population stability index as a divergence in nats: near 0 the index is twice the divergence."""
    return np.asarray(psi, dtype=np.float64) / 2


def widened(known: npt.ArrayLike, tolerated: npt.ArrayLike) -> Floats:
    """The radius around p̂ of a null hypothesis that holds the truth behind the baseline, and all that is tolerated.

    The tolerance counts from the baseline *as it was counted*, so the two radii do not add, and nothing is approximate.
    """
    return np.asarray(np.maximum(known, tolerated), dtype=np.float64)
