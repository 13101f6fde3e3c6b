"""Give both versions of `flights` their baselines: the training data, and what is answered about it, in counts.

A monitor compares live flights with them. Run twice, this program writes the same bytes twice.
"""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

import argparse
import sys
from calendar import month_name
from pathlib import Path

import numpy as np
import pandas as pd

from examples.flights.train import COLUMNS, LATE, NUMBERS, RELEASES, Release, fit, load_flights, predict
from gateway.models.config import parse
from gateway.models.package import add_file
from monitors.baseline.build import Arrays, build
from monitors.baseline.document import FILE, Baseline
from monitors.cli import summary
from monitors.learnt import PART, Learner
from monitors.task import Task
from monitors.types import Array

STRETCHES, FOLDS = 30, 3


class Training(Arrays):
    """Flights in memory with what a model that had not seen them answered, as a source that says which they are."""

    def __init__(self, rows: pd.DataFrame) -> None:
        super().__init__(columns_of(rows), answers(rows), {LATE: rows[LATE].to_numpy()})
        self._months = int(rows["month"].min()), int(rows["month"].max())

    def describe(self) -> str:
        """See monitors.baseline.build.Source."""
        return "the flights of {} to {} 2013".format(*(month_name[month] for month in self._months))


def training_rows(flights: pd.DataFrame, release: Release) -> pd.DataFrame:
    """The flights that a version has learned from."""
    return flights[flights["month"] <= release.last_month]


def columns_of(rows: pd.DataFrame) -> dict[str, Array]:
    """The model's inputs, (n,): float32, and text as objects."""
    return {name: rows[name].to_numpy(np.float32 if name in NUMBERS else object) for name in COLUMNS}


def answers(rows: pd.DataFrame) -> dict[str, Array]:
    """What models of the same making say of rows that they have not seen: `label` (n,) and `probabilities` (n, 2).

    A model knows its training data better than any flight to come, so its own answers there would promise too much.
    The rows are in the order of their days; a third of the stretches, some days each, is left out at a time.
    """
    fold = np.arange(len(rows)) * STRETCHES // len(rows) % FOLDS
    probabilities = np.empty((len(rows), 2), np.float32)
    for left_out in range(FOLDS):
        model = fit(rows[fold != left_out])
        probabilities[fold == left_out] = predict(model, rows[fold == left_out])
    return {"label": (probabilities[:, 1] > probabilities[:, 0]).astype(np.int64), "probabilities": probabilities}


def baseline_of(rows: pd.DataFrame) -> Baseline:
    """The baseline of a version that was trained on these rows, labels included."""
    source = Training(rows)
    task = Task.of(parse((Path(__file__).parent / "model.toml").read_bytes()))
    assert task is not None
    learner = Learner.of(task, source)
    return build(source, monitors={PART: lambda _: learner})


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and add the baselines."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.flights.baseline",
        description="Build the baselines of the versions that train.py has made; takes about a minute.",
    )
    parser.add_argument("--models", type=Path, default=Path(__file__).parent, metavar="DIR", help="the model's folder")
    options = parser.parse_args(arguments)
    home = options.models.resolve()
    flights = load_flights()
    for release in RELEASES:
        folder = home / str(release.version)
        if not folder.is_dir():
            print(f"{options.models} has no version {release.version}: train.py makes it", file=sys.stderr)
            return 1
        baseline = baseline_of(training_rows(flights, release))
        add_file(folder, FILE, baseline.to_bytes())
        print(f"{home.name} {release.version}: {summary(baseline)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
