"""What the alarms make of real data sets with drift that is known, or thought to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from loadtests.alarm_streams import (
    BLOCK,
    Told,
    baseline_of,
    blocks_of,
    error_bound,
    fixed_rules,
    label_alarms,
    read,
    rows,
    watch_inputs,
    watch_losses,
)
from monitors.evidence.calibration import clumping
from monitors.types import Array

CAR_LOAN = (
    "car_value",
    "salary_range",
    "debt_to_income_ratio",
    "loan_length",
    "repaid_loan_on_prev_car",
    "size_of_downpayment",
    "driver_tenure",
)
HARVARD = ("harvard_sine_0123_abrupto", "harvard_sea_0123_abrupto_noise_0.2")


def data_tables(folder: Path, quick: bool) -> str:
    """The table of inputs and the one of labels; empty where the data are not there."""
    if not folder.is_dir():
        return ""
    header = "data | baseline | watched rows | tolerance | alarms | first alarm | it began | it names | loudest before"
    inputs = [*car_loan(folder), *harvard(folder), *employment(folder), *seasonal(folder), *gas(folder)]
    labels = [car_loan_labels(folder), *(harvard_labels(folder, name) for name in HARVARD), employment_labels(folder)]
    parts = [f"| {header} | W1 rule | KS rule | JS rule |\n|{'---|' * 12}", *(f"| {each} |" for each in inputs), ""]
    parts += ["| data | watched | alarms of the label monitors |\n|---|---|---|", *(f"| {each} |" for each in labels)]
    return "\n".join(parts)


def line(
    name: str,
    known: Mapping[str, Array],
    stream: Mapping[str, Array],
    *,
    tolerance: float = 0.01,
    chunk: int = 1000,
    dependent: bool = False,
) -> str:
    """One line of the table of inputs; `dependent` estimates from the baseline in how many copies its rows come."""
    baseline = baseline_of(known)
    copies: float | Array = 1.0
    if dependent:
        copies = clumping(np.array([counts for _, counts in blocks_of(baseline, known, 16)]))
    told = watch_inputs(baseline, stream, tolerance=tolerance, copies=copies)
    rules = fixed_rules(known, stream, chunk)
    by_rule = " | ".join(f"{hits} of {chunks} chunks" for hits, chunks in rules.values())
    how = f"{tolerance:g}" + (f", up to {np.max(copies):.0f} copies" if dependent else "")
    size = len(next(iter(known.values())))
    return f"{name} | {size:,} rows | {told.watched:,} | {how} | {summary(told)} | {by_rule}"


def summary(told: Told) -> str:
    """Alarms, the first one's row, where it began, what it names, and the most evidence before."""
    loudest = f"{told.loudest:.1f} of 13.2" if np.isfinite(told.loudest) else "-"
    if not told.at:
        return f"0 | - | - | - | {loudest}"
    return f"{len(told.at):,} | {told.at[0]:,} | {told.began[0]:,} | {told.about[0]} | {loudest}"


def _car_loan(folder: Path, which: str) -> dict[str, Array]:
    return read(folder / f"nannyml_synthetic_car_loan_{which}.parquet")


def car_loan(folder: Path) -> list[str]:
    """Synthetic, with a change at row 25,000 of the analysis; and the same with faults in the data."""
    known, stream, faulty = (_car_loan(folder, which) for which in ("reference", "analysis", "dq_analysis"))
    names = [*CAR_LOAN, "y_pred_proba"]
    return [
        line("car loan, features and score", {n: known[n] for n in names}, {n: stream[n] for n in names}),
        line("car loan, first 25,000 rows", {n: known[n] for n in names}, {n: stream[n][:25_000] for n in names}),
        line("car loan with faults (dq)", {n: known[n] for n in CAR_LOAN}, {n: faulty[n] for n in CAR_LOAN}),
    ]


def harvard(folder: Path) -> list[str]:
    """The relation of label and features breaks at rows 10,000, 20,000 and 30,000; rows from 5,000 on are watched."""
    lines = []
    for name in HARVARD:
        features = {n: values for n, values in read(folder / f"{name}.parquet").items() if n != "class"}
        lines.append(line(name, rows(features, 0, 5000), rows(features, 5000)))
    return lines


def employment(folder: Path) -> list[str]:
    """Census rows of 2015, then of 2016 to 2018."""
    known, stream = (read(folder / f"nannyml_employment_MA_{which}.parquet") for which in ("reference", "analysis"))
    names = [n for n in stream if n not in ("id", "year", "prediction")]
    pair = {n: known[n] for n in names}, {n: stream[n] for n in names}
    # By year, and at random within each: what is left is how the years differ, not how the files are sorted.
    order = np.lexsort((np.random.default_rng(75).random(len(stream["year"])), stream["year"]))
    shuffled = {n: values[order] for n, values in pair[1].items()}
    return [
        line("employment MA", *pair),
        line("employment MA", *pair, tolerance=0.1, dependent=True),
        line("employment MA, shuffled within years", pair[0], shuffled),
        line("employment MA, shuffled within years", pair[0], shuffled, tolerance=0.05),
    ]


def seasonal(folder: Path) -> list[str]:
    """Streams in time, whose rows depend on one another: a year or so is the baseline, the rest is watched."""
    noaa = {n: values for n, values in read(folder / "noaa_weather.parquet").items() if n != "target"}
    elec = {n: values for n, values in read(folder / "elec2.parquet").items() if n not in ("date", "class", "day")}
    air = {n: values for n, values in read(folder / "uci_air_quality.parquet").items() if n not in ("Date", "Time")}
    bike = read(folder / "uci_bike_sharing_hour.parquet")
    bikes = {n: bike[n] for n in ("weathersit", "temp", "hum", "windspeed", "cnt")}
    lines = []
    for name, data, first in (
        ("noaa weather", noaa, 3653),
        ("elec2", elec, 17_520),
        ("air quality", air, 3000),
        ("bike sharing", bikes, 8645),
    ):
        known, stream = rows(data, 0, first), rows(data, first)
        lines.append(line(name, known, stream))
        lines.append(line(name, known, stream, tolerance=0.1, dependent=True))
    return lines


def gas(folder: Path) -> list[str]:
    """Sensors that age: batches 1 and 2 are the baseline."""
    data = read(folder / "gas_sensor_drift_8of10.parquet")
    features = {n: values for n, values in data.items() if n not in ("batch", "gas")}
    first = int((data["batch"] <= 2).sum())
    return [line("gas sensors", rows(features, 0, first), rows(features, first))]


def car_loan_labels(folder: Path) -> str:
    """The error of the predictions that come with the car loans."""
    known, stream = _car_loan(folder, "reference"), _car_loan(folder, "analysis")
    truth = _car_loan(folder, "analysis_target")["repaid"]
    bound = error_bound(known["y_pred"] != known["repaid"])
    told = watch_losses((stream["y_pred"] != truth).astype(np.float64), bound)
    return f"car loan, break at 25,000 | {told.watched:,} | {_rows(told)}"


def employment_labels(folder: Path) -> str:
    """The error of the predictions that come with the census."""
    known, stream = (read(folder / f"nannyml_employment_MA_{which}.parquet") for which in ("reference", "analysis"))
    truth = read(folder / "nannyml_employment_MA_analysis_target.parquet")["employed"]
    bound = error_bound(known["prediction"] != known["employed"])
    told = watch_losses((stream["prediction"] != truth).astype(np.float64), bound)
    return f"employment MA, no known break | {told.watched:,} | {_rows(told)}"


def harvard_labels(folder: Path, name: str) -> str:
    """The label monitors of a model that is trained anew after each alarm."""
    data = read(folder / f"{name}.parquet")
    x = np.stack([values for n, values in data.items() if n != "class"], axis=1)
    found = label_alarms(x, data["class"])
    told = "; ".join(f"{each.row:,} ({each.watch}, began at {each.began:,})" for each in found)
    return f"{name}, breaks at 10,000, 20,000, 30,000 | {len(x) - 7500 - BLOCK:,} | {told or 'none'}"


def _rows(told: Told) -> str:
    if not told.at:
        return f"none; loudest {told.loudest:.1f} of 13.2"
    first = f"{told.at[0]:,} (began at {told.began[0]:,}, error {told.about[0]})"
    return f"{len(told.at)}, the first at {first}; loudest before {told.loudest:.1f} of 13.2"
