"""The models of the benchmark: two that ship as examples, four made here from seeded numbers, the same every time.

======== ============================= ========================================================================
tiny     x FP32[n,30]                  logistic regression, from examples/
flights  10 FP32[n,1], 3 BYTES[n,1]    boosted trees over one-hot strings, from examples/ (version 2)
trees    x FP32[n,100]                 300 boosted trees of depth 3 (scikit-learn's default), two classes
mlp      x FP32[n,512]                 512-1024-1024-10 with ReLU and softmax
conv     x FP32[n,3,224,224]           the layers of ResNet-18 (batch norm folded), 11.7 million weights
identity x FP32[n,16]                  y = x: every answer can be told from every other one
======== ============================= ========================================================================

Nothing is trained: weights and thresholds are random, which takes as long to compute as learned ones.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

EXAMPLES = ("tiny", "flights")
TOML = "[session]\nintra_op_threads = 1\n"
"""One thread everywhere, so that what is compared is the server and not how ONNX Runtime divides a core."""

Dims = Sequence[int | str]
Floats = NDArray[np.float32]


def write(folder: Path, examples: Path, names: Sequence[str]) -> None:
    """Write the models `names` as a repository into `folder`; those that ship are copied from `examples`."""
    for name in names:
        target = folder / name
        if name in EXAMPLES:
            shutil.copytree(examples / name, target, ignore=shutil.ignore_patterns("*.py", "*.md", "__pycache__"))
            continue
        (target / "1").mkdir(parents=True)
        (target / "1" / "model.onnx").write_bytes(MADE[name]())
        (target / "model.toml").write_text(TOML)


def trees(count: int = 300, depth: int = 3, features: int = 100) -> bytes:
    """`count` complete trees; thresholds are drawn like the inputs, so that every path is taken."""
    random = np.random.default_rng(300)
    inner, leaves = 2**depth - 1, 2**depth
    size = inner + leaves
    node = np.tile(np.arange(size), count)
    tree = np.repeat(np.arange(count), size)
    is_inner = node < inner
    thresholds = np.where(is_inner, random.standard_normal(node.size), 0).astype(np.float32)
    split = helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        classlabels_int64s=[0, 1],
        post_transform="LOGISTIC",
        base_values=[-0.25],
        nodes_treeids=tree.tolist(),
        nodes_nodeids=node.tolist(),
        nodes_modes=np.where(is_inner, "BRANCH_LEQ", "LEAF").tolist(),
        nodes_featureids=np.where(is_inner, random.integers(0, features, node.size), 0).tolist(),
        nodes_values=thresholds.tolist(),
        nodes_hitrates=np.ones(node.size).tolist(),
        nodes_truenodeids=np.where(is_inner, 2 * node + 1, 0).tolist(),
        nodes_falsenodeids=np.where(is_inner, 2 * node + 2, 0).tolist(),
        nodes_missing_value_tracks_true=np.zeros(node.size, int).tolist(),
        class_treeids=tree[~is_inner].tolist(),
        class_nodeids=node[~is_inner].tolist(),
        class_ids=np.zeros(count * leaves, int).tolist(),
        class_weights=random.normal(0, 0.1, count * leaves).astype(np.float32).tolist(),
    )
    outputs = [("label", TensorProto.INT64, ("n",)), ("probabilities", TensorProto.FLOAT, ("n", 2))]
    return _model([split], ("n", features), outputs, {})


def mlp(widths: Sequence[int] = (512, 1024, 1024, 10)) -> bytes:
    """Fully connected layers with ReLU between them and softmax at the end."""
    random = np.random.default_rng(512)
    weights: dict[str, Floats] = {}
    nodes: list[NodeProto] = []
    last = "x"
    for layer, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
        weights[f"w{layer}"] = _scaled(random, (fan_in, fan_out), fan_in)
        weights[f"b{layer}"] = np.zeros(fan_out, np.float32)
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"z{layer}"]))
        last = f"z{layer}"
        if layer < len(widths) - 2:
            nodes.append(helper.make_node("Relu", [last], [f"a{layer}"]))
            last = f"a{layer}"
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=1))
    return _model(nodes, ("n", widths[0]), [("probabilities", TensorProto.FLOAT, ("n", widths[-1]))], weights)


def conv() -> bytes:
    """ResNet-18 (He and others, 2016): a 7x7 stem, four stages of two residual blocks, mean pooling, 1000 classes."""
    random = np.random.default_rng(224)
    weights: dict[str, Floats] = {}
    nodes: list[NodeProto] = []

    def node(kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def convolution(name: str, source: str, channels: tuple[int, int], kernel: int, stride: int) -> str:
        fan_in, fan_out = channels
        # The blocks' sums would double the variance eighteen times over, and softmax see nothing but infinities.
        weights[f"{name}.w"] = _scaled(
            random, (fan_out, fan_in, kernel, kernel), fan_in * kernel * kernel
        ) * np.float32(0.7)
        weights[f"{name}.b"] = np.zeros(fan_out, np.float32)
        return node("Conv", name, [source, f"{name}.w", f"{name}.b"], strides=[stride] * 2, pads=[kernel // 2] * 4)

    last = node("Relu", "stem.relu", [convolution("stem", "x", (3, 64), 7, 2)])
    last = node("MaxPool", "stem.pool", [last], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    width = 64
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            name, stride = f"s{stage}b{block}", 2 if stage and not block else 1
            inner = node("Relu", f"{name}.r1", [convolution(f"{name}.c1", last, (width, channels), 3, stride)])
            inner = convolution(f"{name}.c2", inner, (channels, channels), 3, 1)
            side = last if width == channels else convolution(f"{name}.side", last, (width, channels), 1, stride)
            last = node("Relu", f"{name}.r2", [node("Add", f"{name}.sum", [inner, side])])
            width = channels
    last = node("Flatten", "flat", [node("GlobalAveragePool", "mean", [last])])
    weights["head.w"] = _scaled(random, (width, 1000), width)
    last = node("Gemm", "head", [last, "head.w"])
    node("Softmax", "probabilities", [last], axis=1)
    outputs = [("probabilities", TensorProto.FLOAT, ("n", 1000))]
    return _model(nodes, ("n", 3, 224, 224), outputs, weights)


def identity(width: int = 16) -> bytes:
    """y = x."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return _model(nodes, ("n", width), [("y", TensorProto.FLOAT, ("n", width))], {})


MADE: dict[str, Callable[[], bytes]] = {"trees": trees, "mlp": mlp, "conv": conv, "identity": identity}


def _scaled(random: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Floats:
    """Weights whose layer keeps the variance of its inputs through a ReLU."""
    return random.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / fan_in))


def _model(
    nodes: Sequence[NodeProto], dims: Dims, outputs: Sequence[tuple[str, int, Dims]], weights: dict[str, Floats]
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "loadtests",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="headgate-loadtests")
    return bytes(model.SerializeToString(deterministic=True))
