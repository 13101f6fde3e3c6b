"""What the alarms make of real data sets with drift that is known, or thought to be, and what others make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtests.alarm_beside import MOST, WHOLE, Streams
from loadtests.alarm_streams import (
    BLOCK,
    Told,
    baseline_of,
    copies_of,
    error_bound,
    label_alarms,
    least_squares,
    read,
    rows,
    watch_inputs,
    watch_losses,
)
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


HEADERS = {
    "inputs": "data | baseline | watched rows | tolerance | alarms | first alarm | it began | it names | loudest before"
    " | Evidently: report | Evidently: a column | NannyML: a column",
    "labels": "data | watched | alarms of the label monitors | Evidently: a figure | NannyML: realised | NannyML: CBPE",
    "quality": "data | first alarm | it names | Evidently: a test | Evidently: missing | NannyML: missing or unseen",
}


def data_tables(folder: Path, quick: bool) -> str:
    """The tables of inputs, of labels and of data quality; empty where the data are not there."""
    if not folder.is_dir():
        return ""
    with Streams(quick) as others:
        maker = Maker(folder, others)
        lines = {"inputs": maker.inputs(), "labels": maker.labels(), "quality": maker.quality()}
        versions = ", ".join(f"{name} {number}" for name, number in sorted(others.versions.items()))
    parts = []
    for name, header in HEADERS.items():
        parts += [f"| {header} |", f"|{'---|' * (header.count('|') + 1)}", *(f"| {each} |" for each in lines[name]), ""]
    return "\n".join([*parts, f"{versions or 'no other library'}; Evidently on {MOST} chunks at most."])


Columns = Mapping[str, Array]
Pair = tuple[Columns, Columns]


@dataclass(frozen=True)
class Labelled:
    """Predictions with their truth: those of the baseline, and those that are watched; `breaks` are rows of these."""

    name: str
    told: str
    known: Columns
    stream: Columns
    breaks: Sequence[int] = ()


class Maker:
    """Makes the lines of all tables from the data sets in a folder, with what others say beside."""

    def __init__(self, folder: Path, others: Streams) -> None:
        self._folder = folder
        self._others = others

    def inputs(self) -> list[str]:
        """Every line about inputs."""
        folder = self._folder
        lines = [*car_loan(folder), *harvard(folder), *employment(folder), *seasonal(folder), *gas(folder)]
        return [self._input(each) for each in lines]

    def labels(self) -> list[str]:
        """Every line about labels."""
        folder = self._folder
        harvards = [harvard_labels(folder, name) for name in HARVARD]
        return [self._label(each) for each in (car_loan_labels(folder), *harvards, employment_labels(folder))]

    def quality(self) -> list[str]:
        """Data as they should be, with faults, and with a code for missing that nobody was told of."""
        wanted = ("car loan, features and score", "car loan with faults (dq)", "air quality")
        lines = {each.name: each for each in (*car_loan(self._folder), *seasonal(self._folder))}
        return [self._quality(lines[name]) for name in wanted]

    def _input(self, line: Line) -> str:
        baseline = baseline_of(line.known)
        copies = copies_of(baseline, line.known) if line.dependent else np.array(1.0)
        told = watch_inputs(baseline, line.stream, tolerance=line.tolerance, copies=copies)
        how = f"{line.tolerance:g}" + (f", up to {np.max(copies):.0f} copies" if line.dependent else "")
        report = self._ask("evidently-drift", line, lambda name: name.startswith(WHOLE))
        column = self._ask("evidently-drift", line, lambda name: not name.startswith(WHOLE))
        others = f"{report} | {column} | {self._ask('nannyml-drift', line)}"
        return f"{line.name} | {line.size:,} rows | {told.watched:,} | {how} | {summary(told)} | {others}"

    def _label(self, line: Labelled) -> str:
        others = [self._ask(peer, line) for peer in ("evidently-labels", "nannyml-labels", "nannyml-cbpe")]
        return f"{line.name} | {line.told} | {' | '.join(others)}"

    def _quality(self, line: Line) -> str:
        told = watch_inputs(baseline_of(line.known), line.stream, most=1)
        tests = self._ask("evidently-quality", line)
        missing = self._ask("evidently-quality", line, _is_share_of_missing)
        first = f"{told.at[0]:,} | {told.about[0]}" if told.at else "- | -"
        return f"{line.name} | {first} | {tests} | {missing} | {self._ask('nannyml-quality', line)}"

    def _ask(self, peer: str, line: Line | Labelled, counts: Callable[[str], bool] = lambda alarm: True) -> str:
        stream = line.name.replace(",", "") + (" labels" if isinstance(line, Labelled) else "")
        return self._others.ask(peer, stream, lambda: (line.known, line.stream), line.breaks, counts)


def _is_share_of_missing(test: str) -> bool:
    """Evidently has two tests for a column: of the number of missing values, which grows with the rows, and this."""
    return "missing values: Equal 0." in test


@dataclass(frozen=True)
class Line:
    """A stream of inputs. `dependent`: how many copies its rows come in is estimated from the baseline."""

    name: str
    known: Columns
    stream: Columns
    tolerance: float = 0.01
    dependent: bool = False
    breaks: Sequence[int] = ()

    @property
    def size(self) -> int:
        """Rows of the baseline."""
        return len(next(iter(self.known.values())))


def summary(told: Told) -> str:
    """Alarms, the first one's row, where it began, what it names, and the most evidence before."""
    loudest = f"{told.loudest:.1f} of 13.2" if np.isfinite(told.loudest) else "-"
    if not told.at:
        return f"0 | - | - | - | {loudest}"
    return f"{len(told.at):,} | {told.at[0]:,} | {told.began[0]:,} | {told.about[0]} | {loudest}"


def _car_loan(folder: Path, which: str) -> dict[str, Array]:
    return read(folder / f"nannyml_synthetic_car_loan_{which}.parquet")


def car_loan(folder: Path) -> list[Line]:
    """Synthetic, with a change at row 25,000 of the analysis; and the same with faults in the data."""
    known, stream, faulty = (_car_loan(folder, which) for which in ("reference", "analysis", "dq_analysis"))
    names = [*CAR_LOAN, "y_pred_proba"]
    return [
        Line(
            "car loan, features and score",
            {n: known[n] for n in names},
            {n: stream[n] for n in names},
            breaks=(25_000,),
        ),
        Line("car loan, first 25,000 rows", {n: known[n] for n in names}, {n: stream[n][:25_000] for n in names}),
        Line("car loan with faults (dq)", {n: known[n] for n in CAR_LOAN}, {n: faulty[n] for n in CAR_LOAN}),
    ]


def harvard(folder: Path) -> list[Line]:
    """The relation of label and features breaks at rows 10,000, 20,000 and 30,000; rows from 5,000 on are watched."""
    lines = []
    for name in HARVARD:
        features = {n: values for n, values in read(folder / f"{name}.parquet").items() if n != "class"}
        lines.append(Line(name, rows(features, 0, 5000), rows(features, 5000)))
    return lines


def employment(folder: Path) -> list[Line]:
    """Census rows of 2015, then of 2016 to 2018."""
    known, stream = (read(folder / f"nannyml_employment_MA_{which}.parquet") for which in ("reference", "analysis"))
    names = [n for n in stream if n not in ("id", "year", "prediction")]
    pair = {n: known[n] for n in names}, {n: stream[n] for n in names}
    # By year, and at random within each: what is left is how the years differ, not how the files are sorted.
    order = np.lexsort((np.random.default_rng(75).random(len(stream["year"])), stream["year"]))
    shuffled = {n: values[order] for n, values in pair[1].items()}
    return [
        Line("employment MA", *pair),
        Line("employment MA", *pair, tolerance=0.1, dependent=True),
        Line("employment MA, shuffled within years", pair[0], shuffled),
        Line("employment MA, shuffled within years", pair[0], shuffled, tolerance=0.05),
    ]


def seasonal(folder: Path) -> list[Line]:
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
        lines.append(Line(name, known, stream))
        lines.append(Line(name, known, stream, tolerance=0.1, dependent=True))
    return lines


def gas(folder: Path) -> list[Line]:
    """Sensors that age: batches 1 and 2 are the baseline."""
    data = read(folder / "gas_sensor_drift_8of10.parquet")
    features = {n: values for n, values in data.items() if n not in ("batch", "gas")}
    first = int((data["batch"] <= 2).sum())
    return [Line("gas sensors", rows(features, 0, first), rows(features, first))]


def car_loan_labels(folder: Path) -> Labelled:
    """The error of the predictions that come with the car loans."""
    known, stream = _car_loan(folder, "reference"), _car_loan(folder, "analysis")
    truth = _car_loan(folder, "analysis_target")["repaid"]
    bound = error_bound(known["y_pred"] != known["repaid"])
    told = watch_losses((stream["y_pred"] != truth).astype(np.float64), bound)
    return Labelled(
        "car loan, break at 25,000",
        f"{told.watched:,} | {_rows(told)}",
        _judged(known["y_pred_proba"], known["y_pred"], known["repaid"]),
        _judged(stream["y_pred_proba"], stream["y_pred"], truth),
        breaks=(25_000,),
    )


def employment_labels(folder: Path) -> Labelled:
    """The error of the predictions that come with the census."""
    known, stream = (read(folder / f"nannyml_employment_MA_{which}.parquet") for which in ("reference", "analysis"))
    truth = read(folder / "nannyml_employment_MA_analysis_target.parquet")["employed"]
    bound = error_bound(known["prediction"] != known["employed"])
    told = watch_losses((stream["prediction"] != truth).astype(np.float64), bound)
    return Labelled(
        "employment MA, no known break",
        f"{told.watched:,} | {_rows(told)}",
        _judged(known["predicted_probability"], known["prediction"], known["employed"]),
        _judged(stream["predicted_probability"], stream["prediction"], truth),
    )


def harvard_labels(folder: Path, name: str) -> Labelled:
    """The label monitors of a model that is trained anew after each alarm; others watch the first of these models."""
    data = read(folder / f"{name}.parquet")
    x = np.stack([values for n, values in data.items() if n != "class"], axis=1)
    found = label_alarms(x, data["class"])
    told = "; ".join(f"{each.row:,} ({each.watch}, began at {each.began:,})" for each in found)
    score = least_squares(x, data["class"], slice(0, 1500))
    whole = _judged(np.clip((score + 1) / 2, 0, 1), score > 0, data["class"])
    return Labelled(
        f"{name}, breaks at 10,000, 20,000, 30,000",
        f"{len(x) - 7500 - BLOCK:,} | {told or 'none'}",
        rows(whole, 1500, 7500),
        rows(whole, 8000),
        breaks=(2_000, 12_000, 22_000),
    )


def _judged(score: Array, said: Array, truth: Array) -> dict[str, Array]:
    """What other libraries are given of predictions."""
    return {"score": score, "said": said.astype(np.int64), "truth": truth.astype(np.int64)}


def _rows(told: Told) -> str:
    if not told.at:
        return f"none; loudest {told.loudest:.1f} of 13.2"
    first = f"{told.at[0]:,} (began at {told.began[0]:,}, error {told.about[0]})"
    return f"{len(told.at)}, the first at {first}; loudest before {told.loudest:.1f} of 13.2"
