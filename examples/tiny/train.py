"""Train the example model `tiny`: is a breast tumour benign, from 30 measurements of its cell nuclei?

A logistic regression whose scaling of the inputs is folded into its weights, so that the graph is a single node: small
enough that a benchmark of it measures the server. Run twice, this program writes the same bytes twice.
"""

# The packages of the extra `examples` carry no types, and type checking does not need them installed.
# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from gateway.models.package import Lineage, add_version

CREATED = "2026-11-21T00:00:00Z"
SEED = 30
TOLERANCE = 1e-5
OPSETS = {"": 18, "ai.onnx.ml": 3}

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


def load_rows() -> tuple[Floats, Floats, Integers, Integers]:
    """Training and held-out measurements (a quarter, stratified) and their classes: 0 malignant, 1 benign."""
    values, classes = load_breast_cancer(return_X_y=True)
    train, held_out, train_classes, held_out_classes = train_test_split(
        values.astype(np.float32), classes.astype(np.int64), test_size=0.25, random_state=SEED, stratify=classes
    )
    return train, held_out, train_classes, held_out_classes


def fit(rows: Floats, classes: Integers) -> LogisticRegression:
    """A logistic regression on standardised measurements, restated as one on the measurements themselves.

    Weights are rounded to 6 significant digits, which no float32 input can tell apart, so that the last bits of the
    solver, which differ between processors, do not reach the file.
    """
    with threadpool_limits(1):
        scaler = StandardScaler().fit(rows.astype(np.float64))
        model = LogisticRegression(C=0.1, solver="newton-cholesky", tol=1e-10)
        model.fit(scaler.transform(rows.astype(np.float64)), classes)
    weights = model.coef_ / scaler.scale_
    intercept = model.intercept_ - weights @ scaler.mean_
    model.coef_, model.intercept_ = _rounded(weights), _rounded(intercept)
    return model


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value to 6 significant decimal digits."""
    return np.array([float(f"{value:.5e}") for value in values.ravel()]).reshape(values.shape)


def convert(model: LogisticRegression) -> onnx.ModelProto:
    """One graph: input `x` of shape [batch, 30], outputs `label` and `probabilities`."""
    graph: onnx.ModelProto = to_onnx(
        model,
        initial_types=[("x", FloatTensorType([None, 30]))],
        name="tiny",
        options={id(model): {"zipmap": False}},
        target_opset=OPSETS,
    )
    # The converter may list a domain twice, and at the lowest version that would do.
    del graph.opset_import[:]
    graph.opset_import.extend(onnx.helper.make_opsetid(domain, number) for domain, number in OPSETS.items())
    graph.ir_version = 10
    graph.producer_name = "headgate-examples"
    graph.producer_version = "1"
    graph.domain = ""
    graph.model_version = 1
    graph.doc_string = "Probability that a breast tumour is malignant or benign."
    for value in [*graph.graph.input, *graph.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    packages = ("scikit-learn", "skl2onnx", "onnx", "numpy")
    onnx.helper.set_model_props(graph, {name: installed(name) for name in packages})
    onnx.checker.check_model(graph, full_check=True)
    return graph


def compare(model: LogisticRegression, graph: bytes, rows: Floats) -> float:
    """The largest difference of a probability between scikit-learn and ONNX Runtime. Raises SystemExit if too large."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    labels, probabilities = session.run(["label", "probabilities"], {"x": rows})
    expected = model.predict_proba(rows.astype(np.float64))
    worst = float(np.abs(probabilities - expected).max())
    decided = np.abs(expected[:, 1] - 0.5) > TOLERANCE
    if worst > TOLERANCE or (labels != expected.argmax(axis=1))[decided].any():
        raise SystemExit(f"the ONNX graph differs from scikit-learn by {worst:g}, allowed are {TOLERANCE:g}")
    return worst


def digest(rows: Floats, classes: Integers) -> str:
    """SHA-256 of the training rows as canonical CSV: shortest float32 measurements, then the class."""
    lines = (",".join([*map(str, row), str(label)]) for row, label in zip(rows, classes, strict=True))
    return "sha256:" + hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def samples(rows: Floats) -> list[dict[str, Any]]:
    """Five Open Inference Protocol requests with held-out rows: four single rows and a batch of four."""
    return [_request(rows[index : index + 1]) for index in range(4)] + [_request(rows[4:8])]


def _request(rows: Floats) -> dict[str, Any]:
    data = [float(str(value)) for value in rows.ravel()]
    return {"inputs": [{"name": "x", "shape": list(rows.shape), "datatype": "FP32", "data": data}]}


def publish(out: Path, replace: bool) -> None:
    """Train, convert, check and package version 1 into the folder `out`."""
    rows, held_out, classes, held_out_classes = load_rows()
    model = fit(rows, classes)
    graph = convert(model).SerializeToString(deterministic=True)
    worst = compare(model, graph, held_out)
    benign = model.predict_proba(held_out)[:, 1]
    metrics = {
        "roc_auc": round(float(roc_auc_score(held_out_classes, benign)), 4),
        "brier": round(float(brier_score_loss(held_out_classes, benign)), 4),
        "log_loss": round(float(log_loss(held_out_classes, benign)), 4),
        "accuracy": round(float(np.mean((benign > 0.5) == held_out_classes)), 4),
        "training_rows": float(len(rows)),
        "held_out_rows": float(len(held_out)),
    }
    lineage = Lineage(
        author="the Headgate examples",
        reason="a model small enough that a benchmark of it measures the server",
        training_data=digest(rows, classes),
        code_revision="sha256:" + hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        metrics=metrics,
        created=CREATED,
    )
    with tempfile.TemporaryDirectory() as folder:
        file, sample_file = Path(folder, "model.onnx"), Path(folder, "samples.json")
        file.write_bytes(graph)
        sample_file.write_text(json.dumps(samples(held_out)), encoding="utf-8")
        add_version(out.parent, out.name, file, version=1, samples=sample_file, lineage=lineage, replace=replace)
    print(f"{out.name} 1: {len(graph)} bytes, within {worst:.1e} of scikit-learn on {len(held_out)} rows")
    print(json.dumps(metrics, indent=2))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and publish the version."""
    parser = argparse.ArgumentParser(
        description="Train the example model 'tiny' (scikit-learn, logistic regression) and package it as version 1.",
        epilog="Data: the breast cancer data that scikit-learn contains; nothing is downloaded. "
        "Training takes a few seconds and gives the same bytes every time.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent,
        metavar="DIR",
        help="the model's folder, which gets 1/; the last part of DIR is the model's name "
        "(default: the folder of this program)",
    )
    parser.add_argument("--replace", action="store_true", help="overwrite a version 1 that DIR already holds")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    if (out / "1").exists() and not options.replace:
        parser.error(f"{options.out} already holds version 1: add --replace to overwrite it")
    publish(out, options.replace)


if __name__ == "__main__":
    main(sys.argv[1:])
