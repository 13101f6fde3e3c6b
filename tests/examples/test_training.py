"""The programs that made what ships in `examples/` make it again.

Those that train `flights`, which takes a minute of a core, are run by `make reproduce` and not by `make test`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version as installed
from pathlib import Path

import onnx
import pytest

from gateway.models import config as model_config
from monitors.learnt import PART, Learnt
from monitors.performance.figure import Figure
from monitors.performance.scores import Scores
from monitors.task import Task
from tests.examples.test_examples import EXAMPLES, MODELS, manifest_of
from tests.examples.test_flights_baseline import needs_data, shipped

pytestmark = needs_data


def train(model: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / model / "train.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, check=False)


def skip_with_other_packages(model: str, version: int, *names: str) -> None:
    """The bytes are promised for the package versions that the file itself names."""
    file = onnx.load(EXAMPLES / model / str(version) / "model.onnx")
    made_with = {each.key: each.value for each in file.metadata_props}
    assert made_with.keys() == {"numpy", "onnx", "scikit-learn", "skl2onnx"}
    other = [
        f"{name} {installed(name)} (file: {made_with[name]})"
        for name in names or made_with
        if installed(name) != made_with[name]
    ]
    if other:
        pytest.skip("what ships comes from other package versions: " + ", ".join(sorted(other)))


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("tiny", 1),
        pytest.param("flights", 1, marks=pytest.mark.reproduces),
        pytest.param("flights", 2, marks=pytest.mark.reproduces),
    ],
)
def test_training_again_gives_the_shipped_graph_byte_for_byte_and_its_lineage(
    model: str, version: int, tmp_path: Path
) -> None:
    skip_with_other_packages(model, version)
    only = ("--only", str(version)) if model == "flights" else ()
    result = train(model, "--out", str(tmp_path / model), *only)
    assert result.returncode == 0, result.stderr
    committed, again = manifest_of(model, version), manifest_of(model, version, tmp_path)
    assert again.files["model.onnx"] == committed.files["model.onnx"]
    assert again.lineage == committed.lineage
    assert again.signature == committed.signature


@pytest.mark.parametrize("model", MODELS)
def test_training_does_not_overwrite_a_version_unasked(model: str) -> None:
    before = manifest_of(model, 1)
    result = train(model)
    assert result.returncode == 2
    assert "already holds version 1: add --replace to overwrite it" in result.stderr
    assert "Traceback" not in result.stderr
    assert manifest_of(model, 1) == before


@pytest.mark.reproduces
@pytest.mark.parametrize("version", [1, 2])
def test_building_a_baseline_again_gives_the_shipped_counts_and_labels(version: int) -> None:
    """Its answers come from models that are trained anew, so they are promised for the package versions of train.py."""
    from examples.flights.baseline import baseline_of, training_rows
    from examples.flights.train import RELEASES, load_flights

    skip_with_other_packages("flights", version, "numpy", "scikit-learn")
    known, again = shipped(version), baseline_of(training_rows(load_flights(), RELEASES[version - 1]))
    assert again.layout == known.layout
    assert again.facts == known.facts
    assert again.state.to_bytes() == known.state.to_bytes()
    # The last digits of an answer are the processor's: what is summed of answers agrees but for these.
    assert again.parts.keys() == known.parts.keys() == {PART}
    task = Task.of(model_config.parse((EXAMPLES / "flights" / "model.toml").read_bytes()))
    assert task is not None
    learnt = [Learnt(task, each.parts[PART]) for each in (known, again)]
    assert learnt[0].edges == learnt[1].edges
    before, after = (each.state for each in learnt)
    assert isinstance(before, Scores)
    assert isinstance(after, Scores)
    assert (before.by_class() == after.by_class()).all()
    for name, figure in before.figures().items():
        if isinstance(figure, Figure):
            assert after.figures()[name].value == pytest.approx(figure.value, rel=1e-9, nan_ok=True), name
