"""The first pass over the training data: what freezing the bins needs, in memory that does not grow with the rows.

Kept are the least and greatest finite value of each number, the hashes of the values of each category, and a uniform
sample of rows: those whose number, hashed, is smallest. The sample depends on the row numbers alone, not on how the
data was cut into batches. While the data is no larger than the sample, the sample is the data, in its order.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from monitors.baseline import freeze
from monitors.baseline.layout import Feature, Layout, Role
from monitors.count import as_floats, hashed, tallied, text_of
from monitors.state import flattened
from monitors.types import Array, Columns

SAMPLE_VALUES = 1 << 25  # numbers kept at most: 256 MiB
SAMPLE_ROWS = 1 << 20
HASHES = 1 << 16  # values of a category told apart from what is unseen


@dataclass(slots=True)
class _Number:
    minimum: float = math.inf
    maximum: float = -math.inf
    whole: bool = True
    strange: int = 0


@dataclass(slots=True)
class _Category:
    hashes: set[bytes] = field(default_factory=set)
    open_ended: bool = False


class Scan:
    """What one pass learns. `categorical`: names of columns that are categories though they hold numbers."""

    def __init__(self, categorical: frozenset[str] = frozenset(), sample_values: int = SAMPLE_VALUES) -> None:
        self.categorical = categorical
        self.rows = 0
        self.limit = 0
        self._sample_values = sample_values
        self._roles: dict[str, Role] = {}
        self._facts: dict[str, _Number | _Category] = {}
        self._kept: list[tuple[Array, dict[str, Array]]] = []
        self._waiting = 0
        self._threshold = np.uint64(2**64 - 1)

    def update(self, columns: Columns) -> None:
        """Look at a batch. The first one decides which columns there are and which are categories."""
        if not len(columns):
            return
        outputs = flattened(columns.outputs)
        arrays = {**flattened(columns.features), **outputs}
        if not self._roles:
            self._begin(arrays, frozenset(outputs))
        if missing := self._roles.keys() - arrays.keys():
            raise ValueError(f"a batch of the training data has no column {sorted(missing)[0]!r}")
        arrays = {name: arrays[name] for name in self._roles}
        for name, values in arrays.items():
            fact = self._facts[name]
            if isinstance(fact, _Category):
                self._look_at_category(fact, values)
            else:
                arrays[name] = self._look_at_number(fact, values)
        numbers = np.arange(self.rows, self.rows + len(columns), dtype=np.uint64)
        self.rows += len(columns)
        self._keep(mixed(numbers), numbers, columns.time_ns.astype(np.int64), arrays)

    def _begin(self, arrays: dict[str, Array], outputs: frozenset[str]) -> None:
        for name, values in arrays.items():
            self._roles[name] = "output" if name in outputs else "feature"
            number = values.dtype.kind in "biufmM" and name not in self.categorical
            self._facts[name] = _Number() if number else _Category()
        self.limit = min(SAMPLE_ROWS, max(self._sample_values // max(len(arrays), 1), 1))

    @staticmethod
    def _look_at_number(fact: _Number, values: Array) -> Array:
        numbers, strange = as_floats(values)
        fact.strange += strange
        finite = numbers[np.isfinite(numbers)]
        if len(finite):
            fact.minimum = min(fact.minimum, float(finite.min()))
            fact.maximum = max(fact.maximum, float(finite.max()))
            fact.whole = fact.whole and bool((finite == np.floor(finite)).all())
        return numbers

    @staticmethod
    def _look_at_category(fact: _Category, values: Array) -> None:
        for value in tallied(values):
            key = text_of(value)
            if key is None:
                continue
            known = hashed(key)
            if known not in fact.hashes:
                if len(fact.hashes) < HASHES:
                    fact.hashes.add(known)
                else:
                    fact.open_ended = True

    def _keep(self, priority: Array, numbers: Array, time_ns: Array, arrays: dict[str, Array]) -> None:
        chosen = priority <= self._threshold
        kept = {name: values[chosen].copy() for name, values in arrays.items()}
        self._kept.append((np.stack([priority[chosen], numbers[chosen], time_ns[chosen].view(np.uint64)]), kept))
        self._waiting += int(chosen.sum())
        if self._waiting >= 2 * self.limit:
            self._prune()

    def _prune(self) -> None:
        """Keep the `limit` rows of least priority, in their order."""
        if not self._kept:
            return
        keys = np.concatenate([key for key, _ in self._kept], axis=1)
        places = np.arange(keys.shape[1])
        if len(places) > self.limit:
            places = np.sort(np.argpartition(keys[0], self.limit - 1)[: self.limit])
            self._threshold = keys[0, places].max()
        arrays = {name: np.concatenate([part[name] for _, part in self._kept])[places] for name in self._roles}
        self._kept = [(keys[:, places], arrays)]
        self._waiting = len(places)

    def sample(self) -> dict[str, Array]:
        """The rows kept, column by column: floats for numbers, as they came for categories."""
        self._prune()
        return self._kept[0][1] if self._kept else {}

    def times(self) -> Array:
        """The times of the rows kept, int64 (n,)."""
        self._prune()
        return self._kept[0][0][2].view(np.int64) if self._kept else np.zeros(0, np.int64)

    def strange(self) -> dict[str, int]:
        """How many values of number columns were no numbers, for the columns that had any."""
        facts = self._facts.items()
        return {name: fact.strange for name, fact in facts if isinstance(fact, _Number) and fact.strange}

    def freeze(self, cells: int = freeze.CELLS) -> Layout:
        """The bins for what was seen. `cells` = 0: no grids, so that every number is counted the exact way."""
        sample = self.sample()
        features: list[Feature] = []
        for name, role in self._roles.items():
            fact = self._facts[name]
            if isinstance(fact, _Number):
                values = sample[name].astype(np.float64)
                values = values[np.isfinite(values)]
                features.append(
                    freeze.numeric(
                        name, role, values, fact.minimum, fact.maximum, fact.whole and bool(len(values)), cells
                    )
                )
            else:
                counts: Counter[str] = Counter()
                for value, times in tallied(sample[name]).items():
                    if (key := text_of(value)) is not None:
                        counts[key] += times
                features.append(freeze.category(name, role, counts, fact.hashes, fact.open_ended))
        return Layout(tuple(features))

    def method(self) -> str:
        """How the quantiles were found, with the error where there is one.

        The bound is Massart's form of the Dvoretzky-Kiefer-Wolfowitz inequality: with certainty 1 - d every quantile of
        F features is within sqrt(ln(2 F / d) / (2 k)) of its rank. The counts are exact in either case.
        """
        if self.rows <= self.limit:
            return f"exact, over all {self.rows} rows"
        error = math.sqrt(math.log(2 * max(len(self._roles), 1) / 0.01) / (2 * self.limit))
        return f"a uniform sample of {self.limit} of {self.rows} rows, ranks within {error:.5f} with 99 % certainty"


def mixed(numbers: Array) -> Array:
    """Row numbers, uint64 (n,), as numbers that look random: the finaliser of SplitMix64, a bijection."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
