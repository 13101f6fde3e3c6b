"""What another library's defaults say about a stream: `python alarm_peers.py NAME FOLDER CHUNK MOST`.

FOLDER holds known.parquet and stream.parquet. The stream is looked at in chunks of CHUNK rows, at most MOST of them,
evenly spread, where a look takes long. Printed is JSON: the library's version, and for each chunk that was looked at
its number and what it alarms on. Nothing of Headgate is imported, so this runs where only the library is.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

Looks = dict[int, list[str]]
"""What is alarmed on, by the number of the chunk."""

LABELS = {"target": "truth", "prediction_labels": "said", "prediction_probas": "score"}
METRICS = ["accuracy", "roc_auc"]


def spread(chunks: int, most: int) -> list[int]:
    """Numbers of at most `most` chunks, the first and the last among them."""
    if chunks <= most:
        return list(range(chunks))
    return sorted({round(place * (chunks - 1) / (most - 1)) for place in range(most)})


def evidently_tests(preset: str) -> Callable[[Any, Any, int, int], Looks]:
    """The tests that a preset makes of the reference by itself: the names of those that fail.

    Those of DataDriftPreset are one for each column, and one for the share of columns that drifted, less than half.
    """

    def look(known: Any, stream: Any, chunk: int, most: int) -> Looks:
        package = import_module("evidently")
        labelled = package.BinaryClassification(**LABELS) if preset == "ClassificationPreset" else None
        kinds = package.DataDefinition(classification=[labelled] if labelled else None)
        report = package.Report([getattr(import_module("evidently.presets"), preset)()], include_tests=True)
        whole = package.Dataset.from_pandas(known, kinds)
        found: Looks = {}
        for number, rows in _chunks(stream, chunk, most):
            tests = report.run(package.Dataset.from_pandas(rows, kinds), whole).dict()["tests"]
            found[number] = [test["name"] for test in tests if str(test["status"]).endswith("FAIL")]
        return found

    return look


def nannyml_drift(known: Any, stream: Any, chunk: int, most: int) -> Looks:
    """Univariate drift by its default methods and thresholds: the columns that it alerts on."""
    calculator = import_module("nannyml").UnivariateDriftCalculator(column_names=list(known), chunk_size=chunk)
    return _alerts(calculator.fit(known).calculate(stream))


def nannyml_quality(known: Any, stream: Any, chunk: int, most: int) -> Looks:
    """Rates of missing values, and of unseen ones in categories."""
    package = import_module("nannyml")
    texts = [name for name in known if known[name].dtype == object]
    found = _alerts(package.MissingValuesCalculator(list(known), chunk_size=chunk).fit(known).calculate(stream))
    if texts:
        unseen = _alerts(package.UnseenValuesCalculator(texts, chunk_size=chunk).fit(known).calculate(stream))
        found = {number: [*names, *unseen[number]] for number, names in found.items()}
    return found


def nannyml_labels(estimator: str, verb: str) -> Callable[[Any, Any, int, int], Looks]:
    """Accuracy and ROC AUC, realised or estimated, against the default thresholds."""

    def look(known: Any, stream: Any, chunk: int, most: int) -> Looks:
        columns = {"y_true": "truth", "y_pred": "said", "y_pred_proba": "score"}
        make = getattr(import_module("nannyml"), estimator)
        fitted = make(problem_type="classification_binary", metrics=METRICS, chunk_size=chunk, **columns).fit(known)
        return _alerts(getattr(fitted, verb)(stream))

    return look


PEERS: Mapping[str, tuple[str, Callable[[Any, Any, int, int], Looks]]] = {
    "evidently-drift": ("evidently", evidently_tests("DataDriftPreset")),
    "evidently-quality": ("evidently", evidently_tests("DataSummaryPreset")),
    "evidently-labels": ("evidently", evidently_tests("ClassificationPreset")),
    "nannyml-drift": ("nannyml", nannyml_drift),
    "nannyml-quality": ("nannyml", nannyml_quality),
    "nannyml-labels": ("nannyml", nannyml_labels("PerformanceCalculator", "calculate")),
    "nannyml-cbpe": ("nannyml", nannyml_labels("CBPE", "estimate")),
}


def _chunks(stream: Any, chunk: int, most: int) -> Iterator[tuple[int, Any]]:
    for number in spread(len(stream) // chunk, most):
        yield number, stream.iloc[number * chunk : (number + 1) * chunk].reset_index(drop=True)


def _alerts(result: Any) -> Looks:
    alerts = result.filter(period="analysis").to_df().xs("alert", axis=1, level=-1)
    names = [name[0] if isinstance(name, tuple) else name for name in alerts.columns]
    return {
        number: [name for name, alert in zip(names, row, strict=True) if alert]
        for number, row in enumerate(alerts.to_numpy().tolist())
    }


def main(name: str, folder: str, chunk: int, most: int) -> None:
    """Look and print what is said."""
    warnings.simplefilter("ignore")
    pandas = import_module("pandas")
    package, look = PEERS[name]
    known, stream = (pandas.read_parquet(Path(folder) / f"{part}.parquet") for part in ("known", "stream"))
    stream = stream.iloc[: len(stream) // chunk * chunk]
    print(json.dumps({"version": version(package), "looks": look(known, stream, chunk, most)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
