"""Models that misbehave when they are loaded or run."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.onnx_models import build

ROW = ("N", 4)


def crashing() -> bytes:
    """Ends its process with SIGFPE when it runs: the remainder of the smallest integer by minus one."""
    return build(
        [
            helper.make_node("Sub", ["x", "x"], ["zero"]),
            helper.make_node("Add", ["zero", "smallest"], ["low"]),
            helper.make_node("Mod", ["low", "minus_one"], ["y"]),
        ],
        [("x", TensorProto.INT32, ROW)],
        [("y", TensorProto.INT32, ROW)],
        {"smallest": np.array([-(2**31)], np.int32), "minus_one": np.array([-1], np.int32)},
    )


def looping(trips: int, width: int = 64) -> bytes:
    """y = x after `trips` multiplications of two matrices: slow in proportion, and endless for all that is felt."""
    names = {"i": TensorProto.INT64, "go": TensorProto.BOOL, "go_on": TensorProto.BOOL}
    scalar = {name: helper.make_tensor_value_info(name, type_, []) for name, type_ in names.items()}
    square = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [width, width]) for name in ("a", "b")}
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["a", "a"], ["product"]),
            helper.make_node("Tanh", ["product"], ["b"]),
        ],
        "body",
        [scalar["i"], scalar["go"], square["a"]],
        [scalar["go_on"], square["b"]],
    )
    return build(
        [
            helper.make_node("Loop", ["trips", "true", "start"], ["end"], body=body),
            helper.make_node("ReduceSum", ["end"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
            helper.make_node("Add", ["x", "nothing"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ROW)],
        [("y", TensorProto.FLOAT, ROW)],
        {
            "trips": np.array(trips, np.int64),
            "true": np.array(True),
            "start": np.full((width, width), 0.01, np.float32),
            "zero": np.zeros((), np.float32),
        },
    )


def swelling(mebibytes: int, *, at_run_time: bool) -> bytes:
    """A few bytes that ask for many: of a shape that stands in the file, or is computed from the input's."""
    if at_run_time:
        shape = [helper.make_node("Shape", ["x"], ["n"]), helper.make_node("Mul", ["n", "many"], ["shape"])]
        constants = {"many": np.array([mebibytes << 4, 1 << 12], np.int64)}
    else:
        shape = []
        constants = {"shape": np.array([mebibytes << 18], np.int64)}
    return build(
        [
            *shape,
            helper.make_node("ConstantOfShape", ["shape"], ["much"]),
            helper.make_node("ReduceSum", ["much"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ROW)],
        [("y", TensorProto.FLOAT, ROW)],
        constants,
    )


def mixing_rows() -> bytes:
    """y = softmax over axis 0: every row of the answer depends on all rows of the input."""
    return build(
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        [("x", TensorProto.FLOAT, ROW)],
        [("y", TensorProto.FLOAT, ROW)],
    )


def dividing_by_the_largest(least: float = 100.0) -> bytes:
    """y = x / max(least, the largest |x| of all rows): the axis was forgotten, which only large values show."""
    nodes = [
        helper.make_node("Abs", ["x"], ["size"]),
        helper.make_node("ReduceMax", ["size"], ["largest"], keepdims=0),
        helper.make_node("Max", ["largest", "least"], ["divisor"]),
        helper.make_node("Div", ["x", "divisor"], ["y"]),
    ]
    inputs, outputs = [("x", TensorProto.FLOAT, ROW)], [("y", TensorProto.FLOAT, ROW)]
    return build(nodes, inputs, outputs, {"least": np.array(least, np.float32)})


def as_wide_as_the_largest() -> bytes:
    """y is a range cut to the largest value of all rows, for each row: (N, K), and K depends on values."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["stop"], to=TensorProto.INT64),
        helper.make_node("Range", ["zero", "stop", "one"], ["wide"]),
        helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        helper.make_node("Concat", ["shape", "ones"], ["tall"], axis=0),
        helper.make_node("Expand", ["wide", "tall"], ["y"]),
    ]
    weights = {"zero": np.array(0, np.int64), "one": np.array(1, np.int64), "ones": np.array([1], np.int64)}
    return build(nodes, [("x", TensorProto.FLOAT, ROW)], [("y", TensorProto.INT64, ("N", "K"))], weights)


def summing_long_rows(width: int = 4096) -> bytes:
    """y = x @ w, whose sums of large values cancel: rows do not touch each other, and rounding is all that differs."""
    weights = {"w": np.random.default_rng(1).standard_normal((width, 8)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return build(nodes, [("x", TensorProto.FLOAT, ("N", width))], [("y", TensorProto.FLOAT, ("N", 8))], weights)


def averaging_rows() -> bytes:
    """y has one row whatever x has, though the graph promises any number."""
    return build(
        [
            helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1),
            helper.make_node("Relu", ["mean"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ROW)],
        [("y", TensorProto.FLOAT, ("M", 4))],
        {"axis": np.array([0], np.int64)},
    )


def as_slow_as_asked(width: int = 48, at_least: int = 3000) -> bytes:
    """y = x after max(x) multiplications of two matrices, but never so few that it would run in the event loop."""
    model = onnx.load_from_string(looping(0, width))
    graph = model.graph
    del graph.initializer[[each.name for each in graph.initializer].index("trips")]
    largest = helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0)
    enough = helper.make_node("Max", ["largest", "least"], ["enough"])
    trips = helper.make_node("Cast", ["enough"], ["trips"], to=TensorProto.INT64)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(at_least, np.float32), "least"))
    for node in (trips, enough, largest):
        graph.node.insert(0, node)
    for tensor in (*graph.input, *graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    return bytes(model.SerializeToString())
