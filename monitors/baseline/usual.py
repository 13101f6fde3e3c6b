"""Usual: what rows did in the training data while nothing was wrong: seasons of the week, and slow wandering.

The guarantee of the alarms supposes independent rows. Where the training data has times, what its rows do instead is
learned once, when the baseline is built: which hours of the week look alike, as how many copies of one independent row
rows behave, and how far stretches of clean data stray. See `monitors.evidence.calibration` for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from monitors.baseline.layout import Layout
from monitors.evidence.calibration import LEAST_STRETCHES, clumping, hour_classes, hours_of_week, strayed
from monitors.evidence.findings import Features
from monitors.state import State
from monitors.types import Array, Columns, Counts, Floats

PART = "usual"
"""The name of the part in a baseline."""

BLOCKS = 256
"""Into at most so many stretches of equal numbers of rows the rows of a class of hours are cut."""

LEAST_ROWS = 16
"""Of a stretch."""

CLASS_ROWS = 2000
"""Of a class of hours: one with fewer rows knows its own shares too badly to be of use."""

GROUPS = 5
"""Of bins, in which hours of the week are held against one another."""

CHANCES = 20
"""How often it is simulated what independent rows would look like: what those reach is no sign of dependence."""


class Usual(msgspec.Struct, frozen=True):
    """`classes`: the class of each hour of the week, empty where all hours are alike. By feature of the layout:
    `copies`, 1 where rows are as good as independent, and `strayed`, a tolerance in PSI units; empty where unknown.
    """

    classes: tuple[int, ...] = ()
    copies: tuple[float, ...] = ()
    strayed: tuple[float, ...] = ()

    @classmethod
    def of(cls, parts: Mapping[str, bytes]) -> Usual:
        """What a baseline knows; nothing where it was built without times. Raises ValueError for other bytes."""
        data = parts.get(PART)
        if data is None:
            return cls()
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise ValueError(f"what is usual in the baseline cannot be read: {error}") from None

    def to_bytes(self) -> bytes:
        """The part."""
        return msgspec.msgpack.encode(self)

    def kinds(self, block_ns: int) -> Counts:
        """The class of time of each hour of the week, int64 (168,), for blocks of this length.

        One for all where blocks do not fit into hours: such a block would be of several.
        """
        hour_ns = 3_600_000_000_000
        classes: tuple[int, ...] = self.classes if hour_ns % block_ns == 0 else ()
        return np.array(classes or [0] * 168, np.int64)


def learn(layout: Layout, sample: Mapping[str, Array], time_ns: Array, hours: Counts, share: float) -> Usual:
    """What is usual, from rows of the training data with their times, `share` of all of them; `hours` counts all."""
    rows = hours.sum(axis=2).max(axis=1)
    classes = (
        hour_classes(_coarse(hours), least_rows=CLASS_ROWS) if rows.sum() >= 2 * CLASS_ROWS else np.zeros(168, np.int64)
    )
    order = np.argsort(time_ns, kind="stable")
    kind = classes[hours_of_week(time_ns[order])]
    features = Features.of(layout)
    copies, far = np.ones(layout.shape[0]), np.zeros(layout.shape[0])
    pasts = [_blocks(layout, sample, order[kind == each]) for each in range(int(classes.max()) + 1)]
    pasts = [each for each in pasts if len(each) >= LEAST_STRETCHES]
    for past in pasts:
        copies = np.maximum(copies, _copies(past))
    # Of rows of which only a sample is kept, fewer stand beside one that they resemble.
    copies = 1 + (copies - 1) / share
    for past in pasts:
        own = strayed(past, valid=features.valid, ordered=features.ordered, copies=1 + (copies - 1) * share)
        far = np.maximum(far, own)
    return Usual(tuple(classes.tolist()) if classes.max() else (), tuple(copies.tolist()), tuple(far.tolist()))


def _coarse(hours: Counts) -> Counts:
    """Counts (168, F, GROUPS) of neighbouring bins together, of about equal shares.

    Seasons move much of the mass. In fine bins a hundred hours have so much noise between them that they drown it.
    """
    whole = hours.sum(axis=0)
    share = whole / np.maximum(whole.sum(axis=1, keepdims=True), 1)
    group = np.minimum((GROUPS * (np.cumsum(share, axis=1) - share / 2)).astype(np.int64), GROUPS - 1)
    return np.stack([np.where(group == each, hours, 0).sum(axis=2) for each in range(GROUPS)], axis=2)


def _blocks(layout: Layout, sample: Mapping[str, Array], order: Array) -> Counts:
    """Counts (T, F, B) of stretches of equally many rows, in this order."""
    number = min(BLOCKS, len(order) // LEAST_ROWS)
    counts = []
    for rows in np.array_split(order, number) if number else ():
        state = State(layout)
        state.update(Columns(np.zeros(len(rows), np.int64), {name: values[rows] for name, values in sample.items()}))
        counts.append(state.counts)
    return np.array(counts, np.int64).reshape(len(counts), *layout.shape)


def _copies(past: Counts) -> Floats:
    """Copies (F,) of each feature, 1 where independent rows with the same shares could look as clumped."""
    found, dice = clumping(past), np.random.default_rng(0)
    shares = past.sum(axis=0) / np.maximum(past.sum(axis=(0, 2)), 1)[:, None]
    totals = past.sum(axis=2)
    chance = np.ones(past.shape[1])
    for _ in range(CHANCES):
        chance = np.maximum(chance, clumping(dice.multinomial(totals, shares)))
    return np.where(found > chance, found, 1.0)


def summary(usual: Usual, layout: Layout) -> list[str]:
    """What was learned, for people."""
    if not usual.copies:
        return []
    lines = [f"{max(usual.classes) + 1} classes of hours of the week" if usual.classes else "all hours are alike"]
    for row in np.argsort(usual.copies, kind="stable")[::-1][:3].tolist():
        if usual.copies[row] > 1:
            lines.append(f"{layout.names[row]}: rows depend on one another, as {usual.copies[row]:.1f} copies of one")
    for row in np.argsort(usual.strayed, kind="stable")[::-1][:3].tolist():
        if usual.strayed[row] > 0:
            psi = math.ceil(usual.strayed[row] * 1000) / 1000
            lines.append(f"{layout.names[row]}: strays by a PSI of {psi:g} while nothing is wrong, which is tolerated")
    return lines
