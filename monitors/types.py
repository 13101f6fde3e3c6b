"""The architecture of the monitors on one screen.

Rows come as `Columns`, read from the journal without parsing. A `Monitor` folds them into a state of integers, so that
merging is addition: any partition, order, restart or backfill of the same rows gives the same bytes. Statistics are
pure functions of such states and a baseline, computed when somebody asks; alarms are drawn from them with a budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows of one model version, column by column; all arrays have as many rows as `time_ns`.

    `time_ns`: int64 (n,), event time, Unix nanoseconds. `features`: by name, each (n,): floats, integers, booleans, or
    object arrays of str where None is a missing value; or (n, k) for an input of k values, named `name[i]`. `outputs`:
    by name, (n,) or (n, classes). `labels`: by feedback name, (n,), with a mask of the rows that have one in
    `labelled`. Arrays may be read-only views; nobody keeps them.
    """

    time_ns: Array
    features: Mapping[str, Array] = field(default_factory=dict)
    outputs: Mapping[str, Array] = field(default_factory=dict)
    labels: Mapping[str, Array] = field(default_factory=dict)
    labelled: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.time_ns)

    def take(self, rows: Array | slice) -> Columns:
        """The rows of a mask, a list of places or a slice."""
        return Columns(
            self.time_ns[rows],
            {name: values[rows] for name, values in self.features.items()},
            {name: values[rows] for name, values in self.outputs.items()},
            {name: values[rows] for name, values in self.labels.items()},
            {name: values[rows] for name, values in self.labelled.items()},
        )


class Monitor(Protocol):
    """A mergeable state. Two monitors may be merged where they were made from the same baseline and settings.

    The state is integers (sums of reals in fixed point), so `update` and `merge` commute and associate exactly.
    """

    def update(self, columns: Columns) -> None:
        """Fold rows in. Never raises for what the values are: what cannot be counted has a bin of its own."""
        ...

    def merge(self, other: Self) -> None:
        """Add the state of another. Raises ValueError where the two do not belong together."""
        ...

    def value(self) -> Mapping[str, Any]:
        """What the state says, by name; numbers that are not known are None, never NaN."""
        ...

    def to_bytes(self) -> bytes:
        """The state; equal states give equal bytes."""
        ...

    def load(self, data: bytes) -> None:
        """Replace the state by one that `to_bytes` gave. Raises ValueError where it is not one of this monitor's."""
        ...
