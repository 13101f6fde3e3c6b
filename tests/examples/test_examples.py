"""The models that ship in `examples/`: what their README and manifests promise, and that training gives them again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from gateway.models import config as model_config
from gateway.models.manifest import Manifest, read_manifest, sha256, verified_file

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = ("flights", "tiny")
VERSIONS = (("flights", 1), ("flights", 2), ("tiny", 1))
MEGABYTE = 1_000_000

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
INPUTS = {
    "flights": [(name, "tensor(float)", 1) for name in NUMBERS] + [(name, "tensor(string)", 1) for name in STRINGS],
    "tiny": [("x", "tensor(float)", 30)],
}

every_version = pytest.mark.parametrize(("model", "version"), VERSIONS)


def open_session(model: str, version: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(EXAMPLES / model / str(version) / "model.onnx", options)


def manifest_of(model: str, version: int, models: Path = EXAMPLES) -> Manifest:
    return read_manifest(models / model / str(version), model, version)


def golden_samples(model: str, version: int) -> list[dict[str, Any]]:
    document = json.loads((EXAMPLES / model / str(version) / "golden.json").read_text())
    return list(document["samples"])


def feeds(request: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a JSON request; null is NaN."""
    return {tensor["name"]: array_of(tensor) for tensor in request["inputs"]}


def array_of(tensor: Mapping[str, Any]) -> Any:
    dtype = {"FP32": np.float32, "INT64": np.int64, "BYTES": object}[tensor["datatype"]]
    values = [np.nan if value is None else value for value in tensor["data"]]
    return np.array(values, dtype).reshape(tensor["shape"])


def is_missing(tensor: Mapping[str, Any]) -> bool:
    return None in tensor["data"]


def test_every_shipped_file_is_under_one_megabyte() -> None:
    files = [path for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) >= 3 * len(VERSIONS)
    assert {str(path.relative_to(EXAMPLES)) for path in files if path.stat().st_size >= MEGABYTE} == set()


@every_version
def test_a_graph_has_an_input_per_column_and_two_outputs_with_a_free_first_axis(model: str, version: int) -> None:
    session = open_session(model, version)
    inputs = [(node.name, node.type, node.shape) for node in session.get_inputs()]
    assert inputs == [(name, type_, ["batch", width]) for name, type_, width in INPUTS[model]]
    outputs = [(node.name, node.type, node.shape) for node in session.get_outputs()]
    assert outputs == [("label", "tensor(int64)", ["batch"]), ("probabilities", "tensor(float)", ["batch", 2])]


@every_version
def test_the_manifest_describes_the_files_and_their_origin(model: str, version: int) -> None:
    manifest = manifest_of(model, version)
    watched = {"baseline.msgpack"} if model == "flights" else set()
    assert set(manifest.files) == {"model.onnx", "golden.json"} | watched
    for name in manifest.files:
        verified_file(EXAMPLES / model / str(version), name, manifest, MEGABYTE)
    assert manifest.signature is not None
    assert manifest.signature.batched
    lineage = manifest.lineage
    assert lineage.author
    assert lineage.reason
    assert re.fullmatch("sha256:[0-9a-f]{64}", lineage.training_data)
    assert lineage.created.endswith("Z")


@every_version
def test_the_manifest_names_the_edition_of_train_py_that_is_shipped(model: str, version: int) -> None:
    program = EXAMPLES / model / "train.py"
    assert manifest_of(model, version).lineage.code_revision == f"sha256:{sha256(program.read_bytes())}"


@every_version
def test_golden_outputs_are_what_onnxruntime_answers(model: str, version: int) -> None:
    session = open_session(model, version)
    for sample in golden_samples(model, version):
        names = [tensor["name"] for tensor in sample["outputs"]]
        assert names == ["label", "probabilities"]
        label, probabilities = session.run(names, feeds(sample))
        np.testing.assert_array_equal(label, array_of(sample["outputs"][0]))
        np.testing.assert_allclose(probabilities, array_of(sample["outputs"][1]), rtol=1e-5, atol=1e-6)


@every_version
def test_golden_samples_hold_both_answers_and_a_batch(model: str, version: int) -> None:
    samples = golden_samples(model, version)
    rows = [sample["inputs"][0]["shape"][0] for sample in samples]
    labels = {label for sample in samples for label in sample["outputs"][0]["data"]}
    assert labels == {0, 1}
    assert 1 in rows
    assert max(rows) > 1
    assert 5 <= sum(rows) <= 12


@pytest.mark.parametrize("version", [1, 2])
def test_flights_golden_samples_hold_missing_weather_and_a_destination_never_seen(version: int) -> None:
    samples = golden_samples("flights", version)
    missing = {tensor["name"] for sample in samples for tensor in sample["inputs"] if is_missing(tensor)}
    assert missing == {"temp", "wind_speed", "precip", "visib", "pressure"}
    assert any(array["dest"].tolist() == [["ILM"]] for array in map(feeds, samples))
    # The first flight to Wilmington is in July, so no version may know it.
    assert b"ILM" not in (EXAMPLES / "flights" / str(version) / "model.onnx").read_bytes()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("column", [*NUMBERS, *STRINGS])
def test_flights_answers_when_any_one_column_is_unknown(version: int, column: str) -> None:
    arrays = feeds(golden_samples("flights", version)[0])
    arrays[column] = np.full_like(arrays[column], np.nan if column in NUMBERS else "")
    (probabilities,) = open_session("flights", version).run(["probabilities"], arrays)
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


@every_version
def test_a_row_gets_the_same_bits_alone_and_in_a_batch(model: str, version: int) -> None:
    session = open_session(model, version)
    batch = feeds(golden_samples(model, version)[-1])
    (together,) = session.run(["probabilities"], batch)
    rows = [{name: array[i : i + 1] for name, array in batch.items()} for i in range(len(together))]
    alone = np.concatenate([session.run(["probabilities"], row)[0] for row in rows])
    if model == "flights":
        assert together.tobytes() == alone.tobytes()
    else:  # a matrix product may sum in another order for another number of rows
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model", MODELS)
def test_model_toml_names_versions_that_are_there_and_a_label_per_class(model: str) -> None:
    config = model_config.parse((EXAMPLES / model / "model.toml").read_bytes())
    versions = {number for name, number in VERSIONS if name == model}
    assert config.versions.policy == "all"
    assert config.aliases["champion"] == 1
    assert set(config.aliases.values()) == versions
    (classes,) = (node.shape[1] for node in open_session(model, 1).get_outputs() if node.name == "probabilities")
    assert set(config.outputs) == {"probabilities"}
    assert len(config.outputs["probabilities"].labels) == classes


@pytest.mark.parametrize("model", MODELS)
def test_the_request_of_the_readme_gets_the_reply_that_it_prints(model: str) -> None:
    text = (EXAMPLES / model / "README.md").read_text()
    (request,) = re.findall(r"```sh\ncurl [^']*-d '(.*?)'\n```", text, re.DOTALL)
    (reply,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    expected = json.loads(reply)
    assert (expected["model_name"], expected["model_version"]) == (model, "1")
    label, probabilities = open_session(model, 1).run(["label", "probabilities"], feeds(json.loads(request)))
    assert [tensor["name"] for tensor in expected["outputs"]] == ["label", "probabilities"]
    np.testing.assert_array_equal(label, array_of(expected["outputs"][0]))
    np.testing.assert_allclose(probabilities, array_of(expected["outputs"][1]), rtol=1e-5)


def test_the_readme_of_flights_prints_the_metrics_of_the_manifests() -> None:
    text = (EXAMPLES / "flights" / "README.md").read_text()
    for version in (1, 2):
        metrics = manifest_of("flights", version).lineage.metrics
        assert (
            f"{metrics['training_rows']:,.0f} flights, {metrics['training_late_share']:.1%}".replace("%", " %") in text
        )
        for period in ("next_quarter", "second_half"):
            values = [f"{metrics[f'{name}_{period}']:.4f}" for name in ("roc_auc", "brier", "log_loss")]
            row = rf"\| {version} \| [^|]* \| [0-9,]* \| " + r" \| ".join(map(re.escape, values)) + r" \|"
            assert re.search(row, text)


def test_the_readme_of_tiny_prints_the_metrics_of_the_manifest() -> None:
    text = (EXAMPLES / "tiny" / "README.md").read_text()
    metrics = manifest_of("tiny", 1).lineage.metrics
    values = [f"{metrics['roc_auc']:.4f}", f"{metrics['brier']:.4f}", f"{metrics['log_loss']:.4f}"]
    assert " | ".join([*values, f"{metrics['accuracy']:.3f}"]) in text


def test_the_challenger_of_flights_is_better_where_both_are_measured() -> None:
    first, second = (manifest_of("flights", version).lineage.metrics for version in (1, 2))
    assert second["roc_auc_second_half"] > first["roc_auc_second_half"]
    assert second["brier_second_half"] < first["brier_second_half"]
    assert second["log_loss_second_half"] < first["log_loss_second_half"]
