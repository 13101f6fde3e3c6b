"""Small ONNX models for tests, made with the onnx package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Dims = Sequence[int | str] | None


def build(
    nodes: Sequence[NodeProto],
    inputs: Sequence[tuple[str, int, Dims]],
    outputs: Sequence[tuple[str, int, Dims]],
    initializers: dict[str, np.ndarray] | None = None,
    opset: int = 18,
) -> bytes:
    """The bytes of a model; tensors are (name, TensorProto type, dims)."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(array, name) for name, array in (initializers or {}).items()],
    )
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return bytes(model.SerializeToString())


def identity(type_: int = TensorProto.FLOAT, dims: Dims = ("N", 4)) -> bytes:
    """y = x: every answer can be told from every other one."""
    return build([helper.make_node("Identity", ["x"], ["y"])], [("x", type_, dims)], [("y", type_, dims)])


def constant_answer(value: float, dims: Dims = ("N", 4)) -> bytes:
    """y = x * 0 + value: the answer names the version that gave it."""
    return build(
        [helper.make_node("Mul", ["x", "zero"], ["m"]), helper.make_node("Add", ["m", "value"], ["y"])],
        [("x", TensorProto.FLOAT, dims)],
        [("y", TensorProto.FLOAT, dims)],
        {"zero": np.zeros(1, np.float32), "value": np.full(1, value, np.float32)},
    )


def put(models: Path, name: str, version: int, model: bytes, toml: str | None = None) -> Path:
    """Write a bare version into a repository; returns its folder."""
    folder = models / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    if toml is not None:
        (models / name / "model.toml").write_text(toml)
    return folder
