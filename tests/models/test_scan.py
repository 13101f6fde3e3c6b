"""The scan of a model file before the runtime opens it: what is refused, in which words, and what must pass."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, TrainingInfoProto
from onnx.helper import (
    make_attribute,
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
from gateway.models.scan import ScanLimits, ScanReport, scan
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
    nested_graphs,
    number,
    sparse,
    varint,
    weights,
    wire_model,
    wire_tensor,
)

OUTSIDE = "keeps its data outside the model file"


def refusal(crafted: ModelProto | bytes, limits: ScanLimits | None = None) -> str:
    """The sentence a model is refused with."""
    data = crafted if isinstance(crafted, bytes) else crafted.SerializeToString()
    with pytest.raises(LoadRejected) as caught:
        scan(data, limits or ScanLimits())
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message
    return caught.value.message


def report(good: ModelProto | bytes, limits: ScanLimits | None = None) -> ScanReport:
    """The report on a model that must pass."""
    return scan(good if isinstance(good, bytes) else good.SerializeToString(), limits or ScanLimits())


# Data outside the file


@pytest.mark.parametrize(
    "tensor",
    [
        external("/etc/passwd"),
        external("../../secret.bin"),
        external("C:\\secret.bin"),
        external("link_to_elsewhere"),
        external("linked_parent/weights.bin"),
        external("weights.bin", offset="-1"),
        external("weights.bin", length=str(10**15)),
        external("weights.bin", surprise="1"),
        external("*/_ORT_MEM_ADDR_/*", offset="140737488355328", length="8"),
        external(""),
    ],
    ids=lambda tensor: tensor.external_data[0].value or "empty",
)
def test_external_data_of_any_kind_is_refused_and_only_the_tensor_is_named(tensor: TensorProto) -> None:
    assert refusal(model(initializers=[tensor])) == (
        "Initialiser 'weights' keeps its data outside the model file, which is not allowed."
    )


def test_external_entries_are_refused_although_the_location_says_the_data_is_inside() -> None:
    tensor = weights()
    tensor.external_data.add(key="location", value="/etc/passwd")
    assert OUTSIDE in refusal(model(initializers=[tensor]))


def test_an_external_location_is_refused_although_there_are_no_entries() -> None:
    tensor = weights()
    tensor.data_location = TensorProto.EXTERNAL
    assert OUTSIDE in refusal(model(initializers=[tensor]))


def test_an_external_location_written_with_more_than_32_bits_is_refused() -> None:
    """Parsers cut an enum to 32 bits, so this number is EXTERNAL to them."""
    crafted = wire_tensor("w", number(1, 0), number(2, 1), number(14, (1 << 32) + 1))
    assert ModelProto.FromString(crafted).graph.initializer[0].data_location == TensorProto.EXTERNAL
    assert OUTSIDE in refusal(crafted)


def test_an_external_location_that_a_later_field_takes_back_is_refused() -> None:
    assert OUTSIDE in refusal(wire_tensor("w", number(1, 0), number(2, 1), number(14, 1), number(14, 0)))


def test_external_data_in_a_sparse_initialiser_is_refused() -> None:
    assert refusal(model(sparse=[sparse(external())])).startswith("Sparse initialiser 'weights' keeps its data outside")


def test_external_data_in_the_indices_of_a_sparse_initialiser_is_refused() -> None:
    assert OUTSIDE in refusal(model(sparse=[sparse(weights(), indices=external(name="at"))]))


def test_external_data_in_a_constant_is_refused_and_its_node_named() -> None:
    message = refusal(model([constant(external())]))
    assert message.startswith("Node 'the_constant', in an attribute: tensor 'weights' keeps its data outside")


def test_external_data_in_a_list_of_tensors_is_refused() -> None:
    assert OUTSIDE in refusal(model([holder(tensors=[weights(), external()])]))


def test_external_data_in_a_sparse_constant_is_refused() -> None:
    assert OUTSIDE in refusal(model([holder(sparse_tensor=sparse(external()))]))


def test_external_data_in_a_list_of_sparse_tensors_is_refused() -> None:
    assert OUTSIDE in refusal(model([holder(sparse_tensors=[sparse(weights()), sparse(external())])]))


def test_external_data_in_an_attribute_that_says_it_is_an_integer_is_refused() -> None:
    assert OUTSIDE in refusal(model([holder(type=onnx.AttributeProto.INT, i=1, t=external())]))


@pytest.mark.parametrize("branch", ["then_branch", "else_branch"])
def test_external_data_in_a_branch_of_an_if_is_refused(branch: str) -> None:
    branches = {"then_branch": graph_of(), "else_branch": graph_of(), branch: graph_of(initializers=[external()])}
    assert OUTSIDE in refusal(model([make_node("If", ["x"], ["z"], **branches)]))


def test_external_data_in_the_body_of_a_loop_is_refused() -> None:
    assert OUTSIDE in refusal(model([make_node("Loop", ["", "", "x"], ["z"], body=graph_of(constant(external())))]))


def test_external_data_in_a_scan_within_an_if_within_a_loop_is_refused() -> None:
    inner = make_node("Scan", ["x"], ["y"], body=graph_of(initializers=[external()]), num_scan_inputs=1)
    middle = make_node("If", ["x"], ["y"], then_branch=graph_of(inner), else_branch=graph_of())
    assert OUTSIDE in refusal(model([make_node("Loop", ["", "", "x"], ["z"], body=graph_of(middle))]))


def test_external_data_in_a_list_of_graphs_is_refused() -> None:
    assert OUTSIDE in refusal(model([holder(graphs=[graph_of(), graph_of(initializers=[external()])])]))


def test_external_data_in_the_second_of_two_pieces_of_a_graph_is_refused() -> None:
    """Protobuf merges two occurrences of the model's graph into one."""
    crafted = model().SerializeToString() + block(7, graph_of(initializers=[external()]).SerializeToString())
    assert ModelProto.FromString(crafted).graph.initializer[0].external_data
    assert OUTSIDE in refusal(crafted)


def test_external_data_in_the_first_of_two_pieces_of_a_tensor_is_refused() -> None:
    pieces = block(5, external().SerializeToString()) + block(5, weights("late").SerializeToString())
    assert OUTSIDE in refusal(wire_model(block(1, block(4, b"Constant") + block(5, pieces))))


def test_external_data_in_a_function_is_refused() -> None:
    crafted = model([call("f")], functions=[function("f", constant(external()))], domains=["local"])
    assert OUTSIDE in refusal(crafted)


def test_external_data_in_a_function_that_nobody_calls_is_refused() -> None:
    assert OUTSIDE in refusal(model(functions=[function("f", constant(external()))]))


def test_external_data_in_the_default_of_a_function_attribute_is_refused() -> None:
    crafted = function("f")
    crafted.attribute_proto.append(make_attribute("default", external()))
    message = refusal(model(functions=[crafted]))
    assert message.startswith("Function 'f', in an attribute: tensor 'weights' keeps its data outside")


@pytest.mark.parametrize("part", ["initialization", "algorithm"])
def test_external_data_in_a_training_graph_is_refused(part: str) -> None:
    crafted = model()
    crafted.training_info.append(TrainingInfoProto(**{part: graph_of(initializers=[external()])}))
    assert OUTSIDE in refusal(crafted)


# Sizes


def test_a_file_over_the_limit_is_refused_unread() -> None:
    data = model().SerializeToString()
    assert report(data, ScanLimits(max_file_bytes=len(data))).node_count == 1
    assert f"over the limit of {len(data) - 1:,}" in refusal(data, ScanLimits(max_file_bytes=len(data) - 1))


def test_more_than_50000_nodes_are_refused() -> None:
    node = block(1, block(4, b"Identity"))
    assert report(wire_model(node * 50_000)).node_count == 50_000
    assert refusal(wire_model(node * 50_001)) == "The model has 50,001 nodes, over the limit of 50,000."


def test_nodes_are_counted_over_all_graphs_and_functions() -> None:
    branch = make_node("If", ["x"], ["z"], then_branch=graph_of(*[make_node("Identity", ["x"], ["y"])] * 2))
    crafted = model([branch], functions=[function("f", make_node("Identity", ["x"], ["y"]))])
    crafted.training_info.append(TrainingInfoProto(algorithm=graph_of(make_node("Identity", ["x"], ["y"]))))
    assert report(crafted, ScanLimits(max_nodes=6)).node_count == 6
    assert "The model has 6 nodes, over the limit of 5" in refusal(crafted, ScanLimits(max_nodes=5))


def test_sixteen_levels_of_sub_graphs_pass_and_seventeen_are_refused() -> None:
    assert report(nested_graphs(16)).node_count == 16
    assert refusal(nested_graphs(17)) == "The model nests sub-graphs deeper than 16 levels."


def test_ten_thousand_nested_sub_graphs_are_refused_without_exhausting_the_stack() -> None:
    assert "deeper than 16 levels" in refusal(nested_graphs(10_000))


def test_more_than_10000_initialisers_are_refused() -> None:
    tensor = block(5, number(1, 0) + number(2, 1))
    assert report(wire_model(tensor * 10_000)).initializer_bytes == 0
    assert refusal(wire_model(tensor * 10_001)) == "The model has 10,001 initialisers, over the limit of 10,000."


def test_more_inputs_than_any_model_has_are_refused() -> None:
    crafted = wire_model(block(11, block(1, b"x")) * 3)
    assert len(report(crafted, ScanLimits(max_values=3)).unranked_inputs) == 3
    assert refusal(crafted, ScanLimits(max_values=2)) == "The model has 3 inputs, over the limit of 2."


def test_millions_of_empty_fields_are_refused_before_they_take_time_or_memory() -> None:
    assert "more than 2,000,000 protobuf fields" in refusal(wire_model(b"", block(14, b"") * 2_000_001))


def test_the_fields_of_all_messages_count_towards_the_limit() -> None:
    crafted = wire_model(block(1, block(4, b"Identity")) * 5)
    assert report(crafted, ScanLimits(max_fields=14)).node_count == 5
    assert refusal(crafted, ScanLimits(max_fields=13)) == "The model has more than 13 protobuf fields."


def test_a_negative_dimension_is_refused() -> None:
    crafted = wire_tensor("w", number(1, -1), number(2, 1))
    assert refusal(crafted) == "Initialiser 'w' has the negative dimension -1."


def test_a_negative_dimension_in_a_packed_list_is_refused() -> None:
    crafted = wire_tensor("w", block(1, varint(2) + varint(-(2**63))), number(2, 1))
    assert f"negative dimension {-(2**63)}" in refusal(crafted)


def test_a_negative_dimension_of_a_sparse_tensor_is_refused() -> None:
    assert "negative dimension -10" in refusal(model(sparse=[sparse(weights(), dims=[-10])]))


def test_dimensions_whose_product_overflows_64_bits_to_a_small_number_are_refused() -> None:
    crafted = wire_tensor("w", number(1, 2**4), number(1, 2**60 + 2), number(2, 1), block(9, bytes(128)))
    assert f"{2**64 + 32:,} elements, over the limit" in refusal(crafted)


def test_an_absurd_dimension_beside_a_zero_is_refused() -> None:
    assert "over the limit of 2,147,483,648" in refusal(wire_tensor("w", number(1, 2**62), number(1, 0), number(2, 1)))


def test_a_small_sparse_tensor_that_is_huge_when_dense_is_refused() -> None:
    assert "over the limit of 2,147,483,648" in refusal(model(sparse=[sparse(weights(), dims=[2**20, 2**20])]))


def test_dimensions_both_packed_and_not_are_all_counted() -> None:
    crafted = wire_tensor("w", number(1, 2), block(1, varint(3) + varint(5)), number(2, 1), block(9, bytes(120)))
    assert list(ModelProto.FromString(crafted).graph.initializer[0].dims) == [2, 3, 5]
    assert report(crafted).initializer_bytes == 120


def test_more_than_sixteen_dimensions_are_refused() -> None:
    assert report(wire_tensor("w", block(1, b"\x01" * 16), number(2, 1), block(9, bytes(4)))).initializer_bytes == 4
    assert "more than 16 dimensions" in refusal(wire_tensor("w", block(1, b"\x01" * 17), number(2, 1)))


def test_an_input_of_more_than_sixteen_dimensions_is_refused() -> None:
    crafted = model()
    crafted.graph.input.append(make_tensor_value_info("wide", TensorProto.FLOAT, [1] * 17))
    assert refusal(crafted) == "The input 'wide' has more than 16 dimensions."


@pytest.mark.parametrize("nbytes", [0, 23, 25, 4096])
def test_raw_data_of_another_length_than_the_shape_needs_is_refused(nbytes: int) -> None:
    crafted = wire_tensor("w", block(1, varint(2) + varint(3)), number(2, 1), block(9, bytes(nbytes)))
    assert refusal(crafted) == f"Initialiser 'w' of shape [2, 3] needs 24 bytes of data but has {nbytes:,}."


def test_a_tensor_that_promises_a_gigabyte_and_holds_nothing_is_refused() -> None:
    assert "needs 268,435,456 values but has 0" in refusal(wire_tensor("w", number(1, 2**28), number(2, 1)))


@pytest.mark.parametrize("dtype", sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}))
def test_a_tensor_of_every_type_passes_as_stored_by_onnx_and_with_one_value_less_is_refused(dtype: int) -> None:
    values = ["a", "b", "c"] if dtype == TensorProto.STRING else [1, 0, 1]
    tensor = make_tensor("w", dtype, [3], values)
    assert report(model(initializers=[tensor])).initializer_bytes > 0
    field = onnx.helper.tensor_dtype_to_field(dtype)
    del getattr(tensor, field)[-1]
    assert "values but has" in refusal(model(initializers=[tensor]))
    if dtype != TensorProto.STRING:
        raw = onnx.numpy_helper.from_array(np.array(values).astype(onnx.helper.tensor_dtype_to_np_dtype(dtype)), "w")
        assert (raw.data_type, report(model(initializers=[raw])).initializer_bytes) == (dtype, len(raw.raw_data))
        raw.raw_data += b"\0"
        assert "bytes of data but has" in refusal(model(initializers=[raw]))


def test_an_unknown_element_type_is_refused() -> None:
    assert refusal(wire_tensor("w", number(2, 99))) == "Initialiser 'w' has the unknown element type 99."


def test_an_element_type_written_with_more_than_32_bits_is_read_as_parsers_read_it() -> None:
    crafted = wire_tensor("w", number(1, 2), number(2, (1 << 32) + TensorProto.INT8), block(9, bytes(2)))
    assert ModelProto.FromString(crafted).graph.initializer[0].data_type == TensorProto.INT8
    assert report(crafted).initializer_bytes == 2


def test_two_pieces_of_a_typed_field_are_counted_together() -> None:
    tensor = number(1, 4), number(2, 7), block(7, varint(300) + varint(2)), number(7, 3), number(7, -1)
    assert ModelProto.FromString(wire_tensor("w", *tensor)).graph.initializer[0].int64_data == [300, 2, 3, -1]
    assert report(wire_tensor("w", *tensor)).initializer_bytes == 14


@pytest.mark.parametrize(("op", "inputs"), [("ConstantOfShape", ["s"]), ("Expand", ["x", "s"]), ("Tile", ["x", "s"])])
@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
def test_a_node_told_by_an_initialiser_to_make_a_huge_tensor_is_refused(op: str, inputs: list[str], raw: bool) -> None:
    huge = np.array([2**20, 2**20], np.int64)
    shape = make_tensor("s", TensorProto.INT64, [2], huge.tobytes() if raw else huge.tolist(), raw=raw)
    node = make_node(op, inputs, ["z"], name="bomb")
    assert refusal(model([node], [shape])) == (
        f"Node 'bomb' ({op}) makes a tensor of 1,099,511,627,776 elements or more, over the limit of 2,147,483,648."
    )
    assert report(model([node], [make_tensor("s", TensorProto.INT64, [2], [3, 4])])).node_count == 2


def test_a_node_told_by_a_constant_of_an_outer_graph_to_make_a_huge_tensor_is_refused() -> None:
    shape = constant(make_tensor("", TensorProto.INT64, [1], [2**40]), "s")
    branch = graph_of(make_node("ConstantOfShape", ["s"], ["y"]))
    crafted = model([shape, make_node("If", ["x"], ["z"], then_branch=branch, else_branch=graph_of())])
    assert "An unnamed 'ConstantOfShape' node (ConstantOfShape) makes a tensor of" in refusal(crafted)


def test_an_initialiser_of_a_sub_graph_does_not_outlive_it() -> None:
    inner = graph_of(initializers=[make_tensor("s", TensorProto.INT64, [1], [2**40])])
    crafted = model([make_node("If", ["x"], ["z"], then_branch=inner), make_node("ConstantOfShape", ["s"], ["y"])])
    assert report(crafted).node_count == 3


def test_a_name_of_more_than_4096_bytes_is_refused() -> None:
    assert report(model([make_node("O" * 4096, ["x"], ["y"])])).node_count == 2
    assert "4,097 bytes long" in refusal(model([make_node("O" * 4097, ["x"], ["y"])]))


def test_names_are_escaped_and_shortened_in_a_refusal() -> None:
    message = refusal(model(initializers=[external(name="evil\n\x1b[31m" + "a" * 100)]))
    assert message.startswith("Initialiser 'evil\\n\\x1b[31maaaa")
    assert len(message) < 160


# Operators


def test_a_custom_domain_is_refused_and_the_node_named() -> None:
    crafted = model([make_node("Magic", ["x"], ["z"], domain="com.example", name="wand")])
    assert refusal(crafted) == "Node 'wand' uses operators of domain 'com.example', which is not allowed."


def test_the_last_of_two_domains_of_a_node_counts_as_it_does_for_parsers() -> None:
    crafted = wire_model(block(1, block(4, b"Relu") + block(7, b"ai.onnx") + block(7, b"com.example")))
    assert ModelProto.FromString(crafted).graph.node[0].domain == "com.example"
    assert "'com.example'" in refusal(crafted)


def test_a_custom_domain_in_a_sub_graph_is_refused() -> None:
    branch = graph_of(make_node("Magic", ["x"], ["y"], domain="com.example", name="wand"))
    assert "Node 'wand'" in refusal(model([make_node("If", ["x"], ["z"], then_branch=branch)]))


def test_a_custom_domain_in_a_function_is_refused() -> None:
    crafted = model(functions=[function("f", make_node("Magic", ["x"], ["y"], domain="com.example", name="wand"))])
    assert "Node 'wand'" in refusal(crafted)


@pytest.mark.parametrize("domain", ["com.example", "ai.onnx\0"])
def test_importing_the_operators_of_a_domain_that_is_not_allowed_is_refused(domain: str) -> None:
    message = refusal(model(domains=[domain]))
    assert message == f"Operators of domain {domain!r}, imported by the model, are not allowed."


@pytest.mark.parametrize("domain", ["ai.onnx.training", "ai.onnx.preview.training", "com.microsoft.nchwc"])
def test_a_domain_of_the_runtime_may_be_imported_but_not_used(domain: str) -> None:
    assert report(model(domains=[domain])).opsets[domain] == 1
    used = model([make_node("Magic", ["x"], ["y"], domain=domain, name="wand")], domains=[domain])
    assert refusal(used) == f"Node 'wand' uses operators of domain {domain!r}, which is not allowed."


def test_a_function_that_imports_a_domain_that_is_not_allowed_is_refused() -> None:
    crafted = function("f")
    crafted.opset_import.add(domain="com.example", version=1)
    assert "imported by function 'f'" in refusal(model(functions=[crafted]))


@pytest.mark.parametrize("domain", ["com.microsoft", "org.pytorch.aten", "local", ""])
@pytest.mark.parametrize("op", ["ATen", "PythonOp", "EPContext"])
def test_an_operator_that_reaches_outside_is_refused_by_name_in_any_domain(op: str, domain: str) -> None:
    crafted = model([make_node(op, ["x"], ["z"], domain=domain, name="escape")])
    assert refusal(crafted) == f"Node 'escape' uses {op}, which reaches outside the model and is not allowed."


def test_the_allowed_domains_pass_under_either_name_of_the_default_one() -> None:
    nodes = [
        make_node("Relu", ["x"], ["a"], domain="ai.onnx"),
        make_node("Scaler", ["a"], ["b"], domain="ai.onnx.ml"),
        make_node("Gelu", ["b"], ["c"], domain="com.microsoft"),
    ]
    seen = report(model(nodes, domains=["ai.onnx", "ai.onnx.ml", "com.microsoft"]))
    assert seen.op_types == {"Identity": 1, "Relu": 1, "ai.onnx.ml:Scaler": 1, "com.microsoft:Gelu": 1}


def test_a_function_of_the_model_in_a_domain_of_its_own_passes() -> None:
    crafted = model([call("f")], functions=[function("f", make_node("Relu", ["x"], ["y"]))], domains=["local"])
    seen = report(crafted)
    assert (seen.node_count, seen.op_types["local:f"], seen.opsets) == (3, 1, {"": 18, "local": 1})


def test_an_operator_that_the_functions_of_its_domain_do_not_define_is_refused() -> None:
    crafted = model([call("g")], functions=[function("f", make_node("Relu", ["x"], ["y"]))], domains=["local"])
    assert refusal(crafted) == "Node 'call_g' uses operators of domain 'local', which is not allowed."


def test_an_overload_that_the_functions_do_not_define_is_refused() -> None:
    node = call("f")
    node.overload = "other"
    assert "Node 'call_f' uses operators of domain 'local'" in refusal(model([node], functions=[function("f")]))


@pytest.mark.parametrize("domain", ["ai.onnx.preview.training", "com.microsoft.nchwc", "org.pytorch.aten"])
def test_a_function_may_not_pose_as_an_operator_of_the_runtime(domain: str) -> None:
    message = refusal(model(functions=[function("Adam", domain=domain)]))
    assert message == f"Function 'Adam' is in the reserved domain {domain!r}."


def test_a_function_may_not_take_the_name_of_an_operator_that_reaches_outside() -> None:
    assert "Function 'ATen' has the name" in refusal(model(functions=[function("ATen")]))


def test_a_function_that_calls_itself_through_another_is_refused() -> None:
    assert refusal(model(functions=[function("f", call("g")), function("g", call("f"))])).endswith("calls itself.")


def test_functions_that_double_the_nodes_at_every_level_are_refused() -> None:
    """Forty functions of two nodes each are a million million nodes once inlined."""
    functions = [function(f"f{level}", call(f"f{level + 1}"), call(f"f{level + 1}")) for level in range(40)]
    message = refusal(model([call("f0")], functions=[*functions, function("f40", make_node("Relu", ["x"], ["y"]))]))
    assert "nodes once function 'f" in message


def test_a_function_called_more_often_than_the_node_limit_allows_is_refused() -> None:
    relu = make_node("Relu", ["x"], ["y"])
    crafted = model([call("f")] * 4, functions=[function("f", relu, relu)], domains=["local"])
    assert report(crafted, ScanLimits(max_nodes=13)).node_count == 7
    assert "The model has 13 nodes once its functions are inlined" in refusal(crafted, ScanLimits(max_nodes=12))


def test_a_long_chain_of_function_calls_is_refused() -> None:
    chain = [function(f"f{level}", call(f"f{level + 1}")) for level in range(5000)]
    message = refusal(model([call("f0")], functions=[*chain, function("f5000")]))
    assert "nests calls deeper than 64 levels" in message


# Files that are no ONNX model


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"\x18\x00\x00\x00ORTM" + bytes(64), "flatbuffer format of ONNX Runtime"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(64), "TensorFlow Lite"),
        (b"\x80\x04\x95" + bytes(64), "Python pickle"),
        (b"PK\x03\x04" + bytes(64), "zip archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b"GGUF" + bytes(64), "GGUF"),
        (b"\x1f\x8b\x08" + bytes(64), "gzip"),
        (b"\x7fELF" + bytes(64), "executable"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b'{"learner": {}}', "JSON"),
        (b'\x40\x00\x00\x00\x00\x00\x00\x00{"w":', "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_another_kind_of_file_is_refused_and_told_what_it_looks_like(data: bytes, words: str) -> None:
    message = refusal(data)
    assert message.startswith("The model file is not an ONNX model: it ")
    assert words in message


def test_a_model_that_the_runtime_would_take_for_its_own_format_is_refused() -> None:
    """The runtime decides by the bytes 4 to 7 alone, and these are a valid model besides."""
    crafted = model()
    crafted.producer_name = "ORTM"
    assert crafted.SerializeToString()[4:8] == b"ORTM"
    assert "flatbuffer format of ONNX Runtime" in refusal(crafted)


def test_a_model_without_a_graph_is_refused() -> None:
    assert refusal(number(1, 8)) == "The model file is not an ONNX model: it holds no graph."


@pytest.mark.parametrize("version", [b"", number(1, 0), number(1, -3)])
def test_a_model_without_an_ir_version_is_refused(version: bytes) -> None:
    assert refusal(version + block(7, b"")) == "The model file is not an ONNX model: it names no IR version."


def test_a_serialised_tensor_is_refused() -> None:
    refusal(weights().SerializeToString())


# Bytes that are not well-formed


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (number(1, 1)[:1] + b"\x80" * 10 + b"\x01", "longer than 10 bytes"),
        (number(1, 1)[:1] + b"\xff" * 11, "longer than 10 bytes"),
        (b"\x08\x80", "cut off"),
        (b"\x80", "cut off"),
        (b"\x3a", "cut off"),
        (b"\x3a\x05abc", "runs past the end"),
        (b"\x3a" + varint(2**31) + b"abc", "runs past the end"),
        (b"\x3a" + varint(2**63) + b"abc", "runs past the end"),
        (b"\x99\x06" + bytes(7), "runs past the end"),
        (b"\x9d\x06" + bytes(3), "runs past the end"),
        (number(7, 1), "field 7 at byte"),
        (block(1, b"\x08"), "field 1 at byte"),
        (block(5, b"\x08"), "field 5 at byte"),
        (b"\x3d" + bytes(4), "is stored as 4 bytes"),
        (b"\xa3\x06\xa4\x06", "a group"),
        (b"\xa4\x06", "the end of a group"),
        (b"\x0e", "type 6"),
        (b"\x0f", "type 7"),
        (b"\x00\x00", "impossible number 0"),
        (varint((1 << 35) | 8) + b"\x01", "impossible number"),
    ],
)
def test_malformed_bytes_are_refused(tail: bytes, words: str) -> None:
    message = refusal(model().SerializeToString() + tail)
    assert message.startswith("The model file is not a well-formed ONNX model: ")
    assert words in message


def test_a_number_of_a_packed_field_that_is_cut_off_is_refused() -> None:
    assert "cut off" in refusal(wire_tensor("w", number(1, 1), number(2, 6), block(5, b"\x80")))
    assert "cut off" in refusal(wire_tensor("w", block(1, b"\x80"), number(2, 6)))


def test_a_long_number_within_a_run_of_integers_is_refused() -> None:
    run = number(8, 1) * 3 + number(8, 1)[:1] + b"\x80" * 10 + b"\x01"
    assert "longer than 10 bytes" in refusal(wire_model(block(1, block(4, b"Scaler") + block(5, run))))


def test_fields_that_later_releases_may_add_are_passed_over() -> None:
    unknown = number(100, 7) + block(101, b"later") + b"\xb1\x06" + bytes(8) + b"\xb5\x06" + bytes(4)
    node = block(1, block(4, b"Relu") + unknown)
    tensor = block(5, number(1, 1) + number(2, 1) + block(9, bytes(4)) + unknown)
    seen = report(wire_model(node + tensor + unknown, unknown))
    assert (seen.node_count, seen.initializer_bytes) == (1, 4)


def test_an_input_with_two_types_is_refused() -> None:
    both = block(1, number(1, 1)) + block(4, b"")
    crafted = wire_model(block(11, block(1, b"x") + block(2, both)))
    assert refusal(crafted) == "The input 'x' has several types at once."


def test_any_buffer_of_bytes_can_be_scanned() -> None:
    data = model().SerializeToString()
    assert scan(memoryview(data)) == scan(data) == scan(memoryview(np.frombuffer(data, np.int8)))


# Against the onnx package


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


# Cost


def test_a_large_model_is_scanned_in_place_within_milliseconds() -> None:
    data = wire_tensor("w", number(1, 25 << 20), number(2, 1), block(9, bytes(100 << 20)))
    tracemalloc.start()
    started = time.process_time()
    assert report(data).initializer_bytes == 100 << 20
    elapsed_s = time.process_time() - started
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20
    assert elapsed_s < 0.1


def test_fifty_thousand_nodes_are_scanned_within_seconds() -> None:
    node = make_node("Conv", ["x", "w", "b"], ["y"], name="/layer/conv", kernel_shape=[3, 3], pads=[1] * 4, group=1)
    data = wire_model(block(1, node.SerializeToString()) * 50_000)
    started = time.process_time()
    assert report(data).op_types == {"Conv": 50_000}
    assert time.process_time() - started < 2


def test_a_tree_ensemble_of_a_million_nodes_is_scanned_within_a_second() -> None:
    """Its attributes hold several values per tree node, each a field of its own: far more than the limit of fields."""
    run = number(8, 70_000) * 1_000_000, b"\x3d\0\0\x80\x3f" * 1_000_000, block(9, b"BRANCH_LEQ") * 1_000_000
    attributes = b"".join(block(5, block(1, b"nodes") + values) for values in run)
    started = time.process_time()
    assert report(wire_model(block(1, block(4, b"TreeEnsemble") + attributes))).node_count == 1
    assert time.process_time() - started < 1
