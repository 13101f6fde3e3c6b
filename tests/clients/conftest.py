"""One server for the client tests: the two example models, and built ones that each show one thing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.clients.triton import AioClient, SyncClient
from tests.onnx_models import build, identity, put
from tests.servers import Server

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
MAX_BODY_BYTES = 1 << 20

ECHOES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}
"""Datatypes by name: the model ``echo_fp32`` and its like give back their input ``x[n,m]`` as ``y``."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that every client test may use; a test that changes a model's state uses one of its own."""
    scratch = tmp_path_factory.mktemp("clients")
    models = scratch / "models"
    for name in ("tiny", "flights"):
        shutil.copytree(EXAMPLES / name, models / name, ignore=shutil.ignore_patterns("*.py", "*.md", "__pycache__"))
    for datatype, type_ in ECHOES.items():
        put(models, f"echo_{datatype.lower()}", 1, identity(type_, ("n", "m")))
    put(models, "sum_and_difference", 1, sum_and_difference())
    put(models, "picks", 1, picks())
    put(models, "plods", 1, plods())
    put(models, "broken", 1, b"PK\x03\x04, not what it should be")
    for name in ("comes_and_goes", "stays"):
        put(models, name, 1, identity())
    server = Server(models, scratch / "server", "--quiet-s", "0", "--max-body-bytes", str(MAX_BODY_BYTES))
    yield server
    assert server.stop() == 0


def sum_and_difference() -> bytes:
    """Two inputs and two outputs, INT32[n,4]: what Triton's own client examples use."""
    pair = lambda *names: [(name, TensorProto.INT32, ("n", 4)) for name in names]  # noqa: E731
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    return build(nodes, pair("a", "b"), pair("sum", "difference"))


def picks() -> bytes:
    """One of four values by its index: it raises for an index of 4 and more."""
    nodes = [helper.make_node("Gather", ["values", "index"], ["value"])]
    values = np.array([10, 20, 30, 40], np.float32)
    inputs, outputs = [("index", TensorProto.INT64, (1,))], [("value", TensorProto.FLOAT, (1,))]
    return build(nodes, inputs, outputs, {"values": values})


def plods() -> bytes:
    """y = x after a tenth of a second or more of multiplying matrices: fewer than a request may have to wait for."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("MatMul", ["kept", "turn"], ["turned"])],
        "turn",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("kept", TensorProto.FLOAT, (384, 384)),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("turned", TensorProto.FLOAT, (384, 384)),
        ],
    )
    nodes = [
        helper.make_node("Add", ["turn", "x"], ["start"]),
        helper.make_node("Loop", ["times", "", "start"], ["end"], body=body),
        helper.make_node("ReduceMax", ["end"], ["y"], keepdims=0),
    ]
    constants = {"turn": np.zeros((384, 384), np.float32), "times": np.array(100, np.int64)}
    return build(nodes, [("x", TensorProto.FLOAT, (1,))], [("y", TensorProto.FLOAT, ())], constants)


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    """A client of the shared server; every test that takes it runs once with each of the two."""
    opened = SyncClient(server.address) if request.param == "sync" else AioClient(server.address)
    yield opened
    opened.close()
