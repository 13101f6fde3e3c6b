"""The models of the benchmark are the same every time and do what their table says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.models.options import SessionOptions
from gateway.models.session import Session
from loadtests import models
from loadtests.bodies import WIDTHS
from loadtests.ort_alone import load, rows_per_second

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("trees", "mlp", "identity")


@pytest.mark.parametrize("name", SMALL)
def test_a_model_is_made_of_the_same_bytes_every_time(name: str) -> None:
    assert models.MADE[name]() == models.MADE[name]()


@pytest.mark.parametrize("name", SMALL)
def test_a_row_gets_the_same_answer_alone_and_in_a_batch(name: str) -> None:
    session = Session(models.MADE[name](), SessionOptions())
    (spec,) = session.contract.inputs
    assert (spec.name, spec.datatype, spec.shape) == ("x", "FP32", (-1, *WIDTHS[name]))
    rows = np.random.default_rng(1).standard_normal((5, *WIDTHS[name])).astype(np.float32)
    names = [output.name for output in session.contract.outputs]
    together = session.run({"x": rows}, names)
    for index in range(5):
        alone = session.run({"x": rows[index : index + 1]}, names)
        for one, all_ in zip(alone, together, strict=True):
            assert np.allclose(one[0], all_[index], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["trees", "mlp"])
def test_the_answers_are_probabilities_that_depend_on_the_row(name: str) -> None:
    session = Session(models.MADE[name](), SessionOptions())
    rows = np.random.default_rng(2).standard_normal((64, *WIDTHS[name])).astype(np.float32)
    (probabilities,) = session.run({"x": rows}, ["probabilities"])
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.unique(probabilities[:, 0]).size > 48


def test_the_repository_holds_examples_and_made_models(tmp_path: Path) -> None:
    models.write(tmp_path / "models", ROOT / "examples", ["flights", "identity"])
    files = {path.relative_to(tmp_path / "models").as_posix() for path in (tmp_path / "models").rglob("*")}
    assert {"flights/2/model.onnx", "flights/model.toml", "identity/1/model.onnx", "identity/model.toml"} <= files
    assert not [name for name in files if name.endswith((".py", ".md"))]


def test_onnxruntime_alone_is_timed_for_any_batch(tmp_path: Path) -> None:
    models.write(tmp_path, ROOT / "examples", ["identity"])
    session = load(tmp_path / "identity" / "1" / "model.onnx")
    assert rows_per_second(session, 64, 0.02) > rows_per_second(session, 1, 0.02) > 0
