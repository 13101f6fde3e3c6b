"""Models that do harm: by one value, or by taking their time to load."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.onnx_models import build

DEADLY = 99.0
"""Where this stands in a row, `deadly` crashes the process. Made-up inputs of quarantine never come near it."""


def deadly(value: float = 0.0) -> bytes:
    """y = x * 0 + value, but for DEADLY: the least integer modulo -1 is a trap of the processor (SIGFPE)."""
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Sub", ["whole", "hundred"], ["divisor"]),
        helper.make_node("Mod", ["least", "divisor"], ["rest"]),
        helper.make_node("Cast", ["rest"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "value"], ["y"]),
    ]
    constants = {
        "hundred": np.full(1, DEADLY + 1, np.int32),
        "least": np.full(1, -(2**31), np.int32),
        "zero": np.zeros(1, np.float32),
        "value": np.full(1, value, np.float32),
    }
    return build(nodes, [("x", TensorProto.FLOAT, ("N", 4))], [("y", TensorProto.FLOAT, ("N", 4))], constants)


def slow_to_load(nodes: int = 4000) -> bytes:
    """y = x, through so many nodes that the session takes a good part of a second to make."""
    names = ["x", *(f"t{index}" for index in range(nodes - 1)), "y"]
    chain = [
        helper.make_node("Abs" if index % 2 else "Neg", [before], [after])
        for index, (before, after) in enumerate(zip(names, names[1:], strict=False))
    ]
    return build(chain, [("x", TensorProto.FLOAT, ("N", 4))], [("y", TensorProto.FLOAT, ("N", 4))])
