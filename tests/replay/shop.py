"""Two versions of a model whose sums depend on their order, what they answered, and a replay of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.cli import main
from gateway.journal.reader import Segment
from tests import onnx_models
from tests.journal.rig import Gateway, document, load, normal

TOML = "[session]\nintra_op_threads = 1\n[feedback.sick]\ntype = 'boolean'\n"
WIDTH = 30


def regression(seed: int, width: int = WIDTH) -> bytes:
    """A network of one hidden layer whose sums are long enough to depend on their order."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["z"]),
        helper.make_node("Tanh", ["z"], ["h"]),
        helper.make_node("MatMul", ["h", "w1"], ["s"]),
        helper.make_node("Sigmoid", ["s"], ["score"]),
    ]
    weights = {
        "w0": rng.standard_normal((width, 64), np.float32),
        "b0": rng.standard_normal(64, np.float32),
        "w1": rng.standard_normal((64, 1), np.float32),
    }
    return onnx_models.build(
        nodes, [("x", TensorProto.FLOAT, ("N", width))], [("score", TensorProto.FLOAT, ("N", 1))], weights
    )


def flip_one_bit(model: bytes, name: str, element: int, bit: int) -> bytes:
    """The same model but for one bit of one weight."""
    proto = onnx.load_from_string(model)
    for initializer in proto.graph.initializer:
        if initializer.name == name:
            array = numpy_helper.to_array(initializer).copy()
            array.reshape(-1).view(np.uint32)[element] ^= np.uint32(1 << bit)
            initializer.CopyFrom(numpy_helper.from_array(array, name))
    found: bytes = proto.SerializeToString()
    assert sum(one != other for one, other in zip(model, found, strict=True)) == 1
    return found


def in_turns(values: Any, rng: np.random.Generator) -> Iterator[list[dict[str, Any]]]:
    """Requests of a few rows, some of which run together."""
    at = 0
    while at < len(values):
        turn = []
        for size in rng.choice([1, 1, 1, 2, 3, 17], int(rng.integers(1, 30))).tolist():
            if at < len(values):
                turn.append(document(x=values[at : at + size]))
                at += size
        yield turn


def replay(*flags: str, capsys: pytest.CaptureFixture[str], data: Path, models: Path) -> tuple[int, dict[str, Any]]:
    code = main(["replay", "m", "--data", str(data), "--models", str(models), "--json", *flags])
    return code, json.loads(capsys.readouterr().out)


class Shop:
    """A model folder with two versions, and a data folder with what they answered."""

    def __init__(self, root: Path, rows: int = 3000) -> None:
        self.models, self.data = root / "models", root / "data"
        self.values = normal(rows, WIDTH, 3)
        for number in (1, 2):
            onnx_models.put(self.models, "m", number, regression(number), TOML)
        self.gateway = Gateway(self.data, *(load(self.models, "m", number) for number in (1, 2)))
        turns = list(in_turns(self.values, np.random.default_rng(4)))
        self.gateway.send(turns[: len(turns) // 2], version=1)
        self.gateway.send(turns[len(turns) // 2 :], version=2)

    def close(self) -> list[Segment]:
        return self.gateway.close()
