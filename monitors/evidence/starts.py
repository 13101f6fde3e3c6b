"""The starts that a detector keeps: every possible moment of change, thinned out evenly on the scale of age."""

from __future__ import annotations

import numpy as np

from monitors.types import Array, Counts

__all__ = ["kept"]


def kept(starts: Counts, now: int) -> Array:
    """Which of the ascending `starts` (S,) to keep at block `now`, bool (S,).

    The oldest and the newest of each half-octave of age stay: after a year of minutes at most 80 starts.
    The choice looks at ages alone, never at data, so the evidence that is dropped is dropped fairly.
    """
    age = now - starts
    if np.any(age < 1):
        raise ValueError("expected starts before now")
    # 2 log2(age), exact at its steps: the half-octave of a is that of its square, a number below 2**62.
    half_octave = np.frexp((age * age).astype(np.float64))[1]
    edge = np.empty(len(starts) + 1, dtype=np.bool_)
    edge[0] = edge[-1] = True
    edge[1:-1] = half_octave[1:] != half_octave[:-1]
    return np.asarray(edge[:-1] | edge[1:])
