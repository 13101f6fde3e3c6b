"""The look at a model file before ONNX Runtime opens it: pure Python over the bytes, no parser of C++ is involved.

Refused are data outside the file, operators that reach outside the runtime, sizes that no real model has, and anything
that is not well-formed. Every tensor is visited, wherever it hides: initialisers (dense and sparse), attributes,
sub-graphs, functions and training parts. What only running can show is left to the limits of quarantine.
"""

from __future__ import annotations

import math
import struct
from collections import ChainMap, Counter
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Final

import msgspec

from gateway.errors import LoadRejected
from gateway.models import wire
from gateway.models.wire import Message, Reader, Span

_FunctionKey = tuple[str, str, str]
_Names = tuple[str, ...]
_Constants = ChainMap[str, tuple[int, ...] | None]

# Operators whose kernel runs code or opens files of the host, whatever domain they claim.
_OUTSIDE_OPS = frozenset(
    {"ATen", "ATenOp", "EPContext", "PyCustomOp", "PyOp", "PythonOp", "PythonOpGrad", "Snpe", "TritonOp"}
)
# The namespaces of the runtime itself: a model's own functions may not pose as its operators.
_RUNTIME_DOMAINS = ("ai.onnx.", "com.microsoft.", "com.ms.", "org.pytorch.aten")
# What ONNX Runtime 1.31 imports into every file that it writes, and what onnx itself may import without use.
_NAMED_BY_RUNTIME = frozenset(
    {
        "ai.onnx.preview",
        "ai.onnx.preview.training",
        "ai.onnx.training",
        "com.microsoft.dml",
        "com.microsoft.experimental",
        "com.microsoft.nchwc",
        "com.ms.internal.nhwc",
        "org.pytorch.aten",
    }
)
# Where an operator takes its output's size (or, for Tile, a factor of it) from a tensor: the input's position.
_SIZED_BY_INPUT = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}

# (offset, magic, what to say). The runtime takes any file with ORTM there for its own format, whatever else it is.
_FOREIGN_MAGIC: Final = (
    (4, b"ORTM", "looks like the flatbuffer format of ONNX Runtime (.ort)"),
    (4, b"TFL3", "looks like a TensorFlow Lite model"),
    (0, b"PK\x03\x04", "looks like a zip archive, such as a PyTorch or Keras file"),
    (0, b"\x89HDF\r\n\x1a\n", "looks like an HDF5 file, such as a Keras model"),
    (0, b"GGUF", "looks like a GGUF file"),
    (0, b"\x1f\x8b", "looks like gzip-compressed data"),
    (0, b"\x7fELF", "looks like an executable"),
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the file it points to"),
    (0, b"<", "looks like HTML or XML"),
    (0, b"{", "looks like JSON"),
    (4, b'\0\0\0\0{"', "looks like a safetensors file"),
)


class ScanLimits(msgspec.Struct, frozen=True):
    """How large a model may be, and whose operators it may use; counts are over all its graphs and functions."""

    max_file_bytes: int = 512 << 20
    max_nodes: int = 50_000
    max_depth: int = 16
    max_call_depth: int = 64
    max_initializers: int = 10_000
    max_values: int = 20_000
    max_rank: int = 16
    max_elements: int = 2**31
    max_fields: int = 2_000_000
    domains: frozenset[str] = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})


_DEFAULT_LIMITS: Final = ScanLimits()


class ScanReport(msgspec.Struct, frozen=True):
    """What a scanned model says of itself.

    `unranked_*`: inputs and outputs of which not even the rank is known. `non_tensor`: inputs and outputs that are
    sequences, maps, optionals or sparse tensors. `defaulted_inputs`: inputs that an initialiser fills if not sent.
    `node_count` is over all graphs and functions; `initializer_bytes` counts the file's bytes of initialiser data.
    """

    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    graph_name: str
    node_count: int
    initializer_bytes: int
    op_types: Mapping[str, int]
    unranked_inputs: tuple[str, ...]
    unranked_outputs: tuple[str, ...]
    non_tensor: tuple[str, ...]
    defaulted_inputs: tuple[str, ...]
    metadata_props: int


class _Tensor(msgspec.Struct, frozen=True):
    """A checked TensorProto; `shape` holds its values where it could serve as a shape."""

    name: str
    nbytes: int
    shape: tuple[int, ...] | None


def scan(data: bytes | memoryview, limits: ScanLimits = _DEFAULT_LIMITS) -> ScanReport:
    """The report on an ONNX model file, or LoadRejected with the reason it must not be opened."""
    view = memoryview(data).cast("B")
    if len(view) > limits.max_file_bytes:
        raise LoadRejected(f"The model file has {len(view):,} bytes, over the limit of {limits.max_file_bytes:,}.")
    looks_like = _foreign_format(bytes(view[:64]))
    if looks_like is not None:
        raise LoadRejected(f"The model file is not an ONNX model: it {looks_like}.")
    return _Scan(Reader(view, limits.max_fields), limits).model(len(view))


class _Scan:
    """One walk over one model; it recurses only from graph to sub-graph, which `max_depth` bounds."""

    def __init__(self, reader: Reader, limits: ScanLimits) -> None:
        self._reader = reader
        self._limits = limits
        self._nodes = 0
        self._initializers = 0
        self._initializer_bytes = 0
        self._ops: Counter[str] = Counter()
        self._functions: frozenset[_FunctionKey] = frozenset()
        self._function_domains: frozenset[str] = frozenset()
        # What the body being walked calls of the model's own functions.
        self._calls: Counter[_FunctionKey] = Counter()

    def model(self, size: int) -> ScanReport:
        """Walk everything; each part is checked before anything is taken from it."""
        model = self._reader.read(wire.MODEL, [(0, size)])
        if "graph" not in model:
            raise LoadRejected("The model file is not an ONNX model: it holds no graph.")
        if (ir_version := model.number("ir_version")) < 1:
            raise LoadRejected("The model file is not an ONNX model: it names no IR version.")
        functions = [(span, self._reader.read(wire.FUNCTION, [span])) for span in model.spans("functions")]
        self._functions = frozenset(_function_key(function) for _, function in functions)
        self._function_domains = frozenset(domain for domain, _, _ in self._functions)
        self._check_function_names()
        opsets = self._opsets(model, "the model")

        graph, initializers = self._graph(model.spans("graph"), depth=0, outer=ChainMap())
        for span in model.spans("training_info"):
            training = self._reader.read(wire.TRAINING, [span])
            for part in ("initialization", "algorithm"):
                if part in training:
                    self._graph(training.spans(part), depth=0, outer=ChainMap())
        self._check_calls(functions)

        inputs, unranked_inputs, odd_inputs = self._values(graph, "input")
        _, unranked_outputs, odd_outputs = self._values(graph, "output")
        return ScanReport(
            ir_version=ir_version,
            opsets=opsets,
            producer=f"{model.text('producer_name')} {model.text('producer_version')}".strip(),
            graph_name=graph.text("name"),
            node_count=self._nodes,
            initializer_bytes=self._initializer_bytes,
            op_types=dict(self._ops),
            unranked_inputs=unranked_inputs,
            unranked_outputs=unranked_outputs,
            non_tensor=odd_inputs + odd_outputs,
            defaulted_inputs=tuple(name for name in inputs if name in initializers),
            metadata_props=len(model.spans("metadata_props")),
        )

    # Operators

    def _opsets(self, message: Message, owner: str) -> dict[str, int]:
        """The imported versions by domain.

        ONNX Runtime names all of its own domains in every file that it writes; to name one is not to use it.
        """
        opsets = {}
        for span in message.spans("opset_import"):
            opset = self._reader.read(wire.OPSET, [span])
            domain = opset.text("domain")
            known = domain in self._limits.domains or domain in self._function_domains
            if not known and domain not in _NAMED_BY_RUNTIME:
                raise LoadRejected(f"Operators of domain {_quoted(domain)}, imported by {owner}, are not allowed.")
            opsets[domain] = opset.number("version")
        return opsets

    def _check_function_names(self) -> None:
        for domain, name, _ in sorted(self._functions):
            if domain not in self._limits.domains and domain.startswith(_RUNTIME_DOMAINS):
                raise LoadRejected(f"Function {_quoted(name)} is in the reserved domain {_quoted(domain)}.")
            if name in _OUTSIDE_OPS:
                raise LoadRejected(f"Function {_quoted(name)} has the name of an operator that is not allowed.")

    def _check_operator(self, node: Message) -> str:
        """The operator of a node, counted; refused unless an allowed domain or the model's own functions have it."""
        op, domain = node.text("op_type"), node.text("domain")
        if op in _OUTSIDE_OPS:
            raise LoadRejected(f"{_node_label(node)} uses {op}, which reaches outside the model and is not allowed.")
        key = (domain, op, node.text("overload"))
        if key in self._functions:
            self._calls[key] += 1
        elif domain not in self._limits.domains:
            raise LoadRejected(f"{_node_label(node)} uses operators of domain {_quoted(domain)}, which is not allowed.")
        self._ops[op if domain in ("", "ai.onnx") else f"{domain}:{op}"] += 1
        return op

    def _check_calls(self, functions: Sequence[tuple[Span, Message]]) -> None:
        """Walk the functions; refuse calls that never end, or that multiply the nodes over the limit once inlined."""
        own: Counter[_FunctionKey] = Counter()
        calls: dict[_FunctionKey, Counter[_FunctionKey]] = {key: Counter() for key in self._functions}
        graph_calls, graph_nodes = self._calls, self._nodes
        for _, function in functions:
            key = _function_key(function)
            before, self._calls = self._nodes, calls[key]
            self._opsets(function, f"function {_quoted(key[1])}")
            for span in function.spans("attribute_proto"):
                self._attribute(span, f"Function {_quoted(key[1])}", 0, ChainMap())
            self._body(function, depth=0, constants=ChainMap())
            own[key] += self._nodes - before
        try:
            order = list(TopologicalSorter(calls).static_order())
        except CycleError as error:
            raise LoadRejected(f"Function {_quoted(error.args[1][0][1])} calls itself.") from None
        size: dict[_FunctionKey, int] = {}
        height: dict[_FunctionKey, int] = {}
        for key in order:
            size[key] = own[key] + sum(times * size[callee] for callee, times in calls[key].items())
            height[key] = 1 + max((height[callee] for callee in calls[key]), default=0)
            if height[key] > self._limits.max_call_depth:
                raise LoadRejected(
                    f"Function {_quoted(key[1])} nests calls deeper than {self._limits.max_call_depth} levels."
                )
            self._check_node_count(size[key], f" once function {_quoted(key[1])} is inlined")
        inlined = graph_nodes + sum(times * size[callee] for callee, times in graph_calls.items())
        self._check_node_count(inlined, " once its functions are inlined")

    def _check_node_count(self, count: int, when: str = "") -> None:
        if count > self._limits.max_nodes:
            raise LoadRejected(f"The model has {count:,} nodes{when}, over the limit of {self._limits.max_nodes:,}.")

    # Graphs

    def _graph(self, spans: Sequence[Span], depth: int, outer: _Constants) -> tuple[Message, frozenset[str]]:
        """Check a graph with all below it; gives it and the names of its initialisers.

        `outer` holds the constants that its nodes can see from around it.
        """
        if depth > self._limits.max_depth:
            raise LoadRejected(f"The model nests sub-graphs deeper than {self._limits.max_depth} levels.")
        graph = self._reader.read(wire.GRAPH, spans)
        self._initializers += len(graph.spans("initializer")) + len(graph.spans("sparse_initializer"))
        if self._initializers > self._limits.max_initializers:
            raise LoadRejected(
                f"The model has {self._initializers:,} initialisers, over the limit of "
                f"{self._limits.max_initializers:,}."
            )
        constants: _Constants = outer.new_child()
        for span in graph.spans("initializer"):
            tensor = self._tensor([span], "Initialiser")
            self._initializer_bytes += tensor.nbytes
            constants[tensor.name] = tensor.shape
        for span in graph.spans("sparse_initializer"):
            tensor = self._sparse([span], "Sparse initialiser")
            self._initializer_bytes += tensor.nbytes
            constants[tensor.name] = None
        names = frozenset(constants.maps[0])
        self._body(graph, depth, constants)
        return graph, names

    def _body(self, graph: Message, depth: int, constants: _Constants) -> None:
        """Check the nodes of a graph or function."""
        nodes = graph.spans("node")
        self._nodes += len(nodes)
        self._check_node_count(self._nodes)
        for span in nodes:
            self._node(self._reader.read(wire.NODE, [span]), depth, constants)

    def _node(self, node: Message, depth: int, constants: _Constants) -> None:
        op = self._check_operator(node)
        value: _Tensor | None = None
        for span in node.spans("attribute"):
            value = self._attribute(span, _node_label(node), depth, constants) or value
        if op == "Constant" and value is not None:
            constants.update(dict.fromkeys(node.texts("output"), value.shape))
        elif op in _SIZED_BY_INPUT:
            self._check_made_size(node, op, constants)

    def _check_made_size(self, node: Message, op: str, constants: _Constants) -> None:
        """Refuse a node that a constant tells to make a tensor over the limit."""
        inputs = node.texts("input")
        position = _SIZED_BY_INPUT[op]
        shape = constants.get(inputs[position]) if position < len(inputs) else None
        if shape is not None and _elements(shape) > self._limits.max_elements:
            raise LoadRejected(
                f"{_node_label(node)} ({op}) makes a tensor of {_elements(shape):,} elements or more, "
                f"over the limit of {self._limits.max_elements:,}."
            )

    def _attribute(self, span: Span, owner: str, depth: int, constants: _Constants) -> _Tensor | None:
        """Check whatever an attribute holds, in every field, since its declared type hides nothing from the runtime."""
        attribute = self._reader.read(wire.ATTRIBUTE, [span])
        if not attribute:
            return None
        role = f"{owner}, in an attribute: tensor"
        value = self._tensor(attribute.spans("t"), role) if "t" in attribute else None
        for tensor in attribute.spans("tensors"):
            self._tensor([tensor], role)
        if "sparse_tensor" in attribute:
            self._sparse(attribute.spans("sparse_tensor"), role)
        for sparse in attribute.spans("sparse_tensors"):
            self._sparse([sparse], role)
        if "g" in attribute:
            self._graph(attribute.spans("g"), depth + 1, constants)
        for graph in attribute.spans("graphs"):
            self._graph([graph], depth + 1, constants)
        return value

    # Tensors

    def _tensor(self, spans: Sequence[Span], role: str) -> _Tensor:
        """Check one TensorProto: its data is in the file, and as much of it as its type and dimensions say."""
        tensor = self._reader.read(wire.TENSOR, spans)
        label = f"{role} {_quoted(tensor.text('name'))}"
        if "external_data" in tensor or any(tensor.numbers("data_location")):
            raise LoadRejected(f"{label} keeps its data outside the model file, which is not allowed.")
        dims = self._dims(tensor, label)
        data_type = tensor.number("data_type") & 0xFFFF_FFFF
        storage = wire.STORAGE.get(data_type)
        if storage is None:
            raise LoadRejected(f"{label} has the unknown element type {data_type}.")
        elements = math.prod(dims)
        if "raw_data" in tensor and storage.bits:
            # A singular field: the last one counts, for every parser.
            start, end = tensor.spans("raw_data")[-1]
            nbytes, expected = end - start, -(-elements * storage.bits // 8)
            if nbytes != expected:
                raise LoadRejected(
                    f"{label} of shape {list(dims)} needs {expected:,} bytes of data but has {nbytes:,}."
                )
        else:
            held, expected = self._held(tensor, storage), storage.values(elements)
            nbytes = sum(end - start for start, end in tensor.spans(storage.field))
            if held != expected:
                raise LoadRejected(f"{label} of shape {list(dims)} needs {expected:,} values but has {held:,}.")
        return _Tensor(tensor.text("name"), nbytes, self._shape_values(tensor, data_type, dims))

    def _held(self, tensor: Message, storage: wire.Storage) -> int:
        """How many values a tensor's typed field holds."""
        spans = tensor.spans(storage.field)
        if storage.field == "string_data":
            return len(spans)
        if storage.value_bytes:
            return sum(end - start for start, end in spans) // storage.value_bytes
        return self._reader.varint_count(spans)

    def _sparse(self, spans: Sequence[Span], role: str) -> _Tensor:
        """Check one SparseTensorProto; it takes the name of its values, and its dense size is limited too."""
        sparse = self._reader.read(wire.SPARSE, spans)
        values = self._tensor(sparse.spans("values"), role) if "values" in sparse else _Tensor("", 0, None)
        indices = self._tensor(sparse.spans("indices"), f"{role} indices") if "indices" in sparse else values
        self._dims(sparse, f"{role} {_quoted(values.name)}")
        return _Tensor(values.name, values.nbytes + indices.nbytes, None)

    def _dims(self, message: Message, label: str) -> tuple[int, ...]:
        dims: list[int] = []
        for dim in message.numbers("dims"):
            if len(dims) == self._limits.max_rank:
                raise LoadRejected(f"{label} has more than {self._limits.max_rank} dimensions.")
            if dim < 0:
                raise LoadRejected(f"{label} has the negative dimension {dim}.")
            dims.append(dim)
        if (elements := _elements(dims)) > self._limits.max_elements:
            raise LoadRejected(
                f"{label} of shape {dims} has {elements:,} elements, over the limit of {self._limits.max_elements:,}."
            )
        return tuple(dims)

    def _shape_values(self, tensor: Message, data_type: int, dims: tuple[int, ...]) -> tuple[int, ...] | None:
        """The values of a vector of integers that is short enough to be a shape."""
        if data_type != wire.INT64 or len(dims) != 1 or dims[0] > self._limits.max_rank:
            return None
        if "raw_data" in tensor:
            start, end = tensor.spans("raw_data")[-1]
            return struct.unpack(f"<{dims[0]}q", self._reader.data[start:end])
        return tuple(tensor.numbers("int64_data"))

    # The values that go in and out

    def _values(self, graph: Message, field: str) -> tuple[_Names, _Names, _Names]:
        """The names of a graph's inputs or outputs: all, those without a rank, those that are no dense tensors."""
        spans = graph.spans(field)
        if len(spans) > self._limits.max_values:
            raise LoadRejected(f"The model has {len(spans):,} {field}s, over the limit of {self._limits.max_values:,}.")
        names, unranked, non_tensor = [], [], []
        for span in spans:
            value = self._reader.read(wire.VALUE_INFO, [span])
            names.append(name := value.text("name"))
            kind = self._reader.read(wire.TYPE, value.spans("type"))
            members = [member for member in wire.TYPE_MEMBERS if member in kind]
            if len(members) > 1:
                raise LoadRejected(f"The {field} {_quoted(name)} has several types at once.")
            if members and members[0] != "tensor_type":
                non_tensor.append(name)
                continue
            tensor = self._reader.read(wire.TENSOR_TYPE, kind.spans("tensor_type"))
            if "shape" not in tensor:
                unranked.append(name)
            elif len(self._reader.read(wire.SHAPE, tensor.spans("shape")).spans("dim")) > self._limits.max_rank:
                raise LoadRejected(f"The {field} {_quoted(name)} has more than {self._limits.max_rank} dimensions.")
        return tuple(names), tuple(unranked), tuple(non_tensor)


def _function_key(function: Message) -> _FunctionKey:
    return function.text("domain"), function.text("name"), function.text("overload")


def _elements(shape: Sequence[int]) -> int:
    """The product of the dimensions, zeros left out: an empty tensor of absurd extent is as absurd."""
    return math.prod(dim for dim in shape if dim > 0)


def _node_label(node: Message) -> str:
    name = node.text("name")
    return f"Node {_quoted(name)}" if name else f"An unnamed {_quoted(node.text('op_type'))} node"


def _quoted(name: str) -> str:
    """A name of the model's, safe in a log line: escaped and short."""
    return repr(name if len(name) <= 64 else name[:61] + "...")


def _foreign_format(head: bytes) -> str | None:
    """The end of a sentence about the file that starts with `head` (at least 64 bytes if it has them), or None."""
    if not head:
        return "is empty"
    # A pickle of protocol 2 or later starts with its protocol number; up to 5 exist.
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return "looks like a Python pickle"
    return next((what for offset, magic, what in _FOREIGN_MAGIC if head[offset:].startswith(magic)), None)
