"""What an alarm is about: features with their bins before and after, or losses with their bounds."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from monitors.evidence.detector import Detector, Reading
from monitors.evidence.reference import Reference
from monitors.evidence.selection import e_bh
from monitors.types import Counts

__all__ = ["FeatureChange", "Features", "Finding", "LossChange", "feature_finding"]

# At most so many features are listed, each with its so many bins that moved most.
NAMED = 10
LARGEST = 3
SMALL_EVIDENCE = 0.01


class Features(msgspec.Struct, frozen=True):
    """What the rows and columns of counts (F, B) are called: `names` (F,), `bins` a label for each real bin of each.

    `ordered` (F,): how many of the first bins are in a natural order.
    """

    names: tuple[str, ...]
    bins: tuple[tuple[str, ...], ...]
    ordered: tuple[int, ...]

    @property
    def sizes(self) -> Counts:
        """How many bins each feature has."""
        return np.array([len(each) for each in self.bins], dtype=np.int64)


class FeatureChange(msgspec.Struct, frozen=True):
    """One feature's part in an alarm: `before` and `after` are shares of rows by bin, `largest` names what moved most.

    `proved`: the feature passes the e-BH rule at the threshold of the alarm by itself; else it is merely suspect.
    `psi` is the index between both, less what chance adds to it. `evidence` is this feature's share of all evidence.
    """

    feature: str
    proved: bool
    evidence: float
    psi: float
    rows: int
    bins: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    largest: tuple[str, ...]


class LossChange(msgspec.Struct, frozen=True):
    """One loss that is higher than it may be: its mean over `rows` since the change, and the bound it should keep."""

    loss: str
    proved: bool
    evidence: float
    bound: float
    mean: float
    rows: int


class Finding(msgspec.Struct, frozen=True):
    """What the evidence of a watch is about. `began_ns` estimates when it began, None where the watch cannot tell.

    `unnamed` counts the features whose evidence is too small to be listed.
    """

    began_ns: int | None
    rows: int
    features: tuple[FeatureChange, ...] = ()
    losses: tuple[LossChange, ...] = ()
    unnamed: int = 0


def feature_finding(features: Features, detector: Detector, log_threshold: float) -> Finding:
    """The features with the most evidence, those that e-BH proves first. `log_threshold` is that of the alarm."""
    reading = detector.reading()
    proved = e_bh(reading.features, log_threshold)
    order = np.lexsort((-reading.share, ~proved))
    chosen = [int(f) for f in order if proved[f] or reading.share[f] >= SMALL_EVIDENCE][:NAMED]
    changes = tuple(_change(features, detector.references, reading, f, bool(proved[f])) for f in chosen)
    rows = int(reading.since.sum(axis=1).max())
    return Finding(reading.began, rows, features=changes, unnamed=len(features.names) - len(changes))


def _change(
    features: Features, references: Sequence[Reference], reading: Reading, f: int, proved: bool
) -> FeatureChange:
    bins = features.bins[f]
    k, n = len(bins), int(reading.since[f].sum())
    m = sum(int(each.rows[f]) for each in references)
    # Half a row more in each bin keeps the index finite.
    after = (reading.since[f, :k] + 0.5) / (n + k / 2)
    before = (reading.expected[f, :k] * m + 0.5) / (m + k / 2)
    parts = (after - before) * np.log(after / before)
    psi = float(parts.sum()) - (k - 1) * (1 / max(n, 1) + 1 / max(m, 1))
    plain = reading.since[f, :k] / max(n, 1)
    named = [int(b) for b in np.argsort(-parts, kind="stable")[:LARGEST]]
    return FeatureChange(
        feature=features.names[f],
        proved=proved,
        evidence=float(reading.share[f]),
        psi=max(psi, 0.0),
        rows=n,
        bins=bins,
        before=tuple(reading.expected[f, :k].tolist()),
        after=tuple(plain.tolist()),
        largest=tuple(f"{bins[b]}: {reading.expected[f, b]:.2%} -> {plain[b]:.2%}" for b in named),
    )
