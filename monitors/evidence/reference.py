"""What rows are compared with: baseline counts, the ball of shares they leave possible, and the alternatives bet on.

The null hypothesis of a feature is that its rows are drawn from *some* shares in the ball KL(p̂ ‖ p) <= radius. The
alternatives are a mixture fixed before the first row is seen, which keeps any bet fair:

* Dirichlet-multinomials around the baseline, at several concentrations: any change, with a price that grows with the
  number of bins;
* for bins in a natural order, the baseline shifted and spread by exponential tilts of its normal scores: the changes
  that are common, at a price that does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, ndtri, xlogy

from monitors.evidence.radius import psi_to_kl, radius, widened
from monitors.types import Array, Counts, Floats

__all__ = ["Reference"]

# Pseudo-rows per bin of the Dirichlet alternatives: from "may be anything" to "a little off the baseline".
CONCENTRATIONS = (1.0, 8.0, 64.0)
# Strengths of the tilts, in standard deviations of a normal feature; both signs of each are bet on.
TILTS = (0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class Reference:
    """Baseline of F features in B bins.

    `counts`: int64 (F, B). `valid`: bool (F, B), the bins that a feature has; the others are padding and stay empty.
    `ordered`: bool (F, B), those of them that are in a natural order, from left to right: no categories, and not the
    bins for missing or unseen values. `bins`: int64 (F,), how many bins a feature has.
    `delta`: the probability that any feature's truth lies outside its ball. `tolerance`: (F,), in PSI units.
    `copies`: (F,), as how many copies of one independent row the rows behave, 1 where they are independent; every
    count, of the baseline too, is divided by it. That is exact for copies and an estimate for other dependence.

    Derived: `rows` (F,), `share` (F, B) p̂, `ball` (F,) radius in nats with the tolerance, `negentropy` (F,) Σ p̂ ln p̂,
    `prior` (K, F, B) parameters of the Dirichlets, `prior_constant` (K, F), `tilted` (F, J, B) log shares of the tilts.
    """

    counts: Counts
    valid: Array
    ordered: Array
    bins: Counts
    delta: float
    tolerance: Floats
    copies: Floats
    rows: Counts
    share: Floats
    ball: Floats
    negentropy: Floats
    prior: Floats
    prior_log_gamma: Floats
    tilted: Floats

    @classmethod
    def build(
        cls,
        counts: npt.ArrayLike,
        *,
        valid: npt.ArrayLike = True,
        ordered: npt.ArrayLike = False,
        delta: float = 0.01,
        tolerance: npt.ArrayLike = 0.0,
        copies: npt.ArrayLike = 1.0,
    ) -> Reference:
        """A reference from counts (F, B). Raises ValueError for shapes, negative counts, or counts in padding."""
        table = np.ascontiguousarray(counts, dtype=np.int64)
        if table.ndim != 2 or not table.size:
            raise ValueError(f"expected baseline counts of shape (features, bins), got {table.shape}")
        features = len(table)
        real = np.broadcast_to(np.asarray(valid, dtype=np.bool_), table.shape)
        in_order = np.broadcast_to(np.asarray(ordered, dtype=np.bool_), table.shape) & real
        sizes = real.sum(axis=1)
        tolerated = np.broadcast_to(np.asarray(tolerance, dtype=np.float64), (features,))
        repeated = np.broadcast_to(np.asarray(copies, dtype=np.float64), (features,))
        if np.any(table < 0) or np.any(table[~real]):
            raise ValueError("expected baseline counts >= 0, and none beyond the bins of a feature")
        if np.any(sizes < 1):
            raise ValueError("expected at least one bin for each feature")
        if not np.all(tolerated >= 0):
            raise ValueError("expected a tolerance >= 0")
        if not np.all((repeated >= 1) & np.isfinite(repeated)):
            raise ValueError("expected copies >= 1")
        rows = table.sum(axis=1)
        share = table / np.maximum(rows, 1)[:, None]
        smooth = np.where(real, (table + 0.5) / (rows + sizes / 2)[:, None], 0.0)
        strength = np.asarray(CONCENTRATIONS)[:, None] * sizes.astype(np.float64)
        prior: Floats = smooth * strength[:, :, None]
        # Padding is never counted; any parameter will do that is no pole of the gamma function.
        prior[:, ~real] = 1.0
        return cls(
            counts=table,
            valid=np.ascontiguousarray(real),
            ordered=np.ascontiguousarray(in_order),
            bins=sizes,
            delta=delta,
            tolerance=np.ascontiguousarray(tolerated),
            copies=np.ascontiguousarray(repeated),
            rows=rows,
            share=share,
            ball=widened(repeated * radius(table, sizes, delta / features), psi_to_kl(tolerated)),
            negentropy=xlogy(share, share).sum(axis=1),
            prior=prior,
            prior_log_gamma=gammaln(prior),
            tilted=_tilts(smooth, real, in_order),
        )

    def __len__(self) -> int:
        return len(self.counts)


def _tilts(smooth: Floats, real: Array, along: Array) -> Floats:
    """Log shares (F, J, B) of the baseline tilted along its normal scores, and along their squares, both ways."""
    mass = np.where(along, smooth, 0.0)
    total = np.maximum(mass.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    middle = (np.cumsum(mass, axis=1) - mass / 2) / total
    score = np.where(along, ndtri(np.clip(middle, 1e-9, 1 - 1e-9)), 0.0)
    spread = np.where(along, (score**2 - 1) / np.sqrt(2), 0.0)
    strengths = np.asarray([sign * each for each in TILTS for sign in (1.0, -1.0)])
    shapes = np.concatenate([strengths[:, None, None] * score, strengths[:, None, None] * spread])
    with np.errstate(divide="ignore"):
        logs = np.where(real, np.log(smooth), -np.inf) + shapes
    logs -= np.logaddexp.reduce(logs, axis=2, keepdims=True)
    # A finite number for padding, because 0 rows times minus infinity would not be 0.
    return np.ascontiguousarray(np.moveaxis(np.where(real, logs, 0.0), 0, 1))
