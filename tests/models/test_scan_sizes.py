"""The scan of a model file: what is too large, or would become it, is refused before it takes time or memory."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, TrainingInfoProto
from onnx.helper import (
    make_node,
    make_tensor,
    make_tensor_value_info,
)

from gateway.models.scan import ScanLimits
from tests.models.bad_models import (
    block,
    constant,
    external,
    function,
    graph_of,
    model,
    nested_graphs,
    number,
    sparse,
    varint,
    weights,
    wire_model,
    wire_tensor,
)
from tests.models.scanning import refusal, report

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
