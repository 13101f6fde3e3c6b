"""How many predictions have a label, by how old they are, and how long labels take.

Figures that rest on labels are figures of the predictions whose labels came: with labels that take weeks, of old ones.
So every such figure is to be read beside the share of predictions of its age that have a label at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from monitors.performance import figure
from monitors.performance.figure import Figure
from monitors.performance.tally import Tally, labelled
from monitors.types import Array, Columns

_S = 1_000_000_000
_HOUR, _DAY = 3600, 86400
AGES_S = (60, 300, 900, _HOUR, 6 * _HOUR, _DAY, 2 * _DAY, 3 * _DAY, 7 * _DAY, 14 * _DAY, 30 * _DAY)


class LabelFlow(Tally):
    """Predictions by bucket of their time, and their labels by bucket and by lag; the oldest buckets are one.

    `label`: the feedback name; `arrival`: the entry of `Columns.labels` with the time at which each label came, int64
    (n,) Unix nanoseconds. Time is cut into buckets of `bucket_s` seconds, of which the newest `buckets` are kept apart:
    which those are is decided by the newest prediction alone, so it does not depend on the order of the rows.
    """

    def __init__(
        self,
        *,
        label: str,
        arrival: str,
        bucket_s: int = _HOUR,
        buckets: int = 24 * 32,
        ages_s: Sequence[int] = AGES_S,
    ) -> None:
        self._label, self._arrival, self._width = label, arrival, bucket_s * _S
        self._kept, self.ages_s = buckets, tuple(ages_s)
        if bucket_s < 1 or buckets < 1:
            raise ValueError("bucket_s and buckets must be at least 1")
        if not self.ages_s or list(self.ages_s) != sorted(set(self.ages_s)) or self.ages_s[0] <= 0:
            raise ValueError("expected rising ages in seconds, above 0")
        super().__init__(label=label, arrival=arrival, bucket_s=bucket_s, buckets=buckets, ages_s=self.ages_s)
        lags = len(self.ages_s) + 2  # the last two: later than all ages, and of unknown time
        self.counts = {
            "newest": np.full(1, np.iinfo(np.int64).min, np.int64),  # the number of the newest bucket; not a count
            "rows": np.zeros(buckets + 1, np.int64),  # older ones, then the buckets up to the newest
            "labels": np.zeros((buckets + 1, lags), np.int64),
            "early": np.zeros(1, np.int64),  # labels that came before their prediction: clocks differ
        }

    @property
    def newest(self) -> int | None:
        """The number of the newest bucket since 1970; None before the first row."""
        number = int(self.counts["newest"][0])
        return None if number == np.iinfo(np.int64).min else number

    def _reach(self, bucket: int) -> None:
        """Make `bucket` the newest, if it is newer: what leaves the window joins the oldest."""
        newest = self.newest
        if newest is None:
            self.counts["newest"][0] = bucket
        elif bucket > newest:
            self.counts["newest"][0] = bucket
            leaving = min(bucket - newest, self._kept)
            for name in ("rows", "labels"):
                old = self.counts[name]
                moved = np.zeros_like(old)
                moved[0] = old[: leaving + 1].sum(axis=0)
                moved[1 : self._kept + 1 - leaving] = old[leaving + 1 :]
                self.counts[name] = moved

    def _places(self, time_ns: Array) -> Array:
        """Where the bucket of each time is counted, (n,): 0 for the older ones."""
        bucket = np.asarray(time_ns, np.int64) // self._width
        if len(bucket):
            self._reach(int(bucket.max()))
        places: Array = np.maximum(self._kept - (self.counts["newest"][0] - bucket), 0)
        return places

    def _predict(self, columns: Columns) -> None:
        places = self._places(columns.time_ns)  # first, as it may move the counts
        self.counts["rows"] += np.bincount(places, minlength=self._kept + 1)

    def _judge(self, columns: Columns, sign: int) -> None:
        rows, _ = labelled(columns, self._label)
        if not len(rows):
            return
        time_ns = np.asarray(columns.time_ns, np.int64)[rows]
        places, lags = self._places(time_ns), len(self.ages_s) + 2
        arrived = columns.labels.get(self._arrival)
        lag = np.full(len(rows), lags - 1)
        if arrived is not None and np.asarray(arrived).dtype.kind in "iu":
            waited = np.asarray(arrived).astype(np.int64)[rows] // _S - time_ns // _S
            lag = np.searchsorted(self.ages_s, waited, side="left")
            self.counts["early"] += sign * int((waited < 0).sum())
        cells = np.bincount(places * lags + lag, minlength=(self._kept + 1) * lags)
        self.counts["labels"] += sign * cells.reshape(-1, lags)

    def merge(self, other: Self) -> None:
        """Add the state of another. Raises ValueError where the two do not have the same settings."""
        if type(other) is not type(self) or other.settings != self.settings:
            raise ValueError(f"{self!r} cannot be merged with {other!r}")
        if other.newest is None:
            return
        aligned = other.fresh()
        aligned.load(other.to_bytes())
        self._reach(other.newest)
        aligned._reach(int(self.counts["newest"][0]))
        for name in ("rows", "labels", "early"):
            self.counts[name] += aligned.counts[name]

    def negative(self) -> int:
        """Labels taken out that were not counted here."""
        return int(-np.minimum(self.counts["labels"], 0).sum())

    def figures(self) -> Mapping[str, Any]:
        """The state as of the end of its newest bucket; see `at`."""
        return self.at(None)

    def at(self, now_ns: int | None) -> Mapping[str, Any]:
        """The state as of `now_ns`, which ages are counted from; the end of the newest bucket where it is None.

        `coverage`: of all predictions. `by_age`: of predictions whose age is above the age before it and at most
        `age_s` (None: older than all), to a bucket, the share labelled so far. `within`: of predictions that are older
        than `age_s`, the share that had its label by that age; this one does not change as a prediction gets older.
        `lag_s`: ages within which half, 90 % and 99 % of the labels came, rounded up, None where later than all ages;
        labels still to come are not among them, so it is low where there are many.
        """
        rows, labels = np.maximum(self.counts["rows"], 0), np.maximum(self.counts["labels"], 0)
        newest = self.newest
        ages = np.zeros(self._kept + 1)  # of the youngest row of a bucket: all of its rows are at least as old
        oldest = np.full(self._kept + 1, np.inf)
        if newest is not None:
            now = (newest + 1) * self._width if now_ns is None else now_ns
            ends = [(newest - behind + 1) * self._width for behind in range(self._kept, -1, -1)]
            ages = np.array([(now - end) / _S for end in ends])
            oldest[1:] = ages[1:] + self._width / _S
        done = labels.sum(axis=1)
        known = labels[:, :-1].sum(axis=0)
        return {
            "predictions": int(rows.sum()),
            "labels": int(done.sum()),
            "coverage": _coverage(done, rows),
            "by_age": self._by_age(oldest, rows, done),
            "within": [
                {"age_s": age, "coverage": _coverage(labels[ages >= age, : place + 1], rows[ages >= age])}
                for place, age in enumerate(self.ages_s)
            ],
            "lag_s": {name: self._lag(known, share) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))},
            "unknown_time": int(labels[:, -1].sum()),
            "early": max(int(self.counts["early"][0]), 0),
            "negative": self.negative(),
        }

    def _by_age(self, ages: Array, rows: Array, done: Array) -> list[dict[str, Any]]:
        group = np.searchsorted(self.ages_s, ages, side="left")
        found = []
        for place, age in enumerate((*self.ages_s, None)):
            found.append({"age_s": age, "coverage": _coverage(done[group == place], rows[group == place])})
        return found

    def _lag(self, known: Array, share: float) -> int | None:
        total = int(known.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(known), share * total - 1e-9))
        return self.ages_s[place] if place < len(self.ages_s) else None


def by_arrival(columns: Columns, label: str, arrival: str) -> Columns:
    """The rows that have a label, at the time their label came: what goes into windows by arrival.

    Rows whose arrival is not known are left out. Windows by the time of the prediction say how good the model was then;
    windows by arrival say it as soon as it can be known, of whatever predictions the labels happen to be about.
    """
    rows, _ = labelled(columns, label)
    arrived = columns.labels.get(arrival)
    if arrived is None or np.asarray(arrived).dtype.kind not in "iu":
        rows = rows[:0]
        arrived = np.zeros(len(columns), np.int64)
    taken = columns.take(rows)
    return Columns(np.asarray(arrived)[rows], taken.features, taken.outputs, taken.labels, taken.labelled)


def _coverage(done: Array, rows: Array) -> Figure:
    """Labels of rows; where a label came for a row that this state did not count, the label counts as its row."""
    labels = int(done.sum())
    total = max(int(rows.sum()), labels)
    return figure.share(labels, total, total)
