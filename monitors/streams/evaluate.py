"""How good alarms are, given where the changes really were.

The numbers of river's drift evaluation, so that they can be put beside published ones. None of them means anything
alone: a detector that always alarms has the best recall and delay, one that never does has no false alarm; `always` and
`never` are those two, to be reported beside any other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the alarms on one stream were worth; None where a number is not defined.

    An alarm within `patience` values after a change (both ends included) is a hit of the earliest such change, any
    other is false. `precision`: hits of alarms. `recall`: changes with a hit (episode recall); `missed` is the rest.
    `delay`: values from a change to its first hit, the mean over the changes that have one. `false_alarms` and their
    rate per value; `time_between_false`: the mean gap between false alarms, from the second on. `ratio`:
    time_between_false / delay * recall, the mean time ratio; more is better.
    """

    changes: int
    alarms: int
    false_alarms: int
    false_alarm_rate: float
    precision: float | None
    recall: float | None
    missed: float | None
    delay: float | None
    time_between_false: float | None
    ratio: float | None


def evaluate(alarms: Iterable[int], changes: Sequence[int], *, length: int, patience: int) -> Evaluation:
    """Compare the indices of `alarms` with those of `changes`, both rising, on a stream of `length` values.

    Raises ValueError where length or patience is below 1 or an index does not lie in the stream.
    """
    raised, known = list(alarms), list(changes)
    if length < 1 or patience < 1:
        raise ValueError("a stream has at least one value, and a change is waited for at least one")
    if any([not 0 <= each < length for each in (*raised, *known)]) or known != sorted(known):
        raise ValueError(f"expected rising indices between 0 and {length - 1}")
    first: dict[int, int] = {}
    false: list[int] = []
    for alarm in raised:
        place = bisect_left(known, alarm - patience)  # the earliest change that is not too long ago
        if place < len(known) and known[place] <= alarm:
            first.setdefault(place, alarm)
        else:
            false.append(alarm)
    delay = _mean([alarm - known[place] for place, alarm in first.items()])
    between = _mean([later - earlier for earlier, later in zip(false, false[1:], strict=False)])
    recall = len(first) / len(known) if known else None
    return Evaluation(
        changes=len(known),
        alarms=len(raised),
        false_alarms=len(false),
        false_alarm_rate=len(false) / length,
        precision=(len(raised) - len(false)) / len(raised) if raised else None,
        recall=recall,
        missed=None if recall is None else 1 - recall,
        delay=delay,
        time_between_false=between,
        ratio=between / delay * recall if between is not None and delay and recall is not None else None,
    )


def always(length: int) -> range:
    """The alarms of the detector that always alarms."""
    return range(length)


def never() -> range:
    """The alarms of the detector that never does."""
    return range(0)


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None
