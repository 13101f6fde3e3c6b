"""The backend node tests that the onnx package ships: models of one operator each, with inputs and expected outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, TensorProto, numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"

_NUMBERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float", "double")
CARRIED = frozenset(f"tensor({name})" for name in (*_NUMBERS, "bool", "float16", "bfloat16", "string"))
"""ONNX Runtime's names of the types that the protocol has a datatype for."""


class NodeTest(NamedTuple):
    """One test: what its name in the package is, which operators it uses, its tensors as (name, type)."""

    name: str
    operators: frozenset[tuple[str, str]]
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]

    @property
    def path(self) -> Path:
        return FOLDER / self.name / "model.onnx"

    def data_sets(self) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Inputs and expected outputs by name, for each of the test's data sets."""
        for folder in sorted((FOLDER / self.name).glob("test_data_set_*")):
            inputs = [_tensor(folder / f"input_{index}.pb") for index in range(len(self.inputs))]
            outputs = [_tensor(folder / f"output_{index}.pb") for index in range(len(self.outputs))]
            yield (
                dict(zip((name for name, _ in self.inputs), inputs, strict=True)),
                dict(zip((name for name, _ in self.outputs), outputs, strict=True)),
            )


class Census(NamedTuple):
    """All node tests: those that can be served, and the names of the others by the reason why not."""

    served: tuple[NodeTest, ...]
    skipped: dict[str, tuple[str, ...]]


def session(path: Path) -> ort.InferenceSession:
    """ONNX Runtime itself on a model, as the server runs it: one thread, the processor."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@cache
def census() -> Census:
    """Every test of the package in one of the two places; ONNX Runtime itself is asked what it can load."""
    served: list[NodeTest] = []
    skipped: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("*/model.onnx")):
        name = path.parent.name
        reason = ""
        try:
            found = session(path)
        except Exception:  # onnxruntime raises a dozen unrelated types
            reason = "ONNX Runtime does not load it"
        else:
            types = {node.type for node in (*found.get_inputs(), *found.get_outputs())}
            if not all(type_.startswith("tensor(") for type_ in types):
                reason = "sequences and optionals: the protocol carries only tensors"
            elif not types <= CARRIED:
                reason = "types of 8 and fewer bits that the protocol has no datatype for"
        if reason:
            skipped.setdefault(reason, []).append(name)
            continue
        operators = frozenset(_operators(onnx.load(path).graph))
        inputs = tuple((node.name, node.type) for node in found.get_inputs())
        outputs = tuple((node.name, node.type) for node in found.get_outputs())
        served.append(NodeTest(name, operators, inputs, outputs))
    return Census(tuple(served), {reason: tuple(names) for reason, names in skipped.items()})


def chosen(tests: Sequence[NodeTest]) -> tuple[NodeTest, ...]:
    """The fewest tests, taken in order, that show every operator with every combination of types it is tested with."""
    seen: set[tuple[tuple[str, str], tuple[str, ...]]] = set()
    picked: list[NodeTest] = []
    for test in tests:
        alone = len(test.operators) == 1
        types = tuple(sorted({type_ for _, type_ in (*test.inputs, *test.outputs)})) if alone else ()
        shown = {(operator, types) for operator in test.operators}
        if not shown <= seen:
            seen |= shown
            picked.append(test)
    return tuple(picked)


def _operators(graph: GraphProto) -> Iterator[tuple[str, str]]:
    for node in graph.node:
        yield node.domain, node.op_type
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _operators(attribute.g)


def _tensor(path: Path) -> np.ndarray:
    return numpy_helper.to_array(TensorProto.FromString(path.read_bytes()))
