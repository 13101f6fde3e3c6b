"""How a model's answers are distributed: shares of few bins for each output, to be drawn and compared by eye."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from monitors.baseline.layout import FIRST, Feature, Numeric
from monitors.state import State
from monitors.types import Counts

OUTPUTS = 5
"""At most so many outputs are shown, the first of the layout."""

BINS = 10
"""At most so many bins, each with about as much of the baseline: where nothing has moved, all shares are alike."""

NONE = "none of these"
"""Missing and infinite numbers, values that the baseline never held, and categories without a bin of their own."""


class Share(NamedTuple):
    """`share` of the rows had an answer in this bin. Labels of bins begin with their number, by which they sort."""

    output: str
    bin: str
    share: float


def shares(reference: State, current: State) -> list[Share]:
    """The shares of `current` on the reference's bins; none without rows. Those of an output add up to 1."""
    if not current.rows:
        return []
    found = []
    for row in np.flatnonzero(reference.layout.outputs)[:OUTPUTS].tolist():
        feature = reference.layout.features[row]
        own = slice(FIRST, FIRST + feature.bins)
        counts, shown = current.counts[row, own], 0
        for number, (label, places) in enumerate(_shown(feature, reference.counts[row, own])):
            count = int(counts[places].sum())
            found.append(Share(feature.name, f"{number}: {label}", count / current.rows))
            shown += count
        found.append(Share(feature.name, NONE, (current.rows - shown) / current.rows))
    return found


def _shown(feature: Feature, counts: Counts) -> Iterator[tuple[str, slice]]:
    """Labels and places of the bins that are shown: neighbours together for numbers, the first values of a category."""
    if not isinstance(feature, Numeric):
        yield from ((value, slice(at, at + 1)) for at, value in enumerate(feature.values[:BINS]))
        return
    # By the middle of each bin's mass, so that the tails stand together.
    middle = (np.cumsum(counts) - counts / 2) / max(int(counts.sum()), 1)
    tenth = np.minimum((middle * BINS).astype(np.int64), BINS - 1)
    starts = np.flatnonzero(np.diff(tenth, prepend=-1)).tolist()
    labels, ends = feature.labels(), ["-inf", *(f"{edge:.6g}" for edge in feature.edges), "inf"]
    for start, stop in zip(starts, [*starts[1:], feature.bins], strict=True):
        label = labels[start] if stop - start == 1 else f"[{ends[start]}, {ends[stop]})"
        yield label, slice(start, stop)
