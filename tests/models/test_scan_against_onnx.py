"""The scan of a model file beside the onnx package: over mutations, random bytes and all of its backend models."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto
from onnx.helper import (
    make_node,
    make_optional_type_proto,
    make_sequence_type_proto,
    make_tensor,
    make_tensor_sequence_value_info,
    make_tensor_type_proto,
    make_tensor_value_info,
    make_value_info,
)

from gateway.errors import LoadRejected
from gateway.models.scan import ScanReport, scan
from tests.models.bad_models import (
    all_graphs,
    all_tensors,
    block,
    call,
    constant,
    external,
    function,
    graph_of,
    holder,
    model,
    number,
    sparse,
    weights,
    wire_model,
)
from tests.models.scanning import report


def rich_model() -> ModelProto:
    """A small model with something of everything that is scanned."""
    branch = graph_of(
        constant(weights("inner"), "y"), initializers=[make_tensor("i4", TensorProto.INT4, [3], [1, 2, 3])]
    )
    rich = model(
        [make_node("If", ["x"], ["z"], then_branch=branch, else_branch=graph_of()), call("f")],
        [weights(), make_tensor("raw", TensorProto.INT64, [2], np.array([3, 4], np.int64).tobytes(), raw=True)],
        [sparse(weights("thin"))],
        [function("f", make_node("Relu", ["x"], ["y"]))],
        ["local", "ai.onnx.ml"],
    )
    rich.graph.node.append(holder(ints=[1, 300, -1], floats=[1.0, 2.0], strings=[b"BRANCH_LEQ", b"LEAF"]))
    rich.metadata_props.add(key="author", value="the crafted one")
    return rich


def external_variants() -> list[bytes]:
    """The same with external data in one place each."""
    variants = []
    for place in ("initializer", "inner", "function", "sparse"):
        rich = rich_model()
        {
            "initializer": rich.graph.initializer[0],
            "inner": rich.graph.node[1].attribute[1].g.node[0].attribute[0].t,
            "function": rich.functions[0].node[0].attribute.add(name="t").t,
            "sparse": rich.graph.sparse_initializer[0].values,
        }[place].CopyFrom(external())
        variants.append(rich.SerializeToString())
    return variants


def parsed(data: bytes) -> ModelProto | None:
    """The model as the onnx package reads it, if it does."""
    try:
        return ModelProto.FromString(data)
    except DecodeError:
        return None


def check_against_onnx(data: bytes) -> ScanReport | None:
    """Scan hostile bytes: never more than a refusal, and a report only if onnx finds nothing that had to be refused."""
    try:
        seen = scan(data)
    except LoadRejected:
        return None
    oracle = parsed(data)
    if oracle is not None:
        for tensor in all_tensors(oracle):
            assert tensor.data_location != TensorProto.EXTERNAL
            assert not tensor.external_data
            assert all(dim >= 0 for dim in tensor.dims)
        assert seen.node_count == sum(len(graph.node) for graph in all_graphs(oracle))
        assert seen.opsets == {opset.domain: opset.version for opset in oracle.opset_import}
        assert seen.metadata_props == len(oracle.metadata_props)
    return seen


def test_a_model_cut_at_any_byte_is_refused_or_reported() -> None:
    data = rich_model().SerializeToString()
    outcomes = [check_against_onnx(data[:size]) for size in range(len(data) + 1)]
    assert outcomes[-1] is not None
    assert sum(outcome is None for outcome in outcomes) > len(data) // 2


def test_ten_thousand_mutations_are_refused_or_reported_and_smuggle_nothing() -> None:
    """Half of them start from a model with external data: no flip of bytes may hide it from the scan alone."""
    rng = random.Random(20261121)
    seeds = [rich_model().SerializeToString()] * 4 + external_variants()
    passed = 0
    for round_ in range(10_000):
        data = bytearray(seeds[round_ % len(seeds)])
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    data[at] ^= 1 << rng.randrange(8)
                case 2:
                    del data[at : at + rng.randint(1, 8)]
                case _:
                    data[at:at] = rng.choice(seeds)[at : at + rng.randint(1, 40)]
        passed += check_against_onnx(bytes(data)) is not None
    assert 500 < passed < 9_500


def test_two_models_in_one_file_are_scanned_as_the_one_that_parsers_merge_them_to() -> None:
    seen = check_against_onnx(rich_model().SerializeToString() + model([constant(weights("w"))]).SerializeToString())
    assert seen is not None
    assert (seen.node_count, seen.initializer_bytes, seen.metadata_props) == (8, 36, 1)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_reported(data: bytes) -> None:
    check_against_onnx(data)


_PIECES = st.recursive(
    st.binary(max_size=6),
    lambda inner: st.lists(
        st.one_of(
            st.builds(number, st.integers(1, 26), st.integers(-3, 2**40)),
            st.builds(block, st.integers(1, 26), inner),
        ),
        max_size=6,
    ).map(b"".join),
    max_leaves=20,
)


@settings(max_examples=500, deadline=None)
@given(_PIECES)
def test_random_well_formed_messages_are_refused_or_reported(graph: bytes) -> None:
    check_against_onnx(wire_model(graph))
    check_against_onnx(wire_model(b"", graph))


def test_what_a_report_says_is_what_onnx_reads() -> None:
    rich = rich_model()
    rich.producer_version = "1.5"
    rich.graph.input.extend(
        [
            make_tensor_value_info("weights", TensorProto.FLOAT, [2]),
            make_tensor_value_info("scalar", TensorProto.FLOAT, []),
            make_tensor_value_info("unranked", TensorProto.FLOAT, None),
            make_value_info("maybe", make_optional_type_proto(make_tensor_type_proto(TensorProto.FLOAT, [1]))),
            onnx.ValueInfoProto(name="untyped"),
        ]
    )
    rich.graph.output.extend(
        [
            make_tensor_value_info("some", TensorProto.FLOAT, None),
            make_tensor_sequence_value_info("many", TensorProto.FLOAT, None),
            make_value_info(
                "nested", make_sequence_type_proto(make_sequence_type_proto(make_tensor_type_proto(1, [])))
            ),
        ]
    )
    assert report(rich) == ScanReport(
        ir_version=8,
        opsets={"": 18, "local": 1, "ai.onnx.ml": 1},
        producer="crafted 1.5",
        graph_name="crafted",
        node_count=6,
        initializer_bytes=8 + 16 + (8 + 2) + 2,
        op_types={"Identity": 2, "If": 1, "Constant": 1, "local:f": 1, "Relu": 1},
        unranked_inputs=("unranked", "untyped"),
        unranked_outputs=("some",),
        non_tensor=("maybe", "many", "nested"),
        defaulted_inputs=("weights",),
        metadata_props=1,
    )


BACKEND_TESTS = Path(onnx.__file__).parent / "backend" / "test" / "data"
# The only models of the onnx package with operators of domains that are not allowed.
NOT_ALLOWED = {
    "ai.onnx.preview.training": {
        *("adagrad", "adagrad_multiple", "adam", "adam_multiple", "momentum", "momentum_multiple"),
        *("nesterov_momentum", "gradient_of_add", "gradient_of_add_and_mul"),
    },
    "ai.onnx.preview": {
        f"flexattention{variant}"
        for variant in (
            *("", "_causal_mask", "_diff_head_sizes", "_double", "_fp16", "_gqa", "_prob_mod"),
            *("_relative_positional", "_scaled", "_score_mod", "_soft_cap"),
        )
    },
}


def test_every_backend_model_of_onnx_is_reported_as_onnx_reads_it() -> None:
    paths = sorted(BACKEND_TESTS.glob("*/test_*/model.onnx"))
    assert len(paths) > 1_800
    refused: dict[str, set[str]] = {domain: set() for domain in NOT_ALLOWED}
    for path in paths:
        data = path.read_bytes()
        oracle = ModelProto.FromString(data)
        try:
            seen = scan(data)
        except LoadRejected as error:
            refused[error.message.partition("domain '")[2].partition("'")[0]].add(
                path.parent.name.removeprefix("test_")
            )
            continue
        assert seen.node_count == sum(len(graph.node) for graph in all_graphs(oracle)), path.parent.name
        assert seen.opsets == {opset.domain: opset.version for opset in oracle.opset_import}, path.parent.name
        assert (seen.unranked_inputs, seen.unranked_outputs, seen.non_tensor) == kinds(oracle), path.parent.name
        initializers = {tensor.name for tensor in oracle.graph.initializer}
        assert seen.defaulted_inputs == tuple(i.name for i in oracle.graph.input if i.name in initializers)
        assert seen.metadata_props == len(oracle.metadata_props)
    assert refused == NOT_ALLOWED


def kinds(oracle: ModelProto) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The unranked inputs, the unranked outputs and the values that are no tensors, by onnx."""
    unranked = [
        tuple(
            value.name
            for value in values
            if value.type.WhichOneof("value") in (None, "tensor_type") and not value.type.tensor_type.HasField("shape")
        )
        for values in (oracle.graph.input, oracle.graph.output)
    ]
    non_tensor = tuple(
        value.name
        for value in (*oracle.graph.input, *oracle.graph.output)
        if value.type.WhichOneof("value") not in (None, "tensor_type")
    )
    return unranked[0], unranked[1], non_tensor
