"""Pictures of four real streams for docs/monitoring-results.md: `python -m loadtests.alarm_pictures`.

Each shows, over the rows that are watched, the drift of the inputs that moved most, the evidence of "different from
training" beside what an alarm takes, and something that moves in the data themselves. Needs the extra `examples`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from examples.flights.chart import Line, Panel, png
from loadtests.alarm_data import Line as Stream
from loadtests.alarm_data import gas, seasonal
from loadtests.alarm_streams import BLOCK, YEARLY, baseline_of, copies_of, read, rows, watch_inputs
from loadtests.alarms import DOCUMENT, data_folder
from monitors.baseline.document import Baseline
from monitors.drift.report import drift
from monitors.types import Array, Columns, Floats

WINDOW = 256
"""Rows of a point of the upper and lower panels."""

SHOWN = 5

Ticks = list[tuple[float, str]]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Picture:
    """What is drawn: `told` says what the lowest panel shows, by name a number for each watched row."""

    name: str
    stream: Stream
    against: str
    told: str
    shown: Mapping[str, Array]
    ticks: Ticks


def months(days: Sequence[date]) -> Ticks:
    """The row with which each month begins that is there from its beginning."""
    starts = [row for row in range(1, len(days)) if days[row].month != days[row - 1].month]
    return [(row, f"{days[row]:%b}\n{days[row]:%Y}" if days[row].month == 1 else f"{days[row]:%b}") for row in starts]


def pictures(folder: Path) -> list[Picture]:
    """All of them."""
    last = {line.name: line for line in (*seasonal(folder), *gas(folder))}  # the lines that know of copies
    elec, air, bike, sensors = (last[name] for name in ("elec2", "air quality", "bike sharing", "gas sensors"))
    half_hours = [date(1997, 5, 7) + timedelta(minutes=30 * row) for row in range(0, 48 * 600, 48)]
    dates = [half_hours[row // 48] for row in range(len(elec.stream["transfer"]))]
    air_dates = [date.fromisoformat(text) for text in read(folder / "uci_air_quality.parquet")["Date"][air.size :]]
    hours = rows(read(folder / "uci_bike_sharing_hour.parquet"), bike.size)
    bike_dates = [date(2011 + year, month, 1) for year, month in zip(hours["yr"], hours["mnth"], strict=True)]
    batches = read(folder / "gas_sensor_drift_8of10.parquet")["batch"][sensors.size :]
    starts = np.flatnonzero(np.diff(batches, prepend=0)).tolist()
    coded = {name: air.stream[name] == -200 for name in ("CO(GT)", "NMHC(GT)", "NOx(GT)", "T")}
    return [
        Picture(
            "elec2", elec, "the first year", "Price in New South Wales and transfer between the states, means",
            {name: elec.stream[name] for name in ("nswprice", "transfer")}, months(dates),
        ),
        Picture("air-quality", air, "March to July 2004", "Share of rows with -200, the code for missing", coded,
                months(air_dates)),
        Picture("bike-sharing", bike, "2011", "Bikes rented in an hour, mean", {"cnt": hours["cnt"]},
                months(bike_dates)),
        Picture(
            "gas-sensors", sensors, "batches 1 and 2", "Responses of three sensors over their mean in the baseline",
            {name: sensors.stream[name] / sensors.known[name].mean() for name in ("f1", "f10", "f101")},
            [(row, f"{batches[row]}" if row else f"batch {batches[row]}") for row in starts],
        ),
    ]  # fmt: skip


def psi(baseline: Baseline, stream: Mapping[str, Array]) -> list[tuple[str, Points]]:
    """PSI of the columns that drifted most on average, without what chance adds, window by window."""
    found: list[Floats] = []
    size = len(next(iter(stream.values())))
    for first in range(0, size - WINDOW + 1, WINDOW):
        state = baseline.new_state()
        state.update(Columns(np.zeros(WINDOW, np.int64), rows(stream, first, first + WINDOW)))
        found.append(np.asarray(drift(baseline.state, state)["psi"].debiased))
    values = np.array(found)
    middles = (np.arange(len(values)) + 0.5) * WINDOW
    order = np.argsort(-values.mean(axis=0), kind="stable")[:SHOWN]
    return [
        (baseline.layout.names[row], list(zip(middles.tolist(), values[:, row].tolist(), strict=True))) for row in order
    ]


def means(values: Array) -> Points:
    """Means of windows."""
    whole = np.asarray(values[: len(values) // WINDOW * WINDOW], dtype=np.float64).reshape(-1, WINDOW).mean(axis=1)
    return list(zip(((np.arange(len(whole)) + 0.5) * WINDOW).tolist(), whole.tolist(), strict=True))


def draw(picture: Picture, out: Path) -> str:
    """Write one picture; gives what it shows in a line."""
    stream, baseline = picture.stream, baseline_of(picture.stream.known)
    copies = copies_of(baseline, stream.known) if stream.dependent else np.array(1.0)
    told = watch_inputs(baseline, stream.stream, tolerance=stream.tolerance, copies=copies)
    evidence: Points = [(BLOCK * (place + 1.0), value) for place, value in enumerate(told.evidence)]
    threshold = YEARLY.log_threshold(60.0)
    how = f"tolerance {stream.tolerance:g}" + (f", up to {np.max(copies):.0f} copies" if stream.dependent else "")
    drifted = psi(baseline, stream.stream)
    panels = [
        Panel(
            f"Drift against {picture.against}: PSI of {WINDOW} rows",
            [Line(name, points, place) for place, (name, points) in enumerate(drifted)],
            low=0.0,
        ),
        Panel(
            f"Evidence, ln M ({how}): {len(told.at)} alarm{'s' * (len(told.at) != 1)}, after which it starts anew",
            [
                Line("evidence", evidence, 0),
                Line("an alarm takes", [(0.0, threshold), (float(told.watched), threshold)], 1, dashed=True),
            ],
        ),
        Panel(
            picture.told,
            [Line(name, means(values), place) for place, (name, values) in enumerate(picture.shown.items())],
        ),
    ]
    png(out / f"alarms-{picture.name}.png", panels, picture.ticks, float(told.watched))
    return f"{picture.name}: {len(told.at)} alarms, the first at {told.at[:1]}, then {told.at[1:6]}"


def main(arguments: list[str] | None = None) -> int:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.alarm_pictures", description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCUMENT.parent, help="folder for the pictures (default: docs)")
    options = parser.parse_args(arguments)
    for picture in pictures(data_folder()):
        print(draw(picture, options.out), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
