"""Maturity: how long after their predictions labels come, and how many predictions have one at which age. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

HOUR_NS = 3_600_000_000_000
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400

LAGS_S = (
    *(1, 10, MINUTE_S, 10 * MINUTE_S, HOUR_S, 6 * HOUR_S, 12 * HOUR_S),
    *(DAY_S, 2 * DAY_S, 3 * DAY_S, 7 * DAY_S, 14 * DAY_S, 30 * DAY_S, 60 * DAY_S, 90 * DAY_S, 180 * DAY_S),
)
"""Upper edges, seconds, of the classes of lags; one more class is open."""


class Coverage(NamedTuple):
    """Of the predictions that are at least `age_s` old, the share that had a label when they were of that age.

    `predictions` is how many of these there are; an age that none has reached is left out.
    """

    age_s: int
    labels: int
    predictions: int

    @property
    def ratio(self) -> float:
        """Labels for each prediction, from 0 to 1."""
        return self.labels / self.predictions


def hour_of(time_ns: int) -> int:
    """The hour of Unix time that a moment lies in."""
    return time_ns // HOUR_NS


def lag_class(lag_ns: int) -> int:
    """The class of a lag: the first edge that it does not pass. A label that came before its prediction is in 0."""
    return bisect_left(LAGS_S, lag_ns / 1e9)


def coverage(
    volumes: Iterable[tuple[int, int]], arrivals: Iterable[tuple[int, int, int]], now_ns: int
) -> list[Coverage]:
    """The maturity curve: coverage at every age of LAGS_S.

    `volumes`: (hour, predictions). `arrivals`: (hour of the prediction, lag class, labels). An hour counts when
    its last minute is of the age, so young hours do not pull the curve down.
    """
    by_hour: dict[int, int] = {}
    for hour, predictions in volumes:
        by_hour[hour] = by_hour.get(hour, 0) + predictions
    labelled: dict[int, list[tuple[int, int]]] = {}
    for hour, lag, labels in arrivals:
        labelled.setdefault(hour, []).append((lag, labels))
    curve = []
    for index, age_s in enumerate(LAGS_S):
        old = [hour for hour in by_hour if (hour + 1) * HOUR_NS + age_s * 1_000_000_000 <= now_ns]
        predictions = sum(by_hour[hour] for hour in old)
        if predictions:
            labels = sum(count for hour in old for lag, count in labelled.get(hour, ()) if lag <= index)
            curve.append(Coverage(age_s, labels, predictions))
    return curve
