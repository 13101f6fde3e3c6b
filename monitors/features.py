"""Joint drift: the maximum mean discrepancy of whole rows, by random Fourier features summed as integers.

A row x of standardised features becomes z(x) = (cos Wx, sin Wx) / sqrt(D) with D random frequencies W, so that
z(x).z(y) is an unbiased estimate of exp(-|x - y|^2 / (2 s^2)) (Rahimi and Recht 2007), with an error of about
1 / sqrt(2 D) for a pair, which averages out over rows. The mean of z is all that is kept: the distance of two means
estimates the discrepancy of two distributions (Gretton et al. 2012), and sees drift of the dependence between features
that no single one shows.

So that sums do not depend on the order of rows or on a matrix library, the standardised values and the frequencies are
whole numbers small enough for every product sum to be exact in floating point, and cosines come from a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from monitors.baseline.layout import Category, Layout, Numeric
from monitors.count import as_floats, looked_up, text_of
from monitors.state import flattened
from monitors.types import Array, Columns, Counts, Floats

FREQUENCIES = 64
SEED = 20260731
_STEPS = 16  # steps per standard deviation
_SPAN = 4 * _STEPS  # standardised values are held to +-4
_TABLE = 12  # bits of the table of cosines
_ONE = 1 << 14  # what 1.0 is in the table
_ROWS = 2048
"""Taken at once: few enough for the caches of a core."""

_ALONE = 1 << 18
"""So many products OpenBLAS computes in the thread that asks. Beyond, it wakes threads that nobody has niced, and that
wait for one another by spinning."""


class Map(msgspec.Struct, frozen=True):
    """The frozen map from rows to features.

    `layout`: digest of the bins it belongs to. `centre`, `scale`: float64 (numbers,), in the order of the layout.
    `weights` int32 [numbers + bins of categories, D], turns of a circle in units of 2**-`bits`.
    """

    layout: bytes
    names: tuple[str, ...]
    centre: bytes
    scale: bytes
    weights: bytes
    bits: int
    frequencies: int


class Joint:
    """Sums of the Fourier features of rows: `n` rows and int64 [2 D] sums, in units of 2**-14.

    A missing or infinite number takes the baseline's centre; a category adds a random phase of its own per value, which
    is the kernel that is 1 for equal values and less for others. Outputs of the model are not part of it.
    """

    def __init__(self, layout: Layout, frozen: Map) -> None:
        if frozen.layout != layout.digest:
            raise ValueError("the map belongs to another baseline")
        self.layout, self.map = layout, frozen
        self.n = 0
        self.sums: Counts = np.zeros(2 * frozen.frequencies, dtype=np.int64)
        self._centre, self._scale = (np.frombuffer(each, "<f8") for each in (frozen.centre, frozen.scale))
        weights = np.frombuffer(frozen.weights, "<i4").reshape(-1, frozen.frequencies)
        self._weights = np.ascontiguousarray(weights.T, np.float64)
        self._inputs = {feature.name: feature for feature in layout.features if feature.role == "feature"}
        angles = (np.arange(1 << _TABLE) + 0.5) * (2 * math.pi / (1 << _TABLE))
        cosine, sine = (np.rint(wave(angles) * _ONE).astype(np.int64) for wave in (np.cos, np.sin))
        # Both in one number, so that one look-up and one sum find both: the sine, made positive, in the lower half.
        self._waves = (cosine << 32) + sine + _ONE

    def update(self, columns: Columns) -> None:
        """Add the features of rows."""
        self.n += len(columns)
        available = flattened(columns.features)
        values = {name: self._prepared(name, available[name]) for name in self._inputs if name in available}
        for start in range(0, len(columns), _ROWS):
            stop = min(start + _ROWS, len(columns))
            index = self._turns(self._rows(values, start, stop))
            index >>= self.map.bits - _TABLE
            index &= (1 << _TABLE) - 1
            both = self._waves[index].sum(axis=1)
            self.sums[: self.map.frequencies] += both >> 32
            self.sums[self.map.frequencies :] += (both & 0xFFFFFFFF) - (stop - start) * _ONE

    def _turns(self, rows: Floats) -> Counts:
        """Where each row stands in its circle at each frequency, [D, rows]."""
        turns = np.empty((len(self._weights), rows.shape[1]))
        size = max(_ALONE // max(self._weights.size, 1), 16)
        for start in range(0, rows.shape[1], size):
            np.matmul(self._weights, rows[:, start : start + size], out=turns[:, start : start + size])
        return turns.astype(np.int64)

    def _prepared(self, name: str, values: Array) -> Array:
        """A column as numbers, or as the places of its category's values."""
        feature = self._inputs[name]
        if isinstance(feature, Numeric):
            return as_floats(values)[0]
        return looked_up(values, {value: at for at, value in enumerate(feature.values)}, feature.bins)

    def _rows(self, values: Mapping[str, Array], start: int, stop: int) -> Floats:
        """Standardised numbers as whole steps, then a row for each value of a category: 0 or 1. [inputs, rows]."""
        numbers = len(self._centre)
        rows = np.zeros((self._weights.shape[1], stop - start))
        x = rows[:numbers]
        x[:] = np.nan
        number, place = 0, numbers
        for name, feature in self._inputs.items():
            given = values.get(name)
            if isinstance(feature, Numeric):
                if given is not None:
                    x[number] = given[start:stop]
                number += 1
            else:
                if given is not None:
                    rows[place + given[start:stop], np.arange(stop - start)] = 1.0
                place += feature.bins + 1
        with np.errstate(over="ignore", invalid="ignore"):
            x -= self._centre[:, None]
            x /= self._scale[:, None]
        finite = np.isfinite(x)
        np.clip(x, -4.0, 4.0, out=x)
        x *= _STEPS
        np.rint(x, out=x)
        x[~finite] = 0.0
        return rows

    def merge(self, other: Joint) -> None:
        """Add the sums of another with the same map."""
        if other.map != self.map:
            raise ValueError("sums of two different maps cannot be merged")
        self.n += other.n
        self.sums += other.sums

    @property
    def mean(self) -> Floats:
        """The mean of the features, (2 D,), of norm at most 1. NaN where there are no rows."""
        size = math.sqrt(self.map.frequencies) * _ONE
        mean: Floats = self.sums / (self.n * size) if self.n else np.full(len(self.sums), np.nan)
        return mean

    def value(self) -> Mapping[str, Any]:
        """Rows, and how much the rows differ among each other: 1 - |mean|^2, None without rows."""
        return {"rows": self.n, "spread": 1 - float(self.mean @ self.mean) if self.n else None}

    def to_bytes(self) -> bytes:
        """The sums; equal ones give equal bytes."""
        return msgspec.msgpack.encode((self.layout.digest, self.n, self.sums.astype("<i8").tobytes()))

    def load(self, data: bytes) -> None:
        """Replace the sums by those of `to_bytes`. Raises ValueError where they are of another baseline."""
        try:
            layout, n, sums = msgspec.msgpack.decode(data, type=tuple[bytes, int, bytes])
        except msgspec.MsgspecError as error:
            raise ValueError(f"the bytes are no sums of features: {error}") from error
        if layout != self.layout.digest or len(sums) != 16 * self.map.frequencies:
            raise ValueError("the sums belong to another baseline")
        self.n, self.sums = n, np.frombuffer(sums, "<i8").astype(np.int64)


def discrepancy(reference: Joint, current: Joint) -> tuple[float, float] | None:
    """(MMD squared, its null deviation) of two sums with one map; None where either has fewer than two rows.

    The estimate is the unbiased one, (m |P|^2 - 1)/(m - 1) + (n |Q|^2 - 1)/(n - 1) - 2 P.Q for means P and Q, so it is
    around 0 and may be below it where nothing has drifted. Its deviation then is sqrt(2) (1/n + 1/m) times the norm of
    the covariance of the features, which is at most 1 - |P|^2: that bound is what is given.
    """
    m, n = reference.n, current.n
    if m < 2 or n < 2:
        return None
    p, q = reference.mean, current.mean
    square = (m * float(p @ p) - 1) / (m - 1) + (n * float(q @ q) - 1) / (n - 1) - 2 * float(p @ q)
    return square, math.sqrt(2) * (1 / n + 1 / m) * max(1 - float(p @ p), 0.0)


def freeze(layout: Layout, sample: Mapping[str, Array], seed: int = SEED) -> Map:
    """A map for a baseline: `sample` holds rows of it by column, of which up to 500 set the width of the kernel.

    Numbers are centred at their median and scaled by the interquartile range / 1.349, which is 1 for a normal variable
    (by the standard deviation where the quartiles are equal). The width s is the median distance of two rows.
    """
    centre, scale = [], []
    numbers = [f for f in layout.features if isinstance(f, Numeric) and f.role == "feature"]
    categories = [f for f in layout.features if isinstance(f, Category) and f.role == "feature"]
    for feature in numbers:
        middle, spread = centred(sample[feature.name])
        centre.append(middle)
        scale.append(spread)
    rng = np.random.default_rng(seed)
    inputs = len(numbers) + sum(feature.bins + 1 for feature in categories)
    width = _median_distance(numbers, categories, np.array(centre), np.array(scale), sample, rng)
    gaussian = rng.normal(size=(inputs, FREQUENCIES)) / (2 * math.pi)
    gaussian[: len(numbers)] /= width * _STEPS
    gaussian[len(numbers) :] *= math.sqrt(2) / max(width, 1.0)
    bits = 24
    reach = np.abs(gaussian[: len(numbers)]).sum(axis=0) * _SPAN + np.abs(gaussian[len(numbers) :]).sum(axis=0)
    largest = max(float(reach.max(initial=0.0)) / 2**51, float(np.abs(gaussian).max(initial=0.0)) / 2**30)
    while largest * 2.0**bits >= 1:
        bits -= 1
    weights = np.rint(gaussian * 2.0**bits).astype("<i4")
    names = tuple(feature.name for feature in numbers)
    floats = [np.array(each, dtype="<f8").tobytes() for each in (centre, scale)]
    return Map(layout.digest, names, floats[0], floats[1], weights.tobytes(), bits, FREQUENCIES)


def centred(values: Array) -> tuple[float, float]:
    """The centre and scale of the finite ones among (n,) floats; 0 and 1 where there are none, or none that differ."""
    values = values[np.isfinite(values)].astype(np.float64)
    if not len(values):
        return 0.0, 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        low, middle, high = (float(each) for each in np.quantile(values, (0.25, 0.5, 0.75)))
        spread = (high - low) / 1.349
        if not spread > 0:
            middle, spread = float(values.mean()), float(values.std())
    return middle if math.isfinite(middle) else 0.0, spread if 1e-300 < spread < 1e300 else 1.0


def _median_distance(
    numbers: list[Numeric],
    categories: list[Category],
    centre: Floats,
    scale: Floats,
    sample: Mapping[str, Array],
    rng: np.random.Generator,
) -> float:
    """The median distance of pairs of rows, standardised and held to +-4; unequal categories are sqrt(2) apart."""
    size = len(next(iter(sample.values()), ()))
    if size < 2:
        return 1.0
    chosen = rng.choice(size, min(size, 500), replace=False)
    square = np.zeros((len(chosen), len(chosen)))
    for number, middle, spread in zip(numbers, centre, scale, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            x = (sample[number.name][chosen].astype(np.float64) - middle) / spread
        x = np.where(np.isfinite(x), np.clip(x, -4.0, 4.0), 0.0)
        square += (x[:, None] - x[None, :]) ** 2
    for feature in categories:
        keys = np.array([text_of(value) or "" for value in sample[feature.name][chosen].tolist()])
        square += 2.0 * (keys[:, None] != keys[None, :])
    median = float(np.sqrt(np.median(square[np.triu_indices(len(chosen), 1)])))
    return median if median > 0 else 1.0


def pack(joint: Joint) -> bytes:
    """A map with the sums of the baseline, as a baseline keeps them."""
    return msgspec.msgpack.encode((joint.map, joint.to_bytes()))


def unpack(layout: Layout, data: bytes) -> Joint:
    """The sums of the baseline that `pack` gave. Raises ValueError or msgspec's where `data` is none."""
    frozen, sums = msgspec.msgpack.decode(data, type=tuple[Map, bytes])
    joint = Joint(layout, frozen)
    joint.load(sums)
    return joint
