"""Builders of crafted model files: through the onnx package where it can write them, on the wire where it cannot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info

# The wire format


def varint(value: int) -> bytes:
    """An integer as protobuf writes it, negative ones in ten bytes."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    """An integer field."""
    return varint(field << 3) + varint(value)


def block(field: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def wire_model(graph: bytes, *more: bytes) -> bytes:
    """A model around the bytes of a graph: IR version 8, operator set 18."""
    return number(1, 8) + block(8, number(2, 18)) + block(7, graph) + b"".join(more)


def wire_tensor(name: str, *fields: bytes) -> bytes:
    """A graph that holds one initialiser, made of raw fields."""
    return wire_model(block(5, block(8, name.encode()) + b"".join(fields)))


def nested_graphs(depth: int) -> bytes:
    """A model whose main graph has that many levels of sub-graphs below it."""
    graph = b""
    for _ in range(depth):
        graph = block(1, block(4, b"If") + block(5, block(1, b"then_branch") + block(6, graph)))
    return wire_model(graph)


# Models through the onnx package


def model(
    nodes: Sequence[NodeProto] = (),
    initializers: Sequence[TensorProto] = (),
    sparse: Sequence[SparseTensorProto] = (),
    functions: Sequence[FunctionProto] = (),
    domains: Sequence[str] = (),
) -> ModelProto:
    """A model with input x and output y; an Identity between them makes it one that can run."""
    graph = graph_of(make_node("Identity", ["x"], ["y"], name="copy"), *nodes)
    graph.initializer.extend(initializers)
    graph.sparse_initializer.extend(sparse)
    opsets = [make_opsetid("", 18), *(make_opsetid(domain, 1) for domain in domains)]
    return make_model(graph, functions=functions, opset_imports=opsets, ir_version=8, producer_name="crafted")


def graph_of(*nodes: NodeProto, initializers: Sequence[TensorProto] = ()) -> GraphProto:
    """A graph with input x and output y."""
    x, y = (make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    return make_graph(nodes, "crafted", [x], [y], list(initializers))


def weights(name: str = "weights") -> TensorProto:
    """A harmless tensor."""
    return make_tensor(name, TensorProto.FLOAT, [2], [1.0, 2.0])


def external(location: str = "weights.bin", name: str = "weights", **entries: str) -> TensorProto:
    """A tensor with its data in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def sparse(values: TensorProto, indices: TensorProto | None = None, dims: Sequence[int] = (10,)) -> SparseTensorProto:
    """A sparse tensor of two values."""
    indices = indices or make_tensor("at", TensorProto.INT64, [2], [1, 3])
    return SparseTensorProto(values=values, indices=indices, dims=dims)


def constant(tensor: TensorProto, output: str = "c") -> NodeProto:
    """A Constant node that gives a tensor."""
    return make_node("Constant", [], [output], name="the_constant", value=tensor)


def holder(**attribute: object) -> NodeProto:
    """A node with one attribute, its fields set as given, whatever its type says."""
    node = make_node("Identity", ["x"], ["z"], name="holder")
    node.attribute.append(AttributeProto(name="hidden", **attribute))
    return node


def function(name: str, *nodes: NodeProto, domain: str = "local") -> FunctionProto:
    """A function of the model's own."""
    return onnx.helper.make_function(domain, name, ["x"], ["y"], nodes, [make_opsetid("", 18), make_opsetid(domain, 1)])


def call(name: str, domain: str = "local") -> NodeProto:
    """A node that calls such a function."""
    return make_node(name, ["x"], ["y"], domain=domain, name=f"call_{name}")


# What the onnx package sees in a parsed model, as an oracle


def all_graphs(parsed: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """Every graph and function of a model, sub-graphs and training graphs too."""
    pending: list[GraphProto | FunctionProto] = [parsed.graph, *parsed.functions]
    for training in parsed.training_info:
        pending += [training.initialization, training.algorithm]
    while pending:
        graph = pending.pop()
        yield graph
        for attribute in _attributes(graph):
            pending += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def all_tensors(parsed: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model, wherever it hides."""
    for graph in all_graphs(parsed):
        sparse_tensors: list[SparseTensorProto] = []
        if isinstance(graph, GraphProto):
            yield from graph.initializer
            sparse_tensors += graph.sparse_initializer
        for attribute in _attributes(graph):
            yield attribute.t
            yield from attribute.tensors
            sparse_tensors += [attribute.sparse_tensor, *attribute.sparse_tensors]
        for tensor in sparse_tensors:
            yield from (tensor.values, tensor.indices)


def _attributes(graph: GraphProto | FunctionProto) -> Iterator[AttributeProto]:
    if isinstance(graph, FunctionProto):
        yield from graph.attribute_proto
    for node in graph.node:
        yield from node.attribute
