"""Building a baseline in two passes: one to freeze the bins, one to count on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from monitors import features
from monitors.baseline import usual
from monitors.baseline.document import HOURS, Baseline, Facts, hour_of_week
from monitors.baseline.layout import Layout
from monitors.baseline.scan import Scan
from monitors.count import looked_up, tallied, text_of
from monitors.features import Joint
from monitors.state import State, flattened
from monitors.types import Array, Columns, Monitor

SLICE_VALUES = 32  # values of a slicing column that get counts of their own
BATCH = 1 << 16

Progress = Callable[[str, int], None]


class Source(Protocol):
    """Training data that can be read twice. `describe` names it; `left_out` names columns that cannot be read."""

    def __iter__(self) -> Iterator[Columns]: ...

    @property
    def timed(self) -> bool: ...

    def describe(self) -> str: ...

    def left_out(self) -> Mapping[str, str]: ...


class Arrays:
    """Training data in memory, as a source. `time_ns` int64 (n,), Unix nanoseconds, where there is a time."""

    def __init__(
        self,
        features: Mapping[str, Array],
        outputs: Mapping[str, Array] | None = None,
        labels: Mapping[str, Array] | None = None,
        time_ns: Array | None = None,
    ) -> None:
        outputs, labels = outputs or {}, labels or {}
        lengths = {len(values) for values in (*features.values(), *outputs.values(), *labels.values())}
        if time_ns is not None:
            lengths.add(len(time_ns))
        if len(lengths) > 1:
            raise ValueError(f"the columns have different lengths: {sorted(lengths)}")
        rows = lengths.pop() if lengths else 0
        self.timed = time_ns is not None
        time_ns = np.zeros(rows, dtype=np.int64) if time_ns is None else time_ns
        labelled = {name: np.ones(rows, dtype=bool) for name in labels}
        self._columns = Columns(time_ns, features, outputs, labels, labelled)

    def __iter__(self) -> Iterator[Columns]:
        for start in range(0, len(self._columns), BATCH):
            yield self._columns.take(slice(start, start + BATCH))

    def describe(self) -> str:
        return "arrays"

    def left_out(self) -> Mapping[str, str]:
        return {}


def build(
    source: Source,
    *,
    categorical: Iterable[str] = (),
    slices: Sequence[str] = (),
    monitors: Mapping[str, Callable[[Layout], Monitor]] | None = None,
    learned: bool = False,
    progress: Progress | None = None,
    scan: Scan | None = None,
) -> Baseline:
    """A baseline of `source`.

    `categorical`: columns of numbers that are categories. `slices`: columns by whose values (the 32 most frequent)
    counts are kept apart too. `monitors`: makers of further monitors, fed in the second pass and kept in `parts`.
    `progress` is called with the pass ("reading" or "counting") and the rows done. Raises ValueError where a column of
    `slices` is not there or there are no rows.
    """
    scan = Scan(frozenset(categorical)) if scan is None else scan
    for columns in source:
        scan.update(columns)
        if progress is not None:
            progress("reading", scan.rows)
    if not scan.rows:
        raise ValueError("the training data has no rows")
    layout = scan.freeze()
    if unknown := set(slices) - set(layout.names):
        raise ValueError(f"there is no column {sorted(unknown)[0]!r} to slice by")
    state = State(layout)
    hours = np.zeros((HOURS, *layout.shape), dtype=np.int64) if source.timed else None
    sample = scan.sample()
    apart = {name: {value: State(layout) for value in frequent(sample[name])} for name in slices}
    joint = Joint(layout, features.freeze(layout, sample))
    further = {name: make(layout) for name, make in (monitors or {}).items()}
    first, last = None, None
    for columns in source:
        if not len(columns):
            continue
        state.update(columns)
        joint.update(columns)
        for name, states in apart.items():
            update_slices(states, {**flattened(columns.features), **flattened(columns.outputs)}[name], columns)
        if hours is not None:
            by_hour = hour_of_week(columns)
            for hour in np.unique(by_hour):
                own = State(layout)
                own.update(columns.take(by_hour == hour))
                hours[hour] += own.counts
            first = min(int(columns.time_ns.min()), int(columns.time_ns.min()) if first is None else first)
            last = max(int(columns.time_ns.max()), int(columns.time_ns.max()) if last is None else last)
        for monitor in further.values():
            monitor.update(columns)
        if progress is not None:
            progress("counting", state.rows)
    left_out = {**source.left_out()}
    left_out.update({name: f"{times} values are no numbers" for name, times in scan.strange().items()})
    facts = Facts(scan.rows, scan.method(), source.describe(), learned, left_out, first, last)
    parts = {name: monitor.to_bytes() for name, monitor in further.items()}
    if hours is not None:
        learned_usual = usual.learn(layout, sample, scan.times(), hours, len(scan.times()) / scan.rows)
        parts[usual.PART] = learned_usual.to_bytes()
    return Baseline(layout, state, facts, hours, apart, joint, parts)


def frequent(values: Array, limit: int = SLICE_VALUES) -> list[str]:
    """The most frequent values of a column as texts, ties by name; missing ones are left out."""
    counts: dict[str, int] = {}
    for value, times in tallied(values).items():
        if (key := text_of(value)) is not None:
            counts[key] = counts.get(key, 0) + times
    return [key for key, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]]


def update_slices(states: Mapping[str, State], values: Array, columns: Columns) -> None:
    """Count `columns` in the state of each row's value; rows with any other value are in none."""
    places = looked_up(values, {value: place for place, value in enumerate(states)}, len(states))
    for place, state in enumerate(states.values()):
        if (own := places == place).any():
            state.update(columns.take(own))
