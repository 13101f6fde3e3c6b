"""What an alarm is about: features with their bins before and after, or losses with their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from monitors.baseline.layout import FIRST, SPECIAL, Layout
from monitors.evidence.detector import Detector, Reading
from monitors.evidence.reference import Reference
from monitors.evidence.selection import e_bh
from monitors.types import Array

__all__ = ["FeatureChange", "Features", "Finding", "LossChange", "feature_finding"]

# At most so many features are listed, each with its so many bins that moved most.
NAMED = 10
LARGEST = 3
SMALL_EVIDENCE = 0.01


@dataclass(frozen=True)
class Features:
    """What the rows and columns of counts (F, B) are called and mean.

    `names` (F,). `bins`: for each feature a label for each of its bins, in the order of its valid columns. `valid` and
    `ordered`: bool (F, B), as in `Reference`.
    """

    names: tuple[str, ...]
    bins: tuple[tuple[str, ...], ...]
    valid: Array
    ordered: Array

    def __post_init__(self) -> None:
        sizes = self.valid.sum(axis=1).tolist()
        if len(self.names) != len(sizes) or [len(each) for each in self.bins] != sizes:
            raise ValueError(f"expected names and bins for {len(sizes)} features with {sizes[:8]} bins")

    @classmethod
    def of(cls, layout: Layout) -> Features:
        """Those of a baseline's layout, its outputs included."""
        names, own = np.array(SPECIAL), layout.valid[:, :FIRST]
        bins = [(*names[own[row]].tolist(), *each.labels()) for row, each in enumerate(layout.features)]
        ordered = layout.valid & layout.numeric[:, None]
        ordered[:, :FIRST] = False
        return cls(layout.names, tuple(bins), layout.valid, ordered)


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
    bins, real = features.bins[f], features.valid[f]
    seen, expected = reading.since[f, real], reading.expected[f, real]
    k, n = len(bins), int(seen.sum())
    m = sum(int(each.rows[f]) for each in references)
    # Half a row more in each bin keeps the index finite.
    after = (seen + 0.5) / (n + k / 2)
    before = (expected * m + 0.5) / (m + k / 2)
    parts = (after - before) * np.log(after / before)
    psi = float(parts.sum()) - (k - 1) * (1 / max(n, 1) + 1 / max(m, 1))
    plain = seen / max(n, 1)
    named = [int(b) for b in np.argsort(-parts, kind="stable")[:LARGEST]]
    return FeatureChange(
        feature=features.names[f],
        proved=proved,
        evidence=float(reading.share[f]),
        psi=max(psi, 0.0),
        rows=n,
        bins=bins,
        before=tuple(expected.tolist()),
        after=tuple(plain.tolist()),
        largest=tuple(f"{bins[b]}: {expected[b]:.2%} -> {plain[b]:.2%}" for b in named),
    )
